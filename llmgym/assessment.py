"""What a policy is worth, what a learned reward believes it is worth, and how far it has gone from its reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from gymnasium.envs.registration import load_env_creator

from llmgym.batch import TextBatch
from llmgym.evaluation import Progress, mdp_of
from llmgym.policy import LMPolicy
from llmgym.rollout import rollout
from llmgym.tasks import Problem
from llmgym.text import TextMDP


@dataclass(frozen=True)
class Assessment:
    """Means over one sampled completion of each problem, each with its standard error.

    Attributes:
        problems: completions that could be judged.
        true: the task's own reward.
        accuracy: share that the task counts as solved.
        proxy: the learned reward, in its own unit; NaN without one.
        kl: Σ over the tokens of log π/π_ref, nats an episode: an unbiased estimate of KL(π, π_ref); NaN without one.
        length: tokens.
        true_error, accuracy_error, proxy_error, kl_error: standard errors of these means.
    """

    problems: int
    true: float
    accuracy: float
    proxy: float
    kl: float
    length: float
    true_error: float
    accuracy_error: float
    proxy_error: float
    kl_error: float

    def as_dict(self) -> dict[str, Any]:
        """Fields by name."""
        return asdict(self)


def assess(
    policy: LMPolicy,
    env: Any,
    problems: Sequence[Problem],
    *,
    reference: Any = None,
    reward_model: Any = None,
    rows: int = 250,
    seed: int = 0,
    progress: Progress | None = None,
) -> Assessment:
    """Sample a completion of each problem at the policy's temperature and judge it.

    Args:
        policy: what is assessed; its generator moves on.
        env: a text environment with the *true* reward, single or vector, or a `TextMDP`.
        problems: what is asked.
        reference: where the KL is taken to: an `LMPolicy` on the same tokenizer, or None.
        reward_model: a `RewardModel`, or None.
        rows: completions in the making at once.
        seed: of the episodes' random keys.
        progress: called with the number of completions that have just been finished.

    Raises:
        ValueError: there are no problems, or a prompt is too long.
    """
    if not problems:
        raise ValueError("problems must hold at least one problem, got none")
    mdp = mdp_of(env)
    numbers = []
    for i in range(0, len(problems), rows):
        part = list(problems[i : i + rows])
        batch = _play(policy, mdp, part, seed + i, progress)
        numbers.append(_numbers(policy, mdp, batch, part, reference, reward_model))
    table = torch.cat(numbers)
    means, errors = table.mean(0).tolist(), (table.std(0, correction=0) / math.sqrt(len(table))).tolist()
    names = ("true", "accuracy", "proxy", "kl", "length")
    found = dict(zip(names, means, strict=True))
    found |= {f"{name}_error": error for name, error in zip(names[:-1], errors[:-1], strict=True)}
    return Assessment(problems=len(table), **found)


def _play(policy: LMPolicy, mdp: TextMDP, problems: list[Problem], seed: int, progress: Progress | None) -> TextBatch:
    make: Any = load_env_creator("llmgym.envs.vector:VectorTextEnv")  # by string: the core imports no environments
    env = make(mdp, len(problems), autoreset_mode="Disabled")
    return rollout(env, policy, problems, groups=range(len(problems)), seed=seed, progress=progress)


def _numbers(
    policy: LMPolicy, mdp: TextMDP, batch: TextBatch, problems: list[Problem], reference: Any, reward_model: Any
) -> torch.Tensor:
    """Columns true, accuracy, proxy, kl, length, a row a completion that could be judged; float64 [n, 5]."""
    batch = batch.select(batch.valid)
    columns = torch.full((len(batch), 5), math.nan, dtype=torch.float64)
    columns[:, 0] = batch.returns
    columns[:, 1] = torch.tensor([float(info["is_success"]) for info in batch.infos])
    if reward_model is not None:
        asked = [problems[i] for i in batch.groups.tolist()]
        columns[:, 2] = reward_model.score_tokens(asked, _completions(batch)).double().cpu()
    if reference is not None:
        logp, ref_logp = (p.token_logp(batch).double().sum(1).cpu() for p in (policy, reference))
        columns[:, 3] = logp - ref_logp
    columns[:, 4] = batch.n_tokens.sum(1)
    return columns


def _completions(batch: TextBatch) -> list[tuple[int, ...]]:
    """Tokens after each prompt."""
    starts = (batch.action_index >= 0).int().argmax(1).tolist()
    ends = batch.lengths.tolist()
    return [tuple(row[a:b]) for row, a, b in zip(batch.tokens.tolist(), starts, ends, strict=True)]
