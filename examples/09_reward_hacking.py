"""Reward hacking: a learned reward goes on rising while the true one falls; a rule cannot be fooled like that.

Reward models are fitted to few and to many preferences between completions of the embedded model, and PPO maximises
each of them, with and without a KL penalty. Beside it PPO maximises the true reward itself, which is a rule: the right
answer earns 1. All runs have equal budgets. On the way the policy is judged on held-out problems by the true reward, by
the learned one, and by how far it has gone from where it started: √KL, as in Gao et al. 2023.

The learned reward is given the mean and the deviation that the true reward has on the first policy's completions, so
that both are read on one axis, and the same β weighs alike against either.

    python examples/09_reward_hacking.py --out reward_hacking

writes `reward_hacking.png` and `reward_hacking.json`. About eight minutes on two cores.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import tyro
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from llmgym.agents import PPO, RewardTrainer
from llmgym.assessment import assess
from llmgym.evaluation import complete, draw_problems
from llmgym.files import write_json
from llmgym.labellers import RuleLabeller, label
from llmgym.pair_sampling import sample_pairs
from llmgym.policy import LMPolicy
from llmgym.preference_plots import hacking_picture
from llmgym.preferences import Preference
from llmgym.reward_model import RewardModel


@dataclass(frozen=True)
class Config:
    """The experiment."""

    task: str = "arithmetic"
    seeds: int = 3
    few: int = 30  # preferences that a reward model is fitted to
    many: int = 1_000
    noise: float = 0.1  # probability that a label is wrong
    fit: int = 1_000  # pairs that a reward model is shown, repeats included; at least two passes
    beta: float = 0.1  # of the run with a KL penalty; true reward per nat
    tokens: int = 150_000  # sampled by a run of PPO
    every: int = 8_000  # tokens from one judgement of the policy to the next; whole updates
    learning_rate: float = 1e-4  # of PPO
    test_problems: int = 250  # held out, one sampled completion each
    workers: int = 2  # runs at a time, one thread each
    out: Path = Path("reward_hacking")  # folder


class Setting(NamedTuple):
    """What is maximised."""

    rule: bool  # the true reward; the learned one only watches
    preferences: int  # that the reward model is fitted to
    beta: float  # weight of the KL to the first policy

    @property
    def name(self) -> str:
        learned = f"reward model of {self.preferences:,} pairs"
        return "the rule" if self.rule else learned + (f", β = {self.beta:g}" if self.beta else "")


def main(config: Config) -> None:
    config.out.mkdir(parents=True, exist_ok=True)
    few, many = config.few, config.many
    chosen = [Setting(True, few, 0.0), Setting(False, few, 0.0), Setting(False, many, 0.0)]
    runs = list(product([*chosen, Setting(False, few, config.beta)], range(config.seeds)))
    with ProcessPoolExecutor(config.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(optimise, config, *run) for run in runs]
        for _ in tqdm(as_completed(jobs), desc="runs", total=len(jobs)):
            pass
    results: dict[str, list[dict]] = {}
    for (setting, _), job in zip(runs, jobs, strict=True):
        results.setdefault(setting.name, []).append(job.result())
    write_json(config.out / "reward_hacking.json", results)
    panels = {name: [run["curve"] for run in group] for name, group in results.items()}
    hacking_picture(panels, config.out / "reward_hacking.png")
    show(config, results)


def optimise(config: Config, setting: Setting, seed: int) -> dict[str, Any]:
    """One run of PPO: what was seen on the way, and what the policy writes in the end."""
    torch.set_num_threads(1)
    env = gym.make("llmgym/TokenMDP-v0", task=config.task)
    start, problems = LMPolicy("tiny", env, seed=seed, device="cpu"), draw_problems(env, config.test_problems)
    reward_model, accuracy = learned_reward(config, start, env, setting.preferences, seed)
    paid = env if setting.rule else gym.make("llmgym/TokenMDP-v0", task=config.task, reward=reward_model)
    options = {"prompts": 128, "samples": 1, "epochs": 1, "learning_rate": config.learning_rate}
    agent = PPO("tiny", paid, beta=setting.beta, seed=seed, device="cpu", **options)
    curve: list[dict[str, float]] = []

    def judge() -> None:
        found = assess(agent.policy, env, problems, reference=start, reward_model=reward_model, seed=seed)
        curve.append({"tokens": agent.num_timesteps} | found.as_dict())

    judge()
    while agent.num_timesteps < config.tokens:
        agent.learn(total_timesteps=config.every)  # an action is a token
        judge()
    texts = [(c.problem.prompt, c.text) for c in complete(agent.policy, env, problems[:5], deterministic=False)]
    return {"seed": seed, "reward_model_accuracy": accuracy, "curve": curve, "texts": texts}


def learned_reward(config: Config, policy: LMPolicy, env: Any, count: int, seed: int) -> tuple[RewardModel, float]:
    """A reward model fitted to `count` preferences, in units of the true reward; its accuracy on others."""
    model = RewardModel("tiny", env, device="cpu")
    preferences = compare(config, policy, env, count, seed)
    trainer = RewardTrainer(model, env, preferences, batch_size=16, learning_rate=1e-4, seed=seed)
    trainer.learn(total_timesteps=max(config.fit, 2 * count))
    in_units_of_the_true_reward(model, policy, env, 4 * config.test_problems, seed)
    pairs = sample_pairs(policy, env, 2 * config.test_problems, split="test", seed=seed)
    return model, trainer.evaluate(label(pairs, RuleLabeller(env.unwrapped.mdp.task)))["accuracy"]


def compare(config: Config, policy: LMPolicy, env: Any, count: int, seed: int) -> list[Preference]:
    """`count` preferences of the rule; two completions of equal worth are not compared."""
    labeller = RuleLabeller(env.unwrapped.mdp.task, noise=config.noise, seed=seed)
    seeds, found = np.random.default_rng(seed), list[Preference]()
    while len(found) < count:
        found += label(sample_pairs(policy, env, 2 * count, seed=int(seeds.integers(2**31))), labeller)
    return found[:count]


def in_units_of_the_true_reward(model: RewardModel, policy: LMPolicy, env: Any, count: int, seed: int) -> None:
    """Give the model's rewards the mean and deviation that true ones have on `count` completions of `policy`."""
    done = complete(policy, env, draw_problems(env, count, split="train", seed=seed), deterministic=False)
    rule = RuleLabeller(env.unwrapped.mdp.task)
    true = np.array([rule.score(c.problem, c.text) for c in done])
    finished = [c.finish_reason == "eos" for c in done]
    raw = model.score([c.problem for c in done], [c.text for c in done], finished).double().numpy()
    model.deviation = float(raw.std() / true.std())
    model.mean = float(raw.mean() - true.mean() * model.deviation)


def show(config: Config, results: dict[str, list[dict]]) -> None:
    """The table, as Markdown: where the true reward was highest on the way, and the end."""
    table = Table(box=MARKDOWN)
    table.add_column("PPO maximises", no_wrap=True)
    for name in ("reward model is right", "true: start", "best", "end", "learned: end", "KL at best", "KL at end"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, runs in results.items():
        best = [max(run["curve"], key=lambda point: point["true"]) for run in runs]
        first, last = ([run["curve"][i] for run in runs] for i in (0, -1))
        right = share([run["reward_model_accuracy"] for run in runs])
        true = [share([point["true"] for point in points]) for points in (first, best, last)]
        proxy, *kl = (
            number([point[key] for point in points]) for points, key in ((last, "proxy"), (best, "kl"), (last, "kl"))
        )
        table.add_row(name, right, *true, proxy, *kl)
    console = Console(width=160)
    console.print(table)
    console.print(f"Mean ± s.e. of {config.seeds} seeds; KL in nats an episode; {config.tokens:,} tokens a run.")


def share(values: list[float]) -> str:
    return f"{np.mean(values):.1%} ± {error(values):.1%}"


def number(values: list[float]) -> str:
    return f"{np.mean(values):.2f} ± {error(values):.2f}"


def error(values: list[float]) -> float:
    """Standard error of the mean."""
    return float(np.std(values, ddof=min(1, len(values) - 1)) / len(values) ** 0.5)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
