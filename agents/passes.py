"""An acting agent's passes over a batch: epochs, minibatches and micro-batches, one gradient step a minibatch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from llmgym.agents.config import AgentConfig
from llmgym.agents.metrics import Counts, Means, Metrics, measure
from llmgym.agents.part import Part
from llmgym.batch import Evaluation, TextBatch

if TYPE_CHECKING:
    from llmgym.agents.base import Agent


def optimize(agent: Agent, whole: Part) -> Metrics:
    """Every pass over the rows; what is reported are the means of the last one, where the policy has moved most."""
    config, totals, rows = agent.config, Means(), len(whole.batch)
    generator = torch.Generator().manual_seed(int(agent.rng.integers(2**31)))
    assert config.epochs is not None and config.minibatches is not None
    for epoch in range(config.epochs):
        totals = Means()
        order = torch.randperm(rows, generator=generator) if config.minibatches > 1 else torch.arange(rows)
        for chosen in order.chunk(config.minibatches):
            if not _step(agent, whole, chosen, totals, measures(config, epoch)):
                return totals.mean() | {"stopped_early": 1.0}
            whole = replace(whole, evaluations=())  # of the parameters before the step
    return totals.mean()


def measures(config: AgentConfig, epoch: int) -> bool:
    """Whether a pass is measured: on small networks metrics cost as much as a quarter of a step."""
    return epoch + 1 == config.epochs or getattr(config, "target_kl", None) is not None


def needs_entropy(config: AgentConfig, measured: bool) -> bool:
    """Whether a pass forms the entropy, which takes the whole vocabulary."""
    return measured or getattr(config, "entropy", 0.0) > 0


def _step(agent: Agent, whole: Part, rows: Tensor, totals: Means, measured: bool) -> bool:
    """One gradient step on a minibatch; False, and no step, where the policy has moved too far."""
    config, kept = agent.config, iter(whole.evaluations)
    micro_batches = whole.parts(rows, config.micro_batch_rows)
    only = whole.select(rows) if len(micro_batches) == 1 else None
    minibatch = whole.batch.select(rows) if only is None else only.batch
    denominator, counts = agent.denominator(minibatch), Counts.of(minibatch) if measured else None

    def loss(micro: Tensor) -> tuple[Tensor, dict[str, Any]]:
        part = whole.select(micro) if only is None else only
        evaluation = next(kept, None) or _evaluate(agent, part, needs_entropy(config, measured))
        old_logp = evaluation.logp.detach() if part.old_logp is None else part.old_logp
        value, metrics = agent.loss(part, evaluation, old_logp, denominator)
        return value, {} if counts is None else _shares(metrics, part, evaluation, old_logp, counts)

    limit = 1.5 * (getattr(config, "target_kl", None) or np.inf)
    return agent.gradient_step(micro_batches, loss, totals, limit)


def _evaluate(agent: Agent, part: Part, entropy: bool) -> Evaluation:
    if not isinstance(part.batch, TextBatch):
        return agent.policy.evaluate(part.batch, entropy=entropy)
    return agent.policy.evaluate(part.batch, ref_logp=part.ref_logp, entropy=entropy, **agent.kl_options)


def _shares(
    metrics: dict[str, Any], part: Part, evaluation: Evaluation, old_logp: Tensor, counts: Counts
) -> dict[str, Any]:
    """What these rows add to each metric of their minibatch: losses are shares already, the others means."""
    share = part.batch.mask.sum() / counts.actions
    shares = {name: x if name.endswith("loss") else share * x for name, x in metrics.items()}
    return shares | measure(part.batch, evaluation, old_logp, counts)
