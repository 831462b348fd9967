"""Turned and mirrored games of Go are the same games."""

from __future__ import annotations

import numpy as np
import pytest

from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.symmetry import inverse, symmetries, turned_actions, turned_planes


@pytest.mark.parametrize(("size", "count"), [((5, 5), 8), ((9, 9), 8), ((3, 5), 4), ((4, 2), 4)])
def test_as_many_as_the_board_has_and_each_a_permutation(size, count):
    permutations = symmetries(*size)
    points = size[0] * size[1]
    assert permutations.shape == (count, points + 1) and len(np.unique(permutations, axis=0)) == count
    assert (np.sort(permutations, 1) == np.arange(points + 1)).all()
    assert (permutations[0] == np.arange(points + 1)).all() and (permutations[:, -1] == points).all()
    group = {row.tobytes() for row in permutations}
    assert all(p[q].tobytes() in group for p in permutations for q in permutations)  # closed
    np.testing.assert_array_equal(turned_actions(permutations, inverse(permutations)), permutations[[0] * count])


def test_a_quarter_turn_drawn():
    assert symmetries(2, 2)[6].tolist() == [1, 3, 0, 2, 4]  # what was at the upper right is at the upper left


@pytest.mark.parametrize("ko", ["positional", "situational", "simple"])
@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
def test_a_game_of_turned_moves_has_turned_planes_masks_and_the_same_score(size, ko):
    mdp = GoMDP(size, ko=ko, planes=("stones", "history", "liberties", "ko", "colour"))
    rng = np.random.default_rng(0)
    for permutation in symmetries(*size):
        state = image = mdp.initial()
        back = inverse(permutation)
        while not mdp.terminal(state):
            one = permutation[None]
            np.testing.assert_array_equal(turned_actions(mdp.mask(state)[None], one)[0], mdp.mask(image))
            np.testing.assert_array_equal(turned_planes(mdp.observation(state)[None], one)[0], mdp.observation(image))
            action = mdp.light_move(state, rng)
            state, image = mdp.transition(state, action), mdp.transition(image, int(back[action]))
        assert mdp.terminal(image) and mdp.score(image) == mdp.score(state)
