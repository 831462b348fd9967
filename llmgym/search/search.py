"""`Search`: many trees grown side by side; leaves of all of them are evaluated together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from llmgym.mdp import MDP, NoLegalAction
from llmgym.search.forest import Forest
from llmgym.search.gumbel import schedules
from llmgym.search.options import SearchOptions
from llmgym.search.proposals import Evaluate, LegalActions, Proposals, ask
from llmgym.search.tree import NO_CHILD, ROOT

State = TypeVar("State")
_NO_PLANS, _NO_GUMBELS = np.zeros((0, 0), np.int64), np.zeros((0, 0))


@dataclass(frozen=True)
class Result:
    """What a search has found at one root; arrays are [K]."""

    actions: Sequence[Any]  # the candidates
    visits: np.ndarray  # of each, int64
    values: np.ndarray  # mean or proven return of each, NaN where there was no visit
    priors: np.ndarray  # with noise, if there was any
    policy: np.ndarray  # training target: visits normalised, or the improved policy of Gumbel
    value: float  # of the root: mean return, or the proven one
    index: int  # the candidate to play
    exact: bool  # whether `value` is proven

    @property
    def action(self) -> Any:
        """The action to play."""
        return self.actions[self.index]

    def decided(self, left: float) -> bool:
        """Whether so many more visits could not make another candidate the most visited one."""
        others = np.delete(self.visits, self.index)
        return bool(self.visits[self.index] - others.max(initial=0) > left)


class Search(Generic[State]):
    """Grows a tree from each of B states.

    Args:
        mdp: pure rules.
        evaluate: n states -> n proposals (`Proposal`, or all as `Proposals`); called with the leaves of all trees.
        options: see there.

    Raises:
        SearchError: a proposal without a candidate or with a NaN.
        NoLegalAction: a root that is terminal.
        ValueError: the rule "rave", whose counts of all moves only drivers with playouts fill.
    """

    def __init__(self, mdp: MDP, evaluate: Evaluate, options: SearchOptions = SearchOptions()):  # noqa: B008 (frozen)
        if options.rule == "rave":
            raise ValueError("rule of a search without playouts must be puct, uct or gumbel, got 'rave'")
        self.mdp, self.evaluate, self.options = mdp, evaluate, options
        self._halves = options.rule == "gumbel"
        self.gumbels = _NO_GUMBELS
        self.store = mdp.store()
        self.forest = Forest(options, self.store, 0)

    def start(self, states: Sequence[State], rng: np.random.Generator | None = None) -> None:
        """Plant trees at these states; `rng` is needed for noise and for Gumbel."""
        n = len(states)
        if any(map(self.mdp.terminal, states)):
            raise NoLegalAction("a search needs roots that are not terminal")
        if self.forest.trees != n:
            self.forest = Forest(self.options, self.store, n)
        self.evaluations = 0  # states that the evaluator was asked about
        self.forest.plant(states)
        self._grow(np.arange(n), np.full(n, -1), np.zeros(n), np.zeros(n, np.bool_))
        self._disturb(rng)

    def run(self, simulations: int | None = None) -> list[Result]:
        """Add so many simulations to every tree (by default those of the options)."""
        budget = self.options.simulations if simulations is None else simulations
        if budget < 1:
            raise ValueError(f"simulations must be at least 1, got {budget}")
        forest = self.forest
        forest.reserve(budget)
        goals = forest.root_visits() + 1 + budget
        plans = schedules(self.options.considered, forest.degrees().tolist(), budget) if self._halves else _NO_PLANS
        while (found := forest.select(goals, self.options.leaves, self.gumbels, plans)) is not None:
            self._expand(found)
        told = forest.weigh()
        return [self._result(tree, *(part[tree, :k] for part in told)) for tree, k in enumerate(forest.degrees())]

    def advance(self, indices: Sequence[int], rng: np.random.Generator | None = None) -> None:
        """Move every root along the edge of a candidate and keep what is known below it.

        Sequential halving shares out a budget from the start: with Gumbel, trees begin anew.

        Raises:
            NoLegalAction: the game is over there.
        """
        forest, trees = self.forest, np.arange(self.forest.trees)
        if self._halves:
            actions = [forest.candidates(tree)[index] for tree, index in enumerate(indices)]
            return self.start(list(map(self.mdp.transition, forest.roots, actions)), rng)
        edges = forest.nodes["first"][:, ROOT] + np.asarray(indices, np.int64)
        missing = np.flatnonzero(forest.edges["child"][trees, edges] == NO_CHILD)
        forest.reserve(1)
        self._expand(forest.look_up(missing, edges[missing]))
        forest.advance(edges)
        if any(map(self.mdp.terminal, forest.roots)):
            raise NoLegalAction("a search cannot go on from a terminal state")
        self._disturb(rng)

    def _expand(self, found: np.ndarray) -> None:
        """Nodes at the ends of edges, int64 [5, n]; see `llmgym.search.walks.select`."""
        if found.size:
            self._grow(found[0], found[1], *self.forest.step(found))

    def _grow(self, trees: np.ndarray, edges: np.ndarray, rewards: np.ndarray, terminals: np.ndarray) -> None:
        """Nodes of the last states, and what the evaluator says of those that are not terminal."""
        numbers = np.arange(len(self.store) - len(trees), len(self.store))
        proposals = self._ask(numbers[~terminals] if terminals.any() else numbers)
        self.forest.grow(trees, edges, proposals, rewards, terminals)

    def _ask(self, numbers: np.ndarray) -> Proposals | LegalActions:
        self.evaluations += len(numbers)
        return ask(self.evaluate, self.store.rows(numbers))

    def _disturb(self, rng: np.random.Generator | None) -> None:
        """Noise of the root: Dirichlet in the priors, or Gumbel variables."""
        options, forest = self.options, self.forest
        if rng is None and (options.noise > 0 or self._halves):
            raise ValueError("a search with noise or Gumbel needs a generator: start(states, rng)")
        if options.noise > 0:
            for tree in range(forest.trees):
                priors = forest.root_priors(tree)
                alpha = options.noise_alpha or 10.8 / len(priors)
                drawn = rng.dirichlet(np.full(len(priors), alpha))  # type: ignore[union-attr]
                priors[:] = (1 - options.noise) * priors + options.noise * drawn
        if self._halves:
            self.gumbels = rng.gumbel(size=(forest.trees, forest.width))  # type: ignore[union-attr]

    def _result(
        self, tree: int, visits: np.ndarray, values: np.ndarray, exact: np.ndarray, policy: np.ndarray
    ) -> Result:
        forest, options = self.forest, self.options
        value, proven = forest.root_value(tree)
        if self._halves:
            scores = self.gumbels[tree, : len(visits)] + np.log(np.maximum(policy, 1e-300))
            scores[visits < visits.max()] = -np.inf
        else:
            scores = visits + 1e-9 * np.nan_to_num(values) / (1 + abs(value))
        if proven:
            scores = np.where(exact & (values >= value), np.inf, -np.inf)
        elif options.best is not None:  # a lost move is played only if all are lost
            lost = exact & (values <= -options.best)
            scores = np.where(lost & ~lost.all(), -np.inf, scores)
        priors, index = forest.root_priors(tree).copy(), int(scores.argmax())
        return Result(forest.candidates(tree), visits, values, priors, policy, value, index, proven)
