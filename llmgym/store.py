"""`Store`: where a search keeps the states of its trees, by number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    from llmgym.mdp import MDP

State = TypeVar("State")


class Store(Generic[State]):
    """States by number, in the order in which they came: a list of them. Rules that are compiled keep arrays, and step
    many states in one call: see `MDP.store`.

    Args:
        mdp: the rules.
    """

    def __init__(self, mdp: MDP):
        self.mdp = mdp
        self._states: list[State] = []

    def __len__(self) -> int:
        return len(self._states)

    def __getitem__(self, number: int) -> State:
        return self._states[number]

    def clear(self) -> None:
        """Forget all states."""
        self._states = []

    def add(self, states: Sequence[State]) -> None:
        """Keep these too."""
        self._states += states

    def step(self, numbers: np.ndarray, actions: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Keep the states after an action each too; rewards float64 [n], and which are terminal, bool [n].

        Args:
            numbers: of the states before, int64 [n].
            actions: n of them.
        """
        mdp, before = self.mdp, self.rows(numbers)
        after = list(map(mdp.transition, before, actions))
        rewards = np.fromiter(map(mdp.reward, before, actions, after), np.float64, len(after))
        self.add(after)
        return rewards, np.fromiter(map(mdp.terminal, after), np.bool_, len(after))

    def rows(self, numbers: np.ndarray) -> Sequence[State]:
        """States of these numbers, int64 [n]."""
        return [self._states[number] for number in numbers.tolist()]

    def keep(self, numbers: np.ndarray) -> None:
        """Only these remain, in this order: ascending int64 [n]."""
        self._states = list(self.rows(numbers))
