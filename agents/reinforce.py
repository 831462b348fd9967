"""REINFORCE: θ ← θ + α ∇ log π(a_t given s_t) G_t (Williams 1992; Sutton & Barto 2018, section 13.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from llmgym.agents.base import Agent
from llmgym.agents.collect import Play
from llmgym.agents.config import AgentConfig, check_least, check_unit
from llmgym.agents.credit import ends
from llmgym.agents.metrics import Metrics
from llmgym.agents.part import Part
from llmgym.batch import Batch, Evaluation, Fragments
from llmgym.losses import Normalize, aggregate, reinforce_loss, value_loss
from llmgym.returns import discounted_returns, group_advantages


@dataclass(frozen=True)
class ReinforceConfig(AgentConfig):
    """Settings of REINFORCE."""

    prompts: int = 64  # different problems in a batch
    samples: int = 1  # completions of each problem
    num_envs: int = 8  # episodes in a batch of an "MlpPolicy" or "CnnPolicy"; on text they are prompts x samples
    # Subtracted from the return: nothing; the mean return of the batch's other rows (unbiased, Kool et al. 2019); or
    # a learned value (Sutton & Barto 2018, section 13.4).
    baseline: Literal["none", "mean", "value"] = "mean"
    gamma: float = 1.0  # discount an action; only 1 keeps the granularities identical
    normalize: Normalize = "constant"  # "constant" divides by rows, so that E[gradient] = ∇E[return] without baseline
    value_weight: float = 0.5  # c1 of the value loss, baseline="value" only
    entropy: float = 0.0  # weight of an entropy bonus (nats of an action), averaged as `normalize` says

    def __post_init__(self):
        super().__post_init__()
        check_least(self, 1, "num_envs")
        check_least(self, 0, "value_weight", "entropy")
        check_unit(self, "gamma")
        if not self.epochs == self.minibatches == 1:
            raise ValueError(
                f"REINFORCE is on-policy: epochs and minibatches must be 1, got {self.epochs} and {self.minibatches}"
            )


class REINFORCE(Agent):
    """Monte-Carlo policy gradient, with or without a baseline, on any granularity.

    Args:
        policy, env, reference, **config: as `Agent`; fields of `ReinforceConfig`. Policies are language models, or
            "MlpPolicy" and "CnnPolicy" on any environment with Box, Discrete, MultiDiscrete or MultiBinary spaces.
    """

    config_class: ClassVar[type[AgentConfig]] = ReinforceConfig
    config: ReinforceConfig
    plays_any_environment = True

    def advantages(self, batch: Batch, metrics: Metrics) -> Tensor:
        """Return to go of each action, less the mean of the other rows' returns if that is the baseline; [B, N].

        In play, where rewards come along the way, that is the mean of their returns to go at the same step.
        """
        returns = discounted_returns(batch.rewards, batch.mask, gamma=self.config.gamma, **ends(batch, None))
        if self.config.baseline != "mean" or len(batch) < 2:  # a row alone has no other rows
            return returns
        if isinstance(batch, Fragments):
            return returns - mean_of_others(returns, batch.mask)
        one_group = torch.zeros_like(batch.groups)
        centred = group_advantages(batch.returns, one_group, normalize="none", baseline="leave_one_out")
        return returns - (batch.returns - centred)[:, None]

    def loss(
        self, part: Part, evaluation: Evaluation, old_logp: Tensor, denominator: Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
        """`reinforce_loss`, with a value loss, an entropy bonus and a KL term where asked for."""
        c, mask, advantages = self.config, part.batch.mask, part.advantages
        shared: dict[str, Any] = {"denominator": denominator, "normalize": c.normalize}
        metrics: dict[str, Any] = {}
        extra = torch.zeros((), device=mask.device)
        if evaluation.values is not None and c.baseline == "value":
            errors = value_loss(evaluation.values, advantages, mask, **shared)
            extra, metrics["value_loss"] = c.value_weight * errors, errors.detach()
            advantages = advantages - evaluation.values.detach()
        if c.entropy and evaluation.entropy is not None:
            extra = extra - c.entropy * aggregate(evaluation.entropy, mask, **shared)
        if evaluation.kl is not None:
            extra = extra + self.beta * aggregate(evaluation.kl, mask, **shared)
        loss = reinforce_loss(evaluation.logp, advantages, mask, **shared) + extra
        return loss, metrics | {"loss": loss.detach()}

    def denominator(self, batch: Batch) -> Tensor:
        """Rows (episodes), or actions when normalised over these."""
        if self.mdp is None and self.config.normalize != "actions":  # every step of play is a row of its own
            return torch.tensor(self.config.num_envs)
        return batch.mask.sum() if self.config.normalize == "actions" else batch.mask.any(1).sum()

    def _play(self, env: Any) -> Play:
        return Play(env, self.config.num_envs, n_steps=1, whole_episodes=True)

    def _needs_values(self) -> Any:
        return "shared" if self.config.baseline == "value" else False


def mean_of_others(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the other rows that have an action at the same step, [B, N]; 0 where there is none, or no action."""
    x = x.masked_fill(~mask, 0.0)
    others = mask.sum(0) - 1
    return ((x.sum(0) - x) / others.clamp(min=1)).masked_fill(~mask | (others < 1), 0.0)
