"""Pictures of learning from preferences, drawn without a display."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmgym.plots import running_mean

BLUE, RED, GREEN, PURPLE, GREY, INK = "#4269d0", "#ff725c", "#3ca951", "#a463f2", "#6b7280", "#111827"


def rounds_picture(rows: Sequence[Mapping[str, Any]], path: str | Path, *, title: str = "") -> None:
    """How the policies of an RLHF run follow one another: accuracy, the reward model's accuracy, KL; 95 % intervals.

    Learned rewards are not drawn: those of two rounds are two scales.

    Args:
        rows: what `RLHF.run` returns.
        path: the PNG file, replaced in one step.
        title: over the picture.
    """
    figure, axes = canvas(3, title)
    for axis, label, points, colour in zip(
        axes,
        (
            "true accuracy, held-out problems",
            "reward model right, held-out pairs",
            "KL to the SFT model, nats an episode",
        ),
        ([_mean(row, "accuracy") for row in rows], [_judge(row) for row in rows], [_mean(row, "kl") for row in rows]),
        (BLUE, PURPLE, GREEN),
        strict=True,
    ):
        y, low, high = np.array(points, float).T
        axis.errorbar(range(len(rows)), y, [y - low, high - y], fmt="o-", color=colour, lw=1.6, ms=5, capsize=3)
        axis.set_xticks(range(len(rows)), [row["name"] for row in rows], rotation=30 if len(rows) > 4 else 0)
        axis.set_xlim(-0.4, len(rows) - 0.6)
        dress(axis, label)
    share(axes[0])
    share(axes[1])
    axes[2].set_ylim(bottom=0)
    save(figure, path)


def _mean(row: Mapping[str, Any], key: str) -> tuple[float, float, float]:
    """A mean with its 95 % interval; NaN where it was not measured."""
    if row[key] is None:
        return np.nan, np.nan, np.nan
    half = 1.96 * row[f"{key}_error"]
    return row[key], row[key] - half, row[key] + half


def _judge(row: Mapping[str, Any]) -> tuple[float, float, float]:
    found = row.get("reward_model", {})
    return tuple(found.get(name, np.nan) for name in ("accuracy", "accuracy_low", "accuracy_high"))  # type: ignore[return-value]


def offline_curve(records: Sequence[Mapping[str, Any]], path: str | Path, *, title: str = "") -> None:
    """Loss, and accuracy and margin where there are pairs, of every optimiser step against the rows learnt from.

    Args:
        records: metrics of the steps, in their order; without any, nothing is drawn.
        path: the PNG file, replaced in one step.
        title: over the picture.
    """
    labels = {"loss": "loss", "accuracy": "accuracy of the batch", "margin": "margin, chosen over rejected"}
    shown = [(name, label) for name, label in labels.items() if records and name in records[0]]
    if not shown:
        return
    figure, axes = canvas(len(shown), title)
    x = np.array([record["timesteps"] for record in records], float)
    for axis, (name, label), colour in zip(axes, shown, (BLUE, GREEN, PURPLE), strict=False):
        y = np.array([record[name] for record in records], float)
        axis.plot(x, y, ".", color=colour, alpha=0.35, markersize=6, markeredgewidth=0)
        axis.plot(x, running_mean(y, 3 + 2 * (len(y) // 40)), color=colour, linewidth=1.8)
        dress(axis, label, "rows")
        if name == "accuracy":
            share(axis)
    save(figure, path)


def canvas(panels: int, title: str = "", width: float = 3.6, height: float = 3.2) -> tuple[Any, np.ndarray]:
    """A figure of some panels side by side, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # most of a second: only when something is drawn
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.6 + width * panels, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10, color=INK)
    return figure, np.atleast_1d(figure.subplots(1, panels))


def dress(axis: Any, title: str, xlabel: str = "", ylabel: str = "") -> None:
    """The look that all pictures share."""
    axis.set_title(title, fontsize=9, loc="left", color=INK)
    axis.set_xlabel(xlabel, fontsize=8, color=GREY)
    axis.set_ylabel(ylabel, fontsize=8, color=GREY)
    axis.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8, colors=GREY, length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color("#d1d5db")


def share(axis: Any, low: float = -0.03, high: float = 1.05) -> None:
    """The y axis as percent."""
    from matplotlib.ticker import PercentFormatter

    axis.set_ylim(low, high)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def save(figure: Any, path: str | Path) -> None:
    """Write the PNG in one step."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.new")
    figure.savefig(temporary, format="png")
    os.replace(temporary, path)
