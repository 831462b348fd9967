"""What an update reports: what happened, and how far policy, behaviour and reference are apart."""

from __future__ import annotations

from torch import Tensor

from llmgym.batch import Batch
from llmgym.losses import MAX_LOG_RATIO, masked_mean, masked_sum
from llmgym.policy import Evaluation

Metrics = dict[str, float]


class Means:
    """Weighted means of metrics."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.weights: dict[str, float] = {}

    def add(self, weight: float, metrics: Metrics) -> None:
        """Count `metrics` with `weight`."""
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + weight * float(value)
            self.weights[name] = self.weights.get(name, 0.0) + weight

    def mean(self) -> Metrics:
        """Each metric's weighted mean."""
        return {name: total / self.weights[name] for name, total in self.sums.items()}


def describe(batch: Batch) -> Metrics:
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


def measure(batch: Batch, evaluation: Evaluation, old_logp: Tensor) -> Metrics:
    """How far policy, behaviour and reference are apart, per token."""
    mask = batch.mask
    tokens = masked_sum(batch.n_tokens, mask).clamp(min=1)
    ratio = (evaluation.logp.detach() - old_logp).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    metrics = {
        "behaviour_gap": float(masked_sum((old_logp - batch.logp).abs(), mask) / tokens),
        "ratio": float(masked_mean(ratio, mask)),
    }
    if evaluation.entropy is not None:
        metrics["entropy"] = float(masked_sum(evaluation.entropy.detach(), mask) / tokens)
    if evaluation.kl is not None:
        metrics["kl"] = float(masked_sum(evaluation.kl.detach(), mask) / tokens)
    return metrics


def postfix(metrics: Metrics) -> str:
    """What the progress bar shows."""
    shown = [f"reward {metrics['reward']:.3f}", f"accuracy {metrics['accuracy']:.1%}"]
    shown += [f"{name} {metrics[name]:.3f}" for name in ("kl", "entropy") if name in metrics]
    return "  ".join([*shown, f"length {metrics['length']:.1f}", f"{metrics['tokens_per_second']:,.0f} tok/s"])
