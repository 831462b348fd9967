"""`GoMDP` and `GoState`: states are values, options and rewards, symmetries, planes."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from go_reference import Game, parse, planes

from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.planes import DEFAULT_PLANES, PLANES, plane_count
from llmgym.envs.go.state import GoState

SIZES = [(1, 1), (1, 2), (1, 7), (2, 2), (3, 5), (5, 5), (7, 4), (9, 9)]
every_size = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
every_ko = pytest.mark.parametrize("ko", ["simple", "positional", "situational"])
ALL_PLANES = tuple(PLANES)


def walk(mdp, seed=0, state=None, moves=10**6):
    """(state, action, next state) of a game of random legal moves; stones wherever possible, so that it is long."""
    rng = np.random.default_rng(seed)
    state = mdp.initial() if state is None else state
    while not mdp.terminal(state) and moves:
        legal = np.flatnonzero(mdp.mask(state)[:-1])
        action = int(rng.choice(legal)) if len(legal) and rng.random() < 0.95 else mdp.rules.points
        after = mdp.transition(state, action)
        yield state, action, after
        state, moves = after, moves - 1


def middle(mdp, moves=20, seed=0):
    """A state in mid-game."""
    return list(walk(mdp, seed, moves=moves))[-1][-1]


def looks(mdp, state):
    """All that can be seen of a state."""
    public = (state.to_play, state.n_moves, state.passes, state.last_action, state.ending, state.captures)
    arrays = (state.stones, state.history(8), mdp.mask(state), mdp.observation(state), mdp.area(state))
    return *public, mdp.score(state), *(array.tobytes() for array in arrays)


def same_game(mdp, one, other, seed=1):
    """Whether two states go on alike to the end."""
    assert one == other and hash(one) == hash(other)
    for (_, action, a), (_, action_too, b) in zip(walk(mdp, seed, one, 60), walk(mdp, seed, other, 60), strict=True):
        assert action == action_too and a == b and looks(mdp, a) == looks(mdp, b)


# States are values.


@every_ko
@every_size
def test_a_transition_leaves_the_old_state_alone(size, ko):
    mdp = GoMDP(size, ko=ko, suicide=True, planes=ALL_PLANES)
    for state, action, after in walk(mdp):
        before = looks(mdp, state)
        again = mdp.transition(state, action)
        assert again == after and looks(mdp, again) == looks(mdp, after)
        mdp.transition(state, 0)  # legal or not
        mdp.rollout(state, np.random.default_rng(0))
        mdp.light_move(state, np.random.default_rng(0))
        assert looks(mdp, state) == before


def test_nothing_that_a_state_hands_out_changes_it():
    mdp = GoMDP(5)
    state = middle(mdp)
    before = looks(mdp, state)
    for array in (state.stones, state.history(3), mdp.mask(state), mdp.observation(state), mdp.area(state)):
        if array.flags.writeable:
            array[:] = 1
    assert looks(mdp, state) == before


def test_equal_positions_hash_equal_whatever_the_order_of_moves():
    mdp = GoMDP(5)
    one, other = (mdp.initial(None, {"moves": moves}) for moves in ([3, 7, 12, 20], [12, 20, 3, 7]))
    assert np.array_equal(one.stones, other.stones) and hash(one) == hash(other)
    assert one != other  # superko forbids other positions
    assert hash(one) == hash(mdp.position(one.stones))  # with fewer moves
    assert hash(one) != hash(mdp.position(one.stones, to_play=1))


@every_size
def test_positions_hash_equal_only_if_they_are_equal(size):
    mdp = GoMDP(size, ko="simple")
    seen: dict = {}
    for seed in range(5):
        for _, _, state in walk(mdp, seed):
            if state.ending is None:
                key = (state.stones.tobytes(), state.to_play)
                assert seen.setdefault(key, hash(state)) == hash(state)
    assert len(set(seen.values())) == len(seen)


def test_the_same_game_gives_equal_states_and_another_past_does_not():
    mdp = GoMDP(5)
    one, other = middle(mdp), middle(mdp)
    assert one is not other and one == other and len({one, other}) == 1
    assert mdp.transition(one, 25) != one and one != "state" and one != mdp.position(one.stones, one.to_play)
    passed = mdp.initial(None, {"moves": [25, 25]})
    assert passed != mdp.initial() and mdp.initial() == mdp.initial()


def test_states_of_other_rules_are_not_equal():
    kinds = [{}, {"ko": "simple"}, {"suicide": True}, {"max_moves": 30}, {"board_size": (1, 9)}, {"board_size": (9, 1)}]
    states = [GoMDP(**{"board_size": 3} | kind).initial() for kind in kinds]
    assert len(set(states)) == len(states)


@pytest.mark.parametrize(
    "copied",
    [lambda s: pickle.loads(pickle.dumps(s)), copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s, 2))],
    ids=["pickle", "copy", "deepcopy", "pickle 2"],
)
@every_ko
def test_copies_in_mid_game_go_on_identically(copied, ko):
    mdp = GoMDP((4, 5), ko=ko, suicide=True, max_moves=90)
    state = middle(mdp)
    twin = copied(state)
    assert isinstance(twin, GoState) and looks(mdp, twin) == looks(mdp, state)
    same_game(mdp, state, twin)
    same_game(copied(mdp), state, twin)


def test_two_board_sizes_in_one_process_know_nothing_of_each_other():
    mdps = [GoMDP(9), GoMDP(5, ko="simple"), GoMDP((3, 7), suicide=True), GoMDP(19, ko="situational")]
    alone = [[looks(mdp, after) for *_, after in walk(mdp, 3, moves=40)] for mdp in mdps]
    walks = [walk(mdp, 3, moves=40) for mdp in mdps]
    for step in range(40):
        for mdp, game, expected in zip(mdps, walks, alone, strict=True):
            if step < len(expected):
                assert looks(mdp, next(game)[-1]) == expected[step]


def test_the_history_holds_the_last_boards():
    mdp = GoMDP(4)
    boards = [mdp.initial().stones]
    for _, _, state in walk(mdp):
        boards.insert(0, state.stones)
        expected = np.stack((boards + [np.zeros((4, 4), np.int8)] * 8)[:8])
        assert np.array_equal(state.history(8), expected)
        assert np.array_equal(state.history(3), expected[:3]) and state.history(3).dtype == np.int8
    with pytest.raises(ValueError, match="got k = 9"):
        state.history(9)


def test_the_state_tells_what_happened():
    mdp = GoMDP(2, komi=0)
    state = mdp.initial()
    assert (state.rows, state.cols, state.to_play, state.n_moves, state.last_action) == (2, 2, 0, 0, None)
    state = mdp.initial(None, {"moves": [0, 1, 4, 2]})
    assert (state.to_play, state.n_moves, state.passes, state.last_action, state.captures) == (0, 4, 0, 2, (0, 1))
    assert state.stones.tolist() == [[0, 2], [2, 0]] and mdp.player(state) == 0


# Options.


def test_options_choose_the_start():
    mdp = GoMDP(3, handicap=1)
    text = ". X .\nO . .\n. . ."
    for board in (text, parse(text), parse(text).tolist()):
        state = mdp.initial(None, {"position": board, "to_play": 1})
        assert np.array_equal(state.stones, parse(text)) and state.to_play == 1 and state.n_moves == 0
        assert state == mdp.position(board, 1) and state.history(2)[1].sum() == 0
    assert mdp.initial(None, {"position": text}).to_play == 0
    assert mdp.initial(None, {"handicap": 0}) == GoMDP(3).initial()
    assert mdp.initial(None, {}) == mdp.initial(np.random.default_rng(0)) == mdp.initial()
    played = mdp.initial(None, {"position": text, "moves": [4, 9]})
    assert played.n_moves == 2 and played.stones[1, 1] == 1 and played.passes == 1
    assert mdp.initial(None, {"moves": np.array([4, 9])}).n_moves == 2


def test_superko_remembers_the_position_that_a_game_began_with():
    mdp = GoMDP((3, 4))
    state = mdp.initial(None, {"position": ". X O .\nX O . O\n. X O .", "moves": [6]})
    assert not mdp.mask(state)[5]


# Rewards.


@pytest.mark.parametrize("komi", [0.5, -2, 3])
def test_the_result_is_given_once_to_who_moved_last(komi):
    mdp = GoMDP(3, komi=komi)
    for seed in range(10):
        for state, action, after in walk(mdp, seed):
            sign, score = 1 - 2 * state.to_play, mdp.score(after)
            reward = mdp.reward(state, action, after)
            assert reward == (sign * np.sign(score) if mdp.terminal(after) else 0.0) and type(reward) is float


def test_the_margin_is_a_share_of_the_board():
    mdp = GoMDP((2, 5), komi=1.5, reward="margin")
    state = mdp.position(". X . . O\n. X . . O")
    for player in (0, 1):
        last = mdp.transition(mdp.position(state.stones, player), 10)
        over = mdp.transition(last, 10)
        assert mdp.score(over) == 4 - 2 - 1.5
        assert mdp.reward(last, 10, over) == pytest.approx((1 - 2 * last.to_play) * 0.5 / 10)
        assert mdp.reward(state, 10, last) == 0.0
    assert mdp.reward(state, 1, mdp.transition(state, 1)) == -1.0  # an illegal action loses everything


def test_captures_can_be_rewarded():
    text = "O O a\nX X .\n. . ."
    mdp = GoMDP(3, capture_reward=0.25, komi=0)
    state = mdp.position(text.replace("a", "."))
    assert mdp.reward(state, 2, mdp.transition(state, 2)) == 0.5
    assert mdp.reward(state, 9, mdp.transition(state, 9)) == 0.0
    white = mdp.position("X X .\nO O .\n. . .", to_play=1)
    assert mdp.reward(white, 2, mdp.transition(white, 2)) == 0.5
    suicide = GoMDP(3, capture_reward=0.25, suicide=True)
    lost = suicide.position(". X O\nO O .\n. . .")
    assert suicide.reward(lost, 0, suicide.transition(lost, 0)) == -0.5
    capped = GoMDP(3, capture_reward=0.25, max_moves=1, komi=0)  # with the result, at the end
    start = capped.position(text.replace("a", "."))
    assert capped.reward(start, 2, capped.transition(start, 2)) == 1.5
    assert capped.reward(start, 0, capped.transition(start, 0)) == -1.0  # illegal


def test_an_illegal_action_loses_for_either_player():
    for to_play in (0, 1):
        mdp = GoMDP(3, komi=0)
        state = mdp.position(". X .\n. . .\n. O .", to_play)
        over = mdp.transition(state, 1)
        assert mdp.reward(state, 1, over) == -1.0 and mdp.winner(over) == 1 - to_play
        assert mdp.info(over) == {"winner": 1 - to_play, "score": 0.0, "ending": "illegal", "illegal": True}


# Symmetries.

SQUARE = [(turns, flip) for turns in range(4) for flip in (False, True)]


def mapped(board, turns, flip):
    """A board, or a stack of them, turned and reflected."""
    board = np.rot90(board, turns, axes=(-2, -1))
    return np.flip(board, -1) if flip else board


@every_ko
@pytest.mark.parametrize("suicide", [False, True])
@pytest.mark.parametrize(("turns", "flip"), SQUARE)
@pytest.mark.parametrize("size", [(2, 2), (5, 5), (3, 4), (1, 6)], ids=str)
def test_a_game_seen_from_another_side_is_the_same_game(size, turns, flip, ko, suicide):
    """A quarter turn of a rectangle is played on the other rectangle."""
    options = {"ko": ko, "suicide": suicide, "planes": ALL_PLANES, "komi": 0.5}
    points = np.arange(size[0] * size[1]).reshape(size)
    order = mapped(points, turns, flip).reshape(-1)  # the point that each point of the other board shows
    mdp, other = GoMDP(size, **options), GoMDP(mapped(points, turns, flip).shape, **options)
    twin = other.initial()
    for state, action, after in walk(mdp, seed=turns):
        twin_action = len(order) if action == len(order) else int(np.flatnonzero(order == action)[0])
        assert np.array_equal(other.mask(twin), mdp.mask(state)[[*order, len(order)]])
        assert np.array_equal(other.observation(twin), mapped(mdp.observation(state), turns, flip))
        next_twin = other.transition(twin, twin_action)
        assert np.array_equal(next_twin.stones, mapped(after.stones, turns, flip))
        assert np.array_equal(other.area(next_twin), mapped(mdp.area(after), turns, flip))
        assert other.score(next_twin) == mdp.score(after) and next_twin.captures == after.captures
        assert other.reward(twin, twin_action, next_twin) == mdp.reward(state, action, after)
        twin = next_twin


@every_ko
@every_size
def test_the_score_changes_its_sign_with_the_colours(size, ko):
    """The same moves with White first: boards, masks and planes of stones are the other's, scores the opposite."""
    mdp = GoMDP(size, komi=0, ko=ko, suicide=True, planes=("stones", "history", "liberties", "ko"))
    swap = np.array([0, 2, 1], np.int8)
    twin = mdp.position(np.zeros(size, np.int8), to_play=1)
    for state, action, after in walk(mdp):
        assert np.array_equal(mdp.mask(twin), mdp.mask(state))
        assert np.array_equal(mdp.observation(twin), mdp.observation(state))
        next_twin = mdp.transition(twin, action)
        assert np.array_equal(next_twin.stones, swap[after.stones])
        assert np.array_equal(mdp.area(next_twin), swap[mdp.area(after)])
        assert mdp.score(next_twin) == -mdp.score(after) and next_twin.captures == after.captures[::-1]
        assert mdp.reward(twin, action, next_twin) == mdp.reward(state, action, after)
        twin = next_twin


# Planes.


@every_ko
@pytest.mark.parametrize("suicide", [False, True])
@every_size
def test_planes_are_those_of_their_definitions(size, ko, suicide):
    mdp = GoMDP(size, ko=ko, suicide=suicide, planes=ALL_PLANES)
    game = Game(*size, ko=ko, suicide=suicide)
    for state, action, after in walk(mdp, 5, moves=150):
        seen = mdp.observation(state)
        assert seen in mdp.observation_space and np.array_equal(seen, planes(game, ALL_PLANES))
        game.play(action)
        assert np.array_equal(after.stones, game.stones())


@pytest.mark.parametrize(
    "names", [("stones",), ("colour", "stones"), ("history",), ("liberties", "ko"), DEFAULT_PLANES]
)
def test_planes_can_be_chosen(names):
    """They come in the order of the table, whatever the order they are named in."""
    mdp = GoMDP((3, 4), planes=names)
    ordered = tuple(name for name in PLANES if name in names)
    game = Game(3, 4)
    assert mdp.observation_space.shape == (plane_count(names), 3, 4)
    for state, action, _ in walk(mdp):
        assert np.array_equal(mdp.observation(state), planes(game, ordered))
        game.play(action)


def test_the_first_plane_is_the_player_to_moves():
    """In other libraries it is, at one's turn, the opponent's."""
    mdp = GoMDP(5)
    assert mdp.observation_space.shape == (17, 5, 5) == mdp.observation(mdp.initial()).shape
    state = mdp.initial(None, {"moves": [7]})
    white = mdp.observation(state)
    assert white[0].sum() == 0 and white[1].sum() == white[1, 1, 2] == 1 and not white[16].any()
    black = mdp.observation(mdp.transition(state, 12))
    assert black[0, 1, 2] == black[1, 2, 2] == black[:2].sum() / 2 == 1 and black[16].all()
    assert np.array_equal(black[2:4], white[1::-1])  # one move ago, seen by Black


# The largest boards, and the smallest.


@every_ko
@pytest.mark.parametrize("size", [(25, 25), (25, 1), (1, 25), (25, 2)], ids=str)
def test_the_largest_boards(size, ko):
    mdp = GoMDP(size, ko=ko, planes=ALL_PLANES)
    over = mdp.rollout(mdp.initial(), np.random.default_rng(0))
    assert mdp.terminal(over) and over.n_moves <= mdp.rules.cap and abs(mdp.score(over)) <= mdp.rules.points + 7.5
    game = Game(*size, ko=ko)
    for _, action, state in walk(mdp, moves=40):  # noqa: B007
        game.play(action)
    assert np.array_equal(state.stones, game.stones()) and np.array_equal(mdp.mask(state), game.mask())
    assert np.array_equal(mdp.observation(state), planes(game, ALL_PLANES))


def test_one_chain_as_large_as_the_board():
    """624 stones with one liberty: the largest numbers that the engine's liberties hold."""
    mdp = GoMDP(25, komi=0)
    for hole in (0, 24, 312, 600, 624):
        stones = np.full(625, 1, np.int8)
        stones[hole] = 0
        state = mdp.position(stones.reshape(25, 25), to_play=1)
        assert mdp.score(state) == 625
        empty = mdp.transition(state, hole)
        assert empty.captures == (0, 624) and empty.stones.sum() == 2 and mdp.score(empty) == -625


def test_the_board_of_one_point():
    mdp = GoMDP(1)
    assert mdp.mask(mdp.initial()).tolist() == [False, True]
    for ko, legal in (("simple", True), ("positional", False), ("situational", True)):
        mdp = GoMDP(1, ko=ko, suicide=True)
        assert mdp.mask(mdp.initial()).tolist() == [legal, True]
        assert not mdp.transition(mdp.initial(), 0).stones.any()
