"""Tokens a second: stepping `gym.make_vec` with `LMPolicy` against `model.generate` of transformers.

Same model, prompts, batch, lengths, dtype, device and threads, in one process and alternating; each does its warm-up.
Sampling at temperature 1 without truncation, EOS forbidden until the last token on both sides, so that every row
runs to full length. `--early` measures what rows that finish early save: the lengths of both sides then follow from
the model, and tokens really written are counted.

    python benchmarks/generation.py
    python benchmarks/generation.py --model FOLDER --batch 8 32 --new-tokens 64
    python benchmarks/generation.py --linear
"""

from __future__ import annotations

import json
import platform
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import gymnasium as gym
import numpy as np
import torch
import transformers
import tyro
from rich.console import Console
from rich.table import Table

import llmgym
from llmgym.models import load_model
from llmgym.policy import LMPolicy
from llmgym.tasks import Problem
from llmgym.tokenization import tiny_path


@dataclass(frozen=True)
class Config:
    """What to measure."""

    model: str = "tiny"  # "tiny", a folder or a hub id
    batch: tuple[int, ...] = (16, 64, 256)  # rows
    new_tokens: int = 32  # tokens a row
    block_size: int = 1  # tokens an action; the environment is TokenMDP at 1, else BlockMDP
    repeats: int = 5  # timed runs of each side, alternating; the median counts
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 2  # of torch
    early: bool = False  # let EOS end rows
    linear: bool = False  # 64 against 1,024 new tokens at batch 16, memory too
    json: Path | None = None  # also write the rows here


def main(config: Config) -> None:
    torch.set_num_threads(config.threads)
    model = load_model(config.model, device=config.device, dtype=config.dtype)
    rows = linear(config, model) if config.linear else [compare(config, model, b) for b in config.batch]
    show(rows, config)
    if config.json is not None:
        config.json.write_text(json.dumps({"about": about(config), "rows": rows}, indent=2) + "\n")


def compare(config: Config, model, batch: int) -> dict[str, float]:
    """Both sides on one batch size, alternating."""
    env, policy, problems = ours(config, model, batch, config.new_tokens)
    prompts = torch.as_tensor(prompt_ids(env, problems), device=model.device)
    sides = {
        "llmgym": lambda: step_through(env, policy, problems),
        "generate": lambda: generate(config, model, env, prompts),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        run()  # warm-up
    for _ in range(config.repeats):
        for name, run in sides.items():
            started = time.perf_counter()
            tokens = run()
            rates[name].append(tokens / (time.perf_counter() - started))
    a, b = (median(rates[name]) for name in ("llmgym", "generate"))
    pairs = sorted(x / y for x, y in zip(rates["llmgym"], rates["generate"], strict=True))
    return {
        "batch": batch,
        "new_tokens": config.new_tokens,
        "llmgym": a,
        "generate": b,
        "ratio": a / b,
        "ratio_min": pairs[0],
    }


def ours(config: Config, model, batch: int, new_tokens: int):
    """A vector environment, a policy and one problem a row."""
    kind = "Token" if config.block_size == 1 else "Block"
    more = {} if config.block_size == 1 else {"block_size": config.block_size}
    env = gym.make_vec(
        f"llmgym/{kind}MDP-v0",
        num_envs=batch,
        tokenizer=str(tiny_path()) if config.model == "tiny" else config.model,
        max_new_tokens=new_tokens,
        min_new_tokens=0 if config.early else new_tokens - 1,
        autoreset_mode="Disabled",
        **more,
    )
    policy = LMPolicy(model, env, device=config.device, dtype=config.dtype, seed=0)
    rng = np.random.default_rng(0)
    # Prompts of one length: transformers pads ragged ones on the left, which would cost it extra work.
    problems = [Problem(f"{rng.integers(100, 1000)}+{rng.integers(100, 1000)}=", "0") for _ in range(batch)]
    return env, policy, problems


def prompt_ids(env, problems) -> list[list[int]]:
    ids = [list(env.unwrapped.mdp.start(p).tokens) for p in problems]
    shortest = min(map(len, ids))
    return [row[:shortest] for row in ids]


def step_through(env, policy, problems) -> int:
    """One episode in every row through reset and step; returns the tokens written."""
    observation, _ = env.reset(options={"problem": problems})
    policy.decoder.clear()
    active = np.ones(env.num_envs, bool)
    while active.any():
        action = policy.act(observation, active)
        observation, _, terminated, truncated, _ = env.step(action.for_env)
        active &= ~(terminated | truncated)
    return int(observation["n_tokens"].sum())


@torch.inference_mode()
def generate(config: Config, model, env, prompts) -> int:
    """The same through transformers; returns the tokens written, EOS included, padding not."""
    eos, pad = env.unwrapped.mdp.eos_id, env.unwrapped.mdp.codec.pad_id
    out = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=config.new_tokens,
        min_new_tokens=None if config.early else config.new_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    new = out[:, prompts.shape[1] :]
    ended = (new == eos).cumsum(1) - (new == eos).long() > 0
    return int((~ended).sum())


def linear(config: Config, model) -> list[dict[str, float]]:
    """Our rate at 64 and at 1,024 new tokens, batch 16, and the peak memory after each."""
    rows = []
    for new_tokens in (64, 1024):
        env, policy, problems = ours(config, model, 16, new_tokens)
        step_through(env, policy, problems)
        rates = []
        for _ in range(config.repeats):
            started = time.perf_counter()
            tokens = step_through(env, policy, problems)
            rates.append(tokens / (time.perf_counter() - started))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append({"batch": 16, "new_tokens": new_tokens, "llmgym": median(rates), "peak_MiB": peak})
    rows[1]["ratio"] = rows[0]["llmgym"] / rows[1]["llmgym"]
    return rows


def about(config: Config) -> dict[str, str]:
    """What the figures belong to."""
    device = (
        torch.cuda.get_device_name() if config.device.startswith("cuda") else platform.processor() or platform.machine()
    )
    return {
        "model": config.model,
        "device": f"{device}, {config.threads} threads" if config.device == "cpu" else device,
        "dtype": config.dtype,
        "versions": f"llmgym {llmgym.__version__}, torch {torch.__version__}, transformers {transformers.__version__}",
    }


def show(rows: list[dict[str, float]], config: Config) -> None:
    """A table on the terminal."""
    table = Table(title="tokens a second; " + ", ".join(about(config).values()))
    for name in rows[-1]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            *(f"{row[n]:,.2f}" if "ratio" in n else f"{row[n]:,.0f}" if n in row else "" for n in rows[-1] if n in row)
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
