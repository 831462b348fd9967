"""GRPO: group relative policy optimisation (Shao et al. 2024, "DeepSeekMath", section 4)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from llmgym.agents.base import Agent, Part, warn_once
from llmgym.agents.config import AgentConfig
from llmgym.agents.metrics import Metrics
from llmgym.batch import Batch
from llmgym.losses import MAX_LOG_RATIO, KLKind, Normalize, aggregate, grpo_loss, masked_mean
from llmgym.policy import Evaluation, LMPolicy
from llmgym.returns import Baseline, Scale, group_advantages


@dataclass(frozen=True)
class GRPOConfig(AgentConfig):
    """Settings of GRPO; the variants of the literature are fields, each with its source."""

    clip: float = 0.2  # ε of the ratio clip, Schulman et al. 2017, eq. 7
    clip_high: float | None = None  # upper ε when it differs: "clip-higher" of DAPO, Yu et al. 2025; 0.28 there
    beta: float = 0.04  # weight of the KL to the frozen reference, per token, nats; 0 needs no reference
    kl: KLKind = "k3"  # estimator of that KL: "k1", "k2", "k3" (Schulman 2020)
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
        if not self.beta >= 0:
            raise ValueError(f"beta must be at least 0, got {self.beta}")
        for name in ("clip", "clip_high"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")


class GRPO(Agent):
    """Advantages from the group, a clipped ratio and a KL term; the action is whatever the environment's action is.

    On TokenMDP this is the GRPO of the paper (token ratios), on SequenceMDP the sequence-level algorithm, on BlockMDP
    the macro-action one.

    Args:
        policy, env, **config: as `Agent`; fields of `GRPOConfig`.
        reference: model of the KL term; by default a frozen copy of the policy's model as it is now.
    """

    config_class: ClassVar[type[AgentConfig]] = GRPOConfig
    config: GRPOConfig

    def __init__(self, policy: Any, env: Any, *, reference: Any = None, **config: Any):
        super().__init__(policy, env, **config)
        self.reference = self._frozen(reference) if self.config.beta > 0 else None

    def advantages(self, batch: Batch, metrics: Metrics) -> Tensor:
        """The row's group advantage at each of its actions, [B, N]."""
        c = self.config
        row = group_advantages(batch.returns, batch.groups, normalize=c.scale, baseline=c.baseline)
        equal = _equal_groups(batch)
        metrics["equal_groups"] = equal
        if equal == 1.0:
            warn_once(self, "all rewards of every group are equal: the policy-gradient term of this batch is zero")
        return row[:, None].expand(batch.mask.shape)

    def loss(self, part: Part, evaluation: Evaluation, old_logp: Tensor, denominator: Tensor) -> tuple[Tensor, Metrics]:
        """`grpo_loss`, with the entropy bonus if there is one."""
        c, mask = self.config, part.batch.mask
        loss = grpo_loss(
            evaluation.logp,
            old_logp,
            part.advantages,
            mask,
            clip=c.clip,
            clip_high=c.clip_high,
            kl=evaluation.kl,
            beta=c.beta,
            denominator=denominator,
            normalize=c.normalize,
            n_tokens=part.batch.n_tokens if c.length_normalized_ratio else None,
        )
        if c.entropy and evaluation.entropy is not None:
            loss = loss - c.entropy * aggregate(evaluation.entropy, mask, denominator, c.normalize)
        moved = (evaluation.logp.detach() - old_logp) / (part.batch.n_tokens if c.length_normalized_ratio else 1)
        moved = moved.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).expm1()
        clipped = (moved > (c.clip_high or c.clip)) | (moved < -c.clip)
        return loss, {"loss": float(loss.detach()), "clip_fraction": float(masked_mean(clipped.float(), mask))}

    def denominator(self, batch: Batch) -> Tensor:
        """Rows, actions, or the constant of the chosen normalisation."""
        if self.config.normalize == "actions":
            return batch.mask.sum()
        rows = batch.mask.any(1).sum()
        most = -(-self.mdp.max_new_tokens // self.mdp.block_size)
        return rows * most if self.config.normalize == "constant" else rows

    def reference_logp(self, batch: Batch) -> Tensor | None:
        """Log-probs of the frozen reference at the policy's temperature."""
        if self.reference is None:
            return None
        return self.reference.token_logp(batch, self.config.micro_batch_rows)

    def _frozen(self, reference: Any) -> LMPolicy:
        if reference is not None and getattr(reference, "model", reference) is self.policy.model:
            warn_once(self, "the reference is the policy's own model: its KL would always be 0, a frozen copy is used")
            reference = None
        if isinstance(reference, LMPolicy):
            return reference
        model = copy.deepcopy(self.policy.model) if reference is None else reference
        dtype = str(self.policy.dtype).removeprefix("torch.")
        frozen = LMPolicy(
            model, self.mdp, temperature=self.policy.temperature, device=str(self.policy.device), dtype=dtype
        )
        frozen.model.requires_grad_(False)
        frozen.counters = self.policy.counters  # the reference's passes are part of what the agent spends
        return frozen

    def _save_more(self, folder: Path) -> None:
        if self.reference is not None:
            self.reference.model.save_pretrained(folder / "reference", safe_serialization=True)

    def _load_more(self, folder: Path) -> None:
        if self.reference is not None:
            self.reference = self._frozen(str(folder / "reference"))


def _equal_groups(batch: Batch) -> float:
    """Share of groups whose rows all have the same return."""
    returns, groups = batch.returns, batch.groups
    ids = groups.unique()
    equal = torch.stack([returns[groups == g].max() == returns[groups == g].min() for g in ids])
    return float(equal.float().mean())
