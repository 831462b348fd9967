"""The referee and `llmgym match`: fair deals, what counts, what is void, and what is left when it is interrupted."""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from llmgym.agents import PPO
from llmgym.cli import main
from llmgym.commands.players import PolicyPlayer, make_player, short_names
from llmgym.envs.go.gtp_process import EngineFailed, GTPProcess
from llmgym.envs.go.match import Entrant, Played, Tally, draw_openings, play_match
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.opponents import FunctionOpponent, Game, Opponent
from llmgym.envs.go.record import GameRecord
from llmgym.envs.go.replay import new_game
from llmgym.envs.go.rules import GoRules
from llmgym.envs.go.sgf import load_sgf, read_sgf
from llmgym.evaluation import wilson
from llmgym.files import read_json
from llmgym.nets import NetPolicy

FAKE = Path(__file__).parent / "fake_gtp.py"
GNUGO = "gnugo --mode gtp --chinese-rules --capture-all-dead --level 1 --positional-superko"


class Passing(Opponent):
    """Passes, and notes the games it was given."""

    def __init__(self, *instead: Any):
        self.begun, self.asked, self.closed, self.instead = list[Game](), list[Game](), 0, list(instead)

    def start(self, game: Game) -> None:
        self.begun.append(game)

    def move(self, game: Game, rng: np.random.Generator) -> int | None:
        self.asked.append(game)
        return self.instead.pop(0) if self.instead else game.mdp.rules.points

    def close(self) -> None:
        self.closed += 1


def light() -> FunctionOpponent:
    return FunctionOpponent(lambda mdp, state, rng: mdp.light_move(state, rng))


def fake(mode: str) -> str:
    """The command line of an engine that misbehaves."""
    return shlex.join([sys.executable, str(FAKE), mode])


def match(
    first: Opponent,
    second: Opponent,
    games: int,
    mdp: GoMDP | None = None,
    openings: Sequence[Game] = (),
    seed: int = 0,
) -> Tally:
    mdp = mdp or GoMDP(5, komi=0.5)
    entrants = [Entrant("first", first), Entrant("second", second)]
    return Tally(list(play_match(entrants, openings or [new_game(mdp)], games, seed)))


# --- the deal -------------------------------------------------------------------------------------------------------


def test_colours_alternate_and_pairs_share_an_opening():
    mdp = GoMDP(5)
    openings = draw_openings(mdp, 3, seed=1, random_moves=4)
    tally = match(light(), light(), 8, openings=openings)
    assert [game.black for game in tally.games] == [0, 1] * 4
    assert [game.opening for game in tally.games] == [0, 0, 1, 1, 2, 2, 0, 0]
    for game in tally.games:
        opening = openings[game.opening]
        assert [action for _, action in game.record.moves[:4]] == list(opening.moves)
        assert game.record.names == (("first", "second") if game.black == 0 else ("second", "first"))
    assert len({tuple(opening.moves) for opening in openings}) == 3


def test_a_seed_gives_the_same_match():
    matches = [[g.record for g in match(light(), light(), 4, seed=s).games] for s in (3, 3, 4)]
    assert matches[0] == matches[1] != matches[2]
    assert matches[0][:2] == [g.record for g in match(light(), light(), 2, seed=3).games]  # however long it is


def test_players_are_told_the_opening_and_every_move():
    first, second = Passing(), Passing(7)
    opening = draw_openings(GoMDP(5), 1, random_moves=1)[0]
    tally = match(first, second, 1, openings=[opening])
    moved = opening.moves[0]
    assert [list(game.moves) for game in second.asked] == [[moved], [moved, 7, 25]]  # White is to move after one move
    assert [list(game.moves) for game in first.asked] == [[moved, 7]]
    assert tally.games[0].record.ending == "passes"


def test_openings_are_records_and_then_random_moves():
    records = [read_sgf("(;SZ[5];B[aa];W[bb])"), read_sgf("(;SZ[5]AB[cc]PL[W])")]
    openings = draw_openings(GoMDP(5), 4, records=records)
    assert [list(game.moves) for game in openings] == [[0, 6], []]
    assert openings[1].state.stones[2, 2] == 1 and openings[1].state.to_play == 1
    longer = draw_openings(GoMDP(5), 3, random_moves=2, records=records)
    assert [list(game.moves)[:-2] for game in longer] == [[0, 6], [], [0, 6]] and longer[0].moves != longer[2].moves
    with pytest.raises(ValueError, match="opening 1 leaves nothing to play: it ends after 2 moves"):
        draw_openings(GoMDP(5), 1, records=[read_sgf("(;SZ[5];B[tt];W[tt])")])
    with pytest.raises(ValueError, match="opening 1 leaves nothing"):
        draw_openings(GoMDP(2), 1, random_moves=100)
    with pytest.raises(ValueError, match="a game on 9x9, not on 5x5"):
        draw_openings(GoMDP(5), 1, records=[read_sgf("(;SZ[9])")])


# --- the count ------------------------------------------------------------------------------------------------------


def played(black: int, result: str, ending: str = "passes", failed: int | None = None) -> Played:
    return Played(GameRecord(GoRules(9), result=result, ending=ending), black, 0, failed, (1.0, 3.0))


def test_a_tally():
    tally = Tally()
    assert math.isnan(tally.score(0)) and tally.interval(0) == (0.0, 1.0)
    tally.games += [played(0, "B+2"), played(1, "B+2"), played(0, "W+F", "illegal"), played(1, "0")]
    tally.games += [played(0, "W+R", "resign"), played(1, "Void", "void", 1)]
    assert [game.winner for game in tally.games] == [0, 1, 1, None, 1, None]
    assert (tally.wins(0), tally.wins(1), tally.draws, len(tally.counted)) == (1, 3, 1, 5)
    assert (tally.points(0), tally.score(0), tally.score(1)) == (1.5, 0.3, 0.7)
    assert (tally.wins(1, black=1), tally.wins(1, black=0), tally.with_black(0)) == (1, 2, 3)
    assert [tally.forfeits(i) for i in (0, 1)] == [1, 0] and [tally.void(i) for i in (0, 1)] == [0, 1]
    assert tally.interval(0) == wilson(1.5, 5) and tally.seconds(1) == 3.0


def test_an_illegal_move_loses_and_does_not_void():
    for action in (0, 26, -1):
        tally = match(Passing(0), Passing(action), 1)
        (game,) = tally.games
        assert (game.record.result, game.record.ending, game.failed, game.winner) == ("B+F", "illegal", None, 0)
        assert game.record.comment.startswith("illegal move: White") and tally.forfeits(1) == 1
        assert game.record.moves == ((0, 0),)  # the game can be replayed


def test_resigning():
    (game,) = match(Passing(3), Passing(None), 1).games
    assert (game.record.result, game.record.ending, game.winner) == ("B+R", "resign", 0)


def test_two_passes_are_scored_by_area_with_all_stones_alive():
    assert [game.record.result for game in match(Passing(12), Passing(), 2).games] == ["B+24.5", "W+0.5"]
    (draw,) = match(Passing(), Passing(), 1, GoMDP(5, komi=0)).games
    assert draw.record.result == "0" and draw.record.draw and draw.winner is None


def test_the_cap_scores_the_board_as_it_stands():
    (game,) = match(Passing(1), Passing(2), 1, GoMDP(5, max_moves=2)).games
    assert (game.record.result, game.record.ending) == ("W+7.5", "moves")


def test_a_player_that_fails_voids_the_game_and_the_next_is_played():
    def unlucky(mdp: GoMDP, state: Any, rng: np.random.Generator) -> int:
        if mdp.rules.points - np.count_nonzero(state.stones) == 24:
            raise RuntimeError("out of ideas")
        return mdp.rules.points

    tally = match(Passing(3), FunctionOpponent(unlucky), 2)
    void, good = tally.games
    assert (void.record.result, void.record.ending, void.failed, void.winner) == ("Void", "void", 1, None)
    assert void.record.comment == "White: the opponent raised RuntimeError: out of ideas"
    assert void.record.moves == ((0, 3),) and good.counts and len(tally.counted) == 1
    assert (tally.void(0), tally.void(1)) == (0, 1)


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        ("crash:2", "has crashed at 'genmove"),
        ("hang:2", "did not answer 'genmove"),
        ("garbage:2", "with what is no GTP"),
        ("nowhere:2", "gave no move: a vertex of this board"),
        ("refuse:2", "I do not feel like it"),
    ],
)
def test_an_engine_that_misbehaves_is_started_anew(mode, sentence):
    engine = make_player(fake(mode), timeout=1.0)
    tally = match(engine, Passing(1), 3)
    engine.close()
    assert [game.record.ending for game in tally.games] == ["void", "passes", "void"]
    assert [game.failed for game in tally.games] == [0, None, 0]
    assert sentence in tally.games[0].record.comment and tally.games[0].record.comment.startswith("Black: the engine")
    assert tally.void(0) == 2 and len(tally.counted) == 1


def test_an_engine_that_plays_illegally_forfeits():
    engine = make_player(fake("illegal"))
    tally = match(engine, Passing(3, 20), 2)
    engine.close()
    # It always plays A1: as Black the second time, as White after Black has.
    assert [game.record.result for game in tally.games] == ["W+F", "B+F"]
    assert tally.void(0) == 0 and tally.forfeits(0) == 2


def test_who_cannot_play_is_no_entrant():
    for mode, sentence in (("small", "refused 'boardsize 9'"), ("mute", "did not answer"), ("crash", None)):
        engine = make_player(fake(mode), timeout=0.5 if mode == "mute" else 30)
        if sentence is None:
            assert match(engine, Passing(), 1).games[0].failed == 0
        else:
            with pytest.raises(ValueError, match=sentence):
                match(engine, Passing(), 1, GoMDP(9))
        engine.close()


# --- players by name ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def agent_folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("agents") / "ppo"
    env = gym.make("llmgym/Go-v0", board_size=5, planes=("stones", "liberties"))
    PPO("CnnPolicy", env, seed=1, device="cpu").save(path)
    return path


def test_a_saved_agent_plays_on_its_board_with_its_planes(agent_folder):
    player = make_player(str(agent_folder))
    assert isinstance(player, PolicyPlayer)
    assert player.mdp.planes == ("stones", "liberties") and player.mdp.rules.board_size == (5, 5)
    matches = [[game.record for game in match(player, light(), 2, seed=s).games] for s in (0, 0, 1)]
    assert matches[0] == matches[1] != matches[2]
    assert all(record.ending in ("passes", "moves") for record in matches[0])  # it sees the mask
    with pytest.raises(ValueError, match="was trained on 5x5 and cannot play on 9x9"):
        match(player, light(), 2, GoMDP(9))


def test_a_policy_without_its_environment_has_the_default_planes(tmp_path):
    NetPolicy("CnnPolicy", GoMDP(9), seed=1, device="cpu").save(tmp_path / "run" / "policy")
    player = make_player(str(tmp_path / "run"))
    assert isinstance(player, PolicyPlayer) and player.folder == tmp_path / "run" / "policy"
    assert len(match(player, light(), 1, GoMDP(9, max_moves=4)).counted) == 1


def test_names_that_are_no_player(tmp_path):
    for name in ("", "   ", "no-such-program --x"):
        with pytest.raises(ValueError, match=f"unknown player '{name}': choose random, light, mcts"):
            make_player(name)
    with pytest.raises(ValueError, match="holds no policy for Go"):
        make_player(str(tmp_path))
    agent = PPO("MlpPolicy", gym.make("CartPole-v1"), seed=1, device="cpu")
    agent.save(tmp_path / "pole")
    with pytest.raises(ValueError, match="was trained on CartPole-v1, not on llmgym/Go-v0"):
        make_player(str(tmp_path / "pole"))


def test_short_names():
    assert short_names("light", "/usr/games/gnugo --level 1") == ("light", "gnugo")
    assert short_names("gnugo --level 1", "gnugo --level 9") == ("gnugo --level 1", "gnugo --level 9")
    assert short_names("light", "light") == ("light (A)", "light (B)")


# --- the command ----------------------------------------------------------------------------------------------------


def run(*words: Any) -> int:
    return main(["match", *map(str, words)])


def test_a_match_leaves_games_and_results(tmp_path, capsys):
    out = tmp_path / "match"
    assert run("random", "light", "--games", 6, "--board-size", 5, "--komi", 0.5, "--seed", 3, "--out", out) == 0
    result = read_json(out / "match.json")
    assert sorted(path.name for path in out.iterdir()) == [*(f"game-000{i}.sgf" for i in range(1, 7)), "match.json"]
    assert result["names"] == ["random", "light"] and len(result["games"]) == 6
    assert result["result"]["games"] == 6 == sum(result["result"]["wins"]) + result["result"]["draws"]
    for told in result["games"]:
        record = load_sgf(out / told["file"])
        assert (record.result, record.ending, len(record.moves)) == (told["result"], told["ending"], told["moves"])
        assert record.names[told["black"]] == "random" and record.rules.komi == 0.5
    said = capsys.readouterr()
    score = result["result"]["score"]
    low, high = (100 * end for end in result["result"]["interval"][0])
    assert re.search(rf"random +{100 * score[0]:.1f} % +{low:.1f}–{high:.1f} %", said.out), said.out
    assert "6 of 6 games: 6 ended by two passes" in said.out and f"games: {out}" in said.out
    wins = result["result"]["wins"]
    assert re.search(rf"6/6 \d\d:\d\d, {wins[0]}-{wins[1]}", said.err)


def test_openings_from_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("openings").mkdir()
    Path("openings/a.sgf").write_text("(;SZ[5];B[cc];W[bb])")
    Path("openings/b.sgf").write_text("(;SZ[5]HA[2];W[cc])")
    words = ["light", "light", "--board-size", 5, "--games", 5]
    assert run(*words, "--openings", "openings") == 0
    (folder,) = Path("matches").iterdir()
    assert re.fullmatch(r"light-A-+light-B-+\d{8}-\d{6}", folder.name)
    records = [load_sgf(path) for path in sorted(folder.glob("*.sgf"))]
    assert [record.rules.handicap for record in records] == [0, 0, 2, 2, 0]
    assert records[0].moves[:2] == ((0, 12), (1, 6)) and records[3].moves[0] == (1, 12)
    assert run(*words, "--openings", "openings/a.sgf", "--out", "one") == 0
    assert all(load_sgf(path).moves[0] == (0, 12) for path in Path("one").glob("*.sgf"))


def test_void_games_and_forfeits_are_reported(tmp_path, capsys):
    words = ["--board-size", 5, "--komi", 0, "--games", 4, "--max-moves", 30, "--out"]
    assert run("light", fake("crash"), *words, tmp_path / "void") == 0
    said = capsys.readouterr().out
    assert "4 of 4 games: 4 void" in said and "voided 4" in said
    assert re.search(r"game-0001\.sgf is void: White: the engine '\S+' has crashed at 'genmove w'", said)
    assert "–" in said and read_json(tmp_path / "void" / "match.json")["result"]["score"] == [None, None]
    assert load_sgf(tmp_path / "void" / "game-0001.sgf").result == "Void"
    assert run(fake("illegal"), fake("illegal:3"), *words, tmp_path / "illegal") == 0
    assert "ended by an illegal move" in (said := capsys.readouterr().out) and "by an illegal move, voided 0" in said


def test_games_that_repeat_are_noted(tmp_path, capsys):
    assert run(fake("pass"), fake("pass"), "--games", 4, "--board-size", 5, "--out", tmp_path / "m") == 0
    assert "only 1 of 4 games differ: --opening-moves or --openings" in capsys.readouterr().out


def test_ctrl_c_keeps_what_has_been_played(tmp_path, capsys, monkeypatch):
    from llmgym.envs.go import match as referee

    ended, play = [], referee._Table.play

    def interrupted(table: Any, rng: Any) -> Any:
        if len(ended) == 3:
            raise KeyboardInterrupt
        ended.append(table)
        return play(table, rng)

    monkeypatch.setattr(referee._Table, "play", interrupted)
    assert run("light", "random", "--games", 50, "--board-size", 5, "--out", tmp_path / "m") == 130
    assert "3 of 50 games" in capsys.readouterr().out
    assert len(read_json(tmp_path / "m" / "match.json")["games"]) == 3


BAD = {
    "": "Missing from llmgym match",
    "random": "Missing from llmgym match",
    "random nope": "unknown player 'nope': choose random, light, mcts, alphazero, alphago, a folder",
    "random light --games 0": "games must be above 0, got 0",
    "random light --seed -1": "seed must be at least 0, got -1",
    "random light --timeout nan": "timeout must be above 0, got nan",
    "random light --board-size 26": "board_size must be a whole number in [1, 25], got 26",
    "random light --komi inf": "komi must be a finite number of points",
    "random light --ko never": "Expected one of ('simple', 'positional', 'situational')",
    "random light --openings nowhere": "openings must name an SGF file or a folder with some, got 'nowhere'",
    "random light --openings bad.sgf": "bad.sgf: this is no SGF",
    "random light --openings nine.sgf --board-size 5": "a game on 9x9, not on 5x5",
    "random light --opening-moves 999": "opening 1 leaves nothing to play",
    "random light --out full": "'full' is a folder with files in it",
    "random full": "the folder 'full' holds no policy for Go",
    "random false": "the engine 'false' has crashed",
}


@pytest.mark.parametrize(("words", "sentence"), BAD.items())
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/note.txt").write_text("mine")
    Path("bad.sgf").write_text("mine")
    Path("nine.sgf").write_text("(;SZ[9];B[aa])")
    before = sorted(tmp_path.rglob("*"))
    assert run(*words.split()) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1) and said.err.startswith("llmgym: ") and sentence in said.err
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_input_of_gtp(capsys):
    for words, sentence in ((["nope"], "unknown player 'nope'"), (["--board-size", "0"], "board_size")):
        assert main(["gtp", *words]) == 2
        assert sentence in capsys.readouterr().err


# --- other engines --------------------------------------------------------------------------------------------------


def test_our_engine_against_our_player(tmp_path, capsys):
    engine = shlex.join([sys.executable, "-m", "llmgym.cli", "gtp", "light"])
    words = ["--games", 2, "--board-size", 5, "--opening-moves", 2, "--out"]
    assert run(engine, "light", *words, tmp_path / "m") == 0
    games = json.loads((tmp_path / "m" / "match.json").read_text())["games"]
    assert [game["ending"] for game in games] == ["passes", "passes"]


def test_gnu_go_beats_light_moves(tmp_path):
    try:
        GTPProcess(GNUGO).close()
    except EngineFailed as error:
        pytest.skip(f"needs GNU Go, the program gnugo: {error}")
    assert run("light", GNUGO, "--games", 2, "--board-size", 7, "--out", tmp_path / "m") == 0
    result = read_json(tmp_path / "m" / "match.json")
    assert result["result"]["wins"] == [0, 2] and result["names"] == ["light", "gnugo"]
