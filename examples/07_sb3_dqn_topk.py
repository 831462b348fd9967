"""Stock stable-baselines3 DQN learns text: `python examples/07_sb3_dqn_topk.py` (a minute on two cores).

The setting is that of `03_sb3_ppo_topk.py`: a frozen language model proposes the next tokens (`TopKActions`) and its
last hidden state is the observation (`HiddenStateObservation`). Here a Q-network learns, from the reward alone, what
each candidate is worth, and so that `<think>` is worth more than `<answer>`, which the model prefers.

Three things differ from a control task. The reward comes once, up to 48 tokens later: returns of many steps (`n_steps`)
carry it back, while with one step every token's target is a maximum over noisy values and the errors pile up. The
discount is 1, for a right answer is worth as much after reasoning. And DQN knows no action masks: `min_prob` leaves
nothing to mask, since every improbable place, a forbidden token's too, repeats the most probable token.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy

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
    timesteps: int = 32_000  # environment steps × rows; all of them stay in the replay buffer
    learning_starts: int = 4_000  # of them, taken at random before the first update
    n_steps: int = 16  # rewards in a target before the target network's value
    gradient_steps: int = 4  # updates after every step of all rows
    target_update_interval: int = 1_000  # environment steps × rows between two copies to the target network
    lr: float = 3e-4  # DQN's learning rate
    problems: int = 500  # held-out problems to measure on
    seed: int = 0  # of problems, of DQN's weights and of its actions


@dataclass(frozen=True)
class Result:
    """Accuracies on held-out problems, in [0, 1]."""

    greedy: float  # the frozen model's own greedy decoding
    untrained: float  # DQN before training, without exploration: whatever place its random weights favour
    trained: float  # DQN after training, without exploration
    values: tuple[float, ...]  # of the first token's places after training, means over the problems
    seconds: float  # of training


def make_env(config: Config, model: object, split: str, num_envs: int) -> SB3VecEnv:
    """Rows of the task as stable-baselines3 takes them, seen and proposed by the model."""
    env = gym.make_vec(
        "llmgym/TokenMDP-v0", num_envs=num_envs, task=config.task, split=split, autoreset_mode="SameStep"
    )
    env = VectorTopKActions(env, model, k=config.k, min_prob=config.min_prob)
    return SB3VecEnv(VectorHiddenStateObservation(env, model))


class Greedy:
    """The frozen model's own choice, place 0 of every short-list, as `evaluate_policy` takes it."""

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        """One action a row."""
        return np.zeros(len(observation), int), state


def hold_out(env: SB3VecEnv, config: Config) -> None:
    """Let the rows begin with the held-out problems at the next reset."""
    rng, task = np.random.default_rng(config.seed), make_task(config.task)
    env.set_options([{"problem": task.problem(rng, "test")} for _ in range(env.num_envs)])


def accuracy(env: SB3VecEnv, policy: Any, config: Config) -> float:
    """Share of the held-out problems, one a row, that the policy solves."""
    hold_out(env, config)
    solved: list[bool] = []

    def count(local: dict[str, Any], _: dict[str, Any]) -> None:
        if local["done"]:
            solved.append(local["info"]["is_success"])

    evaluate_policy(policy, env, n_eval_episodes=env.num_envs, callback=count)
    return float(np.mean(solved))


@torch.no_grad()
def first_values(env: SB3VecEnv, agent: DQN, config: Config) -> tuple[float, ...]:
    """What the Q-network expects of every place as the first token, [k]: in units of reward, so chances to be right."""
    hold_out(env, config)
    return tuple(agent.q_net(torch.as_tensor(env.reset())).mean(0).tolist())


class Progress(BaseCallback):
    """Prints the share of solved training problems, every 64 steps of all rows."""

    model: DQN

    def _on_step(self) -> bool:
        if self.n_calls % 64 == 0:
            solved = self.model.ep_success_buffer or [0]
            share = f"{np.mean(solved):6.1%} of the last {len(solved)} episodes solved"
            print(f"{self.num_timesteps:8,d} steps   {share}, exploring {self.model.exploration_rate:.0%}")
        return True


def make_agent(config: Config, env: SB3VecEnv) -> DQN:
    """Stock DQN."""
    return DQN(
        "MlpPolicy",
        env,
        learning_rate=config.lr,
        buffer_size=config.timesteps,
        learning_starts=config.learning_starts,
        batch_size=256,
        gamma=1.0,  # the reward comes at the end, however long the answer
        n_steps=config.n_steps,
        train_freq=1,
        gradient_steps=config.gradient_steps,
        target_update_interval=config.target_update_interval,
        exploration_fraction=0.5,
        seed=config.seed,
        device="cpu",
    )


def main(config: Config) -> Result:
    """Train and measure."""
    torch.set_num_threads(1)  # networks this small gain little from more, and lose much on a busy machine
    model = load_model("tiny", device="cpu")
    test = make_env(config, model, "test", config.problems)
    agent = make_agent(config, make_env(config, model, "train", config.num_envs))
    greedy, untrained = accuracy(test, Greedy(), config), accuracy(test, agent, config)
    began = time.perf_counter()
    agent.learn(config.timesteps, callback=Progress())
    seconds = time.perf_counter() - began
    trained = accuracy(test, agent, config)
    print(f"held-out accuracy: model alone (greedy) {greedy:.1%}, DQN before {untrained:.1%}, DQN after {trained:.1%}")
    values = first_values(test, agent, config)
    print(f"values of the first places: {' '.join(f'{value:.2f}' for value in values)}")
    print(f"trained in {seconds:.0f} s on one thread")
    return Result(greedy, untrained, trained, values, seconds)


if __name__ == "__main__":
    main(tyro.cli(Config))
