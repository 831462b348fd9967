"""Stock stable-baselines3 PPO learns text: `python examples/03_sb3_ppo_topk.py` (a minute or two on two cores).

The language model stays frozen. It proposes the next tokens (`TopKActions`) and its last hidden state is what PPO's
small network sees (`HiddenStateObservation`). Left to itself the model answers additions at once and is mostly wrong;
it is right when it reasons first. PPO, from the reward alone, learns to open with `<think>` and then to follow it.

Two choices make this learnable for an agent that knows nothing of language: candidates are ordered by probability, so
that action 0 always is the model's own choice, and places below `min_prob` repeat it, so that exploring does not mean
writing nonsense.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

import llmgym  # noqa: F401
from llmgym.envs import SB3VecEnv, VectorHiddenStateObservation, VectorTopKActions
from llmgym.models import load_model
from llmgym.tasks import make_task


@dataclass(frozen=True)
class Config:
    """What to train; every field has a default that works."""

    task: str = "arithmetic"  # a registered task
    k: int = 8  # candidates a step
    min_prob: float = 0.02  # a candidate below this probability repeats the most probable one
    num_envs: int = 64  # rows stepped together
    timesteps: int = 80_000  # environment steps × rows
    n_steps: int = 64  # steps of every row between two updates
    lr: float = 1e-3  # PPO's learning rate
    problems: int = 500  # held-out problems to measure on
    seed: int = 0  # of problems, of PPO's weights and of its actions


@dataclass(frozen=True)
class Result:
    """Accuracies on held-out problems, in [0, 1]."""

    greedy: float  # the frozen model's own greedy decoding
    untrained: float  # PPO's policy before training, deterministic
    trained: float  # PPO's policy after training, deterministic
    seconds: float  # of training


def make_env(config: Config, model: object, split: str, num_envs: int) -> SB3VecEnv:
    """Rows of the task as stable-baselines3 takes them, seen and proposed by the model."""
    env = gym.make_vec(
        "llmgym/TokenMDP-v0", num_envs=num_envs, task=config.task, split=split, autoreset_mode="SameStep"
    )
    env = VectorTopKActions(env, model, k=config.k, min_prob=config.min_prob)
    return SB3VecEnv(VectorHiddenStateObservation(env, model))


def accuracy(env: SB3VecEnv, predict, config: Config) -> float:
    """Share of the held-out problems that `predict(observations) -> actions` solves."""
    rng, task = np.random.default_rng(config.seed), make_task(config.task)
    problems = [task.problem(rng, "test") for _ in range(config.problems)]
    solved = 0
    for start in range(0, len(problems), env.num_envs):
        part = problems[start : start + env.num_envs]
        env.set_options([{"problem": part[row % len(part)]} for row in range(env.num_envs)])
        solved += sum(first_episodes(env, predict)[: len(part)])
    return solved / len(problems)


def first_episodes(env: SB3VecEnv, predict) -> list[bool]:
    """Whether each row solves the problem it begins with."""
    observations = env.reset()
    results: dict[int, bool] = {}
    while len(results) < env.num_envs:
        observations, _, dones, infos = env.step(predict(observations))
        for row in np.flatnonzero(dones):
            results.setdefault(int(row), infos[row]["is_success"])
    return [results[row] for row in range(env.num_envs)]


class Progress(BaseCallback):
    """Prints the share of solved training problems after every rollout."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        solved = self.model.ep_success_buffer or [0]
        print(f"{self.num_timesteps:8,d} steps   {np.mean(solved):6.1%} of the last {len(solved)} episodes solved")


def main(config: Config) -> Result:
    """Train and measure."""
    model = load_model("tiny", device="cpu")
    test = make_env(config, model, "test", min(config.problems, 100))
    agent = PPO(
        "MlpPolicy",
        make_env(config, model, "train", config.num_envs),
        learning_rate=config.lr,
        n_steps=config.n_steps,
        batch_size=min(1024, config.num_envs * config.n_steps),
        n_epochs=4,
        gamma=1.0,  # the reward comes at the end, however long the answer
        gae_lambda=1.0,
        seed=config.seed,
        device="cpu",
    )
    greedy = accuracy(test, lambda observations: np.zeros(len(observations), int), config)
    untrained = accuracy(test, lambda observations: agent.predict(observations, deterministic=True)[0], config)
    began = time.perf_counter()
    agent.learn(config.timesteps, callback=Progress())
    seconds = time.perf_counter() - began
    trained = accuracy(test, lambda observations: agent.predict(observations, deterministic=True)[0], config)
    print(f"held-out accuracy: model alone (greedy) {greedy:.1%}, PPO before {untrained:.1%}, PPO after {trained:.1%}")
    print(f"trained in {seconds:.0f} s on {torch.get_num_threads()} threads")
    return Result(greedy, untrained, trained, seconds)


if __name__ == "__main__":
    main(tyro.cli(Config))
