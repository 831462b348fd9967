"""`Search`: many trees grown side by side; leaves of all of them are evaluated together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from llmgym.mdp import MDP, NoLegalAction
from llmgym.search.forest import Forest
from llmgym.search.gumbel import considered_visits, halving_edges
from llmgym.search.options import SearchOptions
from llmgym.search.proposals import Evaluate, Proposal, Proposals, SearchError, among, ask
from llmgym.search.tree import ROOT

State = TypeVar("State")


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
        self.forest = Forest(options, 0)

    def start(self, states: Sequence[State], rng: np.random.Generator | None = None) -> None:
        """Plant trees at these states; `rng` is needed for noise and for Gumbel."""
        if any(self.mdp.terminal(state) for state in states):
            raise NoLegalAction("a search needs roots that are not terminal")
        if self.forest.trees != len(states):
            self.forest = Forest(self.options, len(states))
        self.forest.clear()
        self.evaluations = 0  # states that the evaluator was asked about
        proposals = self._ask(list(states))
        everyone = np.arange(len(states))
        self.forest.grow(everyone, np.full(len(states), -1), list(states), proposals, np.zeros(len(states)))
        self._disturb(rng)

    def run(self, simulations: int | None = None) -> list[Result]:
        """Add so many simulations to every tree (by default those of the options)."""
        budget = self.options.simulations if simulations is None else simulations
        if budget < 1:
            raise ValueError(f"simulations must be at least 1, got {budget}")
        forest = self.forest
        forest.reserve(budget)
        goal = forest.root_visits() + budget
        while (left := goal - forest.root_visits()).any():
            self._simulate(budget, left)
        return [self._result(tree) for tree in range(forest.trees)]

    def advance(self, indices: Sequence[int], rng: np.random.Generator | None = None) -> None:
        """Move every root along the edge of a candidate and keep what is known below it.

        Sequential halving shares out a budget from the start: with Gumbel, trees begin anew.

        Raises:
            NoLegalAction: the game is over there.
        """
        forest = self.forest
        if self.options.rule == "gumbel":
            actions = [forest.candidates(tree)[index] for tree, index in enumerate(indices)]
            self.start(self.mdp.transitions(forest.roots, actions), rng)
            return
        for tree, index in enumerate(indices):
            forest.advance(tree, int(index))
        missing = [tree for tree, state in enumerate(forest.roots) if state is None]
        states = [self._follow(tree, int(indices[tree])) for tree in missing]
        if missing:
            proposals = self._ask(states)
            forest.grow(np.array(missing), np.full(len(missing), -1), states, proposals, np.zeros(len(missing)))
        if any(self.mdp.terminal(state) for state in forest.roots):
            raise NoLegalAction("a search cannot go on from a terminal state")
        self._disturb(rng)

    def _follow(self, tree: int, index: int) -> State:
        before, actions = self.forest.left[tree]
        return self.mdp.transition(before, actions[index])

    def _simulate(self, budget: int, left: np.ndarray) -> None:
        """Up to `leaves` ways down every tree that still has simulations left, evaluated together."""
        trees, edges = list[np.ndarray](), list[np.ndarray]()
        for ahead in range(min(self.options.leaves, int(left.max()))):
            roots = np.where(left > ahead, -1, -2)
            if self.options.rule == "gumbel":
                self._halve(budget, left - ahead, roots)
            leaf_edges, leaf_nodes = self.forest.select(roots)
            exact, new = np.flatnonzero(leaf_nodes >= 0), np.flatnonzero(leaf_edges >= 0)
            if exact.size:
                self.forest.revisit(exact, leaf_nodes[exact])
            trees.append(new)
            edges.append(leaf_edges[new])
            if not new.size:
                break
        self._expand(np.concatenate(trees), np.concatenate(edges))

    def _expand(self, trees: np.ndarray, edges: np.ndarray) -> None:
        if not trees.size:
            return
        mdp, (before, actions) = self.mdp, self.forest.ends(trees, edges)
        states = mdp.transitions(before, actions)
        rewards = np.fromiter(map(mdp.reward, before, actions, states), np.float64, len(states))
        self.forest.grow(trees, edges, states, self._ask(states), rewards)

    def _ask(self, states: list[State]) -> Proposals:
        """What the evaluator says; terminal states have no candidate."""
        going = [row for row, state in enumerate(states) if not self.mdp.terminal(state)]
        self.evaluations += len(going)
        if len(going) == len(states):
            return ask(self.evaluate, states)
        return among(ask(self.evaluate, [states[row] for row in going]), going, len(states))

    def _disturb(self, rng: np.random.Generator | None) -> None:
        """Noise of the root: Dirichlet in the priors, or Gumbel variables."""
        options, forest = self.options, self.forest
        if rng is None and (options.noise > 0 or options.rule == "gumbel"):
            raise ValueError("a search with noise or Gumbel needs a generator: start(states, rng)")
        if options.noise > 0:
            for tree in range(forest.trees):
                priors = forest.root_priors(tree)
                alpha = options.noise_alpha or 10.8 / len(priors)
                drawn = rng.dirichlet(np.full(len(priors), alpha))  # type: ignore[union-attr]
                priors[:] = (1 - options.noise) * priors + options.noise * drawn
        if options.rule == "gumbel":
            self.gumbels = rng.gumbel(size=(forest.trees, forest.width))  # type: ignore[union-attr]

    def _halve(self, budget: int, left: np.ndarray, roots: np.ndarray) -> None:
        """Root edges by sequential halving."""
        forest, considered = self.forest, self.options.considered
        plans = [considered_visits(min(considered, k), budget) for k in forest.degrees().tolist()]
        wanted = [plan[budget - n] if n > 0 else 0 for plan, n in zip(plans, left.tolist(), strict=True)]
        halving_edges(forest.nodes, forest.edges, self.gumbels, np.array(wanted), forest.numbers, roots)

    def _result(self, tree: int) -> Result:
        forest, options = self.forest, self.options
        visits, values, exact = forest.edge_statistics(tree)
        priors, value, proven = forest.root_priors(tree).copy(), *forest.root_value(tree)
        if options.rule == "gumbel":
            policy = forest.improved_policy(tree)
            gumbels = self.gumbels[tree, : len(visits)]
            scores = np.where(visits == visits.max(), gumbels + np.log(np.maximum(policy, 1e-300)), -np.inf)
        else:
            policy, scores = visits / visits.sum(), visits + 1e-9 * np.nan_to_num(values) / (1 + np.abs(value))
        if proven:
            scores = np.where(exact & (values >= value), np.inf, -np.inf)
        elif options.best is not None:  # a lost move is played only if all are lost
            lost = exact & (values <= -options.best)
            scores = np.where(lost & ~lost.all(), -np.inf, scores)
        return Result(forest.candidates(tree), visits, values, priors, policy, value, int(scores.argmax()), proven)


__all__ = ["ROOT", "Evaluate", "Proposal", "Proposals", "Result", "Search", "SearchError", "SearchOptions"]
