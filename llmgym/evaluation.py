"""`evaluate(policy, env)`: accuracy on held-out problems with a confidence interval, and what it cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from gymnasium.envs.registration import load_env_creator

from llmgym.batch import Batch
from llmgym.intervals import wilson
from llmgym.rollout import rollout
from llmgym.tasks import Problem, Split
from llmgym.text import EOS, TextMDP

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Completion:
    """One finished episode.

    Attributes:
        problem: what was asked.
        text: what was written, without special tokens.
        finish_reason: "eos", "length" or "illegal".
        n_tokens: tokens the policy chose.
        logp: log-prob of all of them under the distribution they were sampled from, nats.
        is_success: the task's judgement.
        well_formed: whether the task's term `format` is full and the text ended by itself; None without that term.
        scorer_failed: the scorer could not judge it.
    """

    problem: Problem
    text: str
    finish_reason: str
    n_tokens: int
    logp: float
    is_success: bool
    well_formed: bool | None
    scorer_failed: bool


@dataclass(frozen=True)
class Score:
    """What a policy achieves on a set of problems, with `n` completions of each.

    Attributes:
        problems: distinct problems that could be judged, the denominator of every accuracy.
        n: completions of each problem.
        successes: problems solved by their completion of highest total log-prob (with n = 1 the only one).
        any_successes: problems solved by at least one of their completions.
        well_formed: share of completions that end by themselves and have the task's format; NaN without such a term.
        mean_tokens: mean length of a completion, tokens.
        scorer_failures: completions the scorer could not judge; they count in nothing else.
        seconds: wall clock of all completions and their scoring.
        counters: what the policy has spent, see `Counters`.
    """

    problems: int
    n: int
    successes: int
    any_successes: int
    well_formed: float
    mean_tokens: float
    scorer_failures: int
    seconds: float
    counters: dict[str, int]

    @property
    def accuracy(self) -> float:
        """successes / problems; NaN when nothing could be judged."""
        return _share(self.successes, self.problems)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `accuracy`."""
        return wilson(self.successes, self.problems)

    @property
    def pass_at_n(self) -> float:
        """Share of problems that any of the n completions solves: what a perfect chooser would reach."""
        return _share(self.any_successes, self.problems)

    @property
    def pass_at_n_interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `pass_at_n`."""
        return wilson(self.any_successes, self.problems)

    @property
    def tokens_per_second(self) -> float:
        """Sampled tokens a second."""
        return self.counters["sampled_tokens"] / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """Fields and properties by name."""
        names = ("accuracy", "interval", "pass_at_n", "pass_at_n_interval", "tokens_per_second")
        return {name: getattr(self, name) for name in names} | asdict(self)


def evaluate(
    policy: Any,
    env: Any,
    problems: int | Sequence[Problem] = 1000,
    *,
    split: Split = "test",
    seed: int = 0,
    deterministic: bool = True,
    n: int = 1,
    rows: int = 250,
    progress: Progress | None = None,
) -> Score:
    """Score a policy on distinct problems of a task.

    Args:
        policy: an `LMPolicy`, a `llmgym.baselines.RandomPolicy` or whatever `rollout` takes and has `counters`. Its
            counters and its generator move on.
        env: a text environment, single or vector, or a `TextMDP`, for its rules.
        problems: how many to draw, or the problems themselves.
        split: which split they are drawn from.
        seed: of that draw.
        deterministic: greedy; else sampled as the policy is set up.
        n: completions of each problem: best-of-n, which needs `deterministic=False`.
        rows: completions in the making at once: memory, and through it speed.
        progress: called with the number of completions that have just been finished.

    Raises:
        ValueError: a count below 1, n > 1 greedily, or a prompt that is too long.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if n > 1 and deterministic:
        raise ValueError(f"n > 1 needs sampling: {n} greedy completions would all be the same")
    mdp = mdp_of(env)
    asked = draw_problems(mdp, problems, split=split, seed=seed) if isinstance(problems, int) else problems
    start, spent = time.perf_counter(), policy.counters.as_dict()
    repeated = [problem for problem in asked for _ in range(n)]
    done = complete(policy, mdp, repeated, deterministic=deterministic, rows=rows, seed=seed, progress=progress)
    spent = {name: value - spent[name] for name, value in policy.counters.as_dict().items()}
    return _score([done[i : i + n] for i in range(0, len(done), n)], time.perf_counter() - start, spent)


def complete(
    policy: Any,
    env: Any,
    problems: Sequence[Problem],
    *,
    deterministic: bool = True,
    rows: int = 250,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Completion]:
    """One completion of each of `problems`, in their order; arguments as in `evaluate`.

    Args:
        seed: of the episodes' random keys (lengths of random blocks); the policy has a generator of its own.
    """
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    mdp = mdp_of(env)
    for problem in problems:
        mdp.start(problem)
    make: Any = load_env_creator("llmgym.envs.vector:VectorTextEnv")  # by string: the core imports no environments
    completions: list[Completion] = []
    for i in range(0, len(problems), rows):
        part = list(problems[i : i + rows])
        venv = make(mdp, len(part), autoreset_mode="Disabled")
        venv.reset(seed=seed + i, options={"problem": part})
        batch = rollout(venv, policy, part, deterministic=deterministic, progress=progress)
        completions += [_completion(problem, batch, row) for row, problem in enumerate(part)]
    return completions


def draw_problems(env: Any, count: int, *, split: Split = "test", seed: int = 0) -> list[Problem]:
    """`count` distinct problems of a split, or as many as the split has.

    A task does not say how many problems it has: the draw ends when new ones have stopped coming.

    Raises:
        ValueError: `count` is below 1, the split has no problem, or a prompt is too long for the environment.
    """
    if count < 1:
        raise ValueError(f"problems must be at least 1, got {count}")
    mdp, rng, found, repeats = mdp_of(env), np.random.default_rng(seed), dict[Problem, None](), 0
    # With one problem left to find, this many draws miss it with probability exp(-20).
    while len(found) < count and repeats < 100 + 20 * len(found):
        problem = mdp.task.problem(rng, split)
        repeats = repeats + 1 if problem in found else 0
        found.setdefault(problem)
    for problem in found:
        mdp.start(problem)  # refuses what is too long before anything is sampled
    return list(found)


def mdp_of(env: Any) -> TextMDP:
    """The rules of a text environment, single or vector; a `TextMDP` is its own."""
    mdp = env if isinstance(env, TextMDP) else getattr(getattr(env, "unwrapped", env), "mdp", None)
    if not isinstance(mdp, TextMDP):
        raise ValueError(f"env must be a text environment of llmgym or a TextMDP, got {env!r}")
    return mdp


def _completion(problem: Problem, batch: Batch, row: int) -> Completion:
    info, failed = batch.infos[row], not bool(batch.valid[row])
    form = info.get("reward_terms", {}).get("format")
    return Completion(
        problem=problem,
        text=info["text"],
        finish_reason=info["finish_reason"],
        n_tokens=int(batch.n_tokens[row].sum()),
        logp=float((batch.logp[row] * batch.mask[row]).sum()),
        is_success=bool(info["is_success"]) and not failed,
        well_formed=None if form is None else bool(form >= 1.0 and info["finish_reason"] == EOS),
        scorer_failed=failed,
    )


def _score(groups: list[list[Completion]], seconds: float, counters: dict[str, int]) -> Score:
    judged = [[c for c in group if not c.scorer_failed] for group in groups]
    rows = [c for group in judged for c in group]
    judged = [group for group in judged if group]
    formed = [c.well_formed for c in rows if c.well_formed is not None]
    return Score(
        problems=len(judged),
        n=len(groups[0]),
        successes=sum(max(group, key=lambda c: c.logp).is_success for group in judged),
        any_successes=sum(any(c.is_success for c in group) for group in judged),
        well_formed=_share(sum(formed), len(formed)),
        mean_tokens=_share(sum(c.n_tokens for c in rows), len(rows)),
        scorer_failures=sum(c.scorer_failed for group in groups for c in group),
        seconds=seconds,
        counters=counters,
    )


def _share(part: float, whole: int) -> float:
    return part / whole if whole else math.nan
