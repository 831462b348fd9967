"""Records of games, SGF out and in, and replaying them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sgfmill.sgf import Sgf_game

from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.record import GameRecord, result_of, won_by
from llmgym.envs.go.replay import advance, begin, mdp_of, new_game, record_of, replay
from llmgym.envs.go.rules import GoRules, handicap_points
from llmgym.envs.go.sgf import load_sgf, read_sgf, save_sgf, write_sgf
from llmgym.envs.go.vertices import parse_vertex

SAMPLE = """
Some mail header (not SGF).
(;FF[4]GM[1]SZ[9]KM[5.5]RU[Japanese]PB[Black \\] player]PW[White]RE[B+Resign]C[Root]
;B[ee];W[ce]C[a comment (; with \\] brackets)]
(;B[cd];W[dd](;B[de])(;B[dc];W[de]))
(;B[dd];W[aa]))
(;SZ[19];B[aa])
"""


def point(name: str, side: int = 9) -> int:
    return parse_vertex(name, side, side)


def light_game(rules: GoRules, seed: int) -> GameRecord:
    """A whole game of light moves."""
    mdp, rng = mdp_of(rules), np.random.default_rng(seed)
    game = new_game(mdp)
    while not game.state.ending:
        game = advance(game, game.state.to_play, mdp.light_move(game.state, rng))
    return replace(record_of(game), result=result_of(mdp.score(game.state)), ending=game.state.ending)


@st.composite
def records(draw) -> GameRecord:
    rows, cols = draw(st.tuples(st.integers(1, 25), st.integers(1, 25)))
    points = rows * cols
    rules = GoRules(
        (rows, cols),
        draw(st.integers(-99, 99)) / 4,
        draw(st.sampled_from(["simple", "positional", "situational"])),
        draw(st.booleans()),
        draw(st.none() | st.integers(1, 9999)),
    )
    laid = draw(st.lists(st.integers(0, points - 1), unique=True, max_size=6))
    cut = draw(st.integers(0, len(laid)))
    text = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=12)
    return GameRecord(
        rules,
        tuple(draw(st.lists(st.tuples(st.integers(0, 1), st.integers(0, points)), max_size=12))),
        (tuple(laid[:cut]), tuple(laid[cut:])),
        draw(st.integers(0, 1)),
        draw(st.tuples(text, text)),
        draw(st.sampled_from(["", "?", "0", "Void", "B+R", "W+T", "B+F", "W+", "B+0.5", "W+171.25"])),
        comment=draw(text),
    )


# --- out and in -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(records())
def test_what_is_written_is_read(record):
    again = read_sgf(write_sgf(record))
    assert replace(again, ending="") == record
    assert hash(again) == hash(replace(record, ending=again.ending))


@pytest.mark.parametrize("rules", [GoRules(9, 7.5), GoRules(5, 0, handicap=2), GoRules((4, 6), 0.5, "simple", True)])
def test_a_game_survives_the_file(rules, tmp_path):
    record = replace(light_game(rules, 1), names=("a", "b"))
    save_sgf(record, tmp_path / "game.sgf")
    assert load_sgf(tmp_path / "game.sgf") == record
    assert [path.name for path in tmp_path.iterdir()] == ["game.sgf"]
    game = replay(mdp_of(rules), record)
    assert record_of(game) == replace(record, names=("", ""), result="", ending="")
    assert game.state.ending == record.ending and result_of(game.mdp.score(game.state)) == record.result


def test_sgfmill_reads_what_we_write():
    record = GameRecord(
        GoRules(9, 0.5, handicap=3), ((1, point("E5")), (0, 81)), names=("é]\\", "w"), result="W+R", comment="x\ny"
    )
    game = Sgf_game.from_string(write_sgf(record))
    assert (game.get_size(), game.get_komi(), game.get_handicap(), game.get_winner()) == (9, 0.5, 3, "w")
    assert game.get_player_name("b") == "é]\\" and game.get_root().get("GC") == "x\ny"
    black, white, _ = game.get_root().get_setup_stones()
    assert (black, white) == ({(2, 2), (6, 6), (6, 2)}, set())
    assert [node.get_move() for node in game.get_main_sequence()[1:]] == [("w", (4, 4)), ("b", None)]


def test_the_main_line_of_a_foreign_file():
    record = read_sgf(SAMPLE)
    assert record.moves == tuple((i % 2, point(name)) for i, name in enumerate(["E5", "C5", "C6", "D6", "D5"]))
    assert record.rules == GoRules(9, 5.5, "simple") and record.names == ("Black ] player", "White")
    assert (record.result, record.ending, record.winner, record.to_play) == ("B+R", "resign", 0, 0)


def test_a_rectangle_is_written_columns_first():
    text = write_sgf(GameRecord(GoRules((3, 5)), ((0, 4), (1, 10))))
    assert "SZ[5:3]" in text and ";B[ea];W[ac]" in text
    assert read_sgf("(;SZ[5:3];B[ea])").rules.board_size == (3, 5)


@pytest.mark.parametrize(
    ("name", "ko", "suicide"),
    [
        ("Tromp-Taylor", "positional", True),
        ("AGA", "situational", False),
        ("nz", "situational", True),
        ("Chinese", "simple", False),
        ("koSITUATIONALscoreAREAtaxNONEsui1", "situational", True),
        ("", "positional", False),
        ("of my own", "positional", False),
    ],
)
def test_rules_by_name(name, ko, suicide):
    assert read_sgf(f"(;SZ[9]RU[{name}])").rules == GoRules(9, 0.0, ko, suicide)


@pytest.mark.parametrize(
    ("text", "result", "ending"),
    [
        ("RE[B+Resign]", "B+R", "resign"),
        ("RE[w+time]", "W+T", "time"),
        ("RE[W+F]", "W+F", "illegal"),
        ("RE[Draw]", "0", ""),
        ("RE[void]", "Void", "void"),
        ("RE[B+012.50];B[tt];W[]", "B+12.5", "passes"),
        ("RE[who knows]", "?", ""),
        ("XM[1];B[aa]", "", "moves"),
        ("", "", ""),
    ],
)
def test_results_and_why_a_game_ended(text, result, ending):
    record = read_sgf(f"(;SZ[9]{text})")
    assert (record.result, record.ending) == (result, ending)


def test_results_of_scores():
    assert [result_of(score) for score in (3.5, -12.0, 0.0, -0.0)] == ["B+3.5", "W+12", "0", "0"]
    assert (won_by(0, "R"), won_by(1)) == ("B+R", "W+")
    assert GameRecord(GoRules(9), result="0").draw and GameRecord(GoRules(9), result="Void").winner is None


# --- stones before the first move -----------------------------------------------------------------------------------


def test_the_stones_of_a_handicap_are_the_rules_handicap():
    record = read_sgf("(;SZ[9]HA[2]AB[cg][gc];W[ee])")
    assert (record.rules.handicap, record.stones, record.to_play) == (2, ((), ()), 1)
    assert record.first_stones[0] == tuple(sorted(handicap_points(9, 9, 2)))
    assert read_sgf("(;SZ[9]HA[2];W[ee])") == record  # they go without saying
    assert begin(GoMDP(9), record).state == GoMDP(9, handicap=2).initial()


def test_free_handicap_and_positions_are_stones():
    free = read_sgf("(;SZ[9]HA[2]AB[aa][bb])")
    assert (free.rules.handicap, free.stones, free.to_play) == (0, ((0, 10), ()), 1)
    placed = read_sgf("(;SZ[9]AB[aa:cb]AW[ii]AE[ba]PL[W])")
    assert placed.stones == ((0, 2, 9, 10, 11), (80,)) and placed.to_play == 1
    later = read_sgf("(;SZ[9];C[info];AB[aa]PL[W];W[bb])")
    assert (later.stones, later.to_play) == (((0,), ()), 1)
    assert "PL[B]" in write_sgf(GameRecord(GoRules(9), ((1, 3),), to_play=0))


def test_moves_out_of_turn_and_after_two_passes_are_replayed():
    record = read_sgf("(;SZ[5];B[aa];B[bb];W[tt];B[tt];W[cc];W[dd])")
    state = replay(GoMDP(5), record).state
    assert state.stones[[0, 1, 2, 3], [0, 1, 2, 3]].tolist() == [1, 1, 2, 2] and state.stones.sum() == 6
    assert (state.to_play, state.ending, state.passes) == (0, None, 0)


def test_what_has_been_stays_forbidden_out_of_turn():
    """Black takes a ko and White may not take it back, though White passed in between without being asked."""
    drawn = """
        . X O .
        X O . O
        . X O .
        . . . .
    """
    game = new_game(GoMDP(4), GoMDP(4).position(drawn))
    game = advance(game, 0, 6)
    with pytest.raises(ValueError, match="illegal move: White B3"):
        advance(game, 1, 5)
    game = advance(advance(game, 0, 12), 1, 5)
    assert game.state.stones[1, 1] == 2  # with another stone on the board it is another position


def test_a_record_must_fit_the_board_and_the_rules():
    with pytest.raises(ValueError, match="a game on 9x9, not on 5x7"):
        begin(GoMDP((5, 7)), GameRecord(GoRules(9)))
    with pytest.raises(ValueError, match="move 2: illegal move: White A9"):
        replay(GoMDP(9), read_sgf("(;SZ[9];B[aa];W[aa])"))
    with pytest.raises(ValueError, match="move 2: the game is over after 1 moves"):
        replay(GoMDP(9, max_moves=1), read_sgf("(;SZ[9];B[aa];W[bb])"))


# --- errors ---------------------------------------------------------------------------------------------------------

BAD = {
    "": "this is no SGF: no SGF data found",
    "hello": "this is no SGF",
    "(;SZ[9];B[aa]": "this is no SGF: unexpected end",
    "(;GM[3])": r"GM\[3\] is another game",
    "(;SZ[0])": r"board_size must be a whole number in \[1, 25\], got 0",
    "(;SZ[26])": "got 26",
    "(;SZ[x])": r"SZ\[x\] in node 0 is no size of a board",
    "(;KM[much])": r"KM\[much\] in node 0 cannot be read as a number",
    "(;KM[inf])": r"KM\[inf\]",
    "(;HA[x])": r"HA\[x\] in node 0 is no whole number",
    "(;SZ[9]HA[99];W[aa])": "handicap must be a whole number",
    "(;SZ[9]PL[green])": r"PL\[green\] in node 0 cannot be read as a colour",
    "(;SZ[9];B[aa];W[zz])": r"W\[zz\] in node 2 cannot be read as a move of a 9x9 board",
    "(;SZ[9:5];B[ag])": r"B\[ag\] in node 1 cannot be read as a move of a 5x9 board",
    "(;SZ[9]AB[a])": r"AB\[a\] in node 0 cannot be read as points",
    "(;SZ[9];B[aa][bb])": r"B\[aa\]\[bb\] in node 1",
    "(;SZ[9];B[aa]W[bb])": "node 1 has moves of both players",
    "(;SZ[9];B[aa];AW[bb])": "node 2 sets up stones after the first move",
}


@pytest.mark.parametrize(("text", "sentence"), BAD.items())
def test_what_cannot_be_read_is_said_in_a_sentence(text, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence) as raised:
        read_sgf(text)
    assert "\n" not in str(raised.value)
    (tmp_path / "bad.sgf").write_text(text)
    with pytest.raises(ValueError, match=f"bad.sgf: .*{sentence}"):
        load_sgf(tmp_path / "bad.sgf")


@settings(max_examples=80, deadline=None)
@given(st.text(), st.integers(0, 400), st.integers(0, 400))
def test_any_text_is_read_or_refused(text, start, length):
    damaged = SAMPLE[: start % len(SAMPLE)] + text + SAMPLE[start % len(SAMPLE) + length :]
    for candidate in (text, f"(;{text})", damaged):
        try:
            record = read_sgf(candidate)
        except ValueError:
            continue
        assert read_sgf(write_sgf(record)).moves == record.moves


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"moves": ((2, 0),)}, "player 0 or 1"),
        ({"moves": ((0, 82),)}, r"an action in \[0, 81\], got \(0, 82\)"),
        ({"stones": ((1, 2), (2,))}, "different points"),
        ({"stones": ((81,), ())}, r"points in \[0, 80\]"),
        ({"to_play": 2}, "player 0 or 1"),
        ({"result": "B wins"}, "result must be"),
        ({"ending": "boredom"}, "ending must be one of passes, moves, illegal, resign, time, void"),
        ({"rules": GoRules(9, handicap=2), "stones": ((3,), ())}, "handicap 2 has stones of its own"),
    ],
)
def test_a_record_is_checked(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        GameRecord(**{"rules": GoRules(9)} | fields)


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "encoding", "name"),
    [
        ("CA[UTF-8]", "utf-8", "古力"),
        ("CA[gb2312]", "gb2312", "古力"),
        ("", "latin-1", "Jörg"),
        ("CA[?]", "utf-8", "Jörg"),
    ],
)
def test_files_in_other_encodings(named, encoding, name, tmp_path):
    path = tmp_path / "game.sgf"
    path.write_bytes(f"(;{named}SZ[9]PB[{name}])".encode(encoding))
    assert load_sgf(path).names[0] == name


def test_only_files_are_read(tmp_path):
    with pytest.raises(OSError, match=r"none\.sgf"):
        load_sgf(tmp_path / "none.sgf")
    with pytest.raises(ValueError, match="is no file"):
        load_sgf(tmp_path)
    if Path("/dev/zero").exists():
        with pytest.raises(ValueError, match="is no file"):
            load_sgf("/dev/zero")
