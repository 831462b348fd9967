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


def frontier_picture(rows: Sequence[Mapping[str, Any]], path: str | Path, *, title: str = "") -> None:
    """True score against KL to the reference, a line a method over its β; and what was won and lost; in one step.

    Args:
        rows: policies, each with `name`, `method`, `beta` (NaN: none) and, over seeds, the means `true` (a share), `kl`
            (nats an episode), `won` and `lost` (shares, against the reference) with `true_error` and `kl_error`.
        path: the PNG file.
        title: over the picture.
    """
    figure, (left, right) = canvas(2, title, width=4.4, height=3.6)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    colours = dict(zip(methods, (GREY, GREEN, BLUE, RED, PURPLE), strict=False))
    for i, method in enumerate(methods):
        _frontier(left, [row for row in rows if row["method"] == method], method, colours[method], 5 - 16 * (i % 2))
    dress(left, "true score", "KL to the SFT policy, nats an episode")
    left.legend(frameon=False, fontsize=8, loc="lower right", labelcolor=GREY)
    share(left, low=left.get_ylim()[0])
    _won_and_lost(right, rows, colours)
    save(figure, path)


def _frontier(axis: Any, rows: Sequence[Mapping[str, Any]], method: str, colour: str, above: float) -> None:
    """Points with bars of 1.96 standard errors, each named by its β, `above` points over it."""
    x, y, x_error, y_error = (np.array([row[key] for row in rows]) for key in ("kl", "true", "kl_error", "true_error"))
    style = {"fmt": "o-", "color": colour, "lw": 1.4, "ms": 5, "capsize": 2, "elinewidth": 0.8, "label": method}
    axis.errorbar(x, y, 1.96 * y_error, 1.96 * x_error, **style)
    for row in rows:
        if np.isfinite(row["beta"]):
            place, text = (row["kl"], row["true"]), f"β {row['beta']:g}"
            axis.annotate(text, place, (4, above), textcoords="offset points", fontsize=7, color=colour)


def _won_and_lost(axis: Any, rows: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    """Bars to the right for won, paler ones to the left for lost; the first row on top."""
    from matplotlib.ticker import FuncFormatter

    places, fill = np.arange(len(rows))[::-1], [colours[row["method"]] for row in rows]
    for key, sign, alpha in (("won", 1, 1.0), ("lost", -1, 0.45)):
        axis.barh(places, [sign * row[key] for row in rows], color=fill, height=0.62, alpha=alpha)
        for place, row in zip(places, rows, strict=True):
            style = {"ha": "left" if sign > 0 else "right", "va": "center", "fontsize": 7, "color": GREY}
            axis.text(sign * (row[key] + 0.01), place, f"{row[key]:.0%}", **style)
    dress(axis, "lost to | won against the SFT policy, same problems", "share of problems")
    axis.grid(visible=False)
    axis.set_yticks(places, [row["name"] for row in rows])
    axis.set_xlim(-0.05 - max(row["lost"] for row in rows) * 1.15, 0.05 + max(row["won"] for row in rows) * 1.15)
    axis.axvline(0, color=GREY, lw=0.8)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):.0%}"))


def hacking_picture(panels: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], path: str | Path) -> None:
    """True and learned reward against √KL while a policy is optimised; replaced in one step. Gao et al. 2023, figure 1.

    Args:
        panels: by title, the runs of one setting: for each seed what was seen on the way, in order, with `true` and
            `proxy` (both in units of the true reward) and `kl` (nats an episode). Means go as far as the shortest run.
        path: the PNG file.
    """
    figure, axes = canvas(len(panels), width=3.1, height=3.3)
    points = [point for runs in panels.values() for run in runs for point in run]
    right, top = max(point["kl"] for point in points) ** 0.5, max(point["proxy"] for point in points)
    for axis, (title, runs) in zip(axes, panels.items(), strict=True):
        for key, label, colour in (("proxy", "learned reward", RED), ("true", "true reward", BLUE)):
            _against(axis, runs, key, label, colour)
        dress(axis, title, "√KL to the start, √nats an episode")
        axis.axhline(1, color=GREY, lw=0.8, ls=":")
        axis.set_xlim(-0.02 * right, 1.02 * right)
        axis.set_ylim(-0.05, 1.05 * max(top, 1))
    axes[0].set_ylabel("reward, in units of the true one", fontsize=8, color=GREY)
    axes[0].legend(frameon=False, fontsize=8, loc="lower right", labelcolor=GREY)
    save(figure, path)


def _against(axis: Any, runs: Sequence[Sequence[Mapping[str, float]]], key: str, label: str, colour: str) -> None:
    """Seeds thin; their mean at the same place thick, with a band of ± one standard error."""
    lines = [np.array([(point["kl"], point[key]) for point in run]).T for run in runs]
    for kl, values in lines:
        axis.plot(root(kl), values, color=colour, lw=0.7, alpha=0.45)
    x, y = np.stack([line[:, : min(map(len, runs))] for line in lines], 1)
    x, mean, error = root(x).mean(0), y.mean(0), y.std(0, ddof=min(1, len(y) - 1)) / len(y) ** 0.5
    axis.plot(x, mean, "o-", color=colour, lw=1.8, ms=3, label=label)
    axis.fill_between(x, mean - error, mean + error, color=colour, alpha=0.15, lw=0)


def root(kl: np.ndarray) -> np.ndarray:
    """√KL; where it is near 0 it can be estimated below."""
    return np.sqrt(np.clip(kl, 0, None))


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
