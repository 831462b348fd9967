"""One DPO step, in seconds and in memory, against TRL's `DPOTrainer` on the same pairs.

TRL lives in a virtual environment of its own, which also has llmgym (for the model):

    python -m venv trl && trl/bin/pip install -c constraints.txt -e . trl==1.16.0
    python benchmarks/dpo_trl.py --trl-python trl/bin/python

Both sides: the embedded model, float32, the same 32 pairs in every step, β 0.1, reference log-probs computed once
before training, AdamW at the same rate without weight decay, gradient norm clipped at 1, no dropout, no gradient
checkpointing, the same number of threads. Prompts are three-digit additions, completions random characters: "equal" are
32 tokens each, end-of-text included; "ragged" are 4 to 60, mean 32. The processes run one after the other, `rounds`
times. Losses of both sides, averaged over all steps, must agree: they did the same work.

Memory: the highest resident set of the process from when the model is loaded until the end, above what it was then; the
reference's pass is part of it. Linux only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Literal

PAIRS = 32
ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz +-="


@dataclass(frozen=True)
class Config:
    """What to measure."""

    trl_python: str = "python"  # interpreter of the environment that has TRL
    rounds: int = 3  # runs of each side, alternating
    steps: int = 30  # timed steps of a run
    warm_up: int = 5  # steps before these
    learning_rate: float = 5e-5
    threads: int = 2
    json: Path | None = None  # also write the rows here
    side: Literal["both", "llmgym", "trl"] = "both"  # internal: what a worker process runs
    lengths: Literal["equal", "ragged"] = "equal"  # internal: what a worker process learns from
    seed: int = 0


def main(config: Config) -> None:
    if config.side != "both":
        print(json.dumps(run_llmgym(config) if config.side == "llmgym" else run_trl(config)))
        return
    rows = [compare(config, "equal"), compare(config, "ragged")]
    show(rows)
    if config.json is not None:
        config.json.write_text(json.dumps(rows, indent=2) + "\n")


def compare(config: Config, lengths: str) -> dict:
    """Alternate the two processes; medians over rounds."""
    runs: dict[str, list[dict]] = {"llmgym": [], "trl": []}
    for round_ in range(config.rounds):
        for side, of in runs.items():
            of.append(result := worker(config, side, lengths, round_))
            print(f"{lengths} round {round_} {side:>6}: {result['seconds']:.4f} s, {result['mb']:.0f} MB", flush=True)
        losses = [of[-1]["loss"] for of in runs.values()]
        if abs(losses[0] - losses[1]) > 1e-3:
            raise SystemExit(f"the losses differ, {losses[0]:.5f} and {losses[1]:.5f}: this is not the same work")
    row: dict = {"lengths": lengths, "versions": {side: of[0]["version"] for side, of in runs.items()}, "runs": runs}
    for name in ("seconds", "mb"):
        row |= {f"{side}_{name}": median(result[name] for result in of) for side, of in runs.items()}
    return row | {"speed": row["trl_seconds"] / row["llmgym_seconds"], "memory": row["llmgym_mb"] / row["trl_mb"]}


def worker(config: Config, side: str, lengths: str, seed: int) -> dict:
    """The result of one process."""
    python = config.trl_python if side == "trl" else sys.executable
    flags = {"side": side, "lengths": lengths, "seed": seed}
    flags |= {k: v for k, v in asdict(config).items() if k in ("steps", "warm_up", "learning_rate", "threads")}
    words = [w for name, value in flags.items() for w in (f"--{name.replace('_', '-')}", str(value))]
    done = subprocess.run([python, __file__, *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the {side} process failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def pairs(config: Config) -> list[dict[str, str]]:
    """The same rows in every process."""
    import numpy as np

    rng = np.random.default_rng(config.seed)

    def completion() -> str:
        n = 31 if config.lengths == "equal" else int(rng.integers(3, 60))  # and the end-of-text token
        return "".join(ALPHABET[i] for i in rng.integers(len(ALPHABET), size=n))

    prompts = [f"{a}+{b}=" for a, b in rng.integers(100, 1000, size=(PAIRS, 2))]
    return [{"prompt": prompt, "chosen": completion(), "rejected": completion()} for prompt in prompts]


def run_llmgym(config: Config) -> dict:
    """Steps of our DPO."""
    import gymnasium as gym
    import torch

    import llmgym
    from llmgym.agents import DPO
    from llmgym.models import load_model

    torch.set_num_threads(config.threads)
    env, rows = gym.make("llmgym/TokenMDP-v0", max_new_tokens=64), pairs(config)
    model = load_model("tiny", device="cpu", dtype="float32")
    watch = Watch(config)
    settings = {"learning_rate": config.learning_rate, "batch_size": PAIRS, "max_grad_norm": 1.0, "seed": config.seed}
    agent = DPO(model, env, rows, device="cpu", **settings)
    losses = []
    watch.start()
    agent.learn(
        epochs=config.warm_up + config.steps,
        callback=lambda agent, metrics, rows: losses.append(metrics["loss"]) or watch.step(),
    )
    return watch.result(f"llmgym {llmgym.__version__}", mean(losses))


def run_trl(config: Config) -> dict:
    """Steps of TRL's trainer."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed

    from llmgym.tokenization import tiny_path

    torch.set_num_threads(config.threads)
    set_seed(config.seed)
    rows, tokenizer = Dataset.from_list(pairs(config)), AutoTokenizer.from_pretrained(tiny_path())
    model = AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
    watch = Watch(config)

    class Tell(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            watch.step()

    with tempfile.TemporaryDirectory() as folder:
        args = trl.DPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=PAIRS,
            gradient_accumulation_steps=1,
            gradient_checkpointing=False,
            precompute_ref_log_probs=True,
            beta=0.1,
            loss_type="sigmoid",
            learning_rate=config.learning_rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            max_steps=config.warm_up + config.steps,
            logging_steps=10**6,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=config.seed,
        )
        trainer = trl.DPOTrainer(
            model=model, processing_class=tokenizer, train_dataset=rows, args=args, callbacks=[Tell()]
        )
        watch.start()
        loss = trainer.train().training_loss
    return watch.result(f"TRL {trl.__version__}", loss)


class Watch:
    """Seconds of every step, and memory since it was made."""

    def __init__(self, config: Config):
        self.config, self.times = config, list[float]()
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident set starts anew
        self.before = resident("VmRSS")

    def start(self) -> None:
        """The first step begins."""
        self.last = time.perf_counter()

    def step(self) -> None:
        """A step has ended, and the next one begins."""
        now = time.perf_counter()
        self.times.append(now - self.last)
        self.last = now

    def result(self, version: str, loss: float) -> dict:
        """Median seconds of the timed steps, and the highest memory."""
        seconds = median(self.times[self.config.warm_up :])
        return {"seconds": seconds, "mb": resident("VmHWM") - self.before, "loss": loss, "version": version}


def resident(name: str) -> float:
    """Resident memory of this process now (VmRSS) or at its highest (VmHWM), MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def show(rows: list[dict]) -> None:
    """A table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"One DPO step, {PAIRS} pairs: " + ", ".join(rows[0]["versions"].values()))
    for name in ("completions", "llmgym, s", "TRL, s", "TRL / llmgym", "llmgym, MB", "TRL, MB", "llmgym / TRL"):
        table.add_column(name, justify="right")
    for row in rows:
        seconds = (f"{row['llmgym_seconds']:.4f}", f"{row['trl_seconds']:.4f}", f"{row['speed']:.2f}")
        memory = (f"{row['llmgym_mb']:.0f}", f"{row['trl_mb']:.0f}", f"{row['memory']:.2f}")
        table.add_row(row["lengths"], *seconds, *memory)
    Console(width=110).print(table)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
