"""GRPO: group relative policy optimisation (Shao et al. 2024, "DeepSeekMath", section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from llmgym.agents.base import Agent
from llmgym.agents.config import AgentConfig, check_above_zero
from llmgym.agents.metrics import Metrics, moved
from llmgym.agents.part import Part
from llmgym.batch import Batch, Evaluation
from llmgym.losses import Normalize, aggregate, grpo_loss
from llmgym.returns import Baseline, Scale, group_advantages


@dataclass(frozen=True)
class GRPOConfig(AgentConfig):
    """Settings of GRPO; the variants of the literature are fields, each with its source."""

    clip: float = 0.2  # ε of the ratio clip, Schulman et al. 2017, eq. 7
    clip_high: float | None = None  # upper ε when it differs: "clip-higher" of DAPO, Yu et al. 2025; 0.28 there
    beta: float = 0.04  # weight of the KL to the frozen reference, per token, nats; 0 needs no reference
    kl: Literal["k1", "k2", "k3", "exact"] = "k3"  # that KL: an estimate (Schulman 2020), or over the vocabulary
    kl_in: Literal["reward", "loss"] = "loss"  # the KL as a term of the loss, or as a penalty of each action's reward
    # Mean over a row's actions then rows ("rows", GRPO), over all actions ("actions", DAPO), or divided by the
    # constant rows x most possible actions ("constant", Dr. GRPO, Liu et al. 2025).
    normalize: Normalize = "rows"
    scale: Scale = "std"  # divide advantages by the group's standard deviation; "none" as in Dr. GRPO
    baseline: Baseline = "mean"  # the group's mean; "leave_one_out": mean of the others (RLOO, Ahmadian et al. 2024)
    length_normalized_ratio: bool = False  # ratio to the power 1 / tokens of the action (GSPO, Zheng et al. 2025)
    entropy: float = 0.0  # weight of an entropy bonus (nats of an action), averaged as `normalize` says

    def __post_init__(self):
        super().__post_init__()
        if self.samples < 2:
            raise ValueError(f"samples must be at least 2: a group of one has no advantage, got {self.samples}")
        check_above_zero(self, "clip", "clip_high")


class GRPO(Agent):
    """Advantages from the group, a clipped ratio and a KL term; the action is whatever the environment's action is.

    On TokenMDP this is the GRPO of the paper (token ratios), on SequenceMDP the sequence-level algorithm, on BlockMDP
    the macro-action one.

    Args:
        policy, env, reference, **config: as `Agent`; fields of `GRPOConfig`.
    """

    config_class: ClassVar[type[AgentConfig]] = GRPOConfig
    config: GRPOConfig

    def advantages(self, batch: Batch, metrics: Metrics) -> Tensor:
        """The row's group advantage at each of its actions, [B, N]."""
        c = self.config
        row = group_advantages(batch.returns, batch.groups, normalize=c.scale, baseline=c.baseline)
        equal = _equal_groups(batch)
        metrics["equal_groups"] = equal
        if equal == 1.0:
            self.warn_once("all rewards of every group are equal: the policy-gradient term of this batch is zero")
        return row[:, None].expand(batch.mask.shape)

    def loss(
        self, part: Part, evaluation: Evaluation, old_logp: Tensor, denominator: Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
        """`grpo_loss`, with the entropy bonus if there is one."""
        c, mask = self.config, part.batch.mask
        n_tokens = part.batch.n_tokens if c.length_normalized_ratio else None
        loss = grpo_loss(
            evaluation.logp,
            old_logp,
            part.advantages,
            mask,
            clip=c.clip,
            clip_high=c.clip_high,
            kl=evaluation.kl,
            beta=self.beta if evaluation.kl is not None else 0.0,
            denominator=denominator,
            normalize=c.normalize,
            n_tokens=n_tokens,
        )
        if c.entropy and evaluation.entropy is not None:
            loss = loss - c.entropy * aggregate(evaluation.entropy, mask, denominator, c.normalize)
        return loss, {"loss": loss.detach()} | moved(evaluation.logp, old_logp, mask, c.clip, c.clip_high, n_tokens)


def _equal_groups(batch: Batch) -> float:
    """Share of groups whose rows all have the same return."""
    returns, groups = batch.returns, batch.groups
    ids = groups.unique()
    equal = torch.stack([returns[groups == g].max() == returns[groups == g].min() for g in ids])
    return float(equal.float().mean())
