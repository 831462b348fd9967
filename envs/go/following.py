"""The moves from a position that a search knows to the one that it is asked about."""

from __future__ import annotations

from collections.abc import Sequence

from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.state import GoState


def moves_between(mdp: GoMDP, root: GoState | None, state: GoState, actions: Sequence[int]) -> list[int] | None:
    """None, one or two moves that lead from one state to another; None if there is no such way.

    Args:
        mdp: their rules.
        root: where the way begins.
        state: where it ends.
        actions: first moves of a way of two, the likeliest first.
    """
    if root is None or root == state:
        return None if root is None else []
    last = state.last_action
    if last is None:
        return None
    if state.n_moves == root.n_moves + 1 and _leads(mdp, root, [last], state):
        return [last]
    if state.n_moves == root.n_moves + 2:
        for action in actions:
            if _leads(mdp, root, [action, last], state):
                return [action, last]
    return None


def _leads(mdp: GoMDP, root: GoState, actions: list[int], state: GoState) -> bool:
    for action in actions:
        if mdp.terminal(root) or not mdp.mask(root)[action]:
            return False
        root = mdp.transition(root, action)
    return root == state
