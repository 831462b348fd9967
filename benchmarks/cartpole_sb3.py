"""How soon PPO balances the pole: llmgym's against stable-baselines3's, at their defaults and at tuned settings.

    pip install -c constraints.txt -e ".[sb3]"
    python benchmarks/cartpole_sb3.py

The clock runs while an agent learns and stands still while it is evaluated: every 1,000 environment steps (or at the
first update after), on the same 100 episodes for every side, greedily, through `predict`. It ends at the first
evaluation with a mean reward of 475, CartPole-v1's threshold of success; a run that does not get there in `limit` steps
has failed. The four sides take turns, seed by seed, in one process, after a warm-up of each:

- llmgym with its defaults, and with settings tuned for this environment as the zoo's are;
- stable-baselines3 with its defaults, and with the settings of rl-baselines3-zoo (hyperparams/ppo.yml).

Every side has the same number of threads. These networks are too small for two to help: run it with `--threads 1` and
`--threads 2` to see.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
import tyro
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from tqdm import tqdm

import llmgym
from llmgym.agents import PPO

GOAL, EPISODES, EVERY = 475.0, 100, 1_000
TUNED = {"num_envs": 16, "n_steps": 32, "minibatches": 4, "epochs": 6, "learning_rate": 3e-3, "gamma": 0.98, "lam": 0.9}
ZOO = {"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "ent_coef": 0.0}


@dataclass(frozen=True)
class Config:
    """What to measure."""

    seeds: int = 5  # runs of each side
    limit: int = 100_000  # environment steps after which a run has failed
    threads: int = 1  # of torch, for every side
    json: Path | None = None  # also write the runs here


@dataclass(frozen=True)
class Run:
    """One run: seconds and environment steps to the goal."""

    seconds: float
    steps: int
    reached: bool


class Watch:
    """Stops the clock for evaluations, and says when the goal is reached."""

    def __init__(self, seed: int):
        self.seed, self.seconds, self.steps, self.next, self.reached = seed, 0.0, 0, EVERY, False
        self.started = time.perf_counter()

    def look(self, agent: Any, steps: int) -> bool:
        """After an update: whether to go on."""
        self.seconds += time.perf_counter() - self.started
        self.steps = steps
        if steps >= self.next:
            self.next = steps - steps % EVERY + EVERY
            self.reached = evaluate(agent, 10_000 + self.seed) >= GOAL
        self.started = time.perf_counter()
        return not self.reached

    def run(self) -> Run:
        return Run(self.seconds, self.steps, self.reached)


class StopAtGoal(BaseCallback):
    """`Watch` as a callback of stable-baselines3: it looks before the next rollout, which is after an update."""

    def __init__(self, watch: Watch):
        super().__init__()
        self.watch, self.go_on = watch, True

    def _on_training_start(self) -> None:
        self.watch.started = time.perf_counter()

    def _on_rollout_start(self) -> None:
        self.go_on = self.watch.look(self.model, self.num_timesteps)

    def _on_step(self) -> bool:
        return self.go_on


def evaluate(agent: Any, seed: int) -> float:
    """Mean reward of greedy play over `EPISODES` episodes at once."""
    venv = gym.make_vec("CartPole-v1", num_envs=EPISODES, vectorization_mode="vector_entry_point")
    observations, _ = venv.reset(seed=seed)
    total, running = np.zeros(EPISODES), np.ones(EPISODES, bool)
    while running.any():
        actions, _ = agent.predict(observations, deterministic=True)
        observations, rewards, terminated, truncated, _ = venv.step(actions)
        total += rewards * running
        running &= ~(terminated | truncated)
    return float(total.mean())


def ours(settings: dict[str, Any]) -> Callable[[int, int], Run]:
    """A run of llmgym's PPO."""

    def run(seed: int, limit: int) -> Run:
        agent = PPO("MlpPolicy", gym.make("CartPole-v1"), seed=seed, device="cpu", **settings)
        watch = Watch(seed)
        agent.learn(limit, callback=lambda agent, metrics, batch: watch.look(agent, agent.num_timesteps))
        return watch.run()

    return run


def theirs(zoo: bool) -> Callable[[int, int], Run]:
    """A run of stable-baselines3's PPO."""

    def run(seed: int, limit: int) -> Run:
        shared = {"seed": seed, "device": "cpu"}
        if zoo:  # both schedules fall over the zoo's 100,000 steps
            falling = {"learning_rate": lambda left: 1e-3 * left, "clip_range": lambda left: 0.2 * left}
            env = make_vec_env("CartPole-v1", n_envs=8, seed=seed)
            model = stable_baselines3.PPO("MlpPolicy", env, **ZOO, **falling, **shared)
        else:
            model = stable_baselines3.PPO("MlpPolicy", gym.make("CartPole-v1"), **shared)
        watch = Watch(seed)
        model.learn(limit, callback=StopAtGoal(watch))
        return watch.run()

    return run


SIDES = {
    "llmgym, defaults": ours({}),
    "llmgym, tuned": ours(TUNED),
    "stable-baselines3, defaults": theirs(zoo=False),
    "stable-baselines3, zoo": theirs(zoo=True),
}


def main(config: Config) -> None:
    torch.set_num_threads(config.threads)
    for run in SIDES.values():
        run(99, 4_000)
    runs: dict[str, list[Run]] = {name: [] for name in SIDES}
    turns = [(name, seed) for seed in range(config.seeds) for name in SIDES]
    for name, seed in tqdm(turns, desc="runs"):
        runs[name].append(SIDES[name](seed, config.limit))
    show(config, runs)
    if config.json is not None:
        config.json.write_text(json.dumps({k: [vars(r) for r in v] for k, v in runs.items()}, indent=2) + "\n")


def show(config: Config, runs: dict[str, list[Run]]) -> None:
    """A row a side, and the ratios."""
    versions = (
        f"llmgym {llmgym.__version__}, stable-baselines3 {stable_baselines3.__version__}, torch {torch.__version__}"
    )
    table = Table(title=f"PPO on CartPole-v1 to a mean of {GOAL:.0f}: {versions}, {config.threads} threads")
    for column in ("side", "seconds, median", "by seed", "steps, median", "failed"):
        table.add_column(column, justify="left" if column in ("side", "by seed") else "right")
    for name, row in runs.items():
        seconds = [r.seconds for r in row]
        listed = " ".join(f"{s:.2f}" for s in seconds)
        steps, failed = median(r.steps for r in row), sum(not r.reached for r in row)
        table.add_row(name, f"{median(seconds):.2f}", listed, f"{steps:,.0f}", str(failed))
    console = Console(width=110)
    console.print(table)
    times = {name: [r.seconds for r in row] for name, row in runs.items()}
    peer = min((n for n in times if n.startswith("stable")), key=lambda n: median(times[n]))
    for name in (n for n in times if n.startswith("llmgym")):
        ratio, worst = median(times[peer]) / median(times[name]), min(times[peer]) / max(times[name])
        console.print(f"{name}: {ratio:.1f} times sooner than {peer} (their fastest by our slowest: {worst:.1f})")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
