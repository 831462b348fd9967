"""GTP engines as opponents: what they are told, and everything that an engine can do wrong."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import assert_same

from llmgym.envs.go.env import GoEnv
from llmgym.envs.go.gtp_process import EngineError, EngineFailed, GTPProcess
from llmgym.envs.go.opponents import GTPOpponent

FAKE = Path(__file__).parent / "fake_gtp.py"
GNUGO = "gnugo --mode gtp --level 1 --chinese-rules --capture-all-dead --positional-superko"
needs_gnugo = pytest.mark.skipif(
    not any(os.access(f"{folder}/gnugo", os.X_OK) for folder in (*os.get_exec_path(), "/usr/games")),
    reason="GNU Go is not installed (Debian's package: gnugo)",
)


def fake(mode: str, *log: Path) -> list[str]:
    """Command line of the engine in `fake_gtp.py`."""
    return [sys.executable, "-S", str(FAKE), mode, *map(str, log)]


def against(mode: str, *log: Path, timeout: float = 20.0, **options: Any) -> GoEnv:
    """An environment whose opponent is that engine."""
    return GoEnv(**({"board_size": 5, "opponent": GTPOpponent(fake(mode, *log), timeout)} | options))


def running(pid: int) -> bool:
    """Whether a process is there; one that has ended and is waited for is not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_engine_is_told_rules_and_moves(tmp_path):
    env = against("good", tmp_path / "log", komi=6.5)
    env.reset()
    env.step(0)
    env.step(24)
    env.reset()
    env.close()
    told = (tmp_path / "log").read_text().splitlines()
    assert told == [
        "known_command set_random_seed",
        *("boardsize 5", "clear_board", "komi 6.5"),
        *("play b A5", "genmove w", "play b E1", "genmove w"),
        *("boardsize 5", "clear_board", "komi 6.5"),
        "quit",
    ]


def test_an_engine_is_told_handicap_position_and_given_moves(tmp_path):
    env = against("good", tmp_path / "log", handicap=2, color="white")
    env.reset()
    env.reset(options={"position": "X.O..\n.....\n.....\n.....\n....O", "to_play": 1, "moves": [1]})
    env.close()
    told = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith(("play", "genmove"))]
    assert told == ["play b D4", "play b B2", "play b A5", "play w C5", "play w E1", "play w B5", "genmove b"]


def test_an_engine_takes_its_randomness_from_the_environment(tmp_path):
    logs = [tmp_path / "one", tmp_path / "two", tmp_path / "three"]
    for log, seed in zip(logs, (1, 1, 2), strict=True):
        env = against("seeded", log)
        env.reset(seed=seed)
        env.step(0)
        env.close()
    one, two, three = (log.read_text() for log in logs)
    assert one == two != three and "set_random_seed" in one


def test_an_engine_need_know_no_more_than_how_to_play(tmp_path):
    env = against("bare", tmp_path / "log")
    env.reset()
    assert env.step(0)[3] is False
    env.close()


def test_one_opponent_in_two_environments_is_told_which_game_it_is(tmp_path):
    opponent = GTPOpponent(fake("good", tmp_path / "log"))
    envs = [GoEnv(board_size=5, komi=komi, opponent=opponent) for komi in (1, 2)]
    for env in envs:
        env.reset()
    envs[0].step(3)
    opponent.close()
    told = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith(("komi", "play"))]
    assert told == ["komi 1.0", "komi 2.0", "komi 1.0", "play b D5"]


def test_a_copy_starts_an_engine_of_its_own_and_tells_it_the_game(tmp_path):
    env = against("good", tmp_path / "log")
    env.reset()
    env.step(3)
    fresh = against("good", tmp_path / "log")
    fresh.set_state(pickle.loads(pickle.dumps(env.get_state())))
    for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env)), fresh):
        (tmp_path / "log").unlink()
        twin.step(4)
        twin.close()
        told = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("play")]
        assert told == ["play b D5", "play w pass", "play b E5"]
    env.close()


def test_going_back_in_time_tells_the_game_anew(tmp_path):
    env = against("good", tmp_path / "log")
    env.reset()
    env.step(3)
    snapshot = env.get_state()
    env.step(4)
    (tmp_path / "log").unlink()
    env.set_state(snapshot)
    env.step(9)
    env.close()
    told = (tmp_path / "log").read_text().splitlines()
    assert told[:3] == ["boardsize 5", "clear_board", "komi 7.5"]
    assert told[3:] == ["play b D5", "play w pass", "play b E4", "genmove w", "quit"]


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        ("crash", "has crashed at 'genmove w' (exit status 1: RuntimeError: out of ideas)"),
        ("hang", "did not answer 'genmove w' within 1 seconds"),
        ("garbage", "answered 'genmove w' with what is no GTP: 'I think that D4 is good"),
        ("refuse", "refused 'genmove w': I do not feel like it"),
        ("strict", "refused 'play b A5': illegal move"),
        ("nowhere", "gave no move: a vertex of this board is A1 to E5 (no I) or pass, got 'Z99'"),
        ("empty", "gave no move: a vertex of this board is A1 to E5 (no I) or pass, got ''"),
        ("illegal:2", "the opponent played the action 20, which is illegal"),
    ],
)
def test_whatever_an_engine_does_the_game_is_void_and_the_next_one_is_played(mode, sentence):
    env = against(mode, timeout=1.0 if mode == "hang" else 20.0)
    for _ in range(2):
        env.reset()
        steps = [env.step(0)] if mode != "illegal:2" else [env.step(20), env.step(1)]
        _, reward, terminated, truncated, info = steps[-1]
        assert (reward, terminated, truncated) == (0.0, False, True)
        assert sentence in info["opponent_failed"] and "\n" not in info["opponent_failed"]
        assert not info["action_mask"].any()
    env.close()


def test_an_engine_that_fails_late_or_at_the_start_is_told_in_a_step():
    env = against("crash:3")
    env.reset()
    assert [env.step(action)[3] for action in (0, 1, 2)] == [False, False, True]
    for mode in ("crash", "mute"):
        env = against(mode, timeout=0.5 if mode == "mute" else 20.0, color="white")
        _, info = env.reset()
        assert "opponent_failed" not in info
        assert env.step(0)[3] is True
        env.close()


def test_an_engine_may_resign():
    env = against("resign")
    env.reset()
    _, reward, terminated, truncated, info = env.step(0)
    assert (reward, terminated, truncated, info["ending"], info["winner"]) == (1.0, True, False, "resign", 0)
    env.close()


def test_boards_that_an_engine_cannot_play_on_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"a GTP opponent plays on square boards only, got board_size \(5, 7\)"):
        against("good", board_size=(5, 7))
    env = against("small", board_size=7)
    with pytest.raises(ValueError, match="refused 'boardsize 7': unacceptable size"):
        env.reset()
    env.close()


def test_no_process_is_left_behind():
    env = against("good")
    env.reset()
    process = env._opponent._engine._process
    env.close()
    env.close()
    assert process.returncode == 0  # it has quit by itself
    env.reset()  # and a closed environment can go on
    pid = env._opponent._engine._process.pid
    del env
    gc.collect()
    assert not running(pid)


def test_a_process_that_ignores_quit_is_killed_with_its_children(monkeypatch, tmp_path):
    monkeypatch.setattr("llmgym.envs.go.gtp_process.PATIENCE", 0.2)
    script = f"sleep 60 & echo $! > {tmp_path}/child; while read line; do printf '= x\\n\\n'; done; sleep 60"
    engine = GTPProcess(["sh", "-c", script])
    assert engine.ask("name") == "x"
    engine.close()
    child, deadline = int((tmp_path / "child").read_text()), time.monotonic() + 5
    while running(child) and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
    with pytest.raises(EngineFailed, match="was closed"):
        engine.ask("name")


def test_a_process_answers_one_line_at_a_time(monkeypatch):
    monkeypatch.setattr("llmgym.envs.go.gtp_process.PATIENCE", 0.2)
    with GTPProcess(fake("good")) as engine:
        assert engine.name == "Fake" and engine.ask("  komi 5 ") == ""
        for line in ("", "  ", "komi 5\nkomi 6"):
            with pytest.raises(ValueError, match="a command of GTP is one line"):
                engine.ask(line)
    with GTPProcess(["sh", "-c", "read line; printf '=1  a\\r\\nb \\r\\n\\r\\n'; sleep 60"]) as engine:
        assert engine.ask("list_commands").split() == ["1", "a", "b"]
    with GTPProcess(["sh", "-c", "sleep 0; exec cat >&2"], timeout=0.3) as engine:
        assert engine.name == "sh"


def test_a_failed_process_says_so_again():
    engine = GTPProcess(fake("crash"))
    with pytest.raises(EngineFailed, match="out of ideas"):
        engine.ask("genmove b")
    with pytest.raises(EngineFailed, match="out of ideas"):
        engine.ask("genmove b")
    engine.close()
    with pytest.raises(EngineError, match="cannot be started: No such file"):
        GTPProcess("no-such-engine")


def test_an_endless_answer_is_no_answer():
    with (
        GTPProcess(["sh", "-c", "echo '= '; exec yes x"]) as engine,
        pytest.raises(EngineFailed, match="with what is no GTP"),
    ):
        engine.ask("name")


@needs_gnugo
def test_games_against_gnu_go_repeat_with_the_seed():
    games = []
    for seed in (1, 1, 2):
        env = GoEnv(board_size=7, opponent=GNUGO, color="white")
        env.reset(seed=seed)
        rng, steps = np.random.default_rng(0), []
        while not (steps and (steps[-1][2] or steps[-1][3])):
            steps.append(env.step(int(rng.choice(np.flatnonzero(env.action_masks())))))
        assert steps[-1][2] and steps[-1][1] in (-1.0, 1.0), steps[-1][4]
        games.append(env.table.moves)
        env.close()
    assert games[0] == games[1]


@needs_gnugo
def test_gnu_go_goes_on_from_a_snapshot():
    env, twin = GoEnv(opponent=GNUGO), GoEnv(opponent=GNUGO)
    env.reset(seed=3)
    for action in (40, 41, 42):
        env.step(int(np.flatnonzero(env.action_masks())[action % 9]))
    twin.set_state(pickle.loads(pickle.dumps(env.get_state())))
    action = int(np.flatnonzero(env.action_masks())[5])
    assert_same(twin.step(action), env.step(action))
    env.close()
    twin.close()


@needs_gnugo
def test_gnu_go_refuses_what_it_cannot_play():
    env = GoEnv(board_size=21, opponent=GNUGO)
    with pytest.raises(ValueError, match="the engine 'gnugo' refused 'boardsize 21'"):
        env.reset()
    env.close()


@needs_gnugo
def test_gnu_go_beats_random_play_with_a_handicap_against_it():
    env = GoEnv(board_size=9, opponent=GNUGO, handicap=2)
    env.reset(seed=0)
    rng, over = np.random.default_rng(1), False
    while not over:
        _, reward, over, truncated, info = env.step(int(rng.choice(np.flatnonzero(env.action_masks()))))
        assert not truncated, info
    assert reward == -1.0 and info["winner"] == 1
    env.close()
