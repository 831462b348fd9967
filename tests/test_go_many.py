"""Many positions at once are each what it is alone."""

from __future__ import annotations

import numpy as np
import pytest

from llmgym.envs.go.mdp import GoMDP
from llmgym.mdp import MDP


@pytest.mark.parametrize("planes", [("stones", "history", "colour"), ("liberties", "ko")])
def test_moves_and_views_of_many_positions_equal_those_of_one(planes):
    mdp, rng = GoMDP((4, 5), ko="situational", planes=planes, max_moves=40), np.random.default_rng(0)
    states = [mdp.initial() for _ in range(7)]
    while going := [state for state in states if not mdp.terminal(state)]:
        actions = [int(rng.choice(np.flatnonzero(mdp.mask(state)))) for state in going]
        seen, masks = mdp.views(going)
        expected, allowed = MDP.views(mdp, going)
        np.testing.assert_array_equal(seen, np.stack(expected))
        np.testing.assert_array_equal(masks, allowed)
        before = [(hash(state), state.n_moves) for state in going]
        states = mdp.transitions(going, actions)
        assert states == MDP.transitions(mdp, going, actions)
        assert before == [(hash(state), state.n_moves) for state in going]
    assert {state.ending for state in states} <= {"passes", "moves"}


def test_an_illegal_action_among_others_loses():
    mdp = GoMDP(3)
    first = mdp.transition(mdp.initial(), 4)
    lost, won = mdp.transitions([first, first], [4, 0])
    assert lost.ending == "illegal" and won.ending is None
