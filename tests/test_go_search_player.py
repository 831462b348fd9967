"""The player that searches: its name, its settings, and that a game repeats with its seed."""

from __future__ import annotations

import copy
import pickle
import time

import gymnasium as gym
import numpy as np
import pytest

import llmgym  # noqa: F401 (registers the environments)
from llmgym.commands.players import make_player, short_names
from llmgym.envs.go.env import GoEnv
from llmgym.envs.go.gtp_engine import GTPEngine
from llmgym.envs.go.match import Entrant, Tally, draw_openings, play_match
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.opponents import FunctionOpponent, Game
from llmgym.envs.go.rules import GoRules
from llmgym.envs.go.search_player import SearchOpponent, SearchSettings

FAST = "mcts:simulations=60"


def test_a_name_says_the_settings():
    assert SearchSettings.parse("mcts") == SearchSettings()
    told = SearchSettings.parse("mcts: seconds=0.5, playouts=light,threads=2,reuse=false,c_uct=1")
    assert told == SearchSettings(seconds=0.5, playouts="light", threads=2, reuse=False, c_uct=1.0)
    player = make_player("mcts:simulations=5000,rule=uct")
    assert isinstance(player, SearchOpponent) and player.settings == SearchSettings(simulations=5000, rule="uct")


def test_a_table_calls_it_by_its_options_only_where_that_tells_two_apart():
    assert short_names("mcts:threads=2", "light") == ("mcts", "light")
    assert short_names("mcts:threads=2", "mcts") == ("mcts:threads=2", "mcts")


@pytest.mark.parametrize(
    ("name", "sentence"),
    {
        "mcts:": "mcts has no option ''",
        "mcts:speed=3": "mcts has no option 'speed': choose simulations, seconds, early, playouts",
        "mcts:simulations=many": "simulations of mcts must be a whole number, got 'many'",
        "mcts:simulations": "simulations of mcts must be a whole number, got ''",
        "mcts:simulations=0": r"simulations must be a whole number in \[1, ",
        "mcts:seconds=-1": "seconds must be at least 0, got -1.0",
        "mcts:seconds=nan": "seconds must be a finite number",
        "mcts:threads=0": "threads must be a whole number",
        "mcts:playouts=static": "playouts must be one of light, heavy, got 'static'",
        "mcts:rule=gumbel": "rule must be one of rave, uct, puct, got 'gumbel'",
        "mcts:candidates=few": "candidates must be one of sensible, all, got 'few'",
        "mcts:resign=1": r"resign must be in \[0, 1\), got 1.0",
        "mcts:reuse=maybe": "reuse of mcts must be true or false, got 'maybe'",
        "mcts:threads=1,threads=2": "threads of mcts is given twice",
    }.items(),
)
def test_a_wrong_name_is_one_sentence(name, sentence):
    for make in (make_player, lambda name: GoEnv(opponent=name)):
        with pytest.raises(ValueError, match=sentence) as told:
            make(name)
        assert "\n" not in str(told.value)


def replies(env, seed, steps=4):
    """The boards after the first steps of a game against the opponent."""
    observation, info = env.reset(seed=seed)
    boards = [observation]
    for step in range(steps):
        observation, _, _, _, info = env.step(int(np.flatnonzero(info["action_mask"])[3 * step]))
        boards.append(observation)
    return np.array(boards)


@pytest.mark.parametrize("name", [FAST, f"{FAST},threads=2", f"{FAST},reuse=false,playouts=light"])
def test_the_same_seed_gives_the_same_game(name):
    env, other = (GoEnv(board_size=5, color="white", opponent=name) for _ in range(2))
    first = replies(env, 3)
    replies(env, 4)
    np.testing.assert_array_equal(replies(env, 3), first)  # nothing is left of the game between them
    np.testing.assert_array_equal(replies(other, 3), first)
    assert any((replies(other, seed) != first).any() for seed in range(4, 8))
    for made in (env, other):
        made.close()


def test_rows_are_single_environments():
    rows = gym.make_vec("llmgym/Go-v0", num_envs=3, board_size=5, opponent=FAST)
    observations, infos = rows.reset(seed=7)
    singles = [GoEnv(board_size=5, opponent=FAST) for _ in range(3)]
    told = [env.reset(seed=7 + i) for i, env in enumerate(singles)]
    for _ in range(4):
        actions = [int(np.flatnonzero(mask)[2]) for mask in infos["action_mask"]]
        observations, _, _, _, infos = rows.step(np.array(actions))
        told = [env.step(action) for env, action in zip(singles, actions, strict=True)]
        np.testing.assert_array_equal(observations, [each[0] for each in told])
    rows.close()


def test_copies_and_pickles_search_alike():
    mdp = GoMDP(5)
    game = Game(mdp, mdp.initial(), [], mdp.initial())
    player = make_player(f"{FAST},threads=2")
    moved = player.move(game, np.random.default_rng(1))
    for other in (copy.copy(player), copy.deepcopy(player), pickle.loads(pickle.dumps(player))):
        assert other.move(game, np.random.default_rng(1)) == moved
        other.close()
    player.close()
    assert player.move(game, np.random.default_rng(1)) == moved
    player.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_seconds_are_what_a_move_takes(threads):
    mdp = GoMDP(9)
    game = Game(mdp, mdp.initial(), [], mdp.initial())
    player = SearchOpponent(SearchSettings(seconds=0.3, threads=threads, early=False))
    player.move(game, np.random.default_rng(0))  # compiled, or read from the disk
    player.start(game)
    began = time.perf_counter()
    player.move(game, np.random.default_rng(0))
    assert 0.3 <= time.perf_counter() - began < 1.5
    player.close()


def test_a_won_game_is_not_thought_about():
    """After White's pass a pass wins for Black: proven at once."""
    mdp = GoMDP(9)
    state = mdp.initial(None, {"moves": [40, 81]})
    player = SearchOpponent(SearchSettings(seconds=30.0))
    assert mdp.score(state) > 0
    assert player.move(Game(mdp, mdp.initial(), [40, 81], state), np.random.default_rng(0)) == 81


def test_it_resigns_only_where_it_is_asked_to():
    """White has two stones against a board of Black's, who lives."""
    mdp = GoMDP(5, komi=0.5)
    state = mdp.position("X X X X .\nX . X X X\nX X X . X\n. X X X X\nX X . O O", to_play=1)
    game = Game(mdp, state, [], state)
    for resign, action in ((0.0, True), (0.05, False)):
        player = make_player(f"{FAST},resign={resign}")
        assert (player.move(game, np.random.default_rng(0)) is not None) == action
        player.close()


def test_it_beats_light_moves_and_no_game_goes_wrong():
    mdp = GoMDP(5, komi=0.5)
    light = FunctionOpponent(lambda mdp, state, rng: mdp.light_move(state, rng))
    entrants = [Entrant("mcts", make_player("mcts:simulations=50")), Entrant("light", light)]
    tally = Tally(list(play_match(entrants, draw_openings(mdp, 4, 0, 2), 8, 0)))
    assert tally.wins(0) >= 7 and len(tally.counted) == 8 and not tally.forfeits(0)


def test_it_is_an_engine_and_the_komi_may_change():
    engine = GTPEngine(make_player(FAST), GoRules(5), seed=0)
    for line in ("genmove b", "komi 0.5", "genmove w", "undo", "genmove w", "boardsize 7", "genmove b"):
        assert engine.answer(line).startswith("="), line
