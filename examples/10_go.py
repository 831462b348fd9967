"""Go on 5x5: PPO with a small convolutional net learns to beat light random play, as either colour.

    python examples/10_go.py                 # two minutes
    python examples/10_go.py --opponent "gnugo --mode gtp --chinese-rules --capture-all-dead --level 1" --steps 0

Prints the share of games won before and after, and leaves a game as SGF and a picture of its end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import tyro
from PIL import Image

import llmgym  # noqa: F401 (registers the environments)
from llmgym.agents import PPO
from llmgym.envs.go.opponents import Game
from llmgym.envs.go.picture import board_picture
from llmgym.envs.go.record import result_of
from llmgym.envs.go.replay import record_of
from llmgym.envs.go.sgf import save_sgf
from llmgym.intervals import wilson


@dataclass(frozen=True)
class Config:
    """What to learn, and against whom."""

    steps: int = 100_000  # environment steps to learn for
    board_size: int = 5
    opponent: str = "light"
    komi: float = 0.5  # so low that Black should win
    games: int = 200  # to evaluate on
    seed: int = 0
    out: Path = Path("go")  # folder of picture and game


def main(config: Config) -> tuple[float, float]:
    """Shares of games won before and after."""
    named = {"board_size": config.board_size, "opponent": config.opponent, "komi": config.komi, "color": "random"}
    rows = gym.make_vec("llmgym/Go-v0", num_envs=32, **named)
    agent = PPO("CnnPolicy", rows, n_steps=64, epochs=4, entropy=0.01, gamma=1.0, learning_rate=1e-3, seed=config.seed)
    before = won(agent, named, config)
    if config.steps:
        agent.learn(total_timesteps=config.steps, progress_bar=True)
    after = won(agent, named, config)
    for name, wins in (("before", before), ("after", after)):
        low, high = wilson(wins, config.games)
        print(f"{name:7} {wins} of {config.games} games won ({low:.0%} to {high:.0%})")
    keep(agent, named, config)
    return before / config.games, after / config.games


def won(agent: PPO, named: dict, config: Config) -> int:
    """Games won out of so many, one in each row."""
    rows = gym.make_vec("llmgym/Go-v0", num_envs=config.games, autoreset_mode="Disabled", **named)
    observations, infos = rows.reset(seed=1000 + config.seed)
    over, wins = np.zeros(config.games, bool), 0
    while not over.all():
        actions, _ = agent.predict(observations, deterministic=True, action_masks=masks(infos, over))
        observations, rewards, terminated, truncated, infos = rows.step(actions)
        wins += int((rewards[~over] > 0).sum())
        over = terminated | truncated
    return wins


def masks(infos: dict, over: np.ndarray) -> np.ndarray:
    """Legal actions of every row; a row that is over may say anything."""
    return infos["action_mask"] | over[:, None]


def keep(agent: PPO, named: dict, config: Config) -> None:
    """Play a game as Black and keep it."""
    env = gym.make("llmgym/Go-v0", **(named | {"color": "black"})).unwrapped
    observation, info = env.reset(seed=config.seed)
    over = False
    while not over:
        action, _ = agent.predict(observation, deterministic=True, action_masks=info["action_mask"])
        observation, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated
    config.out.mkdir(parents=True, exist_ok=True)
    picture = board_picture(env.state.stones, env.state.last_action, size=480)
    Image.fromarray(picture).save(config.out / "last.png")
    game = Game(env.mdp, env.table.start, env.table.moves, env.state)
    record = replace(record_of(game), names=("PPO", config.opponent), result=result_of(env.mdp.score(env.state)))
    save_sgf(record, config.out / "game.sgf")
    print(f"A game: {config.out / 'game.sgf'}, its end: {config.out / 'last.png'}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
