"""What an update reports: what happened, and how far policy, behaviour and reference are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmgym.batch import Batch, Evaluation, Fragments, TextBatch
from llmgym.losses import MAX_LOG_RATIO, masked_sum, zero_masked

Metrics = dict[str, float]


class Means:
    """Weighted means of metrics."""

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}
        self.weights: dict[str, float] = {}

    def add(self, weight: float, metrics: dict[str, Any]) -> None:
        """Count `metrics`, numbers or tensors of one, with `weight`."""
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + weight * value
            self.weights[name] = self.weights.get(name, 0.0) + weight

    def mean(self) -> Metrics:
        """Each metric's weighted mean."""
        return {name: float(total) / self.weights[name] for name, total in self.sums.items()}


def describe_play(batch: Fragments, episodes: Sequence[tuple[float, float]]) -> Metrics:
    """Mean return and length of the last episodes that ended; NaN before the first has."""
    means = np.mean(episodes, 0) if episodes else (np.nan, np.nan)
    return {"reward": float(means[0]), "length": float(means[1]), "episodes": float(len(batch.episode_returns))}


def describe(batch: TextBatch) -> Metrics:
    """What happened, before learning from it; 0 everywhere for no rows."""
    ends = [info.get("finish_reason") for info in batch.infos]
    rows = max(len(batch), 1)
    metrics = {
        "reward": float(batch.returns.sum()) / rows,
        "accuracy": sum(bool(info.get("is_success")) for info in batch.infos) / rows,
        "length": float(masked_sum(batch.n_tokens, batch.mask)) / rows,
        "actions": float(batch.mask.sum()) / rows,
        "truncated": ends.count("length") / rows,
        "illegal": ends.count("illegal") / rows,
    }
    terms = [info["reward_terms"] for info in batch.infos if info.get("reward_terms")]
    for name in terms[0] if terms else ():
        metrics[f"reward_terms/{name}"] = sum(t.get(name, 0.0) for t in terms) / len(terms)
    return metrics


class Counts(NamedTuple):
    """What means are taken over: the actions of a minibatch, and their tokens (no text: one an action)."""

    actions: Tensor
    tokens: Tensor

    @classmethod
    def of(cls, batch: Batch) -> Counts:
        return cls(batch.mask.sum().clamp(min=1), masked_sum(batch.n_tokens, batch.mask).clamp(min=1))


def measure(batch: Batch, evaluation: Evaluation, old_logp: Tensor, counts: Counts) -> dict[str, Any]:
    """How far policy, behaviour and reference are apart, per token: the share of these rows in the means of `counts`.

    The shares of all micro-batches of a minibatch add up to its means.
    """
    mask, tokens = batch.mask, counts.tokens
    ratio = (evaluation.logp.detach() - old_logp).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    metrics = {"behaviour_gap": masked_sum((old_logp - batch.logp).abs(), mask) / tokens}
    metrics["ratio"] = masked_sum(ratio, mask) / counts.actions
    for name, value in (("entropy", evaluation.entropy), ("kl", evaluation.kl)):
        if value is not None:
            metrics[name] = masked_sum(value.detach(), mask) / tokens
    return metrics


@torch.no_grad()
def moved(
    logp: Tensor, old_logp: Tensor, mask: Tensor, clip: float, clip_high: float | None, n_tokens: Tensor | None = None
) -> dict[str, Any]:
    """How far the policy has moved since it sampled: share of clipped actions, and KL(π_old, π).

    The KL is the k3 estimate of Schulman 2020 over actions sampled from π_old, nats an action.
    """
    log_ratio = (logp - old_logp).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    change = log_ratio.expm1()
    away = change if n_tokens is None else (log_ratio / n_tokens.clamp(min=1)).expm1()
    clipped = (away > (clip if clip_high is None else clip_high)) | (away < -clip)
    clipped, divergence = zero_masked(mask, clipped=clipped, divergence=change - log_ratio)
    count = mask.sum().clamp(min=1)
    return {"clip_fraction": clipped.sum() / count, "approx_kl": divergence.sum() / count}


def postfix(metrics: Metrics) -> str:
    """What the progress bar shows."""
    digits = {"reward": ".3f", "accuracy": ".1%", "kl": ".3f", "entropy": ".3f", "length": ".1f"}
    shown = [f"{name} {metrics[name]:{form}}" for name, form in digits.items() if name in metrics]
    for name, unit in (("tokens_per_second", "tok/s"), ("steps_per_second", "steps/s")):
        if name in metrics:
            return "  ".join([*shown, f"{metrics[name]:,.0f} {unit}"])
    return "  ".join(shown)
