"""`llmgym pairs`: two completions of each of many problems, ready to be labelled."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from llmgym.commands import report
from llmgym.commands.options import EnvOptions, check_positive, parse, plain_warnings, policy_folder, prepare
from llmgym.pair_sampling import sample_pairs
from llmgym.policy import LMPolicy
from llmgym.preferences import write_pairs

PROG = "llmgym pairs"


@dataclass(frozen=True)
class SampleOptions:
    """What is sampled, and how much."""

    policy: str = "tiny"  # tiny (the embedded model), a folder, a run folder or a hub id
    count: int = 500  # pairs, each of two different completions of one problem
    temperature: float = 1.0  # of sampling
    split: Literal["train", "test"] = "train"  # where the problems come from
    rows: int = 256  # completions in the making at once; memory
    seed: int = 0  # of the problems and of the sampling
    device: str = "auto"  # auto, cpu, cuda, cuda:1, …
    dtype: str = "float32"  # of the model: float32, bfloat16, float64 or auto (as stored)
    threads: int | None = None  # CPU threads of torch; None leaves that to torch

    def __post_init__(self):
        check_positive(count=self.count, rows=self.rows)
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")


@dataclass(frozen=True)
class PairsOptions:
    """Sample pairs of completions for `llmgym label`, or for whoever compares them.

    A folder that llmgym wrote remembers the environment it was trained on: that is the default here, unless another
    task is named.
    """

    out: Annotated[str, tyro.conf.arg(metavar="PAIRS.jsonl")]  # a new file of JSON lines
    sample: SampleOptions = field(default_factory=SampleOptions)
    env: EnvOptions = field(default_factory=EnvOptions)


def run(words: list[str]) -> int:
    """`llmgym pairs WORDS…`."""
    options = _options(words)
    sample, out = options.sample, Path(options.out)
    if out.exists() or not out.resolve().parent.is_dir():
        raise ValueError(f"out must name a new file in an existing folder, got {options.out!r}")
    prepare(sample.threads)
    env = options.env.make(sample.policy, split=sample.split)
    settings = {"temperature": sample.temperature, "device": sample.device, "dtype": sample.dtype}
    policy = LMPolicy(sample.policy, env, seed=sample.seed, **settings)  # type: ignore[arg-type]
    with plain_warnings(), report.bar("pairs", sample.count) as progress:
        counts = {"split": sample.split, "seed": sample.seed, "rows": sample.rows}
        pairs = sample_pairs(policy, env, sample.count, progress=progress, **counts)  # type: ignore[arg-type]
    write_pairs(out, pairs)
    report.say(f"{len(pairs):,} pairs of {options.env.task}, {sample.split} split: {out}")
    return 0


def _options(words: list[str]) -> PairsOptions:
    """Options in two passes: what the policy was trained on gives the defaults of the second."""
    first = parse(PairsOptions, words, prog=PROG, default=PairsOptions(tyro.MISSING))
    sample = replace(first.sample, policy=policy_folder(first.sample.policy))
    trained_on = EnvOptions.of_policy(sample.policy)
    second = parse(PairsOptions, words, prog=PROG, default=PairsOptions(tyro.MISSING, env=trained_on))
    return PairsOptions(first.out, sample, second.env if second.env.task == trained_on.task else first.env)
