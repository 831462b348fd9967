"""Pictures of a run, drawn without a display."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HeldOut = Mapping[str, tuple[float, float, float]]  # "before" / "after" -> accuracy and its interval
_COLOURS = ("#4269d0", "#ff725c", "#3ca951", "#a463f2")
_GREY = "#6b7280"


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over the numbers among the `window` values around each place (odd; fewer at the ends); NaN without any."""
    known = np.isfinite(values)
    kernel = np.ones(min(window, 2 * len(values) - 1))
    half = len(kernel) // 2
    total = np.convolve(np.where(known, values, 0.0), kernel)[half : half + len(values)]
    count = np.convolve(known.astype(float), kernel)[half : half + len(values)]
    return np.where(count > 0.5, total / np.maximum(count, 1.0), np.nan)


def learning_curve(
    records: Sequence[Mapping[str, Any]], path: str | Path, *, title: str = "", held_out: HeldOut | None = None
) -> None:
    """Accuracy (or reward), length and KL of a run against the tokens sampled; the file is replaced in one step.

    Args:
        records: metrics of the updates, in their order; at least one.
        path: the PNG file.
        title: over the picture.
        held_out: greedy accuracy and interval "before" and "after" training, drawn at the two ends.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # most of a second: only when something is drawn
    from matplotlib.figure import Figure

    panels = _panels(records)
    figure = Figure(figsize=(1 + 3.5 * len(panels), 3.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    tokens = np.array([record.get("sampled_tokens", i + 1) for i, record in enumerate(records)], float)
    for axes, (name, label), colour in zip(
        np.atleast_1d(figure.subplots(1, len(panels))), panels, _COLOURS, strict=False
    ):
        _draw(axes, tokens, np.array([record.get(name, np.nan) for record in records], float), colour)
        _dress(axes, label, share=name == "accuracy")
        if name == "accuracy":
            _mark(axes, tokens, held_out or {})
    figure.suptitle(title, fontsize=10, color="#111827")
    path = Path(path)
    temporary = path.with_name(f".{path.name}.new")
    figure.savefig(temporary, format="png")
    os.replace(temporary, path)


def _panels(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Metric and label of each panel; a reward that is more than right or wrong has one of its own."""
    graded = any(record.get("reward") != record.get("accuracy") for record in records)
    first = ("reward", "reward") if graded else ("length", "completion length, tokens")
    panels = [("accuracy", "accuracy of training batches"), first]
    panels += [("length", "completion length, tokens")] if graded else []
    if any("kl" in record for record in records):
        panels.append(("kl", "KL to the reference, nats a token"))
    return panels


def _draw(axes: Any, x: np.ndarray, y: np.ndarray, colour: str) -> None:
    """Raw points faint, their running mean on top."""
    axes.plot(x, y, ".", color=colour, alpha=0.35, markersize=6, markeredgewidth=0)
    axes.plot(x, running_mean(y, 3 + 2 * (len(y) // 40)), color=colour, linewidth=1.8)


def _mark(axes: Any, x: np.ndarray, held_out: HeldOut) -> None:
    for when, at in (("before", 0.0), ("after", x[-1])):
        if when in held_out:
            value, low, high = held_out[when]
            label = "held-out problems, greedy" if when == "before" else None
            error = [[value - low], [high - value]]
            axes.errorbar([at], [value], error, fmt="D", color=_GREY, markersize=4.5, capsize=2.5, lw=1, label=label)
    if held_out:
        axes.legend(frameon=False, fontsize=8, loc="lower right", labelcolor=_GREY, handletextpad=0.3)


def _dress(axes: Any, label: str, share: bool) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

    axes.set_title(label, fontsize=9, loc="left", color="#111827")
    axes.set_xlabel("sampled tokens", fontsize=8, color=_GREY)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=_GREY, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#d1d5db")
    if share:
        axes.set_ylim(-0.03, 1.05)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    elif axes.get_ylim()[0] > 0 or axes.lines[0].get_ydata().min(initial=0.0) >= 0:
        axes.set_ylim(bottom=0)
