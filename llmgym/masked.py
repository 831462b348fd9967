"""Masked sums and means: the places where `[B, N]` becomes `[]`, and what a mask does to garbage."""

from typing import Literal, get_args

import torch
from torch import Tensor

Normalize = Literal["rows", "actions", "constant"]
Denominator = float | Tensor | None

_NORMALIZE = get_args(Normalize)


def wider(x: Tensor) -> torch.dtype:
    """The type to compute in: float64 stays, everything narrower becomes float32."""
    return torch.promote_types(x.dtype, torch.float32)


def zero_masked(mask: Tensor, **tensors: Tensor) -> list[Tensor]:
    """Each tensor in float32 or wider, 0 where `mask` is False. All shapes must be equal.

    This comes *before* any arithmetic: `where(mask, exp(x), 0)` still has a NaN gradient where exp overflows.
    """
    for name, x in tensors.items():
        if x.shape != mask.shape:
            raise ValueError(f"{name} must have shape {tuple(mask.shape)}, got {tuple(x.shape)}")
    mask = mask.bool()
    if _hides_nothing(mask):
        return [x.to(wider(x)) for x in tensors.values()]
    return [torch.where(mask, x.to(wider(x)), 0.0) for x in tensors.values()]


def _hides_nothing(mask: Tensor) -> bool:
    """On the CPU this look costs less than the copies it saves; a GPU would have to wait for the answer."""
    return mask.device.type == "cpu" and bool(mask.all())


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of x where `mask` is True, along `dim` or over everything; 0 where there are no such places."""
    return zero_masked(mask, x=x)[0].sum(dim)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of x where `mask` is True, along `dim` or over everything; 0 where there are no such places."""
    return masked_sum(x, mask, dim) / mask.bool().sum(dim).clamp(min=1)


def aggregate(
    per_action: Tensor,
    mask: Tensor,
    denominator: Denominator = None,
    normalize: Normalize = "actions",
) -> Tensor:
    """The one place where `[B, N]` becomes `[]`; also the mean of an entropy bonus or of a logged metric.

    Args:
      per_action: [B, N] what is summed.
      mask: [B, N] True where an action counts.
      denominator: what the sum is divided by; None: the count of *this* batch, named below. Micro-batches
        that are all given the denominator of the *whole* batch add up to its loss exactly.
      normalize:
        "rows": mean over the actions of a row, then over rows (GRPO, Shao et al. 2024, eq. 3). The
          denominator counts rows that have an action. An action of a long row weighs less, which is a bias
          when the policy decides the length.
        "actions": mean over all actions (DAPO, Yu et al. 2025). The denominator counts actions.
        "constant": sum over all actions divided by the denominator, which must be given: rows × maximal
          actions of a row (Dr. GRPO, Liu et al. 2025), or rows, for an unbiased ∇E[return].

    Raises:
      ValueError: unequal shapes, an unknown `normalize`, no denominator for "constant", or one that is not
        above 0 although something counts.
    """
    return aggregate_zeroed(zero_masked(mask, per_action=per_action)[0], mask, denominator, normalize)


def aggregate_zeroed(per_action: Tensor, mask: Tensor, denominator: Denominator, normalize: Normalize) -> Tensor:
    """`aggregate` of numbers that are 0 already where `mask` is False, as all that `zero_masked` numbers make."""
    if normalize not in _NORMALIZE:
        raise ValueError(f"normalize must be one of {_NORMALIZE}, got {normalize!r}")
    if normalize == "constant" and denominator is None:
        raise ValueError("normalize='constant' needs a denominator, got None")
    if mask.ndim != 2:
        raise ValueError(f"mask must be [B, N], got shape {tuple(mask.shape)}")
    mask = mask.bool()
    if normalize == "rows":
        per_action = per_action.sum(-1) / mask.sum(-1).clamp(min=1)
    total = per_action.sum()
    if denominator is None:
        return total / (mask.any(-1) if normalize == "rows" else mask).sum().clamp(min=1)
    if denominator > 0:
        return total / denominator
    if mask.any():
        raise ValueError(f"denominator must be > 0, got {denominator}")
    return total  # nothing counts: 0 with zero gradient, and a count of 0 is no mistake
