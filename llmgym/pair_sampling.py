"""Pairs of completions to be compared: the first stage of learning from preferences."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmgym.evaluation import Completion, Progress, complete, mdp_of
from llmgym.pairs import Pair
from llmgym.tasks import Split
from llmgym.text import EOS


def sample_pairs(
    policy: Any,
    env: Any,
    count: int,
    *,
    split: Split = "train",
    seed: int = 0,
    rows: int = 256,
    progress: Progress | None = None,
) -> list[Pair]:
    """Two completions of each of `count` problems, sampled from a policy.

    Completions that are equal or empty cannot be compared: another problem is drawn in their place.

    Args:
        policy: an `LMPolicy`, or whatever `rollout` takes; it samples as it is set up, with its own generator.
        env: a text environment, single or vector, or a `TextMDP`.
        count: pairs.
        split: which split the problems are drawn from.
        seed: of the problems.
        rows: completions in the making at once.
        progress: called with the number of pairs that have just been found.

    Raises:
        ValueError: `count` is below 1, or the policy writes hardly anything but equal completions.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    mdp, rng, pairs, tried = mdp_of(env), np.random.default_rng(seed), list[Pair](), 0
    while len(pairs) < count:
        wanted = min(max(rows // 2, 1), 2 * (count - len(pairs)))
        problems = [mdp.task.problem(rng, split) for _ in range(wanted)]
        twice = [problem for problem in problems for _ in range(2)]
        done = complete(policy, mdp, twice, deterministic=False, rows=rows, seed=int(rng.integers(2**31)))
        found = [pair for two in zip(done[::2], done[1::2], strict=True) if (pair := _pair(*two)) is not None]
        found = found[: count - len(pairs)]
        pairs, tried = pairs + found, tried + wanted
        if progress is not None:
            progress(len(found))
        if tried >= 1000 and len(pairs) < tried / 100:
            raise ValueError(
                f"{len(pairs)} of {tried} pairs differ: at temperature {getattr(policy, 'temperature', 1.0):g} "
                "the policy's completions are nearly always equal or empty"
            )
    return pairs


def _pair(one: Completion, two: Completion) -> Pair | None:
    if one.text == two.text or not one.text.strip() or not two.text.strip():
        return None
    return Pair(one.problem, one.text, two.text, one.finish_reason == EOS, two.finish_reason == EOS)
