"""What is a unit action of a language model: a token, a block or a whole sequence?

GRPO trains the embedded model on the same task at five granularities, with equal budgets of sampled tokens, with the
usual length normalisation (mean over a row's actions, then over rows) and with a constant one, over several seeds. Two
epochs of two minibatches a batch, so that ratios move away from 1 and clipping acts: after a single on-policy step the
granularities would differ by nothing but normalisation.

    python examples/02_granularity.py --out granularity

writes `granularity.png` and `granularity.json`. About three minutes on two cores.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import gymnasium as gym
import matplotlib
import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from llmgym.agents import GRPO
from llmgym.files import write_json
from llmgym.rollout import rollout

NORMALIZERS = {"rows": "usual: mean over actions", "constant": "constant"}


@dataclass(frozen=True)
class Config:
    """The comparison."""

    blocks: tuple[int, ...] = (1, 2, 4, 8, 48)  # tokens an action; 48 = max_new_tokens is the whole sequence
    seeds: int = 3
    tokens: int = 24_000  # sampled tokens of a run
    learning_rate: float = 2e-4  # lower than the agent's default: four optimiser steps a batch
    task: str = "arithmetic"
    test_problems: int = 200  # held-out problems at the end, greedy
    workers: int = 2  # runs at a time, one thread each
    out: Path = Path("granularity")  # folder


def main(config: Config) -> None:
    config.out.mkdir(parents=True, exist_ok=True)
    runs = list(product(config.blocks, NORMALIZERS, range(config.seeds)))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.workers, mp_context=context) as pool:
        jobs = [pool.submit(train, config, *run) for run in runs]
        results = [job.result() for job in tqdm(jobs, desc="runs")]
    write_json(config.out / "granularity.json", results)
    draw(config, results)
    show(config, results)


def train(config: Config, block: int, normalize: str, seed: int) -> dict:
    """One run: its learning curve and its accuracy on held-out problems."""
    torch.set_num_threads(1)
    env = gym.make("llmgym/BlockMDP-v0", task=config.task, block_size=block)
    settings = {"learning_rate": config.learning_rate, "epochs": 2, "minibatches": 2, "beta": 0.0}
    agent = GRPO("tiny", env, seed=seed, device="cpu", normalize=normalize, **settings)
    curve: list[tuple[int, float]] = []

    def note(agent, metrics, batch):
        curve.append((metrics["sampled_tokens"], metrics["accuracy"]))

    agent.learn(total_tokens=config.tokens, callback=note)
    n = config.test_problems
    # The policy acts in blocks, so it is tested in blocks; the text that comes out is the same.
    test = gym.make_vec(
        "llmgym/BlockMDP-v0", num_envs=n, task=config.task, block_size=block, split="test", autoreset_mode="Disabled"
    )
    test.reset(seed=10_000)
    batch = rollout(test, agent.policy, deterministic=True)
    solved = float(np.mean([info["is_success"] for info in batch.infos]))
    return {"block": block, "normalize": normalize, "seed": seed, "curve": curve, "test": solved}


def draw(config: Config, results: list[dict]) -> None:
    """A panel a normaliser, a line a granularity, bands of ± one standard error over seeds."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(NORMALIZERS), figsize=(11, 4.2), sharey=True, layout="constrained")
    grid = np.linspace(0, config.tokens, 60)
    colours = plt.colormaps["viridis"](np.linspace(0, 0.9, len(config.blocks)))
    for axis, (normalize, title) in zip(axes, NORMALIZERS.items(), strict=True):
        for block, colour in zip(config.blocks, colours, strict=True):
            curves = [smooth(r["curve"], grid) for r in results if (r["block"], r["normalize"]) == (block, normalize)]
            mean, error = np.mean(curves, 0), np.std(curves, 0, ddof=min(1, len(curves) - 1)) / len(curves) ** 0.5
            axis.plot(grid / 1000, mean, color=colour, label=label(block), linewidth=2)
            axis.fill_between(grid / 1000, mean - error, mean + error, color=colour, alpha=0.18, linewidth=0)
        axis.set(title=f"length normaliser: {title}", xlabel="sampled tokens (thousands)", ylim=(0, 1))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("accuracy of sampled answers")
    axes[-1].legend(title="unit action", loc="lower right", frameon=False)
    figure.suptitle(f"GRPO on {config.task}: one task, five granularities (mean ± s.e. of {config.seeds} seeds)")
    figure.savefig(config.out / "granularity.png", dpi=140)


def smooth(curve: list, grid: np.ndarray, window: int = 3) -> np.ndarray:
    """A running mean of `window` batches, on common abscissae."""
    tokens, accuracy = np.array(curve, float).T
    means = [accuracy[max(0, i - window + 1) : i + 1].mean() for i in range(len(accuracy))]
    return np.interp(grid, tokens, means)


def show(config: Config, results: list[dict]) -> None:
    """Final held-out accuracy by granularity and normaliser."""
    table = Table(title=f"held-out accuracy (greedy) after {config.tokens:,} sampled tokens, mean ± s.e.")
    for name in ("unit action", *NORMALIZERS.values()):
        table.add_column(name, justify="right")
    for block in config.blocks:
        cells = []
        for normalize in NORMALIZERS:
            scores = [r["test"] for r in results if (r["block"], r["normalize"]) == (block, normalize)]
            error = np.std(scores, ddof=min(1, len(scores) - 1)) / len(scores) ** 0.5
            cells.append(f"{np.mean(scores):.1%} ± {error:.1%}")
        table.add_row(label(block), *cells)
    Console().print(table)


def label(block: int) -> str:
    return {1: "token", 48: "sequence"}.get(block, f"block of {block}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
