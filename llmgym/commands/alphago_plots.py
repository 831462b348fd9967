"""Pictures of the stages of `llmgym alphago`, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmgym.plots import running_mean
from llmgym.preference_plots import BLUE, GREEN, GREY, RED, canvas, dress, save, share

Rows = Sequence[Mapping[str, Any]]


def curve_picture(records: Rows, path: str | Path, title: str, uniform: Mapping[str, float]) -> None:
    """Loss and accuracy by epoch, beside those of a uniform choice."""
    figure, (left, right) = canvas(2, title)
    x = [record["epoch"] for record in records]
    _losses(left, records)
    left.axhline(uniform["held_out_loss"], color=GREY, ls=":", lw=1.2, label="uniform")
    left.legend(frameon=False, fontsize=8, labelcolor=GREY)
    _counted(left, "cross-entropy of the moves played, nats", "epoch")
    right.plot(x, [record["accuracy"] for record in records], "o-", color=GREEN, lw=1.6, ms=4)
    right.axhline(uniform["accuracy"], color=GREY, ls=":", lw=1.2)
    _counted(right, "first choice is the move played, held out", "epoch")
    share(right, high=max(0.6, 1.2 * max(record["accuracy"] for record in records)))
    save(figure, path)


def value_picture(records: Rows, constant: float, path: str | Path) -> None:
    """Squared error by epoch, beside that of the best constant."""
    figure, (axis,) = canvas(1, "alphago value")
    _losses(axis, records)
    axis.axhline(constant, color=GREY, ls=":", lw=1.2, label="constant")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, fontsize=8, labelcolor=GREY)
    _counted(axis, "mean squared error of the result", "epoch")
    save(figure, path)


def reinforce_picture(records: Rows, last: Mapping[str, Any], path: str | Path) -> None:
    """Results against the pool by update, and scores against the network it began as."""
    figure, (left, right) = canvas(2, "alphago reinforce")
    y = np.array([record["result"] for record in records], float)
    x = np.arange(1, len(y) + 1)
    left.plot(x, y, ".", color=BLUE, alpha=0.35, ms=6, mew=0)
    left.plot(x, running_mean(y, 9), color=BLUE, lw=1.6)
    left.axhline(0, color=GREY, ls=":", lw=1.2)
    _counted(left, "mean result against the pool", "update")
    matches = [(record["update"], record) for record in records if "score" in record] + [(len(y), last)]
    _points(right, [at for at, _ in matches], [match for _, match in matches], GREEN)
    right.axhline(0.5, color=GREY, ls=":", lw=1.2)
    _counted(right, "score against the first network, 95 %", "update")
    share(right)
    save(figure, path)


def match_picture(players: Rows, pairs: Rows, path: str | Path) -> None:
    """Score of every player over all its games, and of the first of every pair against the second; 95 % intervals.

    Args:
        players: `name`, `score` and `interval` of each.
        pairs: the same, `name` being that of both.
        path: the PNG file.
    """
    figure, axes = canvas(2, "alphago match", width=4.2)
    for axis, rows, title, colour in zip(
        axes, (players, pairs), ("score over all its games", "score of the first"), (BLUE, RED), strict=True
    ):
        _points(axis, range(len(rows)), rows, colour, "o")
        axis.set_xticks(range(len(rows)), [row["name"] for row in rows], rotation=20, fontsize=8)
        axis.set_xlim(-0.5, len(rows) - 0.5)
        axis.axhline(0.5, color=GREY, ls=":", lw=1.2)
        dress(axis, title)
        share(axis)
    save(figure, path)


def _counted(axis: Any, title: str, xlabel: str) -> None:
    """`dress`, with whole numbers below."""
    from matplotlib.ticker import MaxNLocator

    dress(axis, title, xlabel)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _losses(axis: Any, records: Rows) -> None:
    x = [record["epoch"] for record in records]
    axis.plot(x, [record["loss"] for record in records], "o-", color=BLUE, lw=1.6, ms=4, label="learnt from")
    axis.plot(x, [record["held_out_loss"] for record in records], "o-", color=RED, lw=1.6, ms=4, label="held out")


def _points(axis: Any, x: Any, rows: Rows, colour: str, style: str = "o-") -> None:
    y = np.array([row["score"] for row in rows], float)
    low, high = np.array([row["interval"] for row in rows], float).reshape(-1, 2).T
    axis.errorbar(x, y, [y - low, high - y], fmt=style, color=colour, lw=1.6, ms=5, capsize=3)
