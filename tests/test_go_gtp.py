"""The GTP engine: every command, what GTP 2 says of lines and answers, and a real process that GNU Go agrees with."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgym.envs.go.gtp_engine import COMMANDS, GTPEngine
from llmgym.envs.go.gtp_process import EngineFailed, EngineRefused, GTPProcess
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.opponents import FunctionOpponent, Game, GTPOpponent, Opponent, OpponentFailed
from llmgym.envs.go.rules import GoRules
from llmgym.envs.go.sgf import load_sgf, read_sgf
from llmgym.envs.go.vertices import vertex

GNUGO = "gnugo --mode gtp --chinese-rules --capture-all-dead --level 1 --positional-superko"
WANTED = """protocol_version name version known_command list_commands quit boardsize clear_board komi play genmove undo
    final_score final_status_list time_settings time_left showboard loadsgf fixed_handicap place_free_handicap
    set_free_handicap reg_genmove"""


class Script(Opponent):
    """Plays what it is told: an action, None, or an exception."""

    def __init__(self, *moves: Any):
        self.moves, self.told, self.closed = list(moves), list[Game](), 0

    def check(self, mdp: GoMDP) -> None:
        if mdp.rules.rows > 19:
            raise ValueError("too large for me")

    def move(self, game: Game, rng: np.random.Generator) -> int | None:
        self.told.append(game)
        move = self.moves.pop(0)
        if isinstance(move, Exception):
            raise move
        return move

    def close(self) -> None:
        self.closed += 1


def light(size: int | tuple[int, int] = 9, seed: int = 0) -> GTPEngine:
    player = FunctionOpponent(lambda mdp, state, rng: mdp.light_move(state, rng))
    return GTPEngine(player, GoRules(size), seed=seed)


def talk(engine: GTPEngine, *lines: str) -> list[str]:
    """Answers without the blank lines that end them."""
    answers = [engine.answer(line) for line in lines]
    assert all(answer.endswith("\n\n") for answer in answers), answers
    return [answer[:-2] for answer in answers]


# --- lines and answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("protocol_version", "= 2"),
        ("7 protocol_version", "=7 2"),
        ("0007 protocol_version", "=0007 2"),
        ("2147483647 protocol_version", "=2147483647 2"),
        ("2147483648 protocol_version", "? unknown command"),
        ("-1 protocol_version", "? unknown command"),
        ("  \t12\tprotocol_version\t # what is this? # \r\n", "=12 2"),
        ("proto\x00col_\x07version\x7f", "= 2"),
        ("PROTOCOL_VERSION", "? unknown command"),
        ("protocol_version 2", "? syntax error: arguments of protocol_version: 0 wanted, got 1"),
        ("3 fly", "?3 unknown command"),
        ("5", "?5 syntax error: a command is missing"),
        ("clear_board", "="),
        ("9 clear_board", "=9"),
        ("known_command genmove", "= true"),
        ("known_command fly", "= false"),
        ("boardsize 26", "? unacceptable size: a side is a whole number in [1, 25], got 26"),
        ("boardsize 0", "? unacceptable size: a side is a whole number in [1, 25], got 0"),
        ("boardsize nine", "? unacceptable size: a side is a whole number in [1, 25], got nine"),
        ("boardsize " + "9" * 5000, "? unacceptable size"),
        ("komi inf", "? syntax error: komi is a number of points, got inf"),
        ("komi", "? syntax error: arguments of komi: 1 wanted, got 0"),
        ("play b", "? syntax error: arguments of play: 2 wanted, got 1"),
        ("play green D4", "? syntax error: a colour is b, black, w or white, got green"),
        ("play b I4", "? a vertex of this board is A1 to J9 (no I) or pass, got 'I4'"),
        ("play b K1", "? a vertex"),
        ("play b D" + "4" * 5000, "? "),
        ("PLAY b D4", "? unknown command"),
        ("final_status_list odd", "? syntax error: a status is alive, dead or seki, got odd"),
        ("undo", "? cannot undo"),
        ("loadsgf /no/such/file", "? cannot open /no/such/file: No such file or directory"),
        ("time_left b 1", "? syntax error"),
        ("time_settings 1 2 x", "? syntax error"),
    ],
)
def test_one_line_and_its_answer(line, answer):
    assert talk(light(), line)[0].startswith(answer)


@pytest.mark.parametrize("line", ["", "\n", "   \t ", "# a comment", " \x00\x01 # name", "#name\n"])
def test_lines_without_a_command_are_passed_over(line):
    assert light().answer(line) == ""


def test_all_commands_are_there():
    engine = light()
    assert set(WANTED.split()) <= set(COMMANDS)
    assert talk(engine, "list_commands")[0].removeprefix("= ").split() == list(COMMANDS)


def test_serving_ends_with_quit_and_with_the_input():
    out, engine = io.StringIO(), light()
    engine.serve(io.StringIO("1 name\n\n# nothing\n2 quit\n3 name\n"), out)
    assert out.getvalue() == "=1 llmgym\n\n=2\n\n"
    again = io.StringIO()
    light().serve(io.StringIO("name"), again)
    assert again.getvalue() == "= llmgym\n\n"


ARGUMENTS = "b w black pass resign D4 A1 J9 Z99 0 1 2 9 19 -3 7.5 nan alive 5 # 3"
word = st.sampled_from([*COMMANDS, *ARGUMENTS.split()])
line = st.text(max_size=40) | st.lists(word | st.text(max_size=6), max_size=5).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(line, max_size=25))
def test_no_line_stops_the_engine(lines):
    engine = light(5)
    for line in lines:
        if "printsgf" in re.sub(r"[\x00-\x1f\x7f]", "", line):  # it would write a file of any name
            continue
        answer = engine.answer(line)
        assert answer == "" or re.fullmatch(r"[=?][^\x00-\x09\x0b-\x1f\x7f]*\n\n", answer), (line, answer)
        assert "\n\n" not in answer[:-2]
    assert engine.answer("name") == "= llmgym\n\n"
    assert engine.answer("boardsize 3") == engine.answer("play b B2") == "=\n\n"
    assert re.fullmatch("= (pass|[ABC][123])\n\n", engine.answer("genmove w"))


# --- the board ------------------------------------------------------------------------------------------------------


def test_moves_captures_and_the_picture():
    engine = light((3, 4))
    assert talk(engine, "play b A3", "play white a2", "play W B3", "showboard") == [
        "=",
        "=",
        "=",
        "= \n   A B C D\n 3 .(O). . 3\n 2 O . . . 2\n 1 . . . . 1\n   A B C D\n"
        "Last move: B3. Black (X) has taken 0, White (O) 1.\nMove 4: Black (X) to play.",
    ]
    assert engine.game.state.captures == (0, 1)


def test_the_same_colour_twice_and_play_after_two_passes():
    engine = light(5)
    assert talk(engine, "play b C3", "play b C4", "play b Pass", "play w PASS", "play w D4", "play w D3") == ["="] * 6
    assert engine.game.state.stones.sum() == 1 + 1 + 2 + 2
    assert talk(engine, "play b resign", "final_score") == ["=", "= W+7.5"]
    answer = talk(engine, "genmove w", "genmove w")
    assert all(re.fullmatch("= [A-E][1-5]", text) for text in answer)
    moves = [player for player, _ in engine.record().moves]
    assert moves == [0, 0, 0, 1, 1, 1, 1, 1]


def test_ko_superko_and_suicide_are_refused():
    engine = light(4)
    lines = [f"play {move}" for move in ("b B4", "w C4", "b A3", "w B3", "b B2", "w D3", "b D1", "w C2", "b C3")]
    assert talk(engine, *lines) == ["="] * 9
    assert talk(engine, "play w B3", "play w A4", "play b C3") == [
        "? illegal move: White B3",
        "? illegal move: White A4",
        "? illegal move: Black C3",
    ]
    assert talk(engine, "play w A1", "play b D2", "play w B3") == ["="] * 3  # two moves later it is another position


def test_undo_goes_back_to_the_cleared_board():
    engine = light(5)
    start = engine.game.state
    talk(engine, "play b C3", "genmove w", "play w A1", "play b B5")
    assert talk(engine, *["undo"] * 5) == ["="] * 4 + ["? cannot undo"]
    assert engine.game.state == start and engine.record().moves == ()


def test_sizes_and_komi():
    engine = light(9)
    talk(engine, "boardsize 25", "play b Z25", "play w Z24")
    assert engine.game.state.stones[0, 24] == 1
    assert talk(engine, "boardsize 1", "genmove b", "komi -3", "final_score") == ["=", "= pass", "=", "= B+3"]
    assert talk(engine, "boardsize 2", "play b A1", "komi 4", "final_score") == ["=", "=", "=", "= 0"]
    assert talk(engine, "komi 0.5", "final_score", "undo", "final_score") == ["=", "= B+3.5", "=", "= W+0.5"]


def test_handicaps():
    engine = light(9)
    assert talk(engine, "fixed_handicap 4", "fixed_handicap 4") == ["= C3 G7 C7 G3", "? board not empty"]
    assert engine.game.state.to_play == 1
    assert talk(engine, "undo", "clear_board", "place_free_handicap 50") == [
        "? cannot undo",
        "=",
        "= C3 G7 C7 G3 C5 G5 E3 E7 E5",
    ]
    assert talk(engine, "clear_board", "set_free_handicap A1 B1 J9", "list_commands")[1] == "="
    assert engine.game.state.stones.sum() == 3
    for count in ("1", "10", "x", "-2"):
        assert talk(engine, "clear_board", f"fixed_handicap {count}")[1].startswith("? invalid number of stones")
    for points in ("A1 A1", "A1 pass", "A1 K1"):
        assert talk(engine, f"set_free_handicap {points}")[0].startswith("? ")
    assert talk(engine, "boardsize 1", "fixed_handicap 2", "place_free_handicap 2")[1].startswith("? invalid number")


def test_every_chain_is_alive():
    engine = light(5)
    talk(engine, "play b A1", "play b A2", "play w E5", "play b C3")
    assert talk(engine, "final_status_list alive", "final_status_list dead", "final_status_list seki") == [
        "= E5\nC3\nA2 A1",
        "=",
        "=",
    ]


def test_clocks_are_read():
    assert talk(light(), "time_settings 300 30 5", "time_left b 120 0", "time_left W 7 2") == ["="] * 3


# --- the player -----------------------------------------------------------------------------------------------------


def test_the_player_is_asked_with_the_game():
    player = Script(5, 6, 7)
    engine = GTPEngine(player, GoRules(5, 0.5))
    assert talk(engine, "play b A1", "genmove w", "reg_genmove b", "genmove w") == ["=", "= A4", "= B4", "= C4"]
    assert [list(game.moves) for game in player.told] == [[20], [20, 5], []]  # out of turn a game begins anew
    assert [game.state.to_play for game in player.told] == [1, 0, 1]
    assert player.told[2].state.stones.sum() == 3 and player.told[0].mdp.rules.komi == 0.5
    assert engine.record().moves == ((0, 20), (1, 5), (1, 7))


def test_a_player_that_resigns_errs_or_fails():
    player = Script(None, 99, 20, OpponentFailed("out of ideas"), 3)
    engine = GTPEngine(player, GoRules(5))
    assert talk(engine, "play b A1", *["genmove w"] * 5) == [
        "=",
        "= resign",
        "? illegal move: White plays 99, off a 5x5 board",
        "? illegal move: White A1",
        "? out of ideas",
        "= D5",
    ]
    assert player.closed == 1 and len(engine.record().moves) == 2


def test_a_size_that_the_player_refuses():
    player = Script()
    engine = GTPEngine(player, GoRules(9))
    talk(engine, "play b A1")
    assert talk(engine, "boardsize 20") == ["? unacceptable size: too large for me"]
    assert player.closed == 1 and engine.game.state.rows == 9 and engine.game.state.stones.sum() == 1
    with pytest.raises(ValueError, match="too large"):
        GTPEngine(Script(), GoRules(20))


def test_the_cap_on_moves():
    engine = GTPEngine(Script(0), GoRules(3, max_moves=2))
    talk(engine, "play b A1", "play w B1")
    over = "? the game is over after 2 moves"
    assert talk(engine, "genmove b", "play b C1", "undo", "genmove w") == [over, over, "=", "= A3"]
    long = light(3)
    assert talk(long, *["play b pass"] * 60) == ["="] * 60  # by default games may be long


def test_the_same_seed_gives_the_same_game():
    games = [talk(light(7), f"set_random_seed {seed}", *["genmove b", "genmove w"] * 5) for seed in (1, 1, 2)]
    assert games[0] == games[1] != games[2]


# --- files ----------------------------------------------------------------------------------------------------------


def test_games_go_out_and_in(tmp_path):
    engine = light(5)
    talk(engine, "komi 2.5", "set_free_handicap A1 C3", "play w B2", "play w B3", "genmove b", "play b pass")
    path = tmp_path / "game.sgf"
    assert talk(engine, f"printsgf {path}") == ["="]
    assert load_sgf(path) == engine.record() == read_sgf(engine.answer("printsgf")[2:])
    other = light(19)
    assert talk(other, f"loadsgf {path}") == ["="]
    assert other.record() == engine.record()
    assert (other.game.state.stones == engine.game.state.stones).all() and other.game.mdp.rules.komi == 2.5
    assert talk(other, *["undo"] * 5)[3:] == ["=", "? cannot undo"]
    assert talk(other, f"loadsgf {path} 2") == ["="]  # the position before the second move
    assert other.record().moves == engine.record().moves[:1]


def test_a_file_that_cannot_be_played_changes_nothing(tmp_path):
    (tmp_path / "a.sgf").write_text("(;SZ[5];B[aa];W[aa])")
    (tmp_path / "b.sgf").write_text("nothing")
    engine = light(9)
    talk(engine, "play b C3")
    before = engine.record()
    assert talk(engine, f"loadsgf {tmp_path}/a.sgf")[0].startswith("? illegal move: White A5")
    assert "no SGF" in talk(engine, f"loadsgf {tmp_path}/b.sgf")[0]
    assert talk(engine, f"loadsgf {tmp_path}/b.sgf 0", f"printsgf {tmp_path}/no/x")[1].startswith("? cannot open")
    assert engine.record() == before


# --- the process ----------------------------------------------------------------------------------------------------

COMMAND = [sys.executable, "-m", "llmgym.cli", "gtp", "light", "--seed", "1", "--board-size", "5"]


def test_a_process_that_referees_can_drive():
    with GTPProcess(COMMAND, timeout=60) as engine:
        assert engine.name == "llmgym light"
        assert engine.ask("protocol_version") == "2" and "genmove" in engine.ask("list_commands").split()
        assert engine.ask("genmove b # please").lower() != "resign"
        with pytest.raises(EngineRefused, match="unknown command"):
            engine.ask("fly")
        assert "(X)" in engine.ask("showboard")


def test_bytes_that_are_no_text_and_returns_without_newline():
    given = b"1 name\r\n2 \xff\xfe\r\n3 na\rme\n4 quit\n"
    done = subprocess.run(COMMAND, input=given, capture_output=True, timeout=100)
    assert done.stdout.decode() == "=1 llmgym light\n\n?2 unknown command\n\n=3 llmgym light\n\n=4\n\n"
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_controller_that_has_gone_is_no_error():
    process = subprocess.Popen(COMMAND, stdin=-1, stdout=-1, stderr=-1)
    assert process.stdin and process.stdout and process.stderr
    process.stdout.close()
    process.stdin.write(b"name\n" * 10)
    process.stdin.close()
    assert (process.stderr.read(), process.wait(60)) == (b"", 0)
    process.stderr.close()


def test_the_engine_loads_no_torch():
    code = "import sys, io; from llmgym.cli import main; sys.stdin = io.StringIO('quit'); main(['gtp', 'random'])"
    done = subprocess.run([sys.executable, "-c", f"{code}; print('torch' in sys.modules)"], capture_output=True)
    assert done.stdout.decode() == "=\n\nFalse\n", done.stderr


# --- somebody else's engine -----------------------------------------------------------------------------------------


@pytest.fixture
def gnugo():
    try:
        engine = GTPProcess(GNUGO)
    except EngineFailed as error:
        pytest.skip(f"needs GNU Go, the program gnugo: {error}")
    with engine:
        yield engine


@pytest.mark.parametrize("seed", range(3))
def test_gnu_go_plays_the_same_game(gnugo, seed):
    """Every move of a light game is legal for GNU Go, the boards agree, and at the end the scores."""
    engine = light(7, seed)
    for line in ("boardsize 7", "clear_board", "komi 3.5"):
        assert talk(engine, line) == ["="]
        gnugo.ask(line)
    while not engine.game.state.ending:
        colour = "bw"[engine.game.state.to_play]
        gnugo.ask(f"play {colour} {talk(engine, f'genmove {colour}')[0][2:]}")
        if engine.game.state.n_moves % 10 == 0:
            ours = {f"{stone} {vertex(i, 7, 7)}" for i, stone in enumerate(engine.game.state.stones.flat) if stone}
            theirs = {f"{n + 1} {name}" for n in (0, 1) for name in gnugo.ask(f"list_stones {'bw'[n]}").split()}
            assert ours == theirs
    assert talk(engine, "final_score")[0] == f"= {gnugo.ask('final_score')}".replace(".0", "")


@pytest.mark.parametrize("seed", range(2))
def test_gnu_go_knows_the_same_legal_moves(gnugo, seed):
    engine, mdp = light(5, seed), GoMDP(5)
    for line in ("boardsize 5", "clear_board"):
        gnugo.ask(line)
    for _ in range(60):
        state = engine.game.state
        if state.ending:
            break
        colour = "bw"[state.to_play]
        legal = {vertex(i, 5, 5) for i in np.flatnonzero(mdp.mask(state))} - {"pass"}
        assert legal == set(gnugo.ask(f"all_legal {colour}").split())
        gnugo.ask(f"play {colour} {talk(engine, f'genmove {colour}')[0][2:]}")


def test_an_engine_behind_ours_follows_undo_komi_and_moves_out_of_turn(gnugo):
    gnugo.close()
    player = GTPOpponent(GNUGO)
    engine = GTPEngine(player, GoRules(7))
    asked = [
        "play b D4",
        "genmove w",
        "undo",
        "undo",
        "komi 0.5",
        "genmove b",
        "play b A1",
        "boardsize 20",
        "genmove w",
    ]
    answers = talk(engine, *asked)
    assert answers[7].startswith("? unacceptable size: the engine 'gnugo' refused 'boardsize 20'")
    assert all(answer.startswith("=") for answer in answers[:7] + answers[8:])
    assert sorted(engine.game.state.stones[engine.game.state.stones > 0].tolist()) == [1, 1, 2]
    assert player._engine is not None and player._engine.ask("get_komi") == "0.5"
    assert {*player._engine.ask("list_stones b").split()} == {"A1", answers[5][2:]}
    player.close()
