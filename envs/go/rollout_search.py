"""`RolloutSearch`: moves of Go by UCT or RAVE with playouts, on as many threads as there are trees."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.rollouts import HEAVY, LIGHT, STATIC, search
from llmgym.envs.go.rules import check_whole
from llmgym.envs.go.state import GoState
from llmgym.mdp import NoLegalAction
from llmgym.search import Result, SearchError, SearchOptions
from llmgym.search.forest import numbers, widened
from llmgym.search.tree import EDGE, NODE, ROOT, reroot

PLAYOUTS = {"light": LIGHT, "heavy": HEAVY, "static": STATIC}
_EDGES_PER_NODE = 40  # most nodes are visited once and get no edges; a tree without room for more still counts


class RolloutSearch:
    """Compiled as a whole: the tree, the board in place, a playout at every new node.

    Every thread grows a tree of its own with an equal share of the simulations; their visits are added up (root
    parallelisation: Chaslot, Winands & van den Herik 2008). Own eyes are never filled, and a pass is a candidate only
    where nothing else is.

    Args:
        mdp: the rules.
        options: `rule` "uct", "rave" or "puct" (with equal priors); `discount` is -1 whatever is said here.
        playouts: "light", "heavy", or "static" (the board is scored as it stands, which tests need).
        threads: trees and threads.
        seed: of the playouts.
    """

    def __init__(
        self,
        mdp: GoMDP,
        options: SearchOptions = SearchOptions(simulations=1000, rule="rave", best=1.0),  # noqa: B008 (frozen)
        *,
        playouts: str = "light",
        threads: int = 1,
        seed: int = 0,
    ):
        if playouts not in PLAYOUTS:
            raise ValueError(f"playouts must be one of {', '.join(PLAYOUTS)}, got {playouts!r}")
        if options.rule == "gumbel":
            raise ValueError("rule of a search with playouts must be puct, uct or rave, got 'gumbel'")
        check_whole("threads", threads, 1, 1024)
        self.mdp, self.options, self.threads = mdp, replace(options, discount=-1.0), threads
        self._kind, self._numbers = PLAYOUTS[playouts], numbers(self.options)
        self._seeds = np.random.default_rng(seed).integers(0, 2**64, (threads, 1), np.uint64)
        self._pool = ThreadPoolExecutor(threads - 1) if threads > 1 else None
        self._allocate()

    def run(self, state: GoState, simulations: int | None = None) -> Result:
        """Search from a state; what earlier runs found below it counts if the state has been reached from theirs.

        Raises:
            NoLegalAction: the game is over.
        """
        if self.mdp.terminal(state):
            raise NoLegalAction("a search needs a root that is not terminal")
        budget = self.options.simulations if simulations is None else simulations
        check_whole("simulations", budget, 1, 2**31)
        self._follow(state)
        shares = [budget // self.threads + (i < budget % self.threads) for i in range(self.threads)]
        self._reserve(max(shares))
        jobs = [(i, share) for i, share in enumerate(shares) if share > 0]
        waiting = [self._pool.submit(self._grow, state, *job) for job in jobs[1:]] if self._pool else []
        self._grow(state, *jobs[0])
        for future in waiting:
            future.result()
        return self._result()

    def _grow(self, state: GoState, tree: int, simulations: int) -> None:
        komi = float(self.mdp.rules.komi)
        arrays = (self.nodes[tree], self.edges[tree], self.counts[tree])
        search(*arrays, state.ints, state.longs, komi, self._numbers, self._kind, self._seeds[tree], simulations)

    def _allocate(self) -> None:
        self.nodes, self.edges = np.zeros((self.threads, 0), NODE), np.zeros((self.threads, 0), EDGE)
        self.counts = np.zeros((self.threads, 2), np.int32)
        self._root: GoState | None = None

    def _reserve(self, simulations: int) -> None:
        nodes, edges = self.counts.max(axis=0).tolist()
        self.nodes = widened(self.nodes, nodes + simulations + 1)
        self.edges = widened(self.edges, edges + (simulations + 1) * min(_EDGES_PER_NODE, self.mdp.rules.points + 1))
        self.edges = widened(self.edges, edges + 2 * (self.mdp.rules.points + 1))

    def _follow(self, state: GoState) -> None:
        """Move the roots along the moves that lead from the last state to this one, or begin anew."""
        moves, self._root = self._moves_to(state), state
        for action in moves or ():
            for tree in range(self.threads):
                self._move_root(tree, action)
        if moves is None:
            self.counts[:] = 0

    def _moves_to(self, state: GoState) -> list[int] | None:
        """One or two moves from the last root to this state; None if there is no such way."""
        root, last = self._root, state.last_action
        if root is None or last is None:
            return None if root is None or root != state else []
        if root == state:
            return []
        if state.n_moves == root.n_moves + 1 and self._leads(root, [last], state):
            return [last]
        if state.n_moves == root.n_moves + 2:
            for action in self._root_actions():
                if self._leads(root, [action, last], state):
                    return [action, last]
        return None

    def _leads(self, root: GoState, actions: list[int], state: GoState) -> bool:
        for action in actions:
            if self.mdp.terminal(root) or not self.mdp.mask(root)[action]:
                return False
            root = self.mdp.transition(root, action)
        return root == state

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
        actions, (visits, totals) = trees[0][0], (sum(t[i] for t in trees) for i in (1, 2))
        proofs = np.array([t[3] for t in trees])
        proven = np.where(np.isnan(proofs), -np.inf, proofs).max(axis=0)  # of any tree: they are exact
        exact = np.isfinite(proven)
        values = np.where(exact, proven, np.where(visits > 0, totals / np.maximum(visits, 1), np.nan))
        won = bool((exact & (proven >= 1)).any())
        lost = exact & (proven <= -1)
        scores = np.where(lost & ~lost.all(), -1.0, visits)
        index = int(np.where(exact, proven, -np.inf).argmax() if won else scores.argmax())
        value = 1.0 if won else float(totals.sum() / max(visits.sum(), 1))
        priors, policy = np.full(len(actions), 1 / len(actions)), visits / max(visits.sum(), 1)
        return Result(actions.tolist(), visits, values, priors, policy, value, index, won)
