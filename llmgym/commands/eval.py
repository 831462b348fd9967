"""`llmgym eval`: the accuracy of a policy or a baseline on held-out problems."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from llmgym.baselines import RandomPolicy
from llmgym.commands import report
from llmgym.commands.options import EnvOptions, check_positive, parse, plain_warnings, policy_folder, prepare
from llmgym.evaluation import Score, draw_problems, evaluate
from llmgym.files import write_json
from llmgym.policy import LMPolicy
from llmgym.runs import finite, versions

PROG = "llmgym eval"


@dataclass(frozen=True)
class PolicyOptions:
    """The policy, how it decodes and what it is asked."""

    policy: str = "tiny"  # tiny (the embedded model), a folder, a run folder or a hub id
    decoding: Literal["greedy", "sample", "best-of-n", "random"] = "greedy"  # random: uniform over the legal tokens
    n: int = 8  # completions of each problem, best-of-n only
    temperature: float = 1.0  # of sample and best-of-n
    top_k: int = 0  # sample among the k most probable tokens, 0 means all
    top_p: float = 1.0  # sample among the most probable tokens of this mass
    problems: int = 1000  # distinct problems
    split: Literal["train", "test"] = "test"  # where they come from; test problems never occur in training
    rows: int = 250  # completions in the making at once; memory
    seed: int = 0  # of the problems and of the sampling
    device: str = "auto"  # auto, cpu, cuda, cuda:1, …
    dtype: str = "float32"  # of the model: float32, bfloat16, float64 or auto (as stored)
    threads: int | None = None  # CPU threads of torch; None leaves that to torch
    json: str | None = None  # a file that the result is written to as JSON

    def __post_init__(self):
        check_positive(n=self.n, problems=self.problems, rows=self.rows)
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if self.json is not None and not Path(self.json).resolve().parent.is_dir():
            raise ValueError(f"json must name a file in an existing folder, got {self.json!r}")


@dataclass(frozen=True)
class EvalOptions:
    """Score a policy, or a baseline, on problems of a task.

    best-of-n is counted twice: pass@n (any of the n completions is right), and the completion of the highest total
    log-prob under the model. A folder that llmgym wrote remembers the environment it was trained on: that is the
    default here, unless another task is named.
    """

    policy: PolicyOptions = field(default_factory=PolicyOptions)
    env: EnvOptions = field(default_factory=EnvOptions)


def run(words: list[str]) -> int:
    """`llmgym eval WORDS…`."""
    options = _options(words)
    policy, decoding = options.policy, options.policy.decoding
    prepare(policy.threads)
    env = options.env.make(policy.policy, split=policy.split)
    actor = _actor(policy, env)
    problems = draw_problems(env, policy.problems, split=policy.split, seed=policy.seed)
    n = policy.n if decoding == "best-of-n" else 1
    report.say(f"{policy.policy}, {decoding}: {len(problems):,} problems of {options.env.task}, {policy.split} split")
    with plain_warnings(), report.bar(decoding, n * len(problems)) as progress:
        score = evaluate(
            actor, env, problems, deterministic=decoding == "greedy", n=n, rows=policy.rows, progress=progress
        )
    _print(score, decoding)
    if policy.json is not None:
        write_json(policy.json, finite({**asdict(options), "score": score.as_dict(), "versions": versions()}))
    return 0


def _options(words: list[str]) -> EvalOptions:
    """Options in two passes: what the policy was trained on gives the defaults of the second."""
    first = parse(EvalOptions, words, prog=PROG, default=EvalOptions())
    policy = replace(first.policy, policy=policy_folder(first.policy.policy))
    trained_on = EnvOptions.of_policy(policy.policy)
    second = parse(EvalOptions, words, prog=PROG, default=EvalOptions(env=trained_on))
    env = second.env if second.env.task == trained_on.task else first.env
    return EvalOptions(policy, env)


def _actor(options: PolicyOptions, env: Any) -> Any:
    if options.decoding == "random":
        return RandomPolicy(env, seed=options.seed)
    return LMPolicy(
        options.policy,
        env,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        device=options.device,
        dtype=options.dtype,
        seed=options.seed,
    )


def _print(score: Score, decoding: str) -> None:
    rates = {decoding: (score.accuracy, score.interval)}
    if decoding == "best-of-n":
        any_right = (score.pass_at_n, score.pass_at_n_interval)
        chosen = (score.accuracy, score.interval)
        rates = {f"pass@{score.n} (any is right)": any_right, f"best of {score.n} by total log-prob": chosen}
    report.one_policy(rates, score)
    spent = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in score.counters.items())
    report.say(f"{score.tokens_per_second:,.0f} tokens/s; {spent}")
