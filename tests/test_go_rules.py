"""Rules of Go as pictures: X is Black, O is White, letters are the points that are played."""

from __future__ import annotations

import numpy as np
import pytest
from go_reference import Game, parse, show

from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.rules import ILLEGAL, MOVES_SPENT, PASSES_PLAYED, GoRules, handicap_points, most_handicap

KO_RULES = ("simple", "positional", "situational")
every_ko = pytest.mark.parametrize("ko", KO_RULES)
either_suicide = pytest.mark.parametrize("suicide", [False, True])


class Picture:
    """A board with named points, as a game in which `to_play` moves first."""

    def __init__(self, text, to_play=0, **rules):
        self.text = text
        board = parse("".join("." if sign.islower() else sign for sign in text))
        self.rows, self.cols = board.shape
        self.mdp = GoMDP(board.shape, **{"komi": 0.0} | rules)
        self.state = self.mdp.position(board, to_play)

    def at(self, name):
        """The action of a letter; "-" is the pass."""
        return self.mdp.rules.points if name == "-" else "".join(self.text.split()).index(name)

    def legal(self, name):
        return bool(self.mdp.mask(self.state)[self.at(name)])

    def play(self, names):
        """Legal moves, one after the other."""
        return self.plays(*map(self.at, names))

    def plays(self, *actions):
        """The same, of actions."""
        for action in actions:
            assert self.mdp.mask(self.state)[action], f"{action} is masked on\n{show(self.state.stones)}"
            self.state = self.mdp.transition(self.state, action)
        return self

    def shows(self, text):
        assert show(self.state.stones) == show(parse(text))
        return self


# Name: (before, moves of Black and White in turn, after, stones taken by Black and by White).
CAPTURES = {
    "centre": (". X .\nX O X\n. a .", "a", ". X .\nX . X\n. X .", (1, 0)),
    "side": ("X O X\n. a .", "a", "X . X\n. X .", (1, 0)),
    "corner": ("O a\nX .", "a", ". X\nX .", (1, 0)),
    "chain": (". X X .\nX O O X\n. X O X\n. . a .", "a", ". X X .\nX . . X\n. X . X\n. . X .", (3, 0)),
    "two chains": ("O a O\nX . X", "a", ". X .\nX . X", (2, 0)),
    "four chains": (
        ". . X . .\n. X O X .\nX O a O X\n. X O X .\n. . X . .",
        "a",
        ". . X . .\n. X . X .\nX . X . X\n. X . X .\n. . X . .",
        (4, 0),
    ),
    "a chain on three sides": (
        "X X X X X\nX O O O X\nX O a O X\nX X . X X",
        "a",
        "X X X X X\nX . . . X\nX . X . X\nX X . X X",
        (5, 0),
    ),
    "nothing, for a liberty is left": (". . .\nX O .\na . .", "-a", ". . .\nX O .\nO . .", (0, 0)),
    "by White": ("a . .\nX O .\nO . .", "-a", "O . .\n. O .\nO . .", (0, 1)),
    "all of the board": ("X X X\nX a X\nX X X", "-a", ". . .\n. O .\n. . .", (0, 8)),
    "on one row": (". X O a .", "a", ". X . X .", (1, 0)),
    "on one column": (".\nX\nO\na\n.", "a", ".\nX\n.\nX\n.", (1, 0)),
}


@every_ko
@either_suicide
@pytest.mark.parametrize("name", CAPTURES)
def test_captures(name, ko, suicide):
    before, moves, after, taken = CAPTURES[name]
    picture = Picture(before, ko=ko, suicide=suicide)
    picture.play(moves).shows(after)
    assert picture.state.captures == taken


KO = """
    . X O .
    X O a O
    . X O .
    b . . c
"""


@every_ko
@either_suicide
def test_a_ko_may_not_be_retaken_at_once(ko, suicide):
    picture = Picture(KO, ko=ko, suicide=suicide, planes=("ko",)).play("a")
    retake = 5  # where the white stone was
    assert not picture.mdp.mask(picture.state)[retake]
    corner = [0] if suicide and ko == "positional" else []  # one white stone would be gone at once
    assert np.flatnonzero(picture.mdp.observation(picture.state)).tolist() == [*corner, retake]
    picture.play("bc").plays(retake)  # after a threat and its answer the board is another
    assert picture.state.captures == (1, 1) and picture.state.stones[1, 2] == 0


# White plays a, Black takes both stones by b, and White takes that one, beside a: that is the first position.
SENDING_TWO = """
    a O b O
    X X O O
    . . . .
"""


@pytest.mark.parametrize(("ko", "allowed"), [("simple", True), ("positional", False), ("situational", True)])
def test_sending_two_returning_one(ko, allowed):
    picture = Picture(SENDING_TWO, 1, ko=ko).play("ab").shows(". . X O\nX X O O\n. . . .")
    assert picture.mdp.mask(picture.state)[1] == allowed
    if allowed:
        first = picture.mdp.initial(None, {"position": SENDING_TWO.replace("a", ".").replace("b", "."), "to_play": 1})
        again = picture.mdp.transition(picture.state, 1)
        assert np.array_equal(again.stones, first.stones) and again.to_play != first.to_play


def test_situational_superko_compares_the_player_to_move():
    """The cycle may be played once, for then the other player is to move; begun again only by the simple rule."""
    for ko, again in (("simple", True), ("situational", False)):
        picture = Picture(SENDING_TWO, 1, ko=ko).play("ab").plays(1).play("-")
        assert picture.legal("a") == again


def test_situational_superko_counts_the_positions_that_a_pass_makes():
    """Whoever has passed on a board may not have it back with the other to move, by a stone of his own."""
    first = Picture(SENDING_TWO, 1, ko="situational")
    assert first.play("ab").mdp.mask(first.state)[1]
    passed = Picture(SENDING_TWO, 0, ko="situational").play("-ab")
    assert not passed.mdp.mask(passed.state)[1]


TRIPLE_KO = """
    . X O . . . X O . . . X O .
    X O . O . X . X O . X O . O
    . X O . . . X O . . . X O .
"""


@pytest.mark.parametrize(("ko", "allowed"), [("simple", True), ("positional", False), ("situational", False)])
def test_triple_ko(ko, allowed):
    """Six captures lead back to the first position, with the same player to move."""
    picture = Picture(TRIPLE_KO, ko=ko).plays(*(14 + col for col in (2, 6, 12, 1, 7)))
    assert picture.mdp.mask(picture.state)[14 + 11] == allowed
    if allowed:
        assert picture.plays(14 + 11).shows(TRIPLE_KO).state.to_play == 0


@every_ko
def test_snapback(ko):
    """A stone is thrown in and taken; taking back five stones in its place is no ko."""
    picture = Picture(
        """
        X O a b X
        X O O O X
        . X X X .
        """,
        ko=ko,
    )
    picture.play("ab").shows("X O . O X\nX O O O X\n. X X X .")
    picture.play("a").shows("X . X . X\nX . . . X\n. X X X .")
    assert picture.state.captures == (5, 1)


@every_ko
def test_seki(ko):
    """Who plays a shared liberty is taken; left alone both live, and the shared points are nobody's."""
    text = """
        X X a O O
        X X b O O
    """
    picture = Picture(text, ko=ko)
    assert picture.mdp.score(picture.state) == 0
    assert show(picture.mdp.area(picture.state)) == show(parse("X X . O O\nX X . O O"))
    for to_play, after in ((0, ". . . O O\n. . O O O"), (1, "X X . . .\nX X X . .")):
        Picture(text, to_play, ko=ko).play("ab").shows(after)


SUICIDES = {
    "one stone": ("a O\nO .", 0, ". O\nO .", 1),
    "two stones": ("a X O\nO O .", 0, ". . O\nO O .", 2),
    "three chains": (
        "O O O O O\nO X a X O\nO O X O O\n. O O O .",
        0,
        "O O O O O\nO . . . O\nO O . O O\n. O O O .",
        4,
    ),
    "a ring": (
        "O O O O O\nO X X X O\nO X a X O\nO X X X O\nO O O O .",
        0,
        "O O O O O\nO . . . O\nO . . . O\nO . . . O\nO O O O .",
        9,
    ),
    "by White": ("a O X\nX X .", 1, ". . X\nX X .", 2),
    "one row": ("a X O .", 0, ". . O .", 2),
}


@pytest.mark.parametrize("name", SUICIDES)
@every_ko
def test_suicide_is_masked_unless_it_is_allowed(name, ko):
    before, to_play, after, lost = SUICIDES[name]
    forbidden = Picture(before, to_play, ko=ko)
    assert not forbidden.legal("a")
    over = forbidden.mdp.transition(forbidden.state, forbidden.at("a"))
    assert over.ending == ILLEGAL and forbidden.mdp.winner(over) == 1 - to_play
    allowed = Picture(before, to_play, ko=ko, suicide=True)
    assert allowed.legal("a") == (lost > 1 or ko != "positional")  # alone it leaves the board as it was
    if allowed.legal("a"):
        allowed.play("a").shows(after)
        assert allowed.state.captures[1 - to_play] == lost and allowed.state.captures[to_play] == 0
        assert allowed.state.to_play == 1 - to_play


def test_a_suicide_of_one_stone_is_a_pass_that_situational_superko_may_forbid():
    picture = Picture("a O\nO .", ko="situational", suicide=True)
    assert picture.legal("a")
    passed = Picture("a O\nO .", 1, ko="situational", suicide=True).play("-")
    # White has passed: the board with White to move is known, and Black's suicide would bring it back.
    assert not passed.legal("a")


RING = """
    O O O O O O O O .
    O x x x x x O O .
    x x O O O x O O .
    x O . O x p x O .
    x x O O O x O O .
    O x x x x x O O .
    O O O O O O O O .
"""


def test_a_suicide_that_joins_a_ring_and_two_more_chains_is_known_as_a_repetition():
    """Black fills the x while White passes; then p would take everything off. The ring touches p from two sides."""
    bare = "".join("." if sign.islower() else sign for sign in RING)
    for ko, legal in (("simple", True), ("positional", False)):
        picture = Picture(RING, ko=ko, suicide=True)
        for point in np.flatnonzero(np.array(list("".join(RING.split()))) == "x"):
            picture.plays(point, 63)
        assert picture.legal("p") == legal
        if legal:
            assert picture.play("p").shows(bare).state.captures == (0, 20)


def test_taking_comes_before_suicide():
    """The last stone has no liberty until the others are off."""
    picture = Picture("a O X\nO X .\nX . .")
    assert picture.legal("a")
    picture.play("a").shows("X . X\n. X .\nX . .")


AREAS = {
    "nobody's": (". . .\n. . .", ". . .\n. . ."),
    "one stone owns all": (". . .\n. X .", "X X X\nX X X"),
    "both touch it": ("X . O", "X . O"),
    "walls": (". X . O .\n. X . O .", "X X . O O\nX X . O O"),
    "eyes": (". X O .\nX X O O\n. X O .", "X X O O\nX X O O\nX X O O"),
    "dead stones count as alive": ("X X X X\nX . O X\nX X X X", "X X X X\nX . O X\nX X X X"),
    "a region round a corner": ("X X X\n. . X\n. O X", "X X X\n. . X\n. O X"),
    "rings": (
        "O O O O O\nO . . . O\nO . X . O\nO . . . O\nO O O O O",
        "O O O O O\nO . . . O\nO . X . O\nO . . . O\nO O O O O",
    ),
    "separate eyes": (
        ". X . O .\nX X X O O\nO O X O .\n. O X X O\n. O . X O",
        "X X . O O\nX X X O O\nO O X O O\nO O X X O\nO O . X O",
    ),
}


@pytest.mark.parametrize("name", AREAS)
@pytest.mark.parametrize("komi", [0.0, 0.5, 7.5, -3, 1])
def test_area_scoring(name, komi):
    before, owners = AREAS[name]
    mdp = GoMDP(parse(before).shape, komi=komi)
    state = mdp.position(before)
    area = mdp.area(state)
    assert show(area) == show(parse(owners)) and area.dtype == np.int8
    assert mdp.score(state) == (area == 1).sum() - (area == 2).sum() - komi


def two_passes(mdp, state):
    for _ in range(2):
        assert not mdp.terminal(state) and mdp.info(state) == {}
        last, state = state, mdp.transition(state, mdp.rules.points)
    return last, state


@pytest.mark.parametrize(
    ("komi", "winner", "reward"),
    [(8.5, 0, -1.0), (9.0, None, 0.0), (9.5, 1, 1.0), (0, 0, -1.0), (-0.5, 0, -1.0)],
)
def test_komi_decides_and_a_whole_one_can_draw(komi, winner, reward):
    """Black has the whole board; White passes last. A draw is nobody's win."""
    mdp = GoMDP(3, komi=komi)
    last, over = two_passes(mdp, mdp.position(". . .\n. X .\n. . ."))
    assert mdp.terminal(over) and not mdp.mask(over).any() and mdp.winner(over) == winner
    assert mdp.reward(last, 9, over) == reward
    assert mdp.info(over) == {"winner": -1 if winner is None else winner, "score": 9 - komi, "ending": PASSES_PLAYED}


def test_a_move_between_passes_keeps_the_game_going():
    mdp = GoMDP(3)
    state = mdp.initial(None, {"moves": [9, 4, 9, 0]})
    assert not mdp.terminal(state) and state.passes == 0
    assert mdp.transition(state, 9).passes == 1


@pytest.mark.parametrize("cap", [1, 2, 5])
def test_the_cap_on_moves_scores_the_board_as_it_stands(cap):
    mdp = GoMDP(3, komi=0.5, max_moves=cap)
    state = mdp.initial()
    for action in (4, 0, 8, 1, 2)[:cap]:
        assert mdp.mask(state)[action] and not mdp.terminal(state)
        last, state = state, mdp.transition(state, action)
    assert mdp.terminal(state) and state.ending == MOVES_SPENT and state.n_moves == cap and not mdp.mask(state).any()
    score = mdp.score(state)
    assert mdp.info(state)["ending"] == "moves" and mdp.info(state)["score"] == score
    assert mdp.winner(state) == int(score < 0)
    assert mdp.reward(last, action, state) == (1 - 2 * mdp.player(last)) * np.sign(score)


def test_two_passes_end_the_game_even_on_its_last_move():
    mdp = GoMDP(3, max_moves=2)
    assert two_passes(mdp, mdp.initial())[1].ending == PASSES_PLAYED


@pytest.mark.parametrize(("size", "cap"), [(9, 243), (19, 1083), ((3, 5), 45), (2, 12), (1, 8), ((1, 2), 8)])
def test_every_game_has_a_cap(size, cap):
    """Nothing makes a random game end by passes: without a cap it may go on for very long."""
    assert GoRules(size).cap == cap


@pytest.mark.parametrize("action", [4, -1, 10, 99])
def test_an_illegal_action_loses_the_game(action):
    """A stone on a stone, and what is no action at all."""
    mdp = GoMDP(3, komi=100)  # White is far ahead
    state = mdp.initial(None, {"moves": [4]})
    over = mdp.transition(state, action)
    assert mdp.terminal(over) and over.ending == ILLEGAL and not mdp.mask(over).any()
    assert mdp.reward(state, action, over) == -1.0 and mdp.winner(over) == 0
    assert mdp.info(over)["illegal"] is True and mdp.info(over)["winner"] == 0
    assert np.array_equal(over.stones, state.stones)


def test_a_repetition_is_masked_and_no_draw():
    """Where others end the game as a draw, or let a masked-in move lose."""
    picture = Picture(SENDING_TWO, 1).play("ab")
    assert not picture.mdp.mask(picture.state)[1]
    over = picture.mdp.transition(picture.state, 1)
    assert over.ending == ILLEGAL and picture.mdp.winner(over) == 0
    assert picture.mdp.reward(picture.state, 1, over) == -1.0


@either_suicide
@pytest.mark.parametrize("ko", ["positional", "situational"])
@pytest.mark.parametrize("size", [(1, 3), (1, 6), (2, 2), (2, 3), (3, 3), (2, 5)])
def test_no_masked_in_move_repeats_a_position_and_no_other_is_masked_out(size, ko, suicide):
    mdp = GoMDP(size, ko=ko, suicide=suicide, max_moves=300)
    rng = np.random.default_rng(1)
    for _ in range(3):
        state, game = mdp.initial(), Game(*size, ko=ko, suicide=suicide)
        while not mdp.terminal(state):
            repeats = [game.fits(p) and game.barred(p) for p in range(game.grid.points)]
            fits = [game.fits(p) for p in range(game.grid.points)]
            assert mdp.mask(state)[:-1].tolist() == [f and not r for f, r in zip(fits, repeats, strict=True)]
            moves = np.flatnonzero(mdp.mask(state)[:-1])
            action = int(rng.choice(moves)) if len(moves) else game.grid.points  # long games: passes only if need be
            state = mdp.transition(state, action)
            game.play(action)


# Handicap. Other libraries put the stones of a 19x19 board on smaller ones.


def names(size, stones):
    """Points of the stones as players write them."""
    return {f"{'ABCDEFGHJKLMNOPQRST'[p % size]}{size - p // size}" for p in handicap_points(size, size, stones)}


FIXED = {  # GTP 2, "fixed_handicap", as every engine places them
    (19, 2): "D4 Q16",
    (19, 3): "D4 Q16 D16",
    (19, 4): "D4 Q16 D16 Q4",
    (19, 5): "D4 Q16 D16 Q4 K10",
    (19, 6): "D4 Q16 D16 Q4 D10 Q10",
    (19, 7): "D4 Q16 D16 Q4 D10 Q10 K10",
    (19, 8): "D4 Q16 D16 Q4 D10 Q10 K4 K16",
    (19, 9): "D4 Q16 D16 Q4 D10 Q10 K4 K16 K10",
    (13, 5): "D4 K10 D10 K4 G7",
    (9, 2): "C3 G7",
    (9, 4): "C3 G7 C7 G3",
    (9, 5): "C3 G7 C7 G3 E5",
    (9, 9): "C3 G7 C7 G3 C5 G5 E3 E7 E5",
    (7, 4): "C3 E5 C5 E3",
}


@pytest.mark.parametrize(("size", "stones"), FIXED)
def test_handicap_stones_lie_where_gtp_puts_them(size, stones):
    assert names(size, stones) == set(FIXED[size, stones].split())
    board = GoMDP(size, handicap=stones).initial().stones
    assert set(np.flatnonzero(board)) == set(handicap_points(size, size, stones))


@pytest.mark.parametrize("rows", range(1, 26))
def test_handicap_stones_lie_on_the_board_of_every_size(rows):
    for cols in range(1, 26):
        for stones in range(most_handicap(rows, cols) + 1):
            points = handicap_points(rows, cols, stones)
            assert len(set(points)) == stones and all(0 <= point < rows * cols for point in points)
        mdp = GoMDP((rows, cols), handicap=stones)
        state = mdp.initial()
        assert (state.stones == 1).sum() == stones and not (state.stones == 2).any()
        assert state.to_play == int(stones > 0) and state.n_moves == 0 and state.captures == (0, 0)
        assert not mdp.mask(state)[points].any()


def test_a_handicap_of_one_game():
    mdp = GoMDP(9, handicap=2)
    assert mdp.initial(None, {"handicap": 4}).stones.sum() == 4
    assert mdp.initial(None, {"handicap": 0}).to_play == 0
    assert mdp.initial().stones.sum() == 2


# What cannot be is said in one sentence that names the value.

WRONG = [
    ({"board_size": 0}, r"board_size must be .*\[1, 25\], got 0"),
    ({"board_size": 26}, r"board_size must be .*\[1, 25\], got 26"),
    ({"board_size": (3, 26)}, r"board_size must be .*\[1, 25\], got 26"),
    ({"board_size": 2.5}, "board_size .* got 2.5"),
    ({"board_size": True}, "board_size .* got True"),
    ({"board_size": "9"}, "board_size .* got '9'"),
    ({"board_size": None}, "board_size .* got None"),
    ({"komi": float("nan")}, "komi must be a finite number.* got nan"),
    ({"komi": float("inf")}, "komi must be a finite number.* got inf"),
    ({"komi": "7.5"}, "komi must be a finite number.* got '7.5'"),
    ({"komi": True}, "komi must be a finite number.* got True"),
    ({"board_size": (3,)}, r"board_size must be a side or \(rows, cols\), got \(3,\)"),
    ({"board_size": (3, 4, 5)}, "board_size must be a side or"),
    ({"suicide": "no"}, "suicide must be True or False, got 'no'"),
    ({"ko": "superko"}, "ko must be one of simple, positional, situational, got 'superko'"),
    ({"ko": None}, "ko must be one of .* got None"),
    ({"max_moves": 0}, "max_moves must be .* got 0"),
    ({"max_moves": 10_001}, "max_moves must be .* got 10001"),
    ({"max_moves": 5.5}, "max_moves must be .* got 5.5"),
    ({"handicap": -1}, "handicap must be .* got -1"),
    ({"handicap": 10}, r"handicap must be .*\[0, 9\], got 10"),
    ({"board_size": 1, "handicap": 1}, r"handicap must be .*\[0, 0\], got 1"),
    ({"board_size": 5, "handicap": 5}, "handicap must be .* got 5"),
    ({"reward": "win"}, "reward must be one of result, margin, got 'win'"),
    ({"capture_reward": float("nan")}, "capture_reward must be a finite number, got nan"),
    ({"capture_reward": "high"}, "capture_reward must be a finite number, got 'high'"),
    ({"planes": ("stones", "ladders")}, "planes must be some of .* got 'ladders'"),
    ({"planes": ()}, "planes must name at least one"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_arguments_are_one_sentence(arguments, words):
    with pytest.raises(ValueError, match=words) as error:
        GoMDP(**arguments)
    assert "\n" not in str(error.value)


def test_an_unknown_argument_is_an_error():
    with pytest.raises(TypeError, match="ko_rule"):
        GoMDP(ko_rule="simple")


WRONG_OPTIONS = [
    ({"size": 9}, "options .* got 'size'"),
    ({"position": ". .\n. ."}, "a position must be 3x3"),
    ({"position": ". . .\n. .\n. . ."}, "lines of equal length"),
    ({"position": ". . .\n. Z .\n. . ."}, "a position is drawn"),
    ({"position": np.full((3, 3), 3)}, "a position must be 3x3"),
    ({"position": np.zeros((3, 3))}, "a position must be 3x3"),
    ({"position": "X O .\nO . .\n. . ."}, "every chain a liberty"),
    ({"position": "X X X\nX X X\nX X X"}, "every chain a liberty"),
    ({"position": ". . .\n. . .\n. . .", "handicap": 2}, "a position and a handicap"),
    ({"to_play": 2}, "to_play must be .* got 2"),
    ({"handicap": 5}, "handicap must be .* got 5"),
    ({"moves": [4, 4]}, "moves must be legal, got 4 as move 2"),
    ({"moves": [10]}, "moves must be .* got 10"),
    ({"moves": [9, 9, 0]}, "moves must be legal, got 0 as move 3"),
]


@pytest.mark.parametrize(("options", "words"), WRONG_OPTIONS, ids=lambda value: str(value)[:40])
def test_wrong_options_are_one_sentence(options, words):
    with pytest.raises(ValueError, match=words):
        GoMDP(3).initial(None, options)
