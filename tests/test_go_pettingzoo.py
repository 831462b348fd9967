"""Go behind PettingZoo's AEC interface: PettingZoo's own checks, and what they do not look at."""

from __future__ import annotations

import copy
import pickle
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pettingzoo.test import api_test, max_cycles_test, render_test, seed_test
from pettingzoo.utils.conversions import turn_based_aec_to_parallel_wrapper

from llmgym.envs import go_v0
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go_v0 import colour_plane

AGENTS = ["black_0", "white_0"]
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "oblong": {"board_size": (3, 5), "ko": "situational", "suicide": True},
    "one point": {"board_size": 1},
    "handicap, whole komi": {"board_size": 7, "handicap": 3, "komi": 0, "ko": "simple"},
    "short": {"board_size": 5, "max_moves": 4},
}
every_case = pytest.mark.parametrize("options", CASES.values(), ids=CASES)
# What PettingZoo says of every observation that is a Dict, unless the environment is on its own list.
dict_observation = pytest.mark.filterwarnings(
    "ignore:Observation is not a NumPy array:UserWarning",
    "ignore:Observation space for each agent probably should be:UserWarning",
)


@pytest.fixture(autouse=True)
def no_screen(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setitem(go_v0.raw_env.metadata, "render_fps", 1000)


def play(env: Any, *actions: int) -> None:
    for action in actions:
        env.step(action)


def random_game(env: Any, rng: np.random.Generator, moves: int) -> list[int]:
    """Random legal moves, up to so many; the game may end before."""
    actions = []
    while len(actions) < moves and not env.terminations[env.agent_selection]:
        mask = env.observe(env.agent_selection)["action_mask"]
        actions.append(int(rng.choice(np.flatnonzero(mask))))
        env.step(actions[-1])
    return actions


# PettingZoo's checks


@dict_observation
@every_case
def test_the_api_test_finds_nothing_to_say(options):
    for _ in range(5):  # its games are random
        api_test(go_v0.env(**options), num_cycles=60)
        api_test(go_v0.raw_env(**options), num_cycles=60)


@every_case
def test_the_seed_test(options):
    seed_test(lambda: go_v0.env(**options), num_cycles=100)


@every_case
def test_the_render_test(options):
    pytest.importorskip("pygame")
    render_test(lambda **kwargs: go_v0.env(**options, **kwargs))


def test_the_max_cycles_test():
    """It asks for a parallel form and counts its steps: PettingZoo's own adapter, where one step is one move."""

    def seeded(max_moves: int) -> Any:
        env = go_v0.env(board_size=25, max_moves=max_moves)
        for agent in AGENTS:  # it draws moves without looking at the mask: these seeds give legal ones
            env.action_space(agent).seed(AGENTS.index(agent))
        return env

    parallel = lambda max_cycles: turn_based_aec_to_parallel_wrapper(seeded(max_cycles))  # noqa: E731
    max_cycles_test(SimpleNamespace(parallel_env=parallel, env=lambda max_cycles: seeded(2 * max_cycles)))


def test_names_are_those_of_pettingzoo():
    env = go_v0.env()
    assert env.possible_agents == AGENTS and str(env.unwrapped) == env.metadata["name"] == "go_v0"
    assert env.metadata["is_parallelizable"] is False
    assert env.metadata["render_modes"] == ["ansi", "rgb_array", "human"]


def test_an_environment_must_be_reset_before_it_is_played():
    with pytest.raises(AttributeError, match="agent_selection cannot be accessed before reset"):
        _ = go_v0.env().agent_selection


# Observations


def expected(boards: list[np.ndarray], player: int) -> np.ndarray:
    """The first sixteen planes, the slow way."""
    boards = [np.zeros_like(boards[0])] * 8 + boards
    planes = []
    for t in range(8):
        planes += [boards[-1 - t] == 1 + player, boards[-1 - t] == 2 - player]
    return np.stack(planes, axis=-1)


@every_case
def test_every_observation_is_from_the_view_of_who_observes(options):
    env = go_v0.env(**options)
    rng = np.random.default_rng(3)
    for _ in range(3):
        env.reset()
        boards = [env.unwrapped.game.stones]
        while not env.terminations[env.agent_selection]:
            for player, agent in enumerate(AGENTS):
                seen = env.observe(agent)
                assert seen in env.observation_space(agent)
                np.testing.assert_array_equal(seen["observation"][..., :16], expected(boards, player))
                np.testing.assert_array_equal(seen["observation"][..., 16], colour_plane(player, *boards[0].shape))
                assert seen["action_mask"].any() == (agent == env.agent_selection)
            random_game(env, rng, 1)
            boards.append(env.unwrapped.game.stones)


def test_at_your_turn_the_first_plane_is_your_own_stones():
    env = go_v0.env(board_size=3)
    env.reset()
    play(env, 0, 8)
    black = env.last()[0]["observation"]
    assert black[0, 0, 0] and black[2, 2, 1] and black[..., :2].sum() == 2
    play(env, 1)
    white = env.last()[0]["observation"]
    assert white[2, 2, 0] and white[0, 0, 1] and white[0, 1, 1] and white[..., :2].sum() == 3


@pytest.mark.parametrize("size", [1, 9, (4, 7)])
def test_the_shapes_are_those_that_are_documented(size):
    env = go_v0.env(board_size=size)
    rows, cols = size if isinstance(size, tuple) else (size, size)
    env.reset()
    for agent in AGENTS:
        space, seen = env.observation_space(agent), env.observe(agent)
        assert space["observation"].shape == seen["observation"].shape == (rows, cols, 17)
        assert space["observation"].dtype == seen["observation"].dtype == np.bool_
        assert space["action_mask"].shape == seen["action_mask"].shape == (rows * cols + 1,)
        assert seen["action_mask"].dtype == np.int8
        assert env.action_space(agent).n == rows * cols + 1


def test_no_observation_is_all_zero():
    env = go_v0.env(board_size=3)
    env.reset()
    play(env, 9)
    assert env.last()[0]["observation"].any()  # White's, of the empty board


@pytest.mark.parametrize("shape", [(r, c) for r in range(1, 8) for c in range(1, 8)] + [(19, 19), (8, 8)])
def test_the_last_plane_tells_the_colours_apart_and_has_the_symmetries_of_the_board(shape):
    black, white = colour_plane(0, *shape), colour_plane(1, *shape)
    assert black.all() and white.any()
    assert (black != white).any() or shape == (1, 1)
    if max(shape) > 2:
        assert not white[0, 0]
        for same in (white[::-1], white[:, ::-1], colour_plane(1, *shape[::-1]).T):
            np.testing.assert_array_equal(same, white)


def test_the_state_is_blacks_view_and_tells_who_moves():
    env = go_v0.env(board_size=3)
    env.reset()
    play(env, 4)
    state = env.state()
    assert state in env.state_space
    np.testing.assert_array_equal(state[..., :16], env.observe("black_0")["observation"][..., :16])
    np.testing.assert_array_equal(state[..., 16], env.observe("white_0")["observation"][..., 16])


def test_the_mask_is_that_of_the_rules():
    env = go_v0.env(board_size=4)
    env.reset()
    rng = np.random.default_rng(0)
    while not env.terminations[env.agent_selection]:
        raw = env.unwrapped
        np.testing.assert_array_equal(env.last()[0]["action_mask"], raw.mdp.mask(raw.game))
        random_game(env, rng, 1)
    assert np.flatnonzero(env.last()[0]["action_mask"]).tolist() == [16]


def test_retaking_a_ko_is_masked():
    env = go_v0.env(board_size=(3, 4))
    env.reset(options={"position": ".XO.\nX.XO\n.XO.", "to_play": 1})
    env.step(5)
    assert env.unwrapped.game.captures == (0, 1)
    assert not env.last()[0]["action_mask"][6]


# Games


def test_two_sizes_in_one_process_do_not_know_of_each_other():
    small, large, rng = go_v0.env(board_size=3), go_v0.env(board_size=(4, 6)), np.random.default_rng(1)
    small.reset()
    large.reset()
    random_game(large, rng, 6)
    random_game(small, rng, 4)
    random_game(large, rng, 6)
    assert small.observe("black_0")["observation"].shape == (3, 3, 17)
    assert large.observe("black_0")["observation"].shape == (4, 6, 17)
    assert small.unwrapped.game.n_moves == 4 and large.unwrapped.game.n_moves == 12


@pytest.mark.parametrize(("komi", "rewards", "winner"), [(0, (0, 0), -1), (0.5, (-1, 1), 1), (-0.5, (1, -1), 0)])
def test_the_reward_is_the_result_and_a_draw_is_worth_nothing(komi, rewards, winner):
    env = go_v0.env(board_size=3, komi=komi)
    env.reset()
    play(env, 9, 9)
    assert env.rewards == dict(zip(AGENTS, rewards, strict=True))
    assert env.terminations == dict.fromkeys(AGENTS, True) and env.truncations == dict.fromkeys(AGENTS, False)
    assert env.infos["white_0"] == {"winner": winner, "score": -komi, "ending": "passes"}
    received = {}
    for agent in env.agent_iter():
        received[agent] = env.last()[1]
        env.step(None)
    assert received == dict(zip(AGENTS, rewards, strict=True)) and env.agents == []


def test_the_cap_on_moves_ends_the_game_and_the_board_is_scored():
    env = go_v0.env(board_size=3, komi=0, max_moves=3)
    env.reset()
    play(env, 4, 9)
    assert not any(env.terminations.values())
    play(env, 0)
    assert all(env.terminations.values()) and env.infos["black_0"]["ending"] == "moves"
    assert env.rewards == {"black_0": 1.0, "white_0": -1.0}


def test_every_random_game_ends_by_itself():
    env = go_v0.env(board_size=4)
    for seed in range(20):
        env.reset(seed=seed)
        assert len(random_game(env, np.random.default_rng(seed), 1000)) <= env.unwrapped.mdp.rules.cap
        assert sum(env.rewards.values()) == 0


def test_an_illegal_move_ends_the_game_with_minus_one():
    for make in (go_v0.env, go_v0.raw_env):
        env = make(board_size=3)
        env.reset()
        env.step(4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PettingZoo's wrapper warns of an illegal move
            env.step(4)
        assert env.rewards == {"black_0": 0.0, "white_0": -1.0} and all(env.terminations.values())
        for agent in env.agent_iter():
            assert env.last()[1] == (-1 if agent == "white_0" else 0) and env.last()[0]["action_mask"].sum() == 1
            env.step(None)
        assert env.agents == []
        env.reset()
        assert env.unwrapped.game.n_moves == 0 and not any(env.terminations.values())


def test_an_action_outside_the_space_is_an_error():
    env = go_v0.env(board_size=3)
    env.reset()
    with pytest.raises(AssertionError, match="action is not in action space"):
        env.step(10)


def test_a_handicap_lets_white_begin():
    env = go_v0.env(board_size=9, handicap=2)
    env.reset()
    assert env.agent_selection == "white_0" and env.last()[0]["observation"][..., 1].sum() == 2
    env.step(0)
    assert env.agent_selection == "black_0"
    env.reset(options={"handicap": 4})
    assert env.last()[0]["observation"][..., 1].sum() == 4


def test_reset_takes_the_options_of_the_rules():
    env = go_v0.env(board_size=3)
    env.reset(options={"position": "X..\n...\n..O", "to_play": 1, "moves": [4, 1]})
    game = env.unwrapped.game
    assert env.agent_selection == "white_0" and game.stones.tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 2]]
    with pytest.raises(ValueError, match="got 'colour'"):
        env.reset(options={"colour": "..."})


def test_a_game_that_is_over_from_the_start_is_over():
    env = go_v0.env(board_size=3)
    env.reset(options={"moves": [9, 9]})
    assert all(env.terminations.values()) and env.infos["black_0"]["winner"] == 1
    for _ in env.agent_iter():
        env.step(None)


def clone_by_pickle(env: Any) -> Any:
    return pickle.loads(pickle.dumps(env))


@pytest.mark.parametrize("clone", [copy.deepcopy, clone_by_pickle])
@pytest.mark.parametrize("make", [go_v0.env, go_v0.raw_env])
@pytest.mark.parametrize("moves", [0, 7, 10_000])
def test_copies_and_pickles_go_on_with_the_same_game(clone, make, moves):
    env = make(board_size=4, ko="situational", komi=0)
    env.reset()
    random_game(env, np.random.default_rng(2), moves)
    twin = clone(env)
    assert twin.unwrapped.game == env.unwrapped.game and twin.unwrapped.game is not env.unwrapped.game
    rng, twin_rng = np.random.default_rng(5), np.random.default_rng(5)
    while env.agents:
        observation, *rest = env.last()
        twin_observation, *twin_rest = twin.last()
        assert rest == twin_rest and env.agent_selection == twin.agent_selection
        for key in observation:
            np.testing.assert_array_equal(observation[key], twin_observation[key])
        for one, generator in ((env, rng), (twin, twin_rng)):
            over = one.terminations[one.agent_selection]
            one.step(None if over else int(generator.choice(np.flatnonzero(observation["action_mask"]))))
    assert twin.agents == []


def test_a_copy_and_its_original_play_on_independently():
    env = go_v0.env(board_size=3)
    env.reset()
    env.step(4)
    twin = copy.deepcopy(env)
    play(twin, 9, 9)
    assert all(twin.terminations.values()) and not any(env.terminations.values())
    assert env.unwrapped.game.n_moves == 1 and env.rewards == dict.fromkeys(AGENTS, 0.0)


# Rendering


def test_the_window_follows_the_game_and_does_not_travel_with_copies():
    pytest.importorskip("pygame")
    env = go_v0.env(board_size=3, render_mode="human", screen_height=100)
    env.reset()
    env.step(4)
    assert env.unwrapped._window.is_open
    twin = pickle.loads(pickle.dumps(env))
    assert not twin.unwrapped._window.is_open and twin.unwrapped.game == env.unwrapped.game
    env.close()
    env.close()
    assert not env.unwrapped._window.is_open


def test_pictures_have_the_size_that_is_asked_for():
    env = go_v0.env(board_size=(3, 5), render_mode="rgb_array", screen_height=200)
    env.reset()
    height, width, _ = env.render().shape
    assert width == 200 > height
    text = go_v0.env(board_size=(3, 5), render_mode="ansi")
    text.reset()
    assert text.render().splitlines()[-1] == "Move 1: Black (X) to play."


def test_render_without_a_mode_warns_as_pettingzoo_does():
    env = go_v0.env(board_size=3)
    env.reset()
    with pytest.warns(UserWarning, match="without a render_mode"):
        assert env.render() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"render_mode": "video"}, r"render_mode must be None or one of \['ansi', 'rgb_array', 'human'\], got 'video'"),
        ({"board_size": 26}, r"board_size must be a whole number in \[1, 25\], got 26"),
    ],
)
def test_wrong_arguments_are_refused_in_words(options, message):
    with pytest.raises(ValueError, match=message):
        go_v0.env(**options)


def test_the_rules_are_gomdps():
    env = go_v0.raw_env((3, 4), 2.5, "simple", True, 50, 2)
    assert env.mdp.rules == GoMDP((3, 4), 2.5, "simple", True, 50, 2).rules
