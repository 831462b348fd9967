"""Numbers about Go that nobody here has worked out: legal positions, numbers of games, solved boards."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numba import njit

from llmgym.envs.go.area import fill_area
from llmgym.envs.go.board import begin, fill_board, step
from llmgym.envs.go.cells import action_of
from llmgym.envs.go.layout import BARRED, ENDING, TO_PLAY, empty_game
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.rules import GoRules

NO_BOARDS = np.empty((0, 0), np.uint8)


def game(size, **rules):
    """Memory of an empty board: int16 and int64 arrays."""
    return empty_game(GoRules(size, **rules), depth=0)[:2]


# Legal positions: every chain has a liberty. Tromp & Farnebäck, "Combinatorics of Go"; OEIS A094777.


@njit
def legal_positions(empty_ints, empty_longs, points, no_boards):
    """How many of the 3^points boards the engine accepts."""
    ints, longs, stones = empty_ints.copy(), empty_longs.copy(), np.zeros(points, np.uint8)
    count = 0
    for _ in range(3**points):
        ints[:], longs[:] = empty_ints, empty_longs
        count += begin(ints, longs, no_boards, stones, 0)
        at = 0
        while at < points and stones[at] == 2:  # the next board, counting in threes
            stones[at] = 0
            at += 1
        if at < points:
            stones[at] += 1
    return count


POSITIONS = {
    (1, 1): 1,
    (1, 2): 5,
    (1, 3): 15,
    (1, 4): 41,
    (1, 5): 113,
    (1, 6): 313,
    (2, 2): 57,
    (2, 3): 489,
    (2, 4): 4125,
    (3, 3): 12675,
    (3, 4): 321689,
}


@pytest.mark.parametrize("size", POSITIONS, ids=lambda size: f"{size[0]}x{size[1]}")
def test_legal_positions(size):
    for shape in (size, size[::-1]):
        assert legal_positions(*game(shape, max_moves=1), size[0] * size[1], NO_BOARDS) == POSITIONS[size]


@pytest.mark.slow
def test_legal_positions_on_4x4():
    assert legal_positions(*game(4, max_moves=1), 16, NO_BOARDS) == 24318165


# All moves of a small board, played by the engine. A board's code is its number in base 3, first point first.


@njit
def _play_everything(empty_ints, empty_longs, no_boards, after, ko, scores):
    board, area = np.zeros(after.shape[2], np.uint8), np.zeros(after.shape[2], np.uint8)
    for code in range(after.shape[0]):
        _decode(code, board)
        ints, longs = empty_ints.copy(), empty_longs.copy()
        if begin(ints, longs, no_boards, board, 0):
            scores[code] = fill_area(ints, area)
            for player in range(2):
                ints[TO_PLAY] = player
                _play_all(ints, longs, no_boards, after[code, player], ko[code, player])


@njit
def _play_all(ints, longs, no_boards, after, ko):
    board = np.zeros(len(after), np.uint8)
    for point in range(len(after)):
        played = ints.copy()
        step(played, longs.copy(), no_boards, point)
        if not played[ENDING]:  # legal
            fill_board(played, board)
            after[point] = _code(board)
            if played[BARRED]:
                ko[point] = action_of(played, np.int64(played[BARRED]))


@njit
def _decode(code, board):
    for point in range(len(board)):
        board[point] = code // 3**point % 3


@njit
def _code(board):
    code = 0
    for point in range(len(board)):
        code += board[point] * 3**point
    return code


def all_moves(size, suicide):
    """Of every board: codes after each move [codes, 2, points], -1 for none; the point that simple ko bars then, or
    -1; Black's points ahead [codes]."""
    points = size[0] * size[1]
    after, ko = np.full((2, 3**points, 2, points), -1, np.int64)
    scores = np.full(3**points, 99)
    _play_everything(*game(size, ko="simple", suicide=suicide), NO_BOARDS, after, ko, scores)
    return after, ko, scores


def test_the_table_of_all_moves_has_the_legal_positions():
    after, _, scores = on_3x3()
    assert (scores < 99).sum() == 12675
    assert set(after[after >= 0].tolist()) <= set(np.flatnonzero(scores < 99).tolist())
    assert scores[0] == 0 and scores[3**4] == 9 and scores[2 * 3**4] == -9


# Number of games by positional superko, suicide allowed. Tromp & Farnebäck, section "Number of games".

GAMES = {(1, 1): 1, (1, 2): 9, (1, 3): 907, (1, 4): 2098407841}


def games(mdp, state):
    """Ways in which play can go on to its end."""
    if mdp.terminal(state):
        return 1
    return sum(games(mdp, mdp.transition(state, int(action))) for action in np.flatnonzero(mdp.mask(state)))


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (1, 3), (3, 1)], ids=str)
def test_number_of_games_by_the_masks(size):
    mdp = GoMDP(size, ko="positional", suicide=True, max_moves=1000)
    assert games(mdp, mdp.initial()) == GAMES[min(size), max(size)]


@njit
def paths(near, at, visited):
    """Simple paths from a node, the empty one included. `near` [nodes, most]: neighbours, then -1; a bit a node."""
    count = 1
    for k in range(near.shape[1]):
        if near[at, k] < 0:
            break
        bit = np.int64(1) << near[at, k]
        if not visited & bit:
            count += paths(near, near[at, k], visited | bit)
    return count


def graph(size):
    """Positions that moves of either colour join, the empty board first: `near` of `paths`, and their boards."""
    after, _, scores = all_moves(size, suicide=True)
    codes = np.flatnonzero(scores < 99)
    near = np.full((len(codes), after[0].size), -1)
    for node, code in enumerate(codes):
        moves = after[code][(after[code] >= 0) & (after[code] != code)]
        near[node, : len(moves)] = np.searchsorted(codes, moves)
    return near, codes[:, None] // 3 ** np.arange(after.shape[2]) % 3


def number_of_games(near, twins):
    """From the empty board, whose neighbours that are `twins` of each other have as many paths.

    Each play, with the passes in it left out, is a simple path of positions: a pass before a move lets the other
    colour move, so that either may from everywhere. It ends there, or goes on; and two passes are the one way to end.
    """
    classes: dict[int, int] = {}
    for node in near[0][near[0] >= 0]:
        least = min(twin[node] for twin in twins)
        classes[least] = classes.get(least, 0) + 1
    return 1 + sum(many * paths(near, node, 1 | 1 << node) for node, many in classes.items())


def symmetries(near, boards):
    """Nodes [4, nodes] after reflection, exchange of colours, both and neither; `near` is the same from each side."""
    images = [boards, boards[:, ::-1], -boards % 3, -boards[:, ::-1] % 3]
    index = {board.tobytes(): node for node, board in enumerate(boards)}
    twins = np.array([[index[board.tobytes()] for board in np.ascontiguousarray(image)] for image in images])
    for twin in twins:
        for node in range(len(near)):
            assert sorted(twin[near[node][near[node] >= 0]]) == sorted(near[twin[node]][near[twin[node]] >= 0])
    return twins


def count_games(size):
    near, boards = graph(size)
    return number_of_games(near, symmetries(near, boards))


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (1, 3)], ids=str)
def test_number_of_games_by_paths(size):
    assert count_games(size) == GAMES[size]


@pytest.mark.slow
def test_number_of_games_on_1x4():
    assert count_games((1, 4)) == GAMES[1, 4]


# 2x2: Black wins by one point. Area, komi 0, positional superko; a node is a call of Tromp's alpha-beta, which tries
# the pass and then the points in their order: http://tromp.github.io/java/go/twoxtwo.html


def alpha_beta(mdp, state, alpha, beta, nodes):
    """Points of the player to move, inside of [alpha, beta]; counts its calls."""
    nodes.append(state.n_moves)
    points = mdp.rules.points
    for action in (points, *np.flatnonzero(mdp.mask(state)[:points])):
        after = mdp.transition(state, action)
        if mdp.terminal(after):
            value = mdp.score(after) * (1 - 2 * state.to_play)
        else:
            value = -alpha_beta(mdp, after, -beta, -alpha, nodes)
        alpha = max(alpha, value)
        if alpha >= beta:
            break
    return alpha


def test_2x2_is_solved_in_1446_nodes():
    mdp, nodes = GoMDP(2, komi=0, ko="positional", max_moves=1000), []
    assert alpha_beta(mdp, mdp.initial(), -4, 4, nodes) == 1
    assert len(nodes) == 1446 and max(nodes) <= 22


@njit
def alpha_beta_moves_first(after, scores, code, player, passed, alpha, beta, visited, nodes, depth):
    """The same on a table of moves, with the pass tried last; `nodes` [depth] counts calls."""
    nodes[depth] += 1
    for point in range(after.shape[2] + 1):
        if point < after.shape[2]:
            there = after[code, player, point]
            if there < 0 or visited[there]:
                continue
            visited[there] = True
            value = -alpha_beta_moves_first(
                after, scores, there, 1 - player, False, -beta, -alpha, visited, nodes, depth + 1
            )
            visited[there] = False
        elif passed:
            value = scores[code] * (1 - 2 * player)
        else:
            value = -alpha_beta_moves_first(
                after, scores, code, 1 - player, True, -beta, -alpha, visited, nodes, depth + 1
            )
        alpha = max(alpha, value)
        if alpha >= beta:
            break
    return alpha


def test_2x2_takes_19397529_nodes_if_passes_are_tried_last():
    after, _, scores = all_moves((2, 2), suicide=False)
    visited, nodes = np.zeros(81, bool), np.zeros(200, np.int64)
    visited[0] = True
    assert alpha_beta_moves_first(after, scores, 0, 0, False, -4, 4, visited, nodes, 0) == 1
    assert nodes.sum() == 19397529 and np.flatnonzero(nodes).max() == 58


# 3x3, area, komi 0: Black wins by 9 from the centre and by 3 from a side, and loses by 9 from a corner. Null windows
# prove the bounds, by alpha-beta on the engine, whose masks hold the ko rule. A table of all positions says in which
# order moves are tried: how soon would the bound be forced, or missed, by simple ko?

CENTRE, SIDES, CORNERS = [4], [1, 3, 5, 7], [0, 2, 6, 8]
BLACK, WHITE = 0, 1


@njit
def moves_to_force(after, ko, scores, player, bound):
    """Within how many moves `player` can end the game at least `bound` points ahead by simple ko; 0: in no number.

    int64 [codes, to play, passed, ko point], the last ko point being none.
    """
    codes, _, points = after.shape
    forced, moves, more = np.zeros((codes, 2, 2, points + 1), np.int64), 0, True
    while more:
        moves, more, known = moves + 1, False, forced.copy()
        for code in np.flatnonzero(scores < 99):
            goal = (scores[code] >= bound) if player == 0 else (-scores[code] >= bound)
            for mover in range(2):
                for passed in range(2):
                    for barred in range(points + 1):
                        if known[code, mover, passed, barred] == 0 and _is_forced(
                            after, ko, known, code, mover, passed, barred, goal, player
                        ):
                            forced[code, mover, passed, barred] = moves
                            more = True
    return forced


@njit
def _is_forced(after, ko, known, code, mover, passed, barred, goal, player):
    """Whether one move of `player`, or every move of the other, leads to where it is known to be forced."""
    ours, points = mover == player, after.shape[2]
    if (goal if passed else known[code, 1 - mover, 1, points] > 0) == ours:  # a pass
        return ours
    for point in range(points):
        there = after[code, mover, point]
        if there >= 0 and point != barred and (known[there, 1 - mover, 0, ko[code, mover, point]] > 0) == ours:
            return ours
    return not ours


@cache
def on_3x3():
    return all_moves((3, 3), suicide=False)


@cache
def forced_on_3x3(player, points):
    return moves_to_force(*on_3x3(), player, points)


class Bound:
    """Whether `player` can be `points` ahead at the end of a 3x3 game; `proven` searches."""

    def __init__(self, player, points, ko):
        self.player, self.points = player, points
        self.mdp = GoMDP(3, komi=0, ko=ko, max_moves=1000)
        self.reached, self.missed = forced_on_3x3(player, points), forced_on_3x3(1 - player, 1 - points)

    def after(self, *moves):
        """Whether it holds after these first moves."""
        return self.proven(self.mdp.initial(None, {"moves": moves}))

    def proven(self, state):
        """Alpha-beta with an empty window: the first move that decides for its player is enough."""
        ours = state.to_play == self.player
        for action in sorted(np.flatnonzero(self.mdp.mask(state)), key=self.order(state)):
            after = self.mdp.transition(state, action)
            holds = self.holds(after) if self.mdp.terminal(after) else self.proven(after)
            if holds == ours:
                return ours
        return not ours

    def holds(self, over):
        """Of a finished game."""
        return self.mdp.score(over) * (1 - 2 * self.player) >= self.points

    def order(self, state):
        """Key of actions: what decides soonest for the player to move comes first, what decides soonest against it
        last; in between by the score, and the pass at their end."""
        mover, code = state.to_play, int(state.stones.reshape(-1) @ 3 ** np.arange(9))
        after, ko, scores = on_3x3()
        good, bad = (self.reached, self.missed) if mover == self.player else (self.missed, self.reached)

        def key(action):
            if action == 9:
                where = code, 1 - mover, 1, 9
            else:
                where = after[code, mover, action], 1 - mover, 0, ko[code, mover, action]
            if action == 9 and state.passes:
                return -2000  # the end: what it is worth costs no search
            if good[where] or bad[where]:
                return good[where] - 1000 if good[where] else 1000 - bad[where]
            return 100 if action == 9 else scores[where[0]] * (2 * mover - 1)

        return key


@pytest.mark.parametrize("ko", ["simple", "positional", pytest.param("situational", marks=pytest.mark.slow)])
def test_3x3_is_won_by_9_from_the_centre_and_lost_by_9_in_a_corner(ko):
    """By any ko rule: no more than 9 points are to be had, so that one bound is enough."""
    assert all(Bound(BLACK, 9, ko).after(point) for point in CENTRE)
    assert all(Bound(WHITE, 9, ko).after(point) for point in CORNERS)
    assert Bound(BLACK, 9, ko).after()  # from the empty board


@pytest.mark.parametrize("ko", ["positional", pytest.param("situational", marks=pytest.mark.slow)])
def test_3x3_is_won_by_3_from_a_side_by_superko(ko):
    at_least, at_most = Bound(BLACK, 3, ko), Bound(WHITE, -3, ko)
    assert all(at_least.after(point) and at_most.after(point) for point in SIDES)


def test_3x3_by_simple_ko_black_has_3_from_a_side_and_white_can_only_keep_the_game_going():
    assert all(Bound(BLACK, 3, "simple").after(point) for point in SIDES)
    for never in (forced_on_3x3(BLACK, 4), forced_on_3x3(WHITE, -3)):
        assert not any(never[3**point, WHITE, 0, 9] for point in SIDES)


def test_the_search_refutes_what_is_not_so():
    assert not Bound(WHITE, -8, "positional").after(4) and not Bound(BLACK, -8, "positional").after(0)
    assert not Bound(WHITE, -2, "positional").after(1) and not Bound(BLACK, 4, "positional").after(1)
