"""The native vector form of Go equals N single environments, move for move."""

from __future__ import annotations

import copy
import pickle
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from toys import assert_same

import llmgym  # noqa: F401
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.opponents import Game, GTPOpponent, Opponent
from llmgym.envs.go.streams import Streams
from llmgym.nets import NetPolicy

N, STEPS = 3, 90

ID = "llmgym/Go-v0"


def first_legal(mdp: GoMDP, state: Any, rng: np.random.Generator) -> int:
    """A function that draws nothing."""
    return int(mdp.mask(state).argmax())


def uniform(mdp: GoMDP, state: Any, rng: np.random.Generator) -> int:
    """A function that leaves half a word in the generator."""
    return int(rng.choice(np.flatnonzero(mdp.mask(state))))


def moody(mdp: GoMDP, state: Any, rng: np.random.Generator) -> int:
    """A function that plays no legal move now and then, or raises."""
    mood = rng.random()
    if mood < 0.05:
        raise RuntimeError("out of sorts")
    return -1 if mood < 0.1 else uniform(mdp, state, rng)


class Resigner(Opponent):
    """Gives up from its third move on."""

    def move(self, game: Game, rng: np.random.Generator) -> int | None:
        """An action or None."""
        return None if game.state.n_moves > 4 else first_legal(game.mdp, game.state, rng)


CASES: dict[str, dict[str, Any]] = {
    "random": {},
    "light": {"opponent": "light", "color": "white"},
    "random color": {"color": "random", "komi": 3},
    "light, random color": {"opponent": "light", "color": "random", "ko": "simple", "suicide": True},
    "margin and captures": {"color": "random", "reward": "margin", "capture_reward": 0.25, "ko": "situational"},
    "rectangle": {"board_size": (2, 4), "handicap": 2, "color": "random", "planes": ("stones", "liberties", "ko")},
    "one point": {"board_size": 1, "color": "random"},
    "short": {"max_moves": 6, "color": "random", "komi": 0},
    "over before the agent moves": {"max_moves": 1, "color": "random"},
    "limit": {"max_episode_steps": 4, "color": "random"},
    "no mask": {"mask_in_info": False},
    "function": {"opponent": uniform, "color": "random", "capture_reward": 0.5},
    "first legal": {"opponent": first_legal, "color": "white", "planes": "stones"},
    "moody": {"opponent": moody, "color": "random", "capture_reward": 1.0},
    "resigner": {"opponent": Resigner(), "color": "random", "max_episode_steps": 7},
}


def pair(mode: Any, case: dict[str, Any], num_envs: int = N):
    arguments = {"board_size": 3} | case
    native = gym.make_vec(ID, num_envs=num_envs, autoreset_mode=mode, **arguments)
    return native, SyncVectorEnv([partial(gym.make, ID, **arguments)] * num_envs, autoreset_mode=mode)


def chosen(rows: Any, rng: np.random.Generator, illegal: float = 0.02) -> np.ndarray:
    """Legal actions, but for a few."""
    masks = rows.unwrapped.action_masks() | (rng.random((rows.num_envs, 1)) < illegal)
    return np.array([rng.choice(np.flatnonzero(mask)) if mask.any() else 0 for mask in masks])


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("case", CASES)
def test_equals_single_environments_step_by_step(case, mode):
    native, single = pair(mode, CASES[case])
    rng, ended, seen = np.random.default_rng(7), 0, set()
    assert_same(native.reset(seed=3), single.reset(seed=3), "reset")
    for step in range(STEPS):
        actions = chosen(native, rng)
        ours, theirs = native.step(actions), single.step(actions)
        assert_same(ours, theirs, f"step {step}")
        infos = ours[4].get("final_info", ours[4])
        seen |= {name for name in infos if not name.startswith("_")} | set(infos.get("ending", ()))
        over = ours[2] | ours[3]
        ended += over.sum()
        if mode is AutoresetMode.DISABLED and over.any():
            options = {"reset_mask": over}
            assert_same(native.reset(options=dict(options)), single.reset(options=dict(options)), f"reset {step}")
    assert ended > 20
    assert native.unwrapped.colors.tolist() == [env.unwrapped.color for env in single.envs]
    if case == "moody":
        assert "opponent_failed" in seen
    if case == "resigner":
        assert "resign" in seen


@pytest.mark.parametrize("opponent", ["random", "light"])
def test_whole_games_of_the_usual_size_are_those_of_single_environments(opponent):
    native, single = pair("NextStep", {"board_size": 9, "opponent": opponent, "color": "random"}, num_envs=2)
    rng = np.random.default_rng(1)
    assert_same(native.reset(seed=11), single.reset(seed=11))
    for _ in range(150):
        actions = chosen(native, rng, illegal=0)
        assert_same(native.step(actions), single.step(actions))
        assert native.unwrapped.states == [env.unwrapped.state for env in single.envs]


@pytest.mark.parametrize("opponent", ["random", "light", uniform])
def test_threads_change_nothing(opponent):
    named = {"num_envs": 130, "board_size": 3, "opponent": opponent, "color": "random", "autoreset_mode": "SameStep"}
    one, two = gym.make_vec(ID, **named), gym.make_vec(ID, threads=2, **named)
    rng = np.random.default_rng(1)
    assert_same(one.reset(seed=4), two.reset(seed=4))
    for _ in range(20):
        actions = chosen(one, rng)
        assert_same(one.step(actions), two.step(actions))


# --- options, states, modes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"handicap": 2},
        {"position": "X . .\n. O .\n. . .", "to_play": 1},
        {"position": np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]), "moves": [9]},
        {"moves": np.array([4, 0])},
        {"moves": [9, 9]},  # over before it begins
    ],
    ids=str,
)
@pytest.mark.parametrize("opponent", ["random", first_legal])
def test_options_are_those_of_the_single_environment(options, opponent):
    native, single = pair("NextStep", {"color": "random", "opponent": opponent})
    rng = np.random.default_rng(0)
    assert_same(native.reset(seed=5, options=dict(options)), single.reset(seed=5, options=dict(options)))
    for _ in range(12):
        actions = chosen(native, rng)
        assert_same(native.step(actions), single.step(actions))


def test_a_reset_mask_starts_only_its_rows():
    rows = gym.make_vec(ID, num_envs=3, board_size=3, color="random", autoreset_mode="disabled")
    rows.reset(seed=0)
    rows.step(np.array([4, 4, 4]))
    before = rows.unwrapped.states
    mask = np.array([True, False, False])
    _, infos = rows.reset(seed=[7, 7, 7], options={"reset_mask": mask, "moves": [0]})
    states = rows.unwrapped.states
    assert states[1:] == before[1:] and infos["_action_mask"].tolist() == mask.tolist()
    single = gym.make(ID, board_size=3, color="random")
    single.reset(seed=7, options={"moves": [0]})
    assert states[0] == single.unwrapped.state
    rows.reset()  # row 1 was not seeded by a mask that left it out
    single.reset(seed=1)
    single.step(4)
    single.reset()
    assert rows.unwrapped.state(1) == single.unwrapped.state


@pytest.mark.parametrize("opponent", ["random", uniform])
def test_a_finished_row_ignores_its_action_when_autoreset_is_disabled(opponent):
    named = {"num_envs": 2, "board_size": 3, "opponent": opponent, "max_episode_steps": 2, "capture_reward": 1.0}
    rows = gym.make_vec(ID, autoreset_mode="Disabled", **named)
    rows.reset(seed=0)
    rows.step(np.array([4, 4]))
    occupied = int(rows.unwrapped.state(1).stones.argmax())
    observations, rewards, terminated, truncated, _ = rows.step(np.array([9, occupied]))
    assert rewards[1] == -1 and terminated[1] and truncated[0]
    states = rows.unwrapped.states
    for actions in ([0, 0], [-5, 100]):
        again, rewards, *flags, infos = rows.step(np.array(actions))
        assert_same((again, *flags), (observations, terminated, truncated))
        assert rewards.tolist() == [0, 0] and infos.keys() == {"action_mask", "_action_mask"}
        assert rows.unwrapped.states == states


@pytest.mark.parametrize("opponent", ["random", "light", moody])
def test_a_snapshot_continues_identically_here_and_elsewhere(opponent):
    named = {"num_envs": 4, "board_size": 5, "opponent": opponent, "color": "random", "autoreset_mode": "SameStep"}
    rows, other = gym.make_vec(ID, **named), gym.make_vec(ID, **named)
    rng = np.random.default_rng(2)
    rows.reset(seed=9)
    for _ in range(25):
        rows.step(chosen(rows, rng))
    snapshot = pickle.loads(pickle.dumps(rows.unwrapped.get_state()))
    twins = [other, pickle.loads(pickle.dumps(rows.unwrapped)), copy.deepcopy(rows.unwrapped)]
    other.unwrapped.set_state(snapshot)
    plan, told = [], []
    for _ in range(70):
        plan.append(chosen(rows, rng))
        told.append(rows.step(plan[-1]))
    rows.unwrapped.set_state(snapshot)
    for twin in (*twins, rows):
        for actions, expected in zip(plan, told, strict=True):
            assert_same(twin.step(actions), expected)


def test_a_snapshot_of_other_games_is_refused():
    small = gym.make_vec(ID, num_envs=2, board_size=3).unwrapped
    small.reset(seed=0)
    for named in ({"num_envs": 3, "board_size": 3}, {"num_envs": 2, "board_size": 4}, {"num_envs": 2, "max_moves": 9}):
        with pytest.raises(ValueError, match="a snapshot here is of"):
            gym.make_vec(ID, **named).unwrapped.set_state(small.get_state())


def test_what_was_returned_does_not_change_later():
    rows = gym.make_vec(ID, num_envs=3, board_size=3, autoreset_mode="SameStep", color="random")
    said, rng, kept = [rows.reset(seed=0)], np.random.default_rng(0), []
    for _ in range(30):
        kept.append(copy.deepcopy(said[-1]))
        said.append(rows.step(chosen(rows, rng)))
    for now, then in zip(said, kept, strict=False):
        assert_same(now, then)


def test_unseeded_rows_differ():
    rows = gym.make_vec(ID, num_envs=8, color="white")
    rows.reset()
    assert len({state.last_action for state in rows.unwrapped.states}) > 1


@pytest.mark.parametrize("opponent", [Resigner(), first_legal, "random"])
def test_a_snapshot_keeps_the_masks_of_rows_that_are_over(opponent):
    named = {"num_envs": 3, "board_size": 3, "opponent": opponent, "max_moves": 7, "color": "random"}
    rows, other = (gym.make_vec(ID, autoreset_mode="Disabled", **named).unwrapped for _ in range(2))
    rng = np.random.default_rng(1)
    rows.reset(seed=2)
    for _ in range(5):
        rows.step(chosen(rows, rng))
        other.set_state(rows.get_state())
        assert_same(other.action_masks(), rows.action_masks())
        assert_same(other.step(zeros := np.zeros(3, int)), rows.step(zeros))
    assert not rows.action_masks().all()


def test_an_engine_is_a_process_for_every_row(tmp_path):
    engine = [sys.executable, "-S", str(Path(__file__).parent / "fake_gtp.py"), "crash:2", str(tmp_path / "log")]
    rows = gym.make_vec(ID, num_envs=2, board_size=3, opponent=GTPOpponent(engine), autoreset_mode="SameStep")
    rows.reset(seed=0)
    for _ in range(2):
        rows.step(np.array([0, 1]))
        _, rewards, terminated, truncated, infos = rows.step(np.array([3, 4]))
        assert rewards.tolist() == [0, 0] and truncated.all() and not terminated.any()
        assert all("has crashed" in said for said in infos["final_info"]["opponent_failed"])
    rows.close()
    rows.close()
    told = (tmp_path / "log").read_text().splitlines()
    assert told.count("boardsize 3") == 6 and sorted(told[-2:]) == ["quit"] * 2  # two games and what follows, each


def test_an_interrupted_opponent_voids_the_games():
    def interrupted(mdp, state, rng):
        raise KeyboardInterrupt

    rows = gym.make_vec(ID, num_envs=2, board_size=3, opponent=interrupted, autoreset_mode="Disabled")
    rows.reset(seed=0)
    with pytest.raises(KeyboardInterrupt):
        rows.step(np.array([4, 4]))
    _, rewards, terminated, truncated, infos = rows.step(np.array([4, 4]))
    assert truncated.all() and not terminated.any() and not rewards.any()
    assert infos["opponent_failed"].tolist() == ["the opponent was interrupted"] * 2


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ({"color": "red"}, "color must be one of black, white, random, got 'red'"),
        ({"autoreset_mode": "later"}, "autoreset_mode must be one of"),
        ({"max_episode_steps": 0}, "max_episode_steps must be at least 1, or None, got 0"),
        ({"threads": 0}, "threads must be a whole number in"),
        ({"render_mode": "human"}, "render_mode must be None or one of"),
        ({"opponent": "nobody"}, "opponent must be"),
        ({"board_size": 99}, "board_size"),
    ],
)
def test_bad_arguments_are_said(named, message):
    with pytest.raises(ValueError, match=message):
        gym.make_vec(ID, **{"num_envs": 2} | named)
    with pytest.raises(TypeError):
        gym.make_vec(ID, num_envs=2, coulor="black")


def test_bad_actions_are_said_and_change_nothing():
    rows = gym.make_vec(ID, num_envs=2, board_size=3)
    rows.reset(seed=0)
    before = rows.unwrapped.states
    for actions in (np.zeros(3, int), np.zeros(2), 4, [[1, 2]]):
        with pytest.raises(ValueError, match=r"actions must be integers of shape \(2,\), got"):
            rows.step(actions)
    for actions in ([0, 10], [-1, 10]):
        with pytest.raises(ValueError, match=rf"actions must lie in \[0, 9\], got {min(actions)} to 10"):
            rows.step(np.array(actions))
    assert rows.unwrapped.states == before
    rows.step([4, 4])  # a list will do


def test_nothing_works_before_every_row_has_started():
    rows = gym.make_vec(ID, num_envs=2, board_size=3, render_mode="ansi").unwrapped
    calls = (lambda: rows.step(np.array([0, 0])), rows.action_masks, rows.get_state, rows.render, lambda: rows.states)
    for mask in ([True, False], [False, True]):
        for call in calls:
            with pytest.raises(ResetNeeded, match=r"call reset\(\)"):
                call()
        rows.reset(options={"reset_mask": np.array(mask)})
    rows.step(np.array([0, 0]))
    assert len(rows.render()) == 2 and rows.render()[0] == rows.mdp.render(rows.state(0), "ansi")


# --- with learners --------------------------------------------------------------------------------------------------


class Counting:
    """A policy's `predict`, its calls counted."""

    def __init__(self, policy: Any):
        self.policy, self.shapes = policy, list[tuple[int, ...]]()

    def predict(self, observation: np.ndarray, deterministic: bool = False, action_masks: Any = None) -> Any:
        """What the policy says."""
        self.shapes.append(observation.shape)
        return self.policy.predict(observation, deterministic=True, action_masks=action_masks)


def test_a_policy_is_asked_for_all_rows_at_once_and_plays_as_it_does_alone():
    env = gym.make(ID, board_size=4)
    policy = Counting(NetPolicy("CnnPolicy", env, hidden=(4,), device="cpu", seed=0))
    native, single = pair("SameStep", {"board_size": 4, "opponent": policy, "color": "random"})
    rng = np.random.default_rng(0)
    assert_same(native.reset(seed=1), single.reset(seed=1))
    policy.shapes.clear()
    native.step(actions := chosen(native, rng, illegal=0))
    assert policy.shapes == [(N, 17, 4, 4)]
    single.step(actions)
    for _ in range(60):
        actions = chosen(native, rng)
        assert_same(native.step(actions), single.step(actions))


def test_our_ppo_learns_on_it():
    from llmgym.agents import PPO

    rows = gym.make_vec(ID, num_envs=8, board_size=5, opponent="light", color="random", autoreset_mode="SameStep")
    agent = PPO("CnnPolicy", rows, n_steps=16, epochs=1, seed=0, verbose=0)
    agent.learn(total_timesteps=256)
    observation, info = rows.reset(seed=0)
    action, _ = agent.predict(observation)
    assert action.shape == (8,) and info["action_mask"].shape == (8, 26)


def test_stable_baselines3_steps_it():
    from llmgym.envs import SB3VecEnv

    rows = SB3VecEnv(gym.make_vec(ID, num_envs=3, board_size=3, color="random", autoreset_mode="SameStep"))
    rows.seed(5)
    observations = rows.reset()
    assert observations.shape == (3, 17, 3, 3)
    rng, ends = np.random.default_rng(0), []
    for _ in range(60):
        masks = np.stack(rows.env_method("action_masks"))
        _, _, dones, infos = rows.step(np.array([rng.choice(np.flatnonzero(m)) for m in masks]))
        ends += [info for info, done in zip(infos, dones, strict=True) if done]
    assert len(ends) > 5 and all(info["terminal_observation"].shape == (17, 3, 3) for info in ends)
    assert all(info["is_success"] == (info["episode"]["r"] == 1.0) for info in ends)


def test_streams_are_the_generators_of_single_environments():
    streams, env = Streams(3, 4), gym.make(ID).unwrapped
    env.reset(seed=6)  # draws nothing: the agent is Black
    streams.seed(1, 6)
    asked = np.array([False, True, False])
    for _ in range(11):
        drawn = streams.draw(asked)
        assert drawn.tolist() == [0, env.np_random.bit_generator.random_raw() >> 32, 0]
    snapshot = streams.get_state()
    following = [streams.draw(asked)[1] for _ in range(6)]
    streams.set_state(snapshot)
    assert [streams.draw(asked)[1] for _ in range(6)] == following
