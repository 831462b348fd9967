"""The frozen policy that a KL is taken to."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from llmgym.batch import Scored, TextBatch, by_length, sum_by_action
from llmgym.lora import adapters_off, is_lora
from llmgym.losses import kl_estimate
from llmgym.policy import LMPolicy


class AdaptersOff:
    """A policy with its LoRA adapters switched off: the reference at no cost in memory."""

    def __init__(self, policy: LMPolicy):
        self.policy = policy

    def token_logp(self, batch: TextBatch, rows_at_once: int = 0) -> Tensor:
        """As `LMPolicy.token_logp`, of the base model."""
        with adapters_off(self.policy.model):
            return self.policy.token_logp(batch, rows_at_once)

    def distributions(self, batch: TextBatch) -> Tensor:
        """As `LMPolicy.distributions`, of the base model."""
        with adapters_off(self.policy.model):
            return self.policy.distributions(batch)


Reference = LMPolicy | AdaptersOff


def make_reference(policy: LMPolicy, model: Any = None) -> Reference:
    """A frozen reference for `policy`, at its temperature.

    Args:
        policy: the policy as it is now.
        model: another model; None takes the policy's own: its base where it has LoRA adapters, else a copy.
    """
    if isinstance(model, LMPolicy | AdaptersOff):
        return model
    if model is None and is_lora(policy.model):
        return AdaptersOff(policy)
    dtype = str(policy.dtype).removeprefix("torch.")
    frozen = LMPolicy(
        copy.deepcopy(policy.model) if model is None else model,
        policy.mdp,
        temperature=policy.temperature,
        device=str(policy.device),
        dtype=dtype,
    )
    frozen.model.requires_grad_(False)
    frozen.counters = policy.counters  # the reference's passes are part of what the agent spends
    return frozen


@torch.no_grad()
def kl_of_actions(
    policy: LMPolicy, reference: Reference, batch: TextBatch, kind: str, scored: Scored, rows_at_once: int = 0
) -> Tensor:
    """The KL of each action as a penalty, formed per token and then summed; without gradient, nats [B, N]."""
    if kind != "exact":
        assert scored.token_logp is not None
        ref_logp = reference.token_logp(batch, rows_at_once)
        index = batch.action_index.to(ref_logp.device)
        per_token = kl_estimate(scored.token_logp, ref_logp, kind=kind, mask=index >= 0)  # type: ignore[arg-type]
        return sum_by_action(per_token, index, batch.mask.shape[1])
    out = torch.zeros(batch.mask.shape, dtype=scored.logp.dtype, device=policy.device)
    for rows in by_length(batch.lengths, torch.arange(len(batch)), rows_at_once):
        part = batch.select(rows)
        kl = policy.evaluate(part, reference=reference, kl="exact", entropy=False).kl
        assert kl is not None
        out[rows, : kl.shape[1]] = kl.to(out)
    return out
