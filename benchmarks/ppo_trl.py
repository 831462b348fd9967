"""One PPO update on text, in seconds and in memory, against TRL's `PPOTrainer` on the same work.

TRL took `PPOTrainer` out of the package after release 1.12.0; that one has it as `trl.experimental.ppo`, and it is what
this measures. It lives in a virtual environment of its own, which also has llmgym (for the task and the model):

    python -m venv trl && trl/bin/pip install -c constraints.txt -e . trl==1.12.0 pandas
    python benchmarks/ppo_trl.py --trl-python trl/bin/python

Both sides: the embedded model, float32, 64 different prompts of the arithmetic task with one completion of exactly 32
tokens each, sampled at temperature 1. Reward: a sequence classifier on the model's trunk, at the last token, less 0.05
KL (k1) to a frozen reference at every token. A value model with parameters of its own, λ 0.95, whitened advantages, 4
epochs of one minibatch, clip 0.2 of ratios and values, AdamW at the same rate without weight decay, no dropout, no
gradient checkpointing, the same number of threads. The processes run one after the other, `rounds` times.

Three things are not equal, and none of them saves us work. Ours clips the norm of the gradient, TRL's PPO never does.
Ours forbids EOS before the last token, in sampling and in scoring; TRL is given no stop token, so that a row goes on
after it. Ours scores its samples anew, in passes that the first step then learns from; TRL takes the log-probs that
sampling gave.

A third row, "shared critic", is our default on text, a value head on the policy's own model: less work, no comparison.

Memory: the highest resident set of the process from when trainer and models stand until the end, above what it was
then ("update"), and as it is ("process", imports included). Linux only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

ROWS, TOKENS = 64, 32
SIDES = {"llmgym": "llmgym", "shared": "llmgym, shared critic: less work", "trl": "TRL"}


@dataclass(frozen=True)
class Config:
    """What to measure."""

    trl_python: str = "python"  # interpreter of the environment that has TRL
    rounds: int = 3  # runs of each side, alternating
    steps: int = 10  # timed updates of a run
    warm_up: int = 3  # updates before these
    learning_rate: float = 1e-5
    threads: int = 2
    json: Path | None = None  # also write the rows here
    side: Literal["all", "llmgym", "shared", "trl"] = "all"  # internal: what a worker process runs
    seed: int = 0


def main(config: Config) -> None:
    if config.side != "all":
        print(json.dumps(run_trl(config) if config.side == "trl" else run_llmgym(config)))
        return
    rows = compare(config)
    show(rows)
    if config.json is not None:
        config.json.write_text(json.dumps(rows, indent=2) + "\n")


def compare(config: Config) -> list[dict]:
    """Alternate the processes; medians over rounds, and TRL's as a multiple of each."""
    runs: dict[str, list[dict]] = {side: [] for side in SIDES}
    for round_ in range(config.rounds):
        for side in SIDES:
            runs[side].append(result := worker(config, side, round_))
            print(f"round {round_} {side:>7}: {result['seconds']:.3f} s, {result['update_mb']:.0f} MB", flush=True)
    names = ("seconds", "update_mb", "process_mb")
    medians = {side: {name: median(r[name] for r in of) for name in names} for side, of in runs.items()}
    return [
        {"side": side, "version": runs[side][0]["version"], **values, "runs": runs[side]}
        | {f"trl_{name}_ratio": medians["trl"][name] / value for name, value in values.items()}
        for side, values in medians.items()
    ]


def worker(config: Config, side: str, seed: int) -> dict:
    """The result of one process."""
    python = config.trl_python if side == "trl" else sys.executable
    flags = {"side": side, "seed": seed}
    flags |= {k: v for k, v in asdict(config).items() if k in ("steps", "warm_up", "learning_rate", "threads")}
    words = [w for name, value in flags.items() for w in (f"--{name.replace('_', '-')}", str(value))]
    done = subprocess.run([python, __file__, *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the {side} process failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_llmgym(config: Config) -> dict:
    """Updates of our PPO."""
    import gymnasium as gym
    import torch

    import llmgym
    from llmgym.agents import PPO
    from llmgym.reward_model import RewardModel

    torch.set_num_threads(config.threads)
    length = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS - 1}
    reward_model = RewardModel("tiny", gym.make("llmgym/TokenMDP-v0", **length), device="cpu")
    reward_model.head.load_state_dict(classifier().score.state_dict())
    env = gym.make("llmgym/TokenMDP-v0", reward=reward_model, **length)
    settings = {"prompts": ROWS, "samples": 1, "epochs": 4, "minibatches": 1, "lam": 0.95, "beta": 0.05}
    settings |= {"clip": 0.2, "value_clip": 0.2, "value_weight": 0.05, "learning_rate": config.learning_rate}
    settings |= {"critic": "shared" if config.side == "shared" else "separate", "seed": config.seed, "device": "cpu"}
    agent = PPO("tiny", env, **settings)
    watch = Watch(config)
    agent.learn(total_tokens=10**9, callback=lambda *_: watch.update())
    return watch.result(f"llmgym {llmgym.__version__}")


def run_trl(config: Config) -> dict:
    """Updates of TRL's trainer."""
    import os
    import tempfile

    import numpy as np
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed

    from llmgym.tasks import make_task
    from llmgym.tokenization import tiny_path

    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from trl.experimental.ppo import PPOTrainer

    torch.set_num_threads(config.threads)
    set_seed(config.seed)
    task, rng = make_task("arithmetic"), np.random.default_rng(config.seed)
    updates = config.warm_up + config.steps
    tokenizer = AutoTokenizer.from_pretrained(tiny_path(), padding_side="left")
    prompts = [task.problem(rng, "train").prompt for _ in range(ROWS * updates)]
    policy = AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)

    class Tell(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            watch.update()

    with tempfile.TemporaryDirectory() as folder:
        args = trl_settings(config, folder, updates)
        trainer = PPOTrainer(
            args=args,
            processing_class=tokenizer,
            model=policy,
            ref_model=None,  # a copy
            reward_model=classifier(),
            value_model=classifier(),
            train_dataset=Dataset.from_list([{"input_ids": tokenizer(p)["input_ids"]} for p in prompts]),
            callbacks=[Tell()],
        )
        watch = Watch(config)
        trainer.train()
    return watch.result(f"TRL {trl.__version__}")


def trl_settings(config: Config, folder: str, updates: int) -> Any:
    """The same algorithm in TRL's words."""
    from trl.experimental.ppo import PPOConfig

    return PPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=ROWS,
        gradient_accumulation_steps=1,
        local_rollout_forward_batch_size=ROWS,
        total_episodes=ROWS * updates,
        num_ppo_epochs=4,
        num_mini_batches=1,
        response_length=TOKENS,
        temperature=1.0,
        stop_token=None,
        kl_coef=0.05,
        kl_estimator="k1",
        cliprange=0.2,
        cliprange_value=0.2,
        vf_coef=0.1,  # of half the squared error
        gamma=1.0,
        lam=0.95,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        num_sample_generations=0,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=config.seed,
    )


def classifier() -> Any:
    """The embedded model's trunk with a linear head of one number, as TRL takes a reward or a value model."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from llmgym.tokenization import tiny_path

    torch.manual_seed(0)  # the head is drawn: the same in every process
    return AutoModelForSequenceClassification.from_pretrained(tiny_path(), dtype=torch.float32, num_labels=1).eval()


class Watch:
    """Seconds of every update, and memory since it was made."""

    def __init__(self, config: Config):
        self.config, self.times = config, []
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident set starts anew
        self.before = resident("VmRSS")
        self.last = time.perf_counter()

    def update(self) -> bool:
        """Note one update; False when there are enough."""
        now = time.perf_counter()
        self.times.append(now - self.last)
        self.last = now
        return len(self.times) < self.config.warm_up + self.config.steps

    def result(self, version: str) -> dict:
        peak = resident("VmHWM")
        seconds = median(self.times[self.config.warm_up :])
        return {"seconds": seconds, "update_mb": peak - self.before, "process_mb": peak, "version": version}


def resident(name: str) -> float:
    """Resident memory of this process now (VmRSS) or at its highest (VmHWM), MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def show(rows: list[dict]) -> None:
    """A table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    versions = ", ".join(dict.fromkeys(row["version"] for row in rows))
    table = Table(title=f"One PPO update, {ROWS} rows of {TOKENS} new tokens: {versions}")
    table.add_column("")
    for name in ("seconds", "TRL / this", "update MB", "this / TRL", "process MB"):
        table.add_column(name, justify="right")
    for row in rows:
        numbers = (f"{row['seconds']:.3f}", f"{row['trl_seconds_ratio']:.2f}", f"{row['update_mb']:.0f}")
        table.add_row(SIDES[row["side"]], *numbers, f"{1 / row['trl_update_mb_ratio']:.2f}", f"{row['process_mb']:.0f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
