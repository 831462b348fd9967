"""A search with playouts to learn from, before there is a network: expert iteration (Anthony, Tian & Barber 2017)."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmgym.envs.go.leaf_playouts import check_result
from llmgym.envs.go.search_player import SearchSettings, make_search
from llmgym.search import Result


class Teacher:
    """Searches the positions of many games one after the other, each with a new tree.

    Args:
        mdp: the rules of Go.
        settings: of the search.

    Raises:
        ValueError: a game that is not Go, or whose reward is not the result.
    """

    def __init__(self, mdp: Any, settings: SearchSettings):
        check_result(mdp)
        self.settings, self._search = settings, make_search(mdp, settings)
        self.options = self._search.options

    def start(self, states: list[Any], rng: np.random.Generator) -> None:
        """These are to be searched next."""
        self._states = states
        self._search.seed(int(rng.integers(2**63)))

    def run(self) -> list[Result]:
        """What it finds, state by state."""
        return [self._look(state) for state in self._states]

    def _look(self, state: Any) -> Result:
        self._search.forget()
        return self._search.run(state, seconds=self.settings.seconds or None)
