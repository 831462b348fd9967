"""Opponents of Go-v0 that are functions and agents, and what happens when they fail."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

from llmgym.agents import PPO
from llmgym.envs.go.env import GoEnv
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.opponents import AgentOpponent, Game, GTPOpponent, Opponent, OpponentFailed
from llmgym.nets import NetPolicy


def first(mdp: GoMDP, state: Any, rng: np.random.Generator) -> int:
    """The first legal action."""
    return int(np.argmax(mdp.mask(state)))


class Recorder:
    """An agent that takes the last legal action and remembers what it was shown."""

    def __init__(self):
        self.shown: list[tuple[np.ndarray, np.ndarray]] = []

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[Any, Any]:
        """As agents of ours, and MaskablePPO."""
        self.shown.append((observation, action_masks))
        return np.flatnonzero(action_masks)[-2], state


class Maskless:
    """An agent of stable-baselines3 without masks: it always plays in the corner."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        """Action and state."""
        return np.array(0), None


class Resigning(Opponent):
    """Gives up in its second move."""

    def move(self, game: Game, rng: np.random.Generator) -> int | None:
        """The first legal action, then None."""
        return None if len(game.moves) > 2 else first(game.mdp, game.state, rng)


def test_a_function_is_given_rules_state_and_the_environments_generator():
    seen = []

    def function(mdp, state, rng):
        seen.append((mdp, state, rng))
        return mdp.rules.points

    env = GoEnv(board_size=5, opponent=function)
    env.reset(seed=0)
    env.step(7)
    (mdp, state, rng), position = seen[0], env.mdp.transition(env.mdp.initial(), 7)
    assert mdp is env.mdp and state == position and rng is env.np_random


def test_what_a_function_is_given_is_its_own():
    """A function that spoils the state it was given spoils no game."""

    def function(mdp, state, rng):
        state.ints[:] = 0
        return 0

    env = GoEnv(board_size=5, opponent=function)
    env.reset()
    env.step(7)
    assert env.table.moves == [7, 0] and env.state.stones.sum() == 3


def test_an_agent_sees_the_board_from_its_own_side():
    agent = Recorder()
    env = GoEnv(board_size=5, opponent=agent, color="white")
    env.reset()
    env.step(3)
    (opening, _), (observation, mask) = agent.shown
    assert opening[:16].sum() == 0 and (opening[16] == 1).all()
    assert observation[0].reshape(-1).nonzero()[0].tolist() == [24]
    assert observation[1].reshape(-1).nonzero()[0].tolist() == [3]
    assert mask.sum() == 24 and not mask[[3, 24]].any()


def test_what_an_agent_may_be():
    env = GoEnv(board_size=5)
    policy = NetPolicy("CnnPolicy", env, hidden=(4,), device="cpu", seed=0)
    mlp = NetPolicy("MlpPolicy", env, hidden=(4,), seed=0)
    for agent in (policy, mlp):
        against = GoEnv(board_size=5, opponent=agent, color="white")
        _, info = against.reset(seed=0)
        for _ in range(60):
            *_, terminated, truncated, info = against.step(int(np.flatnonzero(info["action_mask"])[0]))
            assert not truncated
            if terminated:
                break
        assert terminated


def test_models_of_stable_baselines3_and_agents_of_ours_play():
    sb3_contrib = pytest.importorskip("sb3_contrib")
    env = GoEnv(board_size=3)
    model = sb3_contrib.MaskablePPO(
        "MlpPolicy", env, n_steps=8, batch_size=8, device="cpu", policy_kwargs={"net_arch": [4]}
    )
    ours = PPO("MlpPolicy", env, seed=0, device="cpu")
    for agent in (model, ours):
        against = GoEnv(board_size=3, opponent=agent)
        for seed in range(3):
            over, _ = False, against.reset(seed=seed)
            while not over:
                action = np.flatnonzero(against.action_masks())[0]
                _, _, over, truncated, info = against.step(action)
                assert not truncated, info


def test_a_batch_of_positions_is_asked_at_once():
    env = GoEnv(board_size=3)
    opponent = AgentOpponent(NetPolicy("MlpPolicy", env, hidden=(4,), seed=0))
    masks = np.zeros((6, 10), bool)
    masks[np.arange(6), np.arange(6)] = True
    assert opponent.moves(np.zeros((6, *env.observation_space.shape), np.int8), masks) == [0, 1, 2, 3, 4, 5]


def raising(mdp: GoMDP, state: Any, rng: Any) -> int:
    """A bug."""
    raise KeyError("opening book")


@pytest.mark.parametrize(
    ("opponent", "sentence"),
    [
        (raising, "the opponent raised KeyError: 'opening book'"),
        (lambda mdp, state, rng: 7, "the opponent played the action 7, which is illegal"),
        (lambda mdp, state, rng: -1, "the opponent played the action -1, which is illegal"),
        (lambda mdp, state, rng: 26, "the opponent played the action 26, which is illegal"),
        (lambda mdp, state, rng: None, "the opponent raised TypeError: "),
        (lambda mdp, state, rng: 3.0, "the opponent raised TypeError: "),
        (lambda mdp: 3, "the opponent raised TypeError: "),
    ],
)
def test_a_failing_opponent_voids_the_game(opponent, sentence):
    env = GoEnv(board_size=5, opponent=opponent, capture_reward=1.0)
    for seed in range(2):
        env.reset(seed=seed)
        observation, reward, terminated, truncated, info = env.step(7)
        assert (reward, terminated, truncated) == (0.0, False, True) and type(reward) is float
        assert info["opponent_failed"].startswith(sentence) and "winner" not in info
        assert not info["action_mask"].any() and not env.action_masks().any()
        assert observation[0, 1, 2] == 1


def test_an_opponent_that_fails_in_reset_is_told_by_the_first_step():
    env = GoEnv(board_size=5, opponent=raising, color="white")
    _, info = env.reset()
    assert "opponent_failed" not in info and info["action_mask"].nonzero()[0].tolist() == [25]
    _, reward, terminated, truncated, info = env.step(7)
    assert (reward, terminated, truncated) == (0.0, False, True) and "KeyError" in info["opponent_failed"]
    assert env.table.moves == []


def test_an_agent_without_masks_can_void_a_game():
    env = GoEnv(board_size=5, opponent=Maskless())
    env.reset()
    assert env.step(7)[3] is False
    assert env.step(8)[4]["opponent_failed"] == "the opponent played the action 0, which is illegal"


@pytest.mark.parametrize("kind", ["result", "margin"])
def test_a_resignation_is_a_win(kind):
    env = GoEnv(board_size=5, opponent=Resigning(), reward=kind)
    env.reset()
    env.step(7)
    _, reward, terminated, truncated, info = env.step(8)
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert (info["ending"], info["winner"], info["is_success"]) == ("resign", 0, True)
    assert info["score"] == env.mdp.score(env.state) and not info["action_mask"].any()


def test_failures_and_resignations_are_part_of_a_snapshot():
    env = GoEnv(board_size=5, opponent=raising, color="white")
    env.reset()
    twin = GoEnv(board_size=5, opponent=raising, color="white")
    twin.set_state(pickle.loads(pickle.dumps(env.get_state())))
    for one in (twin, copy.deepcopy(env)):
        assert one.step(0)[3] is True


def test_interrupts_are_no_failures():
    def interrupted(mdp, state, rng):
        raise KeyboardInterrupt

    env = GoEnv(board_size=5, opponent=interrupted)
    env.reset()
    with pytest.raises(KeyboardInterrupt):
        env.step(0)
    assert env.step(1)[4]["opponent_failed"] == "the opponent was interrupted"  # rather than move for the opponent


def test_opponents_that_are_none():
    for opponent in (None, 3, ["random"]):
        with pytest.raises(
            ValueError, match='opponent must be "random", "light", "mcts", "alphazero", the command line of a GTP'
        ):
            GoEnv(opponent=opponent)
    for opponent in ("rnadom", "  ", "gnugo 'x"):
        with pytest.raises(ValueError, match=r"(opponent must be|the command line of an engine)"):
            GoEnv(opponent=opponent)
    with pytest.raises(ValueError, match="timeout must be a positive number of seconds, got 0"):
        GTPOpponent("sh", timeout=0)
    with pytest.raises(NotImplementedError):
        Opponent().move(None, None)  # type: ignore[arg-type]
    assert issubclass(OpponentFailed, RuntimeError)
