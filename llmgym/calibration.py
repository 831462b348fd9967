"""How good predicted probabilities are: do seven of ten things said to be 70 % likely happen?

Everything takes `probabilities`, what was predicted, in [0, 1], and `outcomes`, what happened, 0 or 1; both [n]. For
pairs of completions `as_confidence` turns margins into the probability of the predicted winner and whether it won.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from llmgym.intervals import wilson

_BLUE, _GREY = "#4269d0", "#6b7280"


@dataclass(frozen=True)
class Bin:
    """Predictions in [low, high), the last bin with its end.

    Attributes:
        low, high: the edges.
        count: predictions.
        probability: their mean; NaN without any.
        frequency: share of them that happened; NaN without any.
        interval: 95 % Wilson interval of that share.
    """

    low: float
    high: float
    count: int
    probability: float
    frequency: float
    interval: tuple[float, float]


def as_confidence(margins: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Probability σ(abs(margin)) of the predicted winner of each pair, in [0.5, 1], and whether it won.

    Args:
        margins: log-odds that the chosen completion is preferred, nats [n]. At 0 nobody is predicted: half a win.
    """
    margins = np.asarray(margins, float)
    return _sigmoid(np.abs(margins)), (1 + np.sign(margins)) / 2


def reliability(probabilities: ArrayLike, outcomes: ArrayLike, bins: int = 10, low: float = 0.0) -> list[Bin]:
    """Predictions in `bins` bins of equal width over [low, 1].

    Args:
        low: the lowest probability there can be: 0.5 for confidences.

    Raises:
        ValueError: nothing was predicted, shapes differ, or a number is outside its range.
    """
    p, y = _checked(probabilities, outcomes, low)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    edges = np.linspace(low, 1.0, bins + 1)
    place = np.searchsorted(edges[1:-1], p, side="right")
    return [_bin(edges[i], edges[i + 1], p[place == i], y[place == i]) for i in range(bins)]


def expected_calibration_error(
    probabilities: ArrayLike, outcomes: ArrayLike, bins: int = 10, low: float = 0.0
) -> float:
    """Σ (n_b / n) · abs(frequency_b - probability_b) over bins of equal width. Guo et al. 2017, eq. 3.

    With few predictions a bin it is above 0 even for perfect ones, by about sqrt(bins / (10 n)).
    """
    table = [b for b in reliability(probabilities, outcomes, bins, low) if b.count]
    return sum(b.count * abs(b.frequency - b.probability) for b in table) / sum(b.count for b in table)


def brier_score(probabilities: ArrayLike, outcomes: ArrayLike) -> float:
    """mean (p - y)². Brier 1950, for two classes; 0.25 for p = ½."""
    p, y = _checked(probabilities, outcomes)
    return float(np.square(p - y).mean())


def log_loss(probabilities: ArrayLike, outcomes: ArrayLike) -> float:
    """-mean [y log p + (1 - y) log(1 - p)], nats; log 2 for p = ½, infinite where certainty was wrong."""
    p, y = _checked(probabilities, outcomes)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(y > 0, y * np.log(p), 0.0) + np.where(y < 1, (1 - y) * np.log1p(-p), 0.0)
    return float(-terms.mean())


def score_pairs(margins: ArrayLike, bins: int = 10) -> dict[str, float]:
    """How well margins predict preferences: what `RewardTrainer.evaluate` reports.

    Args:
        margins: log-odds that the chosen completion is preferred, nats [n].
        bins: of the calibration error, over confidences in [0.5, 1].

    Returns:
        `pairs`; `accuracy`, share of margins above 0 (a tie counts half), with its 95 % Wilson interval
        `accuracy_low`, `accuracy_high`; `log_loss`, -mean log σ(margin), nats; `brier`, mean (1 - σ(margin))²; `ece`,
        the expected calibration error of the confidence; `margin`, the mean.

    Raises:
        ValueError: there is no margin, or one that is no finite number.
    """
    margins = np.asarray(margins, float)
    if margins.ndim != 1 or not margins.size or not np.isfinite(margins).all():
        raise ValueError("margins must be finite numbers [n], at least one")
    confidence, won = as_confidence(margins)
    low, high = wilson(float(won.sum()), len(won))
    return {
        "pairs": len(margins),
        "accuracy": float(won.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "log_loss": float(np.logaddexp(0.0, -margins).mean()),
        "brier": float(np.square(_sigmoid(-margins)).mean()),
        "ece": expected_calibration_error(confidence, won, bins, 0.5),
        "margin": float(margins.mean()),
    }


def reliability_table(bins: Sequence[Bin]) -> str:
    """The bins that hold something as a Markdown table."""
    lines = ["| predicted | pairs | mean prediction | happened | 95 % interval |", "|---|---|---|---|---|"]
    for b in bins:
        if b.count:
            share, interval = f"{b.frequency:.1%}", f"{b.interval[0]:.1%} to {b.interval[1]:.1%}"
            lines.append(f"| {b.low:.0%} to {b.high:.0%} | {b.count:,} | {b.probability:.1%} | {share} | {interval} |")
    return "\n".join(lines) + "\n"


def reliability_diagram(bins: Sequence[Bin], path: str | Path, *, title: str = "") -> None:
    """What happened against what was predicted, and how often it was predicted; DeGroot & Fienberg 1983.

    Drawn without a display; the file is replaced in one step.

    Args:
        bins: as `reliability` gives them; at least one holds something.
        path: the PNG file.
        title: over the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # most of a second: only when something is drawn
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.9, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    _draw_bins(above, [b for b in bins if b.count])
    _draw_counts(below, bins)
    for axes in (above, below):
        _dress(axes, bins[0].low)
    above.set_title("share that happened, with 95 % intervals", fontsize=9, loc="left", color="#111827")
    below.set_title("number of predictions", fontsize=9, loc="left", color="#111827")
    below.set_xlabel("predicted probability", fontsize=8, color=_GREY)
    figure.suptitle(title, fontsize=10, color="#111827")
    path = Path(path)
    temporary = path.with_name(f".{path.name}.new")
    figure.savefig(temporary, format="png")
    os.replace(temporary, path)


def _draw_bins(axes: Any, bins: Sequence[Bin]) -> None:
    from matplotlib.ticker import PercentFormatter

    x, y = [b.probability for b in bins], [b.frequency for b in bins]
    error = [[b.frequency - b.interval[0] for b in bins], [b.interval[1] - b.frequency for b in bins]]
    axes.plot([0, 1], [0, 1], color="#9ca3af", linewidth=1, linestyle=(0, (4, 3)))
    axes.errorbar(x, y, error, fmt="o-", color=_BLUE, markersize=4.5, linewidth=1.4, elinewidth=1, capsize=2.5)
    axes.set_ylim(min(bins[0].low, *(b.interval[0] for b in bins)) - 0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _draw_counts(axes: Any, bins: Sequence[Bin]) -> None:
    from matplotlib.ticker import MaxNLocator

    width = bins[0].high - bins[0].low
    axes.bar([b.low for b in bins], [b.count for b in bins], 0.94 * width, align="edge", color="#a7b6e9")
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))


def _dress(axes: Any, low: float) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_xlim(low - 0.02, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=_GREY, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#d1d5db")


def _checked(probabilities: ArrayLike, outcomes: ArrayLike, low: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    p, y = np.asarray(probabilities, float), np.asarray(outcomes, float)
    if p.ndim != 1 or p.shape != y.shape or not p.size:
        raise ValueError(f"probabilities and outcomes must both be [n], got shapes {p.shape} and {y.shape}")
    if not ((p >= low) & (p <= 1)).all():
        raise ValueError(f"probabilities must be in [{low}, 1], got {p[~((p >= low) & (p <= 1))][0]}")
    if not ((y >= 0) & (y <= 1)).all():
        raise ValueError(f"outcomes must be in [0, 1], got {y[~((y >= 0) & (y <= 1))][0]}")
    return p, y


def _bin(low: float, high: float, p: np.ndarray, y: np.ndarray) -> Bin:
    n = len(p)
    mean, share = (float(p.mean()), float(y.mean())) if n else (np.nan, np.nan)
    return Bin(float(low), float(high), n, mean, share, wilson(float(y.sum()), n))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(x / 2)  # without overflow
