"""The classic snippet, twice: PPO on CartPole by stable-baselines3 and by llmgym, through the same four verbs.

    python examples/00_cartpole.py              # half a minute
    python examples/00_cartpole.py --render     # and watch llmgym's agent play

Both learn for 10,000 steps with their default settings, are evaluated by stable-baselines3's `evaluate_policy`, saved,
loaded and played. Needs the extra `sb3`.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import stable_baselines3
import tyro
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

import llmgym.agents

LIBRARIES = {"stable-baselines3": stable_baselines3.PPO, "llmgym": llmgym.agents.PPO}


@dataclass(frozen=True)
class Config:
    """The snippet."""

    steps: int = 10_000  # environment steps to learn for
    episodes: int = 20  # to evaluate on
    seed: int = 0
    render: bool = False  # show an episode of llmgym's agent in a window (needs pygame)


@dataclass(frozen=True)
class Result:
    """What came of it."""

    mean: float  # reward of an episode, evaluated
    deviation: float
    enjoyed: float  # reward of one episode after saving and loading
    seconds: float  # of learning


def main(config: Config) -> dict[str, Result]:
    with tempfile.TemporaryDirectory() as folder:
        results = {name: classic(ppo, config, Path(folder) / name) for name, ppo in LIBRARIES.items()}
        show(results)
        if config.render:
            enjoy(LIBRARIES["llmgym"].load(Path(folder) / "llmgym"), config, "human")
    return results


def classic(ppo: Any, config: Config, path: Path) -> Result:
    """Make, learn, evaluate, save, load, enjoy; `ppo` is either library's class."""
    env = gym.make("CartPole-v1")
    model = ppo("MlpPolicy", env, seed=config.seed, device="cpu")
    started = time.perf_counter()
    model.learn(total_timesteps=config.steps)
    seconds = time.perf_counter() - started
    mean, deviation = evaluate_policy(model, Monitor(env), n_eval_episodes=config.episodes)
    model.save(path)
    del model
    model = ppo.load(path, env)
    return Result(float(mean), float(deviation), enjoy(model, config), seconds)


def enjoy(model: Any, config: Config, render_mode: str | None = None) -> float:
    """One episode; its reward."""
    env = gym.make("CartPole-v1", render_mode=render_mode)
    observation, _ = env.reset(seed=config.seed)
    total, over = 0.0, False
    while not over:
        action, _ = model.predict(observation, deterministic=True)
        observation, reward, terminated, truncated, _ = env.step(action)
        total, over = total + float(reward), terminated or truncated
    env.close()
    return total


def show(results: dict[str, Result]) -> None:
    table = Table("", "mean reward", "one episode, loaded", "seconds of learning", title="PPO on CartPole-v1")
    for name, r in results.items():
        table.add_row(name, f"{r.mean:.0f} ± {r.deviation:.0f}", f"{r.enjoyed:.0f}", f"{r.seconds:.1f}")
    Console(width=90).print(table)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
