"""`Forest`: the arrays of B trees, and the states and candidates that belong to their nodes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import numpy as np

from llmgym.search import tree as kernels
from llmgym.search.options import RULES, SearchOptions
from llmgym.search.proposals import Proposals
from llmgym.search.tree import EDGE, NODE, ROOT

_NO_NUMBERS = np.zeros((0, 0), np.int64)


def numbers(options: SearchOptions) -> np.ndarray:
    """What the kernels read of the options; float64 [11]."""
    best = np.inf if options.best is None else options.best
    rule = RULES.index(options.rule)
    constants = (options.c_base, options.c_init, options.c_uct, options.fpu_reduction, options.virtual_loss)
    return np.array(
        [rule, options.discount, *constants, options.c_visit, options.c_scale, best, options.rave_equivalence],
        np.float64,
    )


class Forest:
    """B trees.

    Attributes:
        nodes, edges: structured arrays [B, M] and [B, E]; see `llmgym.search.tree`.
        counts: nodes and edges of every tree, int32 [B, 2].
        states: of every node.
        actions: candidates of every node; None where they are numbers, which are kept with the edges.
        left: of a root that `advance` could not move along: its state and its candidates.
        width: most candidates of a node so far.
    """

    def __init__(self, options: SearchOptions, trees: int):
        self.numbers, self.trees = numbers(options), trees
        self.nodes, self.edges = np.zeros((trees, 0), NODE), np.zeros((trees, 0), EDGE)
        self.clear()

    def clear(self) -> None:
        """Back to no tree at all; memory is kept, which the next trees need not ask for page by page."""
        trees, self.width = self.trees, 1
        self.counts = np.zeros((trees, 2), np.int32)
        self.states: list[list[Any]] = [[] for _ in range(trees)]
        self.actions: list[list[Sequence[Any]]] = [[] for _ in range(trees)]
        self.left: list[tuple[Any, Sequence[Any]]] = [(None, ())] * trees

    @property
    def roots(self) -> list[Any]:
        """State of every root; None where there is none."""
        return [states[ROOT] if states else None for states in self.states]

    def reserve(self, nodes: int) -> None:
        """Room for so many more nodes in every tree."""
        self.nodes = widened(self.nodes, int(self.counts[:, 0].max()) + nodes)
        self.edges = widened(self.edges, int(self.counts[:, 1].max()) + nodes * self.width)

    def select(self, roots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A way down every tree; see `llmgym.search.tree.select`."""
        leaf_edges, leaf_nodes = np.empty(self.trees, np.int64), np.empty(self.trees, np.int64)
        kernels.select(self.nodes, self.edges, roots, self.numbers, self.width, leaf_edges, leaf_nodes)
        return leaf_edges, leaf_nodes

    def ends(self, trees: np.ndarray, edges: np.ndarray) -> tuple[list[Any], list[Any]]:
        """States before, and actions, of edges."""
        there = self.edges[trees, edges]
        nodes = there["node"]
        indices = edges - self.nodes["first"][trees, nodes]
        ways = zip(trees.tolist(), nodes.tolist(), indices.tolist(), there["action"].tolist(), strict=True)
        states, actions = list[Any](), list[Any]()
        for tree, node, index, number in ways:
            candidates = self.actions[tree][node]
            states.append(self.states[tree][node])
            actions.append(number if candidates is None else candidates[index])
        return states, actions

    def candidates(self, tree: int) -> Sequence[Any]:
        """Those of a root."""
        kept = self.actions[tree][ROOT]
        return self._root_edges(tree)["action"].tolist() if kept is None else kept

    def grow(
        self, trees: np.ndarray, edges: np.ndarray, states: list[Any], proposals: Proposals, rewards: np.ndarray
    ) -> None:
        """Nodes at the ends of edges (-1: roots), backed up; without candidates a state is terminal."""
        degrees = proposals.degrees
        self.width = max(self.width, int(degrees.max()))
        self._make_room(trees)
        numbered = isinstance(proposals.actions, np.ndarray)
        candidates, kept = (proposals.actions, repeat(None)) if numbered else (_NO_NUMBERS, proposals.actions)
        for tree, state, actions in zip(trees.tolist(), states, kept, strict=False):
            self.states[tree].append(state)
            self.actions[tree].append(actions)
        leaves = (trees, edges, candidates, proposals.priors, degrees, proposals.values, rewards, degrees == 0)
        kernels.grow(self.nodes, self.edges, self.counts, *leaves, proposals.complete, self.numbers)

    def _make_room(self, trees: np.ndarray) -> None:
        new = int(np.bincount(trees).max())
        most_nodes, most_edges = self.counts.max(axis=0).tolist()
        if most_nodes + new > self.nodes.shape[1]:
            self.nodes = widened(self.nodes, 2 * most_nodes + new)
        if most_edges + new * self.width > self.edges.shape[1]:
            self.edges = widened(self.edges, 2 * most_edges + new * self.width)

    def revisit(self, trees: np.ndarray, nodes: np.ndarray) -> None:
        """Back up ways that ended at exact nodes."""
        kernels.revisit(self.nodes, self.edges, trees, nodes, self.numbers)

    def advance(self, tree: int, index: int) -> None:
        """Make the child at the end of a root's edge the root; a tree without such a child is empty then."""
        edge = int(self.nodes["first"][tree, ROOT]) + index
        self.left[tree] = self.states[tree][ROOT], self.candidates(tree)
        moved = np.empty(self.nodes.shape[1], np.int64)
        n = int(self.counts[tree, 0])
        kernels.reroot(self.nodes[tree], self.edges[tree], self.counts[tree], edge, moved)
        kept = np.flatnonzero(moved[:n] >= 0).tolist()
        self.states[tree] = [self.states[tree][node] for node in kept]
        self.actions[tree] = [self.actions[tree][node] for node in kept]

    def root_visits(self) -> np.ndarray:
        """Visits of every root, less its own evaluation; int64 [B]."""
        return self.nodes["visits"][:, ROOT].astype(np.int64) - 1

    def degrees(self) -> np.ndarray:
        """Candidates of every root, int32 [B]."""
        return self.nodes["degree"][:, ROOT]

    def root_priors(self, tree: int) -> np.ndarray:
        """Priors of a root's candidates, a view: float64 [K]."""
        return self._root_edges(tree)["prior"]

    def root_value(self, tree: int) -> tuple[float, bool]:
        """Value of a root, and whether it is proven."""
        root = self.nodes[tree, ROOT]
        exact = not np.isnan(root["exact"])
        return float(root["exact"] if exact else root["total"] / root["visits"]), exact

    def edge_statistics(self, tree: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Visits int64 [K], values float64 [K] (NaN without a visit) and which are proven, bool [K], at a root."""
        edges, discount = self._root_edges(tree), self.numbers[1]
        reached = edges["child"] >= 0
        child = self.nodes[tree, np.where(reached, edges["child"], 0)]
        visits = np.where(reached, child["visits"], 0).astype(np.int64)
        exact = reached & ~np.isnan(child["exact"])
        worth = np.where(exact, child["exact"], child["total"] / np.maximum(child["visits"], 1))
        return visits, np.where(visits > 0, edges["reward"] + discount * worth, np.nan), exact

    def improved_policy(self, tree: int) -> np.ndarray:
        """Gumbel's π' at a root, float64 [K]."""
        policy = np.empty(self.nodes["degree"][tree, ROOT])
        kernels.fill_improved_policy(self.nodes[tree], self.edges[tree], ROOT, self.numbers, policy)
        return policy

    def _root_edges(self, tree: int) -> np.ndarray:
        root = self.nodes[tree, ROOT]
        return self.edges[tree, root["first"] : root["first"] + root["degree"]]


def widened(array: np.ndarray, columns: int) -> np.ndarray:
    """The array with at least so many columns, new ones zero."""
    if columns <= array.shape[1]:
        return array
    wide = np.zeros((len(array), columns), array.dtype)
    wide[:, : array.shape[1]] = array
    return wide
