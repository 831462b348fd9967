"""Pictures of learning from preferences, drawn without a display."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BLUE, RED, GREEN, PURPLE, GREY, INK = "#4269d0", "#ff725c", "#3ca951", "#a463f2", "#6b7280", "#111827"


def rounds_picture(rows: Sequence[Mapping[str, Any]], path: str | Path, *, title: str = "") -> None:
    """True accuracy, learned reward and KL of the policies of an RLHF run, in their order; replaced in one step.

    Args:
        rows: what `RLHF.run` returns.
        path: the PNG file.
        title: over the picture.
    """
    panels = (
        ("accuracy", "true accuracy", BLUE),
        ("proxy", "learned reward", RED),
        ("kl", "KL, nats an episode", GREEN),
    )
    figure, axes = canvas(len(panels), title)
    names = [row["name"] for row in rows]
    for axis, (key, label, colour) in zip(axes, panels, strict=True):
        y, error = (
            np.array([row[k] if row[k] is not None else np.nan for row in rows], float) for k in (key, f"{key}_error")
        )
        axis.errorbar(range(len(rows)), y, 1.96 * error, fmt="o-", color=colour, lw=1.6, ms=5, capsize=3)
        axis.set_xticks(range(len(rows)), names, rotation=30 if len(rows) > 3 else 0)
        axis.set_xlim(-0.4, len(rows) - 0.6)
        dress(axis, label)
        if key == "accuracy":
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
