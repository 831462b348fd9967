"""Heavy playouts from many positions at once, to value the leaves of a search that a network guides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmgym.compiled import kernel
from llmgym.envs.go.cells import at
from llmgym.envs.go.layout import COLS, ROWS, TO_PLAY
from llmgym.envs.go.many import stacked
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.rollouts import HEAVY, LIGHT, captures_ahead, play_on, result, stones_ahead
from llmgym.envs.go.state import GoState


class LeafPlayouts:
    """Mean result of some playouts from each state, for its player to move.

    Args:
        mdp: the rules.
        n: playouts of each state.
        heavy: see `llmgym.envs.go.heavy`; else light.
        seed: of the playouts.

    Raises:
        ValueError: a game that is not Go, or whose reward is not the result.
    """

    def __init__(self, mdp: GoMDP, n: int = 1, *, heavy: bool = True, seed: int = 0):
        check_result(mdp)
        self.mdp, self.n, self.kind = mdp, n, HEAVY if heavy else LIGHT
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Draw the next playouts by this seed."""
        self._seed = np.random.default_rng(seed).integers(0, 2**64, 1, np.uint64)

    def __call__(self, states: Sequence[GoState]) -> np.ndarray:
        """n states -> float64 [n], in [-1, 1]."""
        ints, longs, _ = stacked(states)
        values = np.empty(len(states))
        mean_results(ints, longs, float(self.mdp.rules.komi), self.kind, self.n, self._seed, values)
        return values


def check_result(mdp: Any) -> None:
    """Refuse rules whose returns are not the results that playouts give.

    Raises:
        ValueError: not Go, or a reward other than the result.
    """
    if not isinstance(mdp, GoMDP):
        raise ValueError(f"playouts are of Go, got the rules {type(mdp).__name__}")
    if mdp.reward_kind != "result" or mdp.capture_reward:
        kind = repr(mdp.reward_kind) + (" and captures" if mdp.capture_reward else "")
        raise ValueError(f"playouts are worth a game's result, the reward here is {kind}")


@kernel
def mean_results(rows, long_rows, komi, kind, n, seed, values):
    """Mean of n results for the player to move in every row, into float64 [B]; rows stay as they are."""
    points = at(rows[0], ROWS) * at(rows[0], COLS)
    ints, longs = np.empty_like(rows[0]), np.empty_like(long_rows[0])
    area, came, choices = np.empty(points, np.uint8), np.zeros((2, points), np.int32), np.empty(24, np.int64)
    for i in range(rows.shape[0]):
        total, before = 0.0, stones_ahead(rows[i]) - captures_ahead(rows[i])
        for _ in range(n):
            ints[:], longs[:] = rows[i], long_rows[i]
            play_on(ints, longs, kind, seed, choices, came, 0, before, komi)
            total += result(ints, area, komi)
        values[i] = (total if at(rows[i], TO_PLAY) == 0 else -total) / n
