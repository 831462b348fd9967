"""`RolloutSearch`: moves of Go by UCT or RAVE with playouts, on as many threads as there are trees."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from llmgym.envs.go.bias import WEIGHTS
from llmgym.envs.go.following import moves_between
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.net_impressions import NetImpressions
from llmgym.envs.go.rollouts import HEAVY, LIGHT, STATIC, search
from llmgym.envs.go.rules import check_whole
from llmgym.envs.go.state import GoState
from llmgym.mdp import NoLegalAction
from llmgym.search import Result, SearchError, SearchOptions
from llmgym.search.forest import numbers, widened
from llmgym.search.tree import EDGE, NODE, ROOT, reroot

PLAYOUTS = {"light": LIGHT, "heavy": HEAVY, "static": STATIC}
CANDIDATES = ("sensible", "all")
DEFAULT = SearchOptions(simulations=1000, rule="rave", c_uct=0.0, best=1.0)
_EDGES_PER_NODE = 60  # most nodes are visited once and get no edges; a tree without room for more still counts
_MOST_NODES, _MOST_EDGES = 1 << 21, 1 << 23  # of a tree: half a gigabyte; then it grows no more, but still counts
_SLICE = 0.05  # seconds between two looks at the clock, at most
_LOOKS = 32  # into so many parts a search is cut to see whether the rest matters; a rate needs one to be known
_FIRST = 32  # simulations of a tree before a network is asked


class RolloutSearch:
    """Compiled as a whole: the tree, the board in place, a playout at every new node.

    Every thread grows a tree of its own with an equal share of the simulations; their visits are added up (root
    parallelisation: Chaslot, Winands & van den Herik 2008).

    Args:
        mdp: the rules.
        options: `rule` "uct", "rave" or "puct" (with equal priors); `discount` is -1 whatever is said here.
        playouts: "light", "heavy", or "static" (the board is scored as it stands, which tests need).
        candidates: "sensible" (moves that fill no own eye, and the pass) or "all": only then can a loss be proven, and
            only then are boards of a few points played perfectly.
        prior: weight of first impressions with `rule="rave"`, see `llmgym.envs.go.bias`.
        network: what a network thinks of moves, with `rule="rave"`.
        threads: trees and threads.
        seed: of the playouts.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        mdp: GoMDP,
        options: SearchOptions = DEFAULT,
        *,
        playouts: str = "light",
        candidates: str = "sensible",
        prior: float = 1.0,
        network: NetImpressions | None = None,
        threads: int = 1,
        seed: int = 0,
    ):
        if playouts not in PLAYOUTS:
            raise ValueError(f"playouts must be one of {', '.join(PLAYOUTS)}, got {playouts!r}")
        if candidates not in CANDIDATES:
            raise ValueError(f"candidates must be one of {', '.join(CANDIDATES)}, got {candidates!r}")
        if options.rule == "gumbel":
            raise ValueError("rule of a search with playouts must be puct, uct or rave, got 'gumbel'")
        if network is not None and options.rule != "rave":
            raise ValueError(f"a network needs the rule 'rave', which takes its impressions, got {options.rule!r}")
        check_whole("threads", threads, 1, 1024)
        self.mdp, self.options, self.threads = mdp, replace(options, discount=-1.0), threads
        self._kind, self._numbers = PLAYOUTS[playouts], numbers(self.options)
        self._every, self._weights = candidates == "all", prior * WEIGHTS
        self._network = network
        self._pool = ThreadPoolExecutor(threads - 1) if threads > 1 else None
        self.seed(seed)
        self.forget()

    def seed(self, seed: int) -> None:
        """Draw the next playouts by this seed."""
        self._seeds = np.random.default_rng(seed).integers(0, 2**64, (self.threads, 1), np.uint64)

    def forget(self) -> None:
        """The next search begins with an empty tree, and the memory of this one is free."""
        self.nodes, self.edges = np.zeros((self.threads, 0), NODE), np.zeros((self.threads, 0), EDGE)
        self.counts = np.zeros((self.threads, 2), np.int32)
        self._root: GoState | None = None

    def close(self) -> None:
        """End the threads; nothing can be searched any more."""
        self.forget()
        if self._pool:
            self._pool.shutdown()

    def run(
        self, state: GoState, simulations: int | None = None, seconds: float | None = None, early: bool = False
    ) -> Result:
        """Search from a state; what earlier runs found below it counts if the state has been reached from theirs.

        Args:
            state: the root.
            simulations: of all threads together; None: those of the options.
            seconds: search for so long instead, what it takes to follow the game counted.
            early: end before, once the root is proven or the most visited move cannot be overtaken by all that is left
                of the simulations, or of the time at the rate so far. Proofs apart, the move is the same.

        Raises:
            NoLegalAction: the game is over.
        """
        began = time.perf_counter()
        if self.mdp.terminal(state):
            raise NoLegalAction("a search needs a root that is not terminal")
        budget = self.options.simulations if simulations is None else simulations
        check_whole("simulations", budget, 1, 2**31)
        self._follow(state)
        if seconds is not None:
            self._think(state, began + seconds, early)
        elif early or self._network:
            self._spend(state, budget, early)
        else:
            self._simulate(state, budget)
        return self._result()

    def _spend(self, state: GoState, simulations: int, early: bool) -> None:
        """Slices of simulations until all are made, or the rest does not matter."""
        portion, done = self.threads * max(1, simulations // (self.threads * _LOOKS)), 0
        while done < simulations and not (early and self._decided(simulations - done)):
            done += self._simulate(state, min(self._slice(portion, done), simulations - done))

    def _think(self, state: GoState, end: float, early: bool) -> None:
        """Slices of simulations until the clock says so, or the rest of them does not matter."""
        began, done = time.perf_counter(), 0
        while (now := time.perf_counter()) < end:
            portion, left = 16 * self.threads, end - now
            if done:
                rate = done / (now - began)
                if early and now - began > (end - began) / _LOOKS and self._decided(rate * left):
                    return
                portion = max(self.threads, int(rate * min(_SLICE, left)))
            done += self._simulate(state, self._slice(portion, done))

    def _slice(self, most: int, done: int) -> int:
        """Simulations until a network, if there is one, is asked again: seldom enough for several nodes at once."""
        return min(most, max(done // 8, _FIRST * self.threads)) if self._network else most

    def _decided(self, left: float) -> bool:
        """Whether the root is proven, or so many more visits could not make another move the most visited one."""
        if not self.counts[:, 0].all() or not self.nodes["degree"][:, ROOT].all():
            return False
        if not np.isnan(self.nodes["exact"][:, ROOT]).all():
            return True
        return self._result().decided(left)

    def _simulate(self, state: GoState, simulations: int) -> int:
        """Grow all trees, each on its thread, by so many simulations together, which are returned."""
        shares = [simulations // self.threads + (i < simulations % self.threads) for i in range(self.threads)]
        self._reserve(max(shares))
        jobs = [(i, share) for i, share in enumerate(shares) if share > 0]
        waiting = [self._pool.submit(self._grow, state, *job) for job in jobs[1:]] if self._pool else []
        self._grow(state, *jobs[0])
        for future in waiting:
            future.result()
        if self._network is not None:
            for tree, _ in jobs:
                self._network(self.mdp, state, self.nodes[tree], self.edges[tree], int(self.counts[tree, 0]))
        return simulations

    def _grow(self, state: GoState, tree: int, simulations: int) -> None:
        komi, arrays = float(self.mdp.rules.komi), (self.nodes[tree], self.edges[tree], self.counts[tree])
        asked = (komi, self._numbers, self._kind, self._every, self._weights, self._seeds[tree], simulations)
        search(*arrays, state.ints, state.longs, *asked)

    def _reserve(self, simulations: int) -> None:
        """Room for so many more simulations in every tree, and twice that where the arrays must be copied."""
        width, (nodes, edges) = self.mdp.rules.points + 1, self.counts.max(axis=0).tolist()
        wanted = nodes + simulations + 1, edges + (simulations + 1) * min(_EDGES_PER_NODE, width) + 2 * width
        self.nodes = _widened(self.nodes, wanted[0], _MOST_NODES)
        self.edges = _widened(self.edges, wanted[1], _MOST_EDGES)

    def _follow(self, state: GoState) -> None:
        """Move the roots along the moves that lead from the last state to this one, or begin anew."""
        moves, self._root = moves_between(self.mdp, self._root, state, self._root_actions()), state
        for action in moves or ():
            for tree in range(self.threads):
                self._move_root(tree, action)
        if moves is None:
            self.counts[:] = 0

    def _root_actions(self) -> list[int]:
        """Candidates of the root, the most visited first."""
        if not self.counts[0, 0]:
            return []
        actions, visits, _, _ = self._statistics(0)
        return actions[np.argsort(-visits, kind="stable")].tolist()

    def _move_root(self, tree: int, action: int) -> None:
        nodes, edges, counts = self.nodes[tree], self.edges[tree], self.counts[tree]
        if not counts[0]:
            return
        first, degree = int(nodes["first"][ROOT]), int(nodes["degree"][ROOT])
        at = np.flatnonzero(edges["action"][first : first + degree] == action)
        if not at.size:
            counts[:] = 0
            return
        reroot(nodes, edges, counts, first + int(at[0]), np.empty(len(nodes), np.int64))

    def _statistics(self, tree: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Actions, visits, sums of returns and proven returns (NaN without) of a root's edges."""
        nodes, root = self.nodes[tree], self.nodes[tree, ROOT]
        edges = self.edges[tree, root["first"] : root["first"] + root["degree"]]
        reached = edges["child"] >= 0
        child = nodes[np.where(reached, edges["child"], 0)]
        visits = np.where(reached, child["visits"], 0).astype(np.int64)
        totals = np.where(reached, edges["reward"] * visits - child["total"], 0.0)
        return edges["action"].copy(), visits, totals, np.where(reached, edges["reward"] - child["exact"], np.nan)

    def _result(self) -> Result:
        trees = [self._statistics(tree) for tree in range(self.threads) if self.counts[tree, 0]]
        if not len(trees[0][0]):
            raise SearchError("the tree has no room for the candidates of its root")
        actions, (visits, totals) = trees[0][0], (np.sum([t[i] for t in trees], axis=0) for i in (1, 2))
        proofs = np.array([t[3] for t in trees])
        proven = np.where(np.isnan(proofs), -np.inf, proofs).max(axis=0)  # of any tree: they are exact
        exact = np.isfinite(proven)
        values = np.where(exact, proven, np.where(visits > 0, totals / np.maximum(visits, 1), np.nan))
        index, solved = _best(visits, np.where(exact, proven, np.nan))
        value = float(proven[index]) if solved else float(totals.sum() / max(visits.sum(), 1))
        priors, policy = np.full(len(actions), 1 / len(actions)), visits / max(visits.sum(), 1)
        return Result(actions.tolist(), visits, values, priors, policy, value, index, solved)


def _best(visits: np.ndarray, proven: np.ndarray) -> tuple[int, bool]:
    """The move to play, and whether it is proven that none is better: a won one, the best if all are proven, else the
    most visited that is not lost. Both [K]; NaN where nothing is proven."""
    exact = ~np.isnan(proven)
    if exact.all() or (proven >= 1).any():
        return int(np.nanargmax(proven)), True
    return int(np.where(proven <= -1, -1, visits).argmax()), False


def _widened(array: np.ndarray, columns: int, most: int) -> np.ndarray:
    """An array [threads, n] with so many columns, if that is not more than the most."""
    if columns <= array.shape[1]:
        return array
    return widened(array, min(most, max(columns, 2 * array.shape[1])))
