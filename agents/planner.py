"""From the state of an environment to an action by search, with what the last search has found below it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from llmgym.mdp import MDP
from llmgym.search import Result, Search, SearchOptions
from llmgym.search.forest import Forest
from llmgym.search.proposals import Evaluate
from llmgym.search.tree import ROOT


class Planner:
    """One tree, kept from move to move; or new trees for many states.

    A state that lies at most two moves below the last root (the own move and a reply) goes on with the tree there, and
    the simulations come on top of the visits it has; the same state again is answered as before. Sequential halving
    (Gumbel) shares out its budget from the start: there trees begin anew.

    Args:
        mdp: the rules.
        evaluate: of the search.
        options: of the search; noise is left out.
        reuse: whether trees are kept.
    """

    def __init__(self, mdp: MDP, evaluate: Evaluate, options: SearchOptions, reuse: bool):
        self.options = replace(options, noise=0.0)
        self.search = Search[Any](mdp, evaluate, self.options)
        self.reuse = reuse and options.rule != "gumbel"
        self.last: Result | None = None

    def forget(self) -> None:
        """Begin anew: the evaluator says something else now."""
        self.last = None

    def plan(self, states: list[Any], rng: np.random.Generator, chance: bool) -> list[Result]:
        """What the search finds at states that are not terminal.

        Args:
            states: where to act.
            rng: of Gumbel variables.
            chance: whether there are any.
        """
        if self.reuse and len(states) == 1:
            return [self._go_on(states[0], rng)]
        self.last = None
        self.search.start(states, rng)
        if not chance and self.options.rule == "gumbel":
            self.search.gumbels[:] = 0.0
        return self.search.run()

    def _go_on(self, state: Any, rng: np.random.Generator) -> Result:
        way = None if self.last is None else way_to(self.search.forest, state)
        if way == [] and self.last is not None:
            return self.last
        if way is None:
            self.search.start([state], rng)
        for index in way or ():
            self.search.advance([index], rng)
        (self.last,) = self.search.run()
        return self.last


def way_to(forest: Forest, state: Any, depth: int = 2) -> list[int] | None:
    """Candidates on the way from the root of the first tree to a node with this state; None if there is none near.

    Args:
        forest: has a root.
        state: sought.
        depth: most moves away.
    """
    for node in range(int(forest.counts[0, 0])):
        if (way := _way(forest, node, depth)) is not None and forest.state(0, node) == state:
            return way
    return None


def _way(forest: Forest, node: int, depth: int) -> list[int] | None:
    way = list[int]()
    nodes, edges = forest.nodes[0], forest.edges[0]
    while node != ROOT:
        if len(way) == depth:
            return None
        edge = int(nodes["edge"][node])
        node = int(edges["node"][edge])
        way.insert(0, edge - int(nodes["first"][node]))
    return way
