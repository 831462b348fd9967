"""What a network that guides a search learns from it. Silver et al. 2018; Danihelka et al. 2022, section 4."""

from __future__ import annotations

import torch
from torch import Tensor


def policy_loss(
    outputs: Tensor, targets: Tensor, masks: Tensor, *, denominator: Tensor | float | None = None
) -> Tensor:
    """mean -Σ_a π(a) log p(a), nats: the cross-entropy of the search's policy π and the network's p; [n, K] -> [].

    Args:
        outputs: p = softmax(outputs) over what the mask allows, [n, K].
        targets: π, [n, K].
        masks: legal actions, bool [n, K].
        denominator: rows of the whole batch, when these are some of them.
    """
    logp = outputs.masked_fill(~masks, -torch.inf).log_softmax(-1).masked_fill(~masks, 0.0)
    return -(targets * logp).sum() / (len(outputs) if denominator is None else denominator)


def candidate_loss(logp: Tensor, targets: Tensor, *, denominator: Tensor | float) -> Tensor:
    """mean -Σ_a π(a) log p(a), nats, over candidates that are some of all actions; any shape -> [].

    Args:
        logp: of each candidate among all actions, nats.
        targets: π of each, 0 for every other action.
        denominator: states that the candidates belong to.
    """
    return -(targets * logp).sum() / denominator


def return_loss(values: Tensor, returns: Tensor, *, denominator: Tensor | float | None = None) -> Tensor:
    """mean (V(s) - G)²; [n] -> []."""
    return (values - returns).square().sum() / (len(values) if denominator is None else denominator)
