"""Leaf values mixed from a value network and playouts, with the priors of a policy network. Silver et al. 2016."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llmgym.search.evaluators import NetEvaluator
from llmgym.search.proposals import LegalActions, Proposals

Values = Callable[[Any], np.ndarray]  # n states -> values [n] of the player to move


class MixedEvaluator:
    """Priors of a policy, and (1 - λ) v + λ z.

    Args:
        priors: n states -> proposals.
        mix: λ, in [0, 1].
        value: v, of another network; not asked where λ is 1. None: the values of the proposals.
        playout: z, the returns of playouts; not asked, and not needed, where λ is 0.

    Raises:
        ValueError: λ out of range, or playouts are missing.
    """

    def __init__(
        self,
        priors: Callable[[Any], Proposals | LegalActions],
        mix: float,
        *,
        value: Values | None = None,
        playout: Values | None = None,
    ):
        if not 0 <= mix <= 1:
            raise ValueError(f"mix must be in [0, 1], got {mix}")
        if mix > 0 and playout is None:
            raise ValueError(f"mix = {mix} needs playouts, got none")
        self.priors, self.mix, self.value, self.playout = priors, mix, value, playout

    def __call__(self, states: Sequence[Any]) -> Proposals | LegalActions:
        """n states -> n proposals."""
        told, mix = self.priors(states), self.mix
        values = np.zeros(len(states))
        if mix < 1:
            values += (1 - mix) * (told.values if self.value is None else self.value(states))
        if mix > 0:
            values += mix * self.playout(states)  # type: ignore[misc]
        return told._replace(values=values)


class NetValue:
    """The critic of a network as the v of a `MixedEvaluator`.

    Args:
        evaluator: of the network.
    """

    def __init__(self, evaluator: NetEvaluator):
        self.evaluator = evaluator

    def __call__(self, states: Sequence[Any]) -> np.ndarray:
        """n states -> values [n]."""
        return self.evaluator.evaluate(self.evaluator.look(states)[0])[1]
