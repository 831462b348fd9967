"""Games that networks play without search: many side by side, moves drawn from their distributions."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmgym.envs.go.batch import GoBatch
from llmgym.envs.go.mdp import GoMDP
from llmgym.intervals import wilson
from llmgym.nets import NetPolicy


def new_batch(mdp: GoMDP, games: int) -> GoBatch:
    """Games by these rules, with the planes that networks see."""
    return GoBatch(mdp.rules, games, mdp.planes)


def draw_moves(policy: NetPolicy, batch: GoBatch, rows: np.ndarray, actions: np.ndarray) -> None:
    """Let a policy choose in some rows, bool [N], into actions int64 [N]."""
    if rows.any():
        planes = np.ascontiguousarray(policy.encode(batch.planes[rows]))
        actions[rows] = policy.act(planes, batch.masks[rows]).actions


def duel(mdp: GoMDP, a: NetPolicy, b: NetPolicy, games: int) -> dict[str, Any]:
    """Games of two policies: `a` has Black in every other one; how it scored, with its 95 % interval.

    A draw is half a win.
    """
    batch, black = new_batch(mdp, games), np.arange(games) % 2 == 0
    while not (over := batch.terminated).all():
        actions, turn = np.zeros(games, np.int64), (batch.to_play == 0) == black
        draw_moves(a, batch, turn & ~over, actions)
        draw_moves(b, batch, ~turn & ~over, actions)
        batch.step(actions)
    results = outcomes(batch, np.where(black, 0, 1))
    points = float((results > 0).sum() + (results == 0).sum() / 2)
    return {"games": games, "score": points / games, "interval": wilson(points, games)}


def outcomes(batch: GoBatch, players: np.ndarray) -> np.ndarray:
    """1, 0 or -1 for a player in each finished row, 0 or 1; float64 [N]."""
    return np.sign(batch.scores) * (1.0 - 2.0 * players)
