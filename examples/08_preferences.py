"""From SFT to preference optimisation: base, SFT, RLHF by PPO, and DPO, on the same pairs and judged alike.

A rule stands in for the person who compares: the completion with the right answer is better, one label in ten is wrong,
and two completions of equal worth are not compared. From the embedded model,

1. SFT learns a hundred right answers of the base model;
2. pairs of completions of the SFT policy are compared;
3. a reward model is fitted to the preferences, and PPO maximises it less β KL to the SFT policy;
4. DPO learns from the same preferences, with no reward model and no sampling.

Steps 3 and 4 are run at several β, everything over several seeds. All policies are then judged on the same held-out
problems: the true score, won and lost against the SFT policy, the learned reward, and the KL to the SFT policy.

    python examples/08_preferences.py --out preferences

writes `preferences.png`, `preferences.json` and the models. About five minutes on two cores.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import transformers
import tyro
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from llmgym.agents import DPO, PPO, SFT, RewardTrainer
from llmgym.assessment import assess
from llmgym.demonstrations import Demonstration
from llmgym.evaluation import complete, draw_problems
from llmgym.files import write_json
from llmgym.labellers import RuleLabeller, label
from llmgym.pair_sampling import sample_pairs
from llmgym.policy import LMPolicy
from llmgym.preference_plots import frontier_picture
from llmgym.preferences import Preference, read_preferences, write_preferences
from llmgym.reward_model import RewardModel
from llmgym.runs import finite


@dataclass(frozen=True)
class Config:
    """The comparison."""

    task: str = "arithmetic"
    seeds: int = 4
    demonstrations: int = 100  # right answers of the base model that SFT learns
    pairs: int = 600  # of the SFT policy's completions; those of equal worth are then left out
    noise: float = 0.1  # probability that a label is wrong
    dpo_betas: tuple[float, ...] = (0.05, 0.2, 0.5, 1.0)
    ppo_betas: tuple[float, ...] = (0.05, 0.2, 0.5, 1.0)  # rewards have deviation 1 on the pairs; per nat
    ppo_tokens: int = 20_000  # sampled by a run of PPO
    test_problems: int = 500  # held out, one sampled completion each
    workers: int = 2  # runs at a time, one thread each
    out: Path = Path("preferences")  # folder


def main(config: Config) -> None:
    config.out.mkdir(parents=True, exist_ok=True)
    seeds, betas = range(config.seeds), {"DPO": config.dpo_betas, "PPO": config.ppo_betas}
    runs = [(name, math.nan) for name in ("base", "SFT")] + [(name, beta) for name in betas for beta in betas[name]]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.workers, mp_context=context) as pool:
        prepared = together(pool, prepare, [(config, seed) for seed in seeds], "SFT, pairs, reward model")
        results = together(pool, judge, [(config, *run, seed) for seed in seeds for run in runs], "policies")
    rows = [summary([r for r in results if r["name"] == name_of(*run)]) for run in runs]
    write_json(config.out / "preferences.json", finite({"prepared": prepared, "policies": rows, "runs": results}))
    frontier_picture(rows, config.out / "preferences.png", title=f"{config.task}: one set of preferences, two roads")
    show(config, prepared, rows)


def together(pool: ProcessPoolExecutor, job: Callable[..., Any], arguments: list[tuple], name: str) -> list[Any]:
    """Results of `job` with each of `arguments`, in their order."""
    jobs = [pool.submit(job, *given) for given in arguments]
    for _ in tqdm(as_completed(jobs), desc=name, total=len(jobs)):
        pass
    return [job.result() for job in jobs]


# --- from the base model to preferences and a reward model ---


def prepare(config: Config, seed: int) -> dict[str, float]:
    """Write the SFT policy, the preferences and the reward model of a seed; returns how good the latter is."""
    env, folder = world(config), folder_of(config, seed)
    sft = SFT("tiny", env, demonstrations(config, env, seed), learning_rate=1e-4, epochs=2, **settings(seed)).learn()
    sft.save(folder / "sft")
    preferences = compare(config, sft.policy, env, config.pairs, seed=seed, noise=config.noise)
    write_preferences(folder / "preferences.jsonl", preferences)
    fit = {"learning_rate": 1e-4, "epochs": 2, "batch_size": 16}
    trainer = RewardTrainer(RewardModel(folder / "sft", env, device="cpu"), env, preferences, seed=seed, **fit).learn()
    trainer.policy.normalise(preferences, unit=True)
    trainer.save(folder / "reward_model")
    fresh = compare(config, sft.policy, env, config.test_problems, seed=seed, split="test")
    return {"seed": seed, "preferences": len(preferences), "accuracy": trainer.evaluate(fresh)["accuracy"]}


def demonstrations(config: Config, env: Any, seed: int) -> list[Demonstration]:
    """Right answers that the base model gave by itself."""
    problems = draw_problems(env, 5 * config.demonstrations, split="train", seed=seed)
    done = complete(LMPolicy("tiny", env, seed=seed, device="cpu"), env, problems, deterministic=False)
    right = [Demonstration(c.problem.prompt, c.text, answer=c.problem.answer) for c in done if c.is_success]
    return right[: config.demonstrations]


def compare(config: Config, policy: Any, env: Any, pairs: int, *, noise: float = 0.0, **how: Any) -> list[Preference]:
    """Preferences of the rule between completions of a policy; ties are skipped."""
    labeller = RuleLabeller(env.unwrapped.mdp.task, noise=noise, seed=how["seed"])
    return label(sample_pairs(policy, env, pairs, **how), labeller)


# --- policies ---


def policy_of(config: Config, name: str, beta: float, seed: int) -> LMPolicy:
    """A policy that is there, or that is trained on the preferences of a seed."""
    env, folder = world(config), folder_of(config, seed)
    if name in ("base", "SFT"):
        return LMPolicy("tiny" if name == "base" else folder / "sft", env, seed=seed, device="cpu")
    if name == "DPO":
        preferences = read_preferences(folder / "preferences.jsonl")
        options = {"learning_rate": 5e-5, "schedule": "linear", "epochs": 3, "batch_size": 16}
        return DPO(folder / "sft", env, preferences, beta=beta, **options, **settings(seed)).learn().policy
    proxy = world(config, reward=str(folder / "reward_model"))
    # A completion of each of many problems: the value head is the baseline.
    options = {"learning_rate": 3e-4, "schedule": "linear", "prompts": 128, "samples": 1, "epochs": 1}
    agent = PPO(folder / "sft", proxy, beta=beta, **options, **settings(seed))
    return agent.learn(total_tokens=config.ppo_tokens).policy


def judge(config: Config, name: str, beta: float, seed: int) -> dict[str, Any]:
    """A policy on the held-out problems, which are the same for all."""
    policy, env, folder = policy_of(config, name, beta, seed), world(config), folder_of(config, seed)
    problems = draw_problems(env, config.test_problems, seed=10_000)
    reference = LMPolicy(folder / "sft", env, seed=1_000 + seed, device="cpu")
    reward_model = RewardModel.load(folder / "reward_model", env, device="cpu")
    found = assess(policy, env, problems, reference=reference, reward_model=reward_model, seed=seed)
    ours, theirs = (worth(p, env, problems) for p in (policy, reference))
    against = {"won": float((ours > theirs).mean()), "lost": float((ours < theirs).mean())}
    return {"name": name_of(name, beta), "method": name, "beta": beta, "seed": seed} | against | found.as_dict()


def worth(policy: LMPolicy, env: Any, problems: list[Any]) -> np.ndarray:
    """True scores of one completion of each problem."""
    labeller = RuleLabeller(env.unwrapped.mdp.task)
    return np.array([labeller.score(c.problem, c.text) for c in complete(policy, env, problems, deterministic=False)])


def world(config: Config, **options: Any) -> gym.Env:
    """The environment; with a reward model as `reward` that is what it pays."""
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    return gym.make("llmgym/TokenMDP-v0", task=config.task, **options)


def settings(seed: int) -> dict[str, Any]:
    return {"seed": seed, "device": "cpu"}


def folder_of(config: Config, seed: int) -> Path:
    return config.out / f"seed-{seed}"


def name_of(name: str, beta: float) -> str:
    return name if math.isnan(beta) else f"{name}, β = {beta:g}"


# --- results ---


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, each with its standard error."""
    row = {name: runs[0][name] for name in ("name", "method", "beta")}
    for name in ("true", "won", "lost", "proxy", "kl", "length"):
        values = [run[name] for run in runs]
        row[name], row[f"{name}_error"] = np.mean(values), np.std(values, ddof=min(1, len(values) - 1))
        row[f"{name}_error"] /= len(values) ** 0.5
    return {name: float(value) if isinstance(value, np.floating) else value for name, value in row.items()}


def show(config: Config, prepared: list[dict[str, float]], rows: list[dict[str, Any]]) -> None:
    """The table, as Markdown."""
    table = Table(box=MARKDOWN)
    table.add_column("policy", no_wrap=True)
    for name in ("true score", "won against SFT", "lost", "learned reward", "KL to SFT, nats", "tokens"):
        table.add_column(name, justify="right")
    for row in rows:
        shares = [f"{row[name]:.1%} ± {row[f'{name}_error']:.1%}" for name in ("true", "won", "lost")]
        numbers = [f"{row[name]:.2f} ± {row[f'{name}_error']:.2f}" for name in ("proxy", "kl")]
        table.add_row(row["name"], *shares, *numbers, f"{row['length']:.1f}")
    mean = {name: np.mean([seed[name] for seed in prepared]) for name in ("preferences", "accuracy")}
    console = Console(width=140)
    console.print(table)
    console.print(
        f"Mean ± s.e. of {config.seeds} seeds. {mean['preferences']:.0f} preferences; the reward model is right on "
        f"{mean['accuracy']:.1%} of others."
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
