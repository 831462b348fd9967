"""What a network thinks of moves, as simulations that trees of a `RolloutSearch` pretend to have seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.state import GoState
from llmgym.search import LegalActions
from llmgym.search.tree import ROOT

_MOST = 64  # nodes of one look at the network: more gain no speed, and wait longer


class NetImpressions:
    """First impressions of a network: a node that has been visited often is shown to it, once.

    A move of probability p then counts as weight · √p more all-moves-as-first simulations, all won, beside those that
    the stones around it have made (`llmgym.envs.go.bias`); real ones outnumber them in time. The square root is that of
    Pachi, which gives a network's moves to a RAVE search in this way.

    Args:
        evaluate: states -> what the network says; its values are not looked at.
        weight: simulations that a certain move would count as.
        after: visits of a node until it is shown.
    """

    def __init__(self, evaluate: Callable[[Sequence[GoState]], LegalActions], weight: float = 300.0, after: int = 50):
        self.evaluate, self.weight, self.after = evaluate, weight, after

    def __call__(self, mdp: GoMDP, root: GoState, nodes: np.ndarray, edges: np.ndarray, count: int) -> None:
        """Show nodes of a tree to the network that have been visited often enough, the most visited first.

        Args:
            mdp: the rules.
            root: its state.
            nodes, edges: of the tree; `nodes["state"]` is 1 where the network has been asked.
            count: nodes that it has.
        """
        seen = nodes[:count]
        new = np.flatnonzero((seen["visits"] >= self.after) & (seen["degree"] > 0) & (seen["state"] == 0))
        if seen["degree"][ROOT] and not seen["state"][ROOT]:
            new = np.union1d([ROOT], new)
        new = new[np.argsort(-seen["visits"][new], kind="stable")][:_MOST]
        if not len(new):
            return
        told = self.evaluate([reached(mdp, root, nodes, edges, node) for node in new.tolist()])
        for node, outputs in zip(new.tolist(), told.logits, strict=True):
            first, degree = nodes["first"][node], nodes["degree"][node]
            self._impress(edges[first : first + degree], outputs)
        nodes["state"][new] = 1

    def _impress(self, edges: np.ndarray, outputs: Any) -> None:
        outputs = outputs[edges["action"]].astype(np.float64)
        odds = np.exp(outputs - outputs.max())
        won = np.round(self.weight * np.sqrt(odds / odds.sum()))
        edges["all_visits"] += won.astype(np.int32)
        edges["all_total"] += won


def reached(mdp: GoMDP, root: GoState, nodes: np.ndarray, edges: np.ndarray, node: int) -> GoState:
    """The state of a node: the moves that lead to it, played from the root."""
    actions = []
    while node != ROOT:
        edge = edges[nodes["edge"][node]]
        actions.append(int(edge["action"]))
        node = int(edge["node"])
    for action in reversed(actions):
        root = mdp.transition(root, action)
    return root
