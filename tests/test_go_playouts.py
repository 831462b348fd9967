"""Heavy playouts: what they know of eyes, of self-atari, and when a game is decided."""

from __future__ import annotations

import numpy as np
import pytest

from llmgym.compiled import kernel
from llmgym.envs.go.cells import action_of, cell_of, gives_atari
from llmgym.envs.go.heavy import heavy_cell
from llmgym.envs.go.layout import ENDING, MOVES
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.rollout_search import DEFAULT, RolloutSearch
from llmgym.envs.go.rollouts import HEAVY, captures_ahead, play_on, stones_ahead
from llmgym.envs.go.shapes import leaves_one_eye, vital_point

SIZE = 9
SHAPES = ("XXX", "XX/X.", ".X./XXX", "XX./XXX", ".X./XXX/.X.", ".XX/XXX/.X.")  # the X with most neighbours is vital
HARMLESS = ("XX", "XX/XX")  # nothing is left to play: taken stones leave two points, or four that are one eye at once


def turned(points):
    """A shape in its eight orientations, as sets of points with the least row and column 0."""
    found = set()
    for k in range(8):
        now = [(row, -col) if k > 3 else (row, col) for row, col in points]
        for _ in range(k % 4):
            now = [(col, -row) for row, col in now]
        found.add(frozenset((row - min(now)[0], col - min(c for _, c in now)) for row, col in now))
    return found


def drawn(*shapes):
    """All orientations of drawn shapes."""
    lines = [shape.split("/") for shape in shapes]
    return set().union(
        *(turned([(r, c) for r, row in enumerate(rows) for c, x in enumerate(row) if x == "X"]) for rows in lines)
    )


def regions(most):
    """All connected sets of up to so many points, up to where they lie."""
    found = layer = {frozenset([(0, 0)])}
    for _ in range(most - 1):
        grown = set()
        for points in layer:
            for row, col in points:
                for step in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                    more = {*points, (row + step[0], col + step[1])}
                    grown |= {shape for shape in turned(more) if len(more) > len(points)}
        layer = grown
        found = found | layer
    return found


def degree(point, points):
    """Neighbours of a point in a region."""
    return sum(abs(point[0] - row) + abs(point[1] - col) == 1 for row, col in points)


@kernel
def vital_at(ints, action):
    cell = vital_point(ints, cell_of(ints, action), np.empty(6, np.int64))
    return action_of(ints, cell) if cell > 0 else -1


@kernel
def one_eye_at(ints, action):
    return leaves_one_eye(ints, cell_of(ints, action), np.empty(6, np.int64))


def enclosed(points, inside, at=1):
    """A board of White with a region in it that is filled with `inside`; Black to move."""
    stones = np.full((SIZE, SIZE), 2)
    for (row, col), stone in zip(points, inside, strict=True):
        stones[row + at, col + at] = stone
    stones[8, 8] = 0  # White's other liberty
    return GoMDP(SIZE).position(stones, to_play=0)


@pytest.mark.parametrize(("at", "most"), [(0, 6), (1, 7)])
def test_vital_points_are_those_of_the_shapes_that_are_known(at, most):
    known, seen = drawn(*SHAPES), 0
    everything = regions(most)
    assert sum(len(points) == 6 for points in everything) == 216  # fixed hexominoes
    for points in map(sorted, everything):
        state = enclosed(points, [0] * len(points), at)
        has = frozenset(points) in known
        best = max(points, key=lambda point: degree(point, points))
        wanted = (best[0] + at) * SIZE + best[1] + at if has else -1
        assert {vital_at(state.ints, (row + at) * SIZE + col + at) for row, col in points} == {wanted}, points
        seen += has
    assert seen == 6 + 4 + 8 + 1 + 4  # threes, fours, bulky, crossed and rabbity ones


def test_a_space_with_a_stone_of_ones_own_is_no_eye_space():
    state = enclosed([(0, 0), (0, 1), (0, 2), (1, 0)], [0, 0, 0, 1])
    assert vital_at(state.ints, SIZE + 1) == -1


def test_stones_that_leave_one_eye():
    known = drawn(*SHAPES, *HARMLESS)
    for points in map(sorted, regions(6)):
        for last in range(len(points) * (len(points) > 1)):
            state = enclosed(points, [1 - (k == last) for k in range(len(points))])
            row, col = points[last]
            assert one_eye_at(state.ints, (row + 1) * SIZE + col + 1) == (frozenset(points) in known), points


@kernel
def atari_at(ints, longs, action):
    return gives_atari(ints, longs, cell_of(ints, action))


def liberties(stones, row, col):
    """Liberties of a chain, by flood fill."""
    chain, edge, free = {(row, col)}, [(row, col)], set()
    while edge:
        row, col = edge.pop()
        for near in ((row, col + 1), (row, col - 1), (row + 1, col), (row - 1, col)):
            if not (0 <= near[0] < len(stones) and 0 <= near[1] < len(stones)):
                continue
            if stones[near] == 0:
                free.add(near)
            elif stones[near] == stones[row, col] and near not in chain:
                chain.add(near)
                edge.append(near)
    return free


def test_atari_is_known_before_the_stone_is_there():
    mdp, rng, given = GoMDP(6), np.random.default_rng(0), 0
    for _ in range(30):
        state = mdp.initial()
        while not mdp.terminal(state):
            for action in np.flatnonzero(mdp.mask(state)[:-1]).tolist():
                row, col = divmod(action, 6)
                stones, enemy = mdp.transition(state, action).stones, 2 - state.to_play
                near = [(row + r, col + c) for r, c in ((0, 1), (1, 0), (0, -1), (-1, 0))]
                near = [(r, c) for r, c in near if 0 <= r < 6 and 0 <= c < 6 and stones[r, c] == enemy]
                atari = any(len(liberties(stones, *each)) == 1 for each in near)
                assert atari_at(state.ints, state.longs, action) == atari
                given += atari
            for _ in range(7):  # a few moves on
                state = state if mdp.terminal(state) else mdp.transition(state, mdp.light_move(state, rng))
    assert given > 100


def test_two_stones_in_four_points_are_known_to_kill():
    """White's four points in a row are one eye, since Black may fill the third: a playout that never does sees seki."""
    board = """
        . X X . O
        O O O O O
        X X X X X
        . . . . .
        X X X X X"""
    mdp = GoMDP(5, komi=12)  # White needs to live
    for to_play, sign in ((0, 1), (1, -1)):
        result = RolloutSearch(mdp, DEFAULT, playouts="heavy", seed=1).run(mdp.position(board, to_play=to_play), 100)
        assert sign * result.value > 0.3


@kernel
def heavy_move(ints, longs, seed, choices):
    cell = heavy_cell(ints, longs, seed, choices)
    return action_of(ints, cell) if cell > 0 else -1


def test_the_vital_point_of_taken_stones_is_played():
    mdp, rng = GoMDP(5), np.random.default_rng(0)
    state = mdp.position("X X X . O\nO O O O O\nX X X X X\n. . . . .\nX X X X X", to_play=1)
    state = mdp.transition(state, 3)  # takes three
    moves = [
        heavy_move(state.ints.copy(), state.longs.copy(), rng.integers(0, 2**64, 1, np.uint64), np.empty(24, np.int64))
        for _ in range(300)
    ]
    assert np.mean(np.equal(moves, 1)) > 0.8


@kernel
def played_on(ints, longs, seed, komi):
    """A heavy playout; Black's stones less White's in the end, as the playout reckons them and as they are."""
    before, came = stones_ahead(ints) - captures_ahead(ints), np.zeros((2, 81), np.int32)
    play_on(ints, longs, HEAVY, seed, np.empty(24, np.int64), came, np.int64(ints[MOVES]), before, komi)
    return before + captures_ahead(ints), stones_ahead(ints)


@pytest.mark.parametrize(("komi", "fewest", "most"), [(7.0, 20, 180), (40.0, 1, 100), (-60.0, 1, 100)])
def test_a_playout_ends_with_the_game_or_where_captures_have_decided_it(komi, fewest, most):
    mdp, decided = GoMDP(9, komi=komi), 0
    for seed in range(200):
        rng, state = np.random.default_rng(seed), mdp.initial()
        for _ in range(20):
            state = mdp.transition(state, mdp.light_move(state, rng))
        ints, longs = state.ints.copy(), state.longs.copy()
        reckoned, stones = played_on(ints, longs, rng.integers(0, 2**64, 1, np.uint64), komi)
        if ints[ENDING] == 0:
            assert abs(reckoned) > 30 and abs(reckoned - komi) > 30
            assert reckoned * (reckoned - komi) > 0 and reckoned * stones > 0
            decided += 1
    assert fewest <= decided <= most
