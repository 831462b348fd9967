"""Accuracy against forward tokens of policies that learn: means over seeds with intervals, and their picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmgym.intervals import student
from llmgym.preference_plots import BLUE, GREY, PURPLE, canvas, dress, save, share

COLOURS = {"search distillation": BLUE, "GRPO": PURPLE}


@dataclass(frozen=True)
class Run:
    """One method with one seed.

    Attributes:
        method: its name.
        seed: of problems, sampling and held-out problems.
        tokens: forward tokens spent when the policy was looked at, ascending, 0 first.
        accuracy: of greedy answers to held-out problems then.
        searched: what a search with the policy finds, before and after: accuracy and forward tokens a problem.
        seconds: wall clock of learning.
    """

    method: str
    seed: int
    tokens: tuple[int, ...]
    accuracy: tuple[float, ...]
    searched: Mapping[str, tuple[float, float]]
    seconds: float

    def at(self, budget: float) -> float:
        """Accuracy when last looked at within so many tokens."""
        return self.accuracy[int(np.searchsorted(self.tokens, budget, "right")) - 1]


def over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of shares and the ends of its 95 % interval (Student's t), cut to [0, 1]; (0, 1) of a single one."""
    mean, half = student(values)
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def distillation_picture(runs: Mapping[str, Sequence[Run]], budgets: Sequence[float], path: str | Path) -> None:
    """A panel a task: each seed thin, the mean thick with its interval (of one seed, that); replaced in one step.

    Args:
        runs: by task.
        budgets: forward tokens at which means are taken.
        path: the PNG file.
    """
    figure, axes = canvas(len(runs))
    for axis, (task, found) in zip(axes, runs.items(), strict=True):
        for method in dict.fromkeys(run.method for run in found):
            _lines(axis, [run for run in found if run.method == method], budgets, COLOURS.get(method, GREY))
        dress(axis, task, "forward tokens, thousands", "held-out accuracy, greedy" if axis is axes[0] else "")
        share(axis)
    axes[-1].legend(frameon=False, fontsize=8, loc="lower right", labelcolor=GREY)
    save(figure, path)


def _lines(axis: Any, runs: Sequence[Run], budgets: Sequence[float], colour: str) -> None:
    thick = {"color": colour, "lw": 1.8, "ms": 3, "label": runs[0].method}
    if len(runs) == 1:  # no mean, no interval
        axis.plot(np.array(runs[0].tokens) / 1000, runs[0].accuracy, "o-", **thick)
        return
    for run in runs:
        axis.plot(np.array(run.tokens) / 1000, run.accuracy, color=colour, lw=0.7, alpha=0.4)
    mean, low, high = np.array([over_seeds([run.at(budget) for run in runs]) for budget in budgets]).T
    x = np.array(budgets) / 1000
    axis.plot(x, mean, "o-", **thick)
    axis.fill_between(x, low, high, color=colour, alpha=0.13, lw=0)
