"""One GRPO step, and the way to 90 %, against TRL's `GRPOTrainer` on the same work.

TRL lives in a virtual environment of its own, which also has llmgym (for the task and the model):

    python -m venv trl && trl/bin/pip install -c constraints.txt -e . trl==1.16.0
    python benchmarks/grpo_trl.py --trl-python trl/bin/python

Both sides: the embedded model, float32, 8 prompts x 8 completions, KL to a frozen reference (k3, beta 0.04), clip 0.2,
one epoch, AdamW with the same learning rate, no weight decay, gradient norm clipped at 1, no gradient checkpointing,
the same number of threads. The two processes run one after the other, `rounds` times. Timing a step, every completion
has exactly 32 tokens (EOS is forbidden before); on the way to 90 % rows may end, with at most 48 tokens, and the clock
counts updates only, until the mean reward of the last four batches reaches 0.9.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Literal


@dataclass(frozen=True)
class Config:
    """What to measure."""

    trl_python: str = "python"  # interpreter of the environment that has TRL
    rounds: int = 3  # runs of each side, alternating
    steps: int = 12  # timed updates of a run
    warm_up: int = 3  # updates before these
    limit: int = 120  # most updates on the way to 90 %
    learning_rate: float = 5e-4
    threads: int = 2
    json: Path | None = None  # also write the rows here
    side: Literal["both", "llmgym", "trl"] = "both"  # internal: what a worker process runs
    goal: Literal["step", "90"] = "step"  # internal: what a worker process measures
    seed: int = 0


def main(config: Config) -> None:
    if config.side != "both":
        print(json.dumps(run_llmgym(config) if config.side == "llmgym" else run_trl(config)))
        return
    rows = [compare(config, "step"), compare(config, "90")]
    show(rows)
    if config.json is not None:
        config.json.write_text(json.dumps(rows, indent=2) + "\n")


def compare(config: Config, goal: str) -> dict:
    """Alternate the two processes; medians over rounds."""
    seconds: dict[str, list[float]] = {"llmgym": [], "trl": []}
    versions: dict[str, str] = {}
    for round_ in range(config.rounds):
        for side, python in (("llmgym", sys.executable), ("trl", config.trl_python)):
            result = worker(config, python, side, goal, round_)
            seconds[side].append(result["seconds"])
            versions[side] = result["version"]
            print(
                f"{goal:>5} {side:>7} round {round_}: {result['seconds']:.3f} s, {result['updates']} updates",
                flush=True,
            )
    a, b = median(seconds["llmgym"]), median(seconds["trl"])
    return {"goal": goal, "llmgym_s": a, "trl_s": b, "ratio": b / a, "runs": seconds, "versions": versions}


def worker(config: Config, python: str, side: str, goal: str, seed: int) -> dict:
    flags = {"side": side, "goal": goal, "seed": seed}
    flags |= {k: v for k, v in asdict(config).items() if k in ("steps", "warm_up", "limit", "learning_rate", "threads")}
    words = [w for name, value in flags.items() for w in (f"--{name.replace('_', '-')}", str(value))]
    done = subprocess.run([python, __file__, *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the {side} process failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_llmgym(config: Config) -> dict:
    """Updates of our GRPO."""
    import gymnasium as gym
    import torch

    import llmgym
    from llmgym.agents import GRPO

    torch.set_num_threads(config.threads)
    length = {"max_new_tokens": 32, "min_new_tokens": 31} if config.goal == "step" else {"max_new_tokens": 48}
    env = gym.make("llmgym/TokenMDP-v0", **length)
    agent = GRPO("tiny", env, learning_rate=config.learning_rate, seed=config.seed, device="cpu", max_grad_norm=1.0)
    watch = Watch(config)
    agent.learn(total_tokens=10**9, callback=lambda agent, metrics, batch: watch.update(metrics["reward"]))
    return watch.result(f"llmgym {llmgym.__version__}")


def run_trl(config: Config) -> dict:
    """Updates of TRL's trainer."""
    import tempfile

    import numpy as np
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed

    from llmgym.tasks import make_task
    from llmgym.tokenization import tiny_path

    torch.set_num_threads(config.threads)
    set_seed(config.seed)
    task, rng = make_task("arithmetic"), np.random.default_rng(config.seed)
    problems = [task.problem(rng, "train") for _ in range(8 * (config.limit + config.warm_up + config.steps))]
    gold = {p.prompt: p for p in problems}
    watch, rewards = Watch(config), []

    def reward(prompts, completions, **_):
        values = [task.reward(task.score(gold[p], c)) for p, c in zip(prompts, completions, strict=True)]
        rewards.append(sum(values) / len(values))
        return values

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = watch.update(rewards[-1]) is False

    step = config.goal == "step"
    with tempfile.TemporaryDirectory() as folder:
        args = trl.GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=64,
            gradient_accumulation_steps=1,
            gradient_checkpointing=False,
            num_generations=8,
            max_completion_length=32 if step else 48,
            beta=0.04,
            epsilon=0.2,
            num_iterations=1,
            loss_type="grpo",
            learning_rate=config.learning_rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            generation_kwargs={"min_new_tokens": 32} if step else None,
            max_steps=config.limit + config.warm_up + config.steps,
            logging_steps=1000,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=config.seed,
        )
        trainer = trl.GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32),
            processing_class=AutoTokenizer.from_pretrained(tiny_path()),
            reward_funcs=reward,
            train_dataset=Dataset.from_list([{"prompt": p.prompt} for p in problems]),
            args=args,
            callbacks=[Stop()],
        )
        watch.start()
        trainer.train()
    return watch.result(f"trl {trl.__version__}")


class Watch:
    """Counts updates and their seconds until the goal."""

    def __init__(self, config: Config):
        self.config, self.times, self.rewards = config, [], []
        self.start()

    def start(self) -> None:
        self.last = time.perf_counter()

    def update(self, reward: float) -> bool:
        """Note one update; False when the goal is reached."""
        now = time.perf_counter()
        self.times.append(now - self.last)
        self.rewards.append(reward)
        self.last = time.perf_counter()
        c = self.config
        if c.goal == "step":
            return len(self.times) < c.warm_up + c.steps
        return len(self.times) < c.limit and (len(self.rewards) < 4 or sum(self.rewards[-4:]) / 4 < 0.9)

    def result(self, version: str) -> dict:
        c = self.config
        seconds = median(self.times[c.warm_up :]) if c.goal == "step" else sum(self.times)
        return {"seconds": seconds, "updates": len(self.times), "reward": self.rewards[-1], "version": version}


def show(rows: list[dict]) -> None:
    """A table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="GRPO, seconds: " + ", ".join(rows[0]["versions"].values()))
    for name in ("goal", "llmgym_s", "trl_s", "ratio"):
        table.add_column(name, justify="right")
    for row in rows:
        name = "one update" if row["goal"] == "step" else "to 90 %"
        table.add_row(name, f"{row['llmgym_s']:.3f}", f"{row['trl_s']:.3f}", f"{row['ratio']:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
