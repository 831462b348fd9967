"""The picture of a run of self-play, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmgym.plots import running_mean
from llmgym.preference_plots import BLUE, GREEN, PURPLE, RED, canvas, dress, save


def self_play_picture(records: Sequence[Mapping[str, Any]], path: str | Path, *, title: str = "") -> None:
    """Losses, length of games and strength against the games played; the file is replaced in one step.

    Args:
        records: metrics of the updates of `MCTS`, in their order; at least one.
        path: the PNG file.
        title: over the picture.
    """
    figure, axes = canvas(4, title, width=3.0)
    panels = {
        "policy_loss": ("policy loss, nats", BLUE),
        "value_loss": ("value loss", RED),
        "length": ("moves a game", GREEN),
        "strength": ("return against the fixed opponent", PURPLE),
    }
    games = np.array([record["games"] for record in records], float)
    for axis, (name, (label, colour)) in zip(axes, panels.items(), strict=True):
        y = np.array([record[name] for record in records], float)
        if name == "strength":
            axis.plot(games, y, color=colour, lw=1.6, drawstyle="steps-post")
            axis.set_ylim(-1.05, 1.05)
        else:
            axis.plot(games, y, ".", color=colour, alpha=0.3, ms=4, mew=0)
            axis.plot(games, running_mean(y, 3 + 2 * (len(y) // 40)), color=colour, lw=1.8)
            axis.set_ylim(bottom=0)
        dress(axis, label, "games of self-play")
        _short_numbers(axis)
    save(figure, path)


def _short_numbers(axis: Any) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
