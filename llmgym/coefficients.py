"""Gradient coefficients: what each loss multiplies ∇ log π by, token by token."""

from collections.abc import Callable
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor

from llmgym.kl import MAX_LOG_RATIO, KLKind, kl_estimate
from llmgym.losses import trust_region
from llmgym.masked import zero_masked
from llmgym.preference_losses import PreferenceKind, check_pairs, check_preference, log_ratio_difference


@overload
def gradient_coefficients(loss: Literal["sft"], logp: Tensor, mask: Tensor) -> Tensor: ...


@overload
def gradient_coefficients(loss: Literal["reinforce"], logp: Tensor, advantages: Tensor, mask: Tensor) -> Tensor: ...


@overload
def gradient_coefficients(
    loss: Literal["ppo"],
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float,
    clip_high: float | None = None,
    n_tokens: Tensor | None = None,
) -> Tensor: ...


@overload
def gradient_coefficients(
    loss: Literal["grpo"],
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float,
    clip_high: float | None = None,
    ref_logp: Tensor | None = None,
    kind: KLKind = "k3",
    beta: float = 0.0,
    n_tokens: Tensor | None = None,
) -> Tensor: ...


@overload
def gradient_coefficients(
    loss: Literal["kl"], logp: Tensor, ref_logp: Tensor, kind: KLKind, mask: Tensor | None = None
) -> Tensor: ...


@overload
def gradient_coefficients(
    loss: Literal["dpo"],
    chosen_logp: Tensor,
    rejected_logp: Tensor,
    ref_chosen_logp: Tensor | None,
    ref_rejected_logp: Tensor | None,
    *,
    beta: float,
    kind: PreferenceKind = "sigmoid",
    label_smoothing: float = 0.0,
    margin: float = 0.0,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...


@overload
def gradient_coefficients(
    loss: Literal["bradley_terry"], chosen: Tensor, rejected: Tensor
) -> tuple[Tensor, Tensor]: ...


def gradient_coefficients(loss: str, *tensors: Any, **settings: Any) -> Any:
    """GC(q, o, t) of ∇J = E[ GC(q, o, t) ∇ log π(o_t) ], for these data. Shao et al. 2024, sec. 5.2.1 and app. A.1.

    All losses have a gradient of this form and differ in GC. J is maximised, so d loss / d logp = -GC · w exactly,
    where w is the weight of the action in the mean over the batch, which `normalize` and `denominator` decide (see
    `aggregate`; 1 / number of pairs on pairs). `tests/test_coefficients.py` proves it by autograd.

    With r = π/π_old, h and z as in `dpo_loss`, GC is

    - "sft": 1. On sampled texts that a rule accepted this is rejection-sampling fine-tuning (RFT).
    - "reinforce": A.
    - "ppo": r A, so A at ratio 1; 0 where the clip acts, which is where A > 0 and r > 1 + ε, or A < 0 and r < 1 - ε.
      With n_tokens r is the length-normalised ratio, and GC is r A / n_tokens.
    - "kl": of -KL, as a term of the objective. -1 for k1, -log π/π_ref for k2, π_ref/π - 1 for k3.
    - "grpo": that of "ppo" plus β times that of "kl": at ratio 1 with k3, Â + β (π_ref/π - 1).
    - "dpo": β (σ(-z) - ε) for the chosen, minus that for the rejected, ε the label smoothing. With lengths each is
      divided by its own.
    - "dpo" with kind="ipo": 1/β - 2 h for the chosen, minus that for the rejected; lengths as before.
    - "bradley_terry": σ(r_rejected - r_chosen) for the chosen, minus that for the rejected; with ∇r for ∇ log π.

    The paper's GC of DPO is σ(-z): the factor β is left out there, and 1/length stands outside, in a mean over tokens.

    Args:
      loss: one of the names above.
      *tensors: those of the loss of that name, in its order: [B, N], on pairs [B]; of `kl_estimate` for "kl".
      **settings: those of the loss of that name that are not `normalize` or `denominator`. "grpo" makes its KL
        itself, from ref_logp and kind ("k1", "k2", "k3"), so its actions are single tokens. Where they are blocks,
        each token has the GC of "ppo" of its action, plus β times its own GC of "kl".

    Returns:
      [B, N], 0 where `mask` is False and without gradient; on pairs two of [B], for the chosen and the rejected, each
      the same for all tokens of its completion.

    Raises:
      ValueError: an unknown name, and what the loss raises.
      TypeError: an argument that the loss of that name does not have.
    """
    if loss not in _COEFFICIENTS:
        raise ValueError(f"loss must be one of {tuple(_COEFFICIENTS)}, got {loss!r}")
    with torch.no_grad():
        return _COEFFICIENTS[loss](*tensors, **settings)


def _sft(logp: Tensor, mask: Tensor) -> Tensor:
    return zero_masked(mask, logp=torch.ones_like(logp))[0]


def _reinforce(logp: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return zero_masked(mask, logp=logp, advantages=advantages)[1]


def _ppo(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float,
    clip_high: float | None = None,
    n_tokens: Tensor | None = None,
) -> Tensor:
    logp, old_logp, advantages = zero_masked(mask, logp=logp, old_logp=old_logp, advantages=advantages)
    n = 1 if n_tokens is None else zero_masked(mask, n_tokens=n_tokens)[0].clamp(min=1)
    log_ratio = (logp - old_logp) / n
    low, high = trust_region(advantages, clip, clip_high)
    inside = (low <= log_ratio) & (log_ratio <= high)
    return torch.where(inside, log_ratio.exp() * advantages / n, 0.0)


def _kl(logp: Tensor, ref_logp: Tensor, kind: KLKind, mask: Tensor | None = None) -> Tensor:
    log_ratio = kl_estimate(logp, ref_logp, "k1", mask)
    if kind == "k1":
        ones = torch.ones_like(log_ratio)
        return -ones if mask is None else -zero_masked(mask, ones=ones)[0]
    if kind == "k2":
        return -log_ratio
    if kind == "k3":  # beyond the clamp of `kl_estimate` the estimate is constant
        return torch.where(-log_ratio <= MAX_LOG_RATIO, torch.expm1(-log_ratio), 0.0)
    raise ValueError(f"kind must be one of {get_args(KLKind)}, got {kind!r}")


def _grpo(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float,
    clip_high: float | None = None,
    ref_logp: Tensor | None = None,
    kind: KLKind = "k3",
    beta: float = 0.0,
    n_tokens: Tensor | None = None,
) -> Tensor:
    policy = _ppo(logp, old_logp, advantages, mask, clip=clip, clip_high=clip_high, n_tokens=n_tokens)
    if not beta >= 0 or (beta > 0 and ref_logp is None):
        raise ValueError(f"beta must be 0, or > 0 with ref_logp given, got beta={beta}")
    return policy if ref_logp is None else policy + beta * _kl(logp, ref_logp, kind, mask)


def _dpo(
    chosen_logp: Tensor,
    rejected_logp: Tensor,
    ref_chosen_logp: Tensor | None,
    ref_rejected_logp: Tensor | None,
    *,
    beta: float,
    kind: PreferenceKind = "sigmoid",
    label_smoothing: float = 0.0,
    margin: float = 0.0,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    check_preference(beta, kind, label_smoothing, margin)
    h = log_ratio_difference(
        chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp, chosen_lengths, rejected_lengths
    )
    slope = 1 / beta - 2 * h if kind == "ipo" else beta * (torch.sigmoid(margin - beta * h) - label_smoothing)
    if chosen_lengths is None or rejected_lengths is None:
        return slope, -slope
    return slope / chosen_lengths.clamp(min=1), -slope / rejected_lengths.clamp(min=1)


def _bradley_terry(chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
    chosen, rejected = check_pairs(chosen=chosen, rejected=rejected)
    slope = torch.sigmoid(rejected - chosen)
    return slope, -slope


_COEFFICIENTS: dict[str, Callable[..., Any]] = {
    "sft": _sft,
    "reinforce": _reinforce,
    "ppo": _ppo,
    "kl": _kl,
    "grpo": _grpo,
    "dpo": _dpo,
    "bradley_terry": _bradley_terry,
}
