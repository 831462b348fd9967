"""`Forest`: the arrays of B trees, and the states and candidates that belong to their nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmgym.search import tree as kernels
from llmgym.search import walks
from llmgym.search.options import RULES, SearchOptions
from llmgym.search.proposals import LegalActions, Proposals, complaint
from llmgym.search.tree import EDGE, NODE, ROOT
from llmgym.store import Store


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

    Args:
        options: of the search.
        store: of the states of all nodes.
        trees: B.

    Attributes:
        nodes, edges: structured arrays [B, M] and [B, E]; see `llmgym.search.tree`.
        counts: nodes and edges of every tree, int32 [B, 2].
        kept: candidates of a state by its number, where they are not numbers themselves: those are kept in the edges.
        width: most candidates of a node so far.
    """

    def __init__(self, options: SearchOptions, store: Store, trees: int):
        self.numbers, self.store, self.trees = numbers(options), store, trees
        self.nodes, self.edges = np.zeros((trees, 0), NODE), np.zeros((trees, 0), EDGE)
        self.clear()

    def clear(self) -> None:
        """Back to no tree at all; memory is kept, which the next trees need not ask for page by page."""
        self.width = 1
        self.counts = np.zeros((self.trees, 2), np.int32)
        self.store.clear()
        self.kept: dict[int, Sequence[Any]] = {}

    def plant(self, states: Sequence[Any]) -> None:
        """States of the roots, of which nothing is said yet: `grow` at the edges -1 is next."""
        self.clear()
        self.store.add(states)
        self.reserve(1)

    # --- states ---

    @property
    def roots(self) -> list[Any]:
        """State of every root."""
        return [self.state(tree, ROOT) for tree in range(self.trees)]

    @property
    def states(self) -> list[list[Any]]:
        """State of every node of every tree."""
        return [[self.state(tree, node) for node in range(n)] for tree, n in enumerate(self.counts[:, 0].tolist())]

    def state(self, tree: int, node: int) -> Any:
        """State of a node."""
        return self.store[int(self.nodes["state"][tree, node])]

    def candidates(self, tree: int) -> Sequence[Any]:
        """Those of a root."""
        kept = self.kept.get(int(self.nodes["state"][tree, ROOT]))
        return self._root_edges(tree)["action"].tolist() if kept is None else kept

    # --- growth ---

    def reserve(self, nodes: int) -> None:
        """Room for so many more nodes in every tree, which `grow` counts on."""
        self._reserved = nodes
        most_nodes, most_edges = self.counts.max(axis=0, initial=0).tolist()
        self.nodes = widened(self.nodes, most_nodes + nodes)
        self.edges = widened(self.edges, most_edges + nodes * self.width)

    def select(self, goals: np.ndarray, leaves: int, gumbels: np.ndarray, plans: np.ndarray) -> np.ndarray | None:
        """Edges that lead nowhere yet, int64 [5, n], or None if all is done; see `llmgym.search.walks.select`."""
        found = np.empty((5, self.trees * leaves), np.int64)
        asked = (goals, leaves, gumbels, plans, self.numbers, self.width)
        n = walks.select(self.nodes, self.edges, *asked, found)
        return None if n < 0 else found[:, :n]

    def look_up(self, trees: np.ndarray, edges: np.ndarray) -> np.ndarray:
        """What `select` tells of edges."""
        found = np.empty((5, len(trees)), np.int64)
        walks.look_up(self.nodes, self.edges, trees, edges, found)
        return found

    def step(self, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """States at the ends of edges, int64 [5, n]: rewards float64 [n], and which are terminal, bool [n]."""
        numbers, actions = found[2], found[3]
        return self.store.step(numbers, self._actions(*found[2:]) if self.kept else actions)

    def _actions(self, numbers: np.ndarray, actions: np.ndarray, places: np.ndarray) -> list[Any]:
        ways = zip(numbers.tolist(), actions.tolist(), places.tolist(), strict=True)
        return [self.kept[state][place] if state in self.kept else action for state, action, place in ways]

    def grow(
        self,
        trees: np.ndarray,
        edges: np.ndarray,
        proposals: Proposals | LegalActions,
        rewards: np.ndarray,
        terminals: np.ndarray,
    ) -> None:
        """Nodes at the ends of n edges (-1: roots), whose states are the last n; all backed up.

        Args:
            proposals: of the states that are not terminal.

        Raises:
            SearchError: a proposal without a candidate, or with a number that is none.
            NoLegalAction: a mask that allows nothing.
        """
        first = len(self.store) - len(trees)
        if proposals.width > self.width:
            self.width = proposals.width
            self.reserve(self._reserved)
        where, ends = (self.nodes, self.edges, self.counts, trees, edges, first), (rewards, terminals)
        if isinstance(proposals, LegalActions):
            wrong = walks.grow_legal(*where, *proposals, *ends, self.numbers)
        else:
            wrong = walks.grow(*where, *proposals.numbers, *ends, self.numbers)
            self._keep(first, proposals, terminals)
        if wrong >= 0:
            raise complaint(proposals, wrong)

    def _keep(self, first: int, proposals: Proposals, terminals: np.ndarray) -> None:
        """Candidates that are no numbers."""
        if not isinstance(proposals.actions, np.ndarray):
            going = (first + np.flatnonzero(~terminals)).tolist()
            self.kept.update(zip(going, proposals.actions, strict=True))

    def advance(self, edges: np.ndarray) -> None:
        """Make the nodes at the ends of edges of the roots, int64 [B], the roots, and forget what is not below them."""
        moved = np.empty(self.nodes.shape[1], np.int64)
        for tree, edge in enumerate(edges.tolist()):
            kernels.reroot(self.nodes[tree], self.edges[tree], self.counts[tree], edge, moved)
        left = [self.nodes["state"][tree, :n] for tree, n in enumerate(self.counts[:, 0].tolist())]
        kept = np.sort(np.concatenate(left))
        self.store.keep(kept)
        for states in left:
            states[:] = np.searchsorted(kept, states)
        self.kept = {new: self.kept[old] for new, old in enumerate(kept.tolist()) if old in self.kept}

    # --- what is known at the roots ---

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
        total, _, exact, visits, *_ = self.nodes[tree, ROOT].item()
        return (total / visits, False) if np.isnan(exact) else (exact, True)

    def weigh(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Visits, values, proofs and the policy at every root, all [B, W]; see `llmgym.search.walks.weigh`."""
        shape = self.trees, self.width
        found = np.empty(shape, np.int64), np.empty(shape), np.empty(shape, np.bool_), np.empty(shape)
        walks.weigh(self.nodes, self.edges, self.numbers, *found)
        return found

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
