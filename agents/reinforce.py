"""REINFORCE: θ ← θ + α ∇ log π(a_t given s_t) G_t (Williams 1992; Sutton & Barto 2018, section 13.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from llmgym.agents.base import Agent, Part
from llmgym.agents.config import AgentConfig
from llmgym.agents.metrics import Metrics
from llmgym.batch import Batch
from llmgym.losses import Normalize, aggregate, reinforce_loss, value_loss
from llmgym.policy import Evaluation
from llmgym.returns import discounted_returns, group_advantages


@dataclass(frozen=True)
class ReinforceConfig(AgentConfig):
    """Settings of REINFORCE."""

    prompts: int = 64  # different problems in a batch
    samples: int = 1  # completions of each problem
    # Subtracted from the return: nothing; the mean return of the batch's other rows (unbiased, Kool et al. 2019); or
    # a learned value (Sutton & Barto 2018, section 13.4).
    baseline: Literal["none", "mean", "value"] = "mean"
    gamma: float = 1.0  # discount an action; only 1 keeps the granularities identical
    normalize: Normalize = "constant"  # "constant" divides by rows, so that E[gradient] = ∇E[return] without baseline
    value_weight: float = 0.5  # c1 of the value loss, baseline="value" only
    entropy: float = 0.0  # weight of an entropy bonus (nats of an action), averaged as `normalize` says

    def __post_init__(self):
        super().__post_init__()
        if self.epochs * self.minibatches > 1:
            raise ValueError(
                f"REINFORCE is on-policy: epochs and minibatches must be 1, got {self.epochs} and {self.minibatches}"
            )
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must be in [0, 1], got {self.gamma}")


class REINFORCE(Agent):
    """Monte-Carlo policy gradient, with or without a baseline, on any granularity.

    Args:
        policy, env, **config: as `Agent`; fields of `ReinforceConfig`.
    """

    config_class: ClassVar[type[AgentConfig]] = ReinforceConfig
    config: ReinforceConfig

    def advantages(self, batch: Batch, metrics: Metrics) -> Tensor:
        """Return to go of each action, less the mean of the other rows' returns if that is the baseline; [B, N]."""
        returns = discounted_returns(batch.rewards, batch.mask, gamma=self.config.gamma)
        if self.config.baseline != "mean" or len(batch) < 2:  # a row alone has no other rows
            return returns
        one_group = torch.zeros_like(batch.groups)
        centred = group_advantages(batch.returns, one_group, normalize="none", baseline="leave_one_out")
        return returns - (batch.returns - centred)[:, None]

    def loss(self, part: Part, evaluation: Evaluation, old_logp: Tensor, denominator: Tensor) -> tuple[Tensor, Metrics]:
        """`reinforce_loss`, with a value loss and an entropy bonus where asked for."""
        c, mask, advantages = self.config, part.batch.mask, part.advantages
        extra, metrics = torch.zeros((), device=mask.device), {}
        if evaluation.values is not None:
            errors = value_loss(
                evaluation.values, part.advantages, mask, denominator=denominator, normalize=c.normalize
            )
            extra, metrics["value_loss"] = c.value_weight * errors, float(errors.detach())
            advantages = advantages - evaluation.values.detach()
        if c.entropy and evaluation.entropy is not None:
            extra = extra - c.entropy * aggregate(evaluation.entropy, mask, denominator, c.normalize)
        loss = reinforce_loss(evaluation.logp, advantages, mask, denominator=denominator, normalize=c.normalize)
        return loss + extra, metrics | {"loss": float((loss + extra).detach())}

    def denominator(self, batch: Batch) -> Tensor:
        """Rows, or actions when normalised over these."""
        return batch.mask.sum() if self.config.normalize == "actions" else batch.mask.any(1).sum()

    def _needs_values(self) -> bool:
        return self.config.baseline == "value"
