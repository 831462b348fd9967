"""The picture of the study of search over language, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmgym.preference_plots import BLUE, GREEN, GREY, PURPLE, RED, save, share
from llmgym.preference_plots import dress as dressed
from llmgym.search.study import Method, Point, curve

COLOURS = {"token": BLUE, "block": GREEN, "line": RED}
VALUE_COLOURS = {"rollouts": BLUE, "learned": PURPLE, "mixed": GREEN, "exact": "#111827", "noise": RED}
STYLES = {"samples": "-", "beam, by reward": "--", "majority": ":", "beam": "-."}


def study_picture(points: Mapping[str, Sequence[Point]], path: str | Path) -> None:
    """A row a task: levels beside decodings, PUCT beside UCT, and PUCT's values at each level; replaced in one step.

    Args:
        points: by task.
        path: the PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # most of a second: only when something is drawn
    from matplotlib.figure import Figure

    chosen = list(dict.fromkeys(point.method for found in points.values() for point in found))
    levels = [level for level in COLOURS if any(method.level == level for method in chosen)]
    figure = Figure(figsize=(3.5 * (2 + len(levels)), 3.2 * len(points)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(points), 2 + len(levels), squeeze=False, sharey=True)
    for axes, (task, found) in zip(grid, points.items(), strict=True):
        _decodings(axes[0], found, levels)
        _rules(axes[1], found, levels)
        for axis, level in zip(axes[2:], levels, strict=True):
            _values(axis, found, level)
        for axis, title in zip(axes, ("search and decoding", "PUCT and UCT", *levels), strict=True):
            _finish(axis, f"{task}: {title}" if title not in levels else f"{task}: PUCT, {title} level, by value")
    save(figure, path)


def _decodings(axis: Any, points: Sequence[Point], levels: Sequence[str]) -> None:
    for level in levels:
        _line(axis, points, Method("PUCT", level, "rollouts"), f"PUCT, {level}", COLOURS[level])
    for name, style in STYLES.items():
        _line(axis, points, Method(name), name, GREY, style, band=False)
    start = curve(points, Method("greedy"))
    if len(start):
        axis.plot(*start[0, :2], "*", color=GREY, ms=9, label="greedy")


def _rules(axis: Any, points: Sequence[Point], levels: Sequence[str]) -> None:
    for level in levels:
        for rule, style in (("PUCT", "-"), ("UCT", "--")):
            method = Method(rule, level, "rollouts")
            _line(axis, points, method, f"{rule}, {level}", COLOURS[level], style, band=rule == "PUCT")


def _values(axis: Any, points: Sequence[Point], level: str) -> None:
    for value, colour in VALUE_COLOURS.items():
        _line(axis, points, Method("PUCT", level, value), value, colour, band=value in ("exact", "noise"))


def _line(
    axis: Any, points: Sequence[Point], method: Method, label: str, colour: str, style: str = "-", band: bool = True
) -> None:
    rows = curve(points, method)
    if not len(rows):
        return
    tokens, success, low, high = rows.T
    axis.plot(tokens, success, style, color=colour, lw=1.5, marker="o", ms=2.5, label=label)
    if band:
        axis.fill_between(tokens, low, high, color=colour, alpha=0.1, lw=0)


def _finish(axis: Any, title: str) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    dressed(axis, title, "forward tokens a problem")
    axis.set_xscale("log", base=2)
    low, high = axis.get_xlim()
    axis.xaxis.set_major_locator(FixedLocator([2.0**i for i in range(2, 16) if low <= 2**i <= high]))
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_locator(NullLocator())
    share(axis)
    axis.legend(frameon=False, fontsize=7, loc="best", labelcolor=GREY)
