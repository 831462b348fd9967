"""PPO and REINFORCE on environments other than text: the same agents, another policy object."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from worlds import flat

from llmgym.agents import GRPO, PPO, REINFORCE
from llmgym.agents.reinforce import mean_of_others
from llmgym.nets import NetPolicy

AGENTS = [(PPO, {"num_envs": 4, "n_steps": 16, "epochs": 2}), (REINFORCE, {"num_envs": 4, "gamma": 0.99})]
each_agent = pytest.mark.parametrize(("cls", "config"), AGENTS, ids=["PPO", "REINFORCE"])


def cartpole(cls, config, **more):
    return cls("MlpPolicy", gym.make("CartPole-v1"), **({"seed": 0, "device": "cpu"} | config | more))


@each_agent
def test_the_four_verbs(cls, config, tmp_path):
    env = gym.make("CartPole-v1")
    agent = cartpole(cls, config).learn(total_timesteps=300)
    mean, _ = evaluate_policy(agent, Monitor(env), n_eval_episodes=3)
    agent.save(tmp_path / "a")
    again = cls.load(tmp_path / "a")  # the environment comes back from its spec
    assert evaluate_policy(again, Monitor(gym.make("CartPole-v1")), n_eval_episodes=1)[0] > 0 and mean >= 8
    observation = env.reset(seed=3)[0]
    one, two = (a.predict(observation, deterministic=True) for a in (agent, again))
    assert np.array_equal(one[0], two[0]) and one[1] is None and env.action_space.contains(one[0])
    batch = np.stack([env.observation_space.sample() for _ in range(5)])
    assert agent.predict(batch, deterministic=True)[0].shape == (5,)


@each_agent
def test_the_same_seed_gives_the_same_parameters(cls, config):
    one, two, three = (cartpole(cls, config, seed=s).learn(200).policy.parameters() for s in (1, 1, 2))
    assert torch.equal(flat(one), flat(two)) and not torch.equal(flat(one), flat(three))


@each_agent
def test_training_goes_on_from_a_folder(cls, config, tmp_path):
    """Optimiser, counters and generators come back; the episodes that were running begin anew."""
    agent = cartpole(cls, config).learn(total_timesteps=200)
    agent.save(tmp_path / "a")
    again = cls.load(tmp_path / "a")
    assert again.num_timesteps == agent.num_timesteps and again.policy.counters == agent.policy.counters
    assert torch.equal(flat(agent.policy.parameters()), flat(again.policy.parameters()))
    states = [flat([a.optimizer.state[p]["exp_avg"] for p in a.policy.parameters()]) for a in (agent, again)]
    assert torch.equal(*states)
    assert again.learn(total_timesteps=100).num_timesteps > agent.num_timesteps


def test_a_policy_of_ones_own_is_trained_and_saved(tmp_path):
    env = gym.make("CartPole-v1")
    policy = NetPolicy("MlpPolicy", env, hidden=(8,), activation="relu", seed=0, device="cpu")
    before = flat(policy.parameters())
    agent = PPO(policy, env, num_envs=2, n_steps=8).learn(total_timesteps=32)
    assert agent.policy is policy and not torch.equal(before, flat(policy.parameters()))
    agent.save(tmp_path / "a")
    assert torch.equal(flat(PPO.load(tmp_path / "a").policy.parameters()), flat(policy.parameters()))


def test_a_vector_environment_is_stepped_as_it_is():
    venv = gym.make_vec("CartPole-v1", num_envs=3, vectorization_mode="sync")
    agent = PPO("MlpPolicy", venv, n_steps=10, seed=0, device="cpu").learn(total_timesteps=30)
    assert agent.venv is venv and agent.collector.venv.num_envs == 3


def test_what_is_reported():
    seen = []
    cartpole(*AGENTS[0]).learn(total_timesteps=400, callback=lambda agent, metrics, batch: seen.append(metrics))
    last = seen[-1]
    names = {"reward", "length", "episodes", "loss", "policy_loss", "value_loss", "explained_variance", "approx_kl"}
    assert names | {"clip_fraction", "grad_norm", "steps_per_second", "timesteps", "seconds"} <= set(last)
    assert last["reward"] == last["length"] > 5  # a reward of 1 a step
    assert not np.isfinite(seen[0]["reward"]) or seen[0]["episodes"] > 0


class Masked(gym.Env):
    """A walk of eight steps on which one of three actions, another one each time, is forbidden: it ends the episode."""

    observation_space = gym.spaces.Discrete(9)
    action_space = gym.spaces.Discrete(3)

    def __init__(self):
        self.place = 0

    def action_masks(self):
        return np.arange(3) != self.place % 3

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0
        return 0, {}

    def step(self, action):
        assert self.action_masks()[action], "a forbidden action was taken"
        right = action == (self.place + 1) % 3
        self.place += 1
        return self.place, float(right), self.place == 8, False, {}


@each_agent
def test_masks_are_respected_and_the_game_is_learnt(cls, config):
    gym.register("MaskedWalk-v0", Masked, disable_env_checker=True) if "MaskedWalk-v0" not in gym.registry else None
    settings = {"learning_rate": 0.02, "seed": 0, "device": "cpu", "gamma": 0.5, "num_envs": 16}
    agent = cls("MlpPolicy", gym.make("MaskedWalk-v0"), **(config | settings)).learn(total_timesteps=6_000)
    assert np.mean([r for r, _ in list(agent.episodes)[-20:]]) >= 7  # chance is 4
    env = Masked()
    observation, _ = env.reset()
    for _ in range(8):
        action, _ = agent.predict(observation, action_masks=env.action_masks())
        observation, *_ = env.step(int(action))


class Board(gym.Env):
    """Planes of a 4x4 board; the move to make is where the second plane has its stone."""

    observation_space = gym.spaces.Box(0, 1, (2, 4, 4), np.float32)
    action_space = gym.spaces.Discrete(16)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = int(self.np_random.integers(16))
        planes = np.zeros((2, 16), np.float32)
        planes[0], planes[1, self.at] = self.np_random.random(16) < 0.3, 1
        return planes.reshape(2, 4, 4), {}

    def step(self, action):
        return np.zeros((2, 4, 4), np.float32), float(action == self.at), True, False, {}


def test_a_convolutional_policy_learns_a_board():
    gym.register("FindTheStone-v0", Board, disable_env_checker=True) if "FindTheStone-v0" not in gym.registry else None
    settings = {"num_envs": 32, "n_steps": 8, "epochs": 4, "learning_rate": 1e-3, "seed": 0, "device": "cpu"}
    agent = PPO("CnnPolicy", gym.make("FindTheStone-v0"), **settings).learn(total_timesteps=6_000)
    assert np.mean([r for r, _ in agent.episodes]) > 0.6  # chance is 1/16


def test_the_mean_of_the_others_at_the_same_step():
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    x = torch.tensor([[3.0, 5.0, 7.0], [6.0, 1.0, 99.0], [9.0, 99.0, float("nan")]])
    assert mean_of_others(x, mask).tolist() == [[7.5, 1.0, 0.0], [6.0, 5.0, 0.0], [4.5, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda env: GRPO("MlpPolicy", env), "GRPO acts on text environments"),
        (lambda env: PPO("MlpPolicy", env, beta=0.1), "beta must be 0 without a language model, got 0.1"),
        (lambda env: PPO("tiny", env), "env must be a text environment of llmgym"),
        (lambda env: PPO("MlpPolicy", env).learn(total_tokens=5), "total_tokens is a budget on text"),
        (lambda env: PPO("MlpPolicy", env, device="cpu").learn(total_timesteps=0), "total_timesteps must be above 0"),
    ],
)
def test_what_cannot_be_meant(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(gym.make("CartPole-v1"))
