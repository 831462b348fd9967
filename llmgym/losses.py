"""Losses as pure functions: a batch `[B, N]` of actions and a mask go in, one number comes out.

An action is a token, a block of tokens or a whole sequence: the environment decides, and no loss asks which.

- `mask` is True where an action counts. Whatever stands elsewhere, NaN and inf included, changes neither the
  loss nor a gradient; a batch in which nothing counts has loss 0 and gradient 0.
- Logs are natural, log-probs are in nats. All is computed in float32, or in float64 if that is given.
- `old_logp`, `ref_logp`, `advantages` and `targets` are data: no gradient flows into them.
- `normalize` and `denominator` are explained once, at `aggregate`.

Losses on pairs are in `preference_losses`, the KL in `kl`, masked means in `masked`; all are names of this module too.
"""

import math

import torch
from torch import Tensor

from llmgym.kl import MAX_LOG_RATIO, KLKind, adapt_beta, exact_kl, kl_estimate
from llmgym.masked import (
    Denominator,
    Normalize,
    aggregate,
    aggregate_zeroed,
    masked_mean,
    masked_sum,
    wider,
    zero_masked,
)
from llmgym.preference_losses import PreferenceKind, bradley_terry_loss, dpo_loss

__all__ = [
    "MAX_LOG_RATIO",
    "Denominator",
    "KLKind",
    "Normalize",
    "PreferenceKind",
    "adapt_beta",
    "aggregate",
    "bradley_terry_loss",
    "dpo_loss",
    "exact_kl",
    "grpo_loss",
    "kl_estimate",
    "masked_mean",
    "masked_sum",
    "ppo_loss",
    "reinforce_loss",
    "sft_loss",
    "value_loss",
    "wider",
    "zero_masked",
]


def sft_loss(
    logp: Tensor, mask: Tensor, *, denominator: Denominator = None, normalize: Normalize = "actions"
) -> Tensor:
    """-mean log π(a|s), the cross-entropy of given texts: teacher forcing, and REINFORCE with A = 1.

    On texts that the policy sampled and a rule accepted it is rejection-sampling fine-tuning (RFT, Yuan et al. 2023).

    Args:
      logp: [B, N] log π(a|s) of the given actions, nats.
      mask: [B, N] True where an action is to be learnt: the completion, not the prompt.
      denominator, normalize: see `aggregate`. "actions" is the mean over all tokens of the batch.
    """
    (logp,) = zero_masked(mask, logp=logp)
    return aggregate_zeroed(-logp, mask, denominator, normalize)


def reinforce_loss(
    logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    denominator: Denominator = None,
    normalize: Normalize = "actions",
) -> Tensor:
    """-mean log π(a|s) A. Williams 1992; Sutton & Barto 2018, eq. 13.8 (A = G), eq. 13.11 (A = G - baseline).

    Args:
      logp: [B, N] log π(a|s), nats.
      advantages: [B, N] return, or return minus baseline, in units of reward.
      mask: [B, N] True where an action counts.
      denominator, normalize: see `aggregate`.
    """
    logp, advantages = zero_masked(mask, logp=logp, advantages=advantages.detach())
    return aggregate_zeroed(logp * -advantages, mask, denominator, normalize)


def ppo_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float,
    clip_high: float | None = None,
    denominator: Denominator = None,
    normalize: Normalize = "actions",
    n_tokens: Tensor | None = None,
) -> Tensor:
    """-mean min(r A, clip(r, 1-ε, 1+ε) A), r = π(a|s)/π_old(a|s). Schulman et al. 2017, eq. 7.

    At logp == old_logp the gradient is REINFORCE's. Beyond |log r| = 20 the ratio is constant.

    Args:
      logp: [B, N] log π(a|s), nats.
      old_logp: [B, N] log π_old(a|s) of the policy that sampled, nats.
      advantages: [B, N] in units of reward, or standardised.
      mask: [B, N] True where an action counts.
      clip: ε > 0, a change of the ratio (no unit).
      clip_high: ε above 1, when it differs from the one below ("clip-higher", Yu et al. 2025).
      denominator, normalize: see `aggregate`.
      n_tokens: [B, N] tokens of each action; when given, log r is divided by it (GSPO, Zheng et al. 2025,
        eq. 7).
    """
    per_action = _clipped(logp, old_logp, advantages, mask, clip, clip_high, n_tokens)
    return aggregate_zeroed(per_action, mask, denominator, normalize)


def grpo_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float,
    clip_high: float | None = None,
    kl: Tensor | None = None,
    beta: float = 0.0,
    denominator: Denominator = None,
    normalize: Normalize = "rows",
    n_tokens: Tensor | None = None,
) -> Tensor:
    """-mean over rows of mean over actions of [min(r Â, clip(r, 1-ε, 1+ε) Â) - β KL].

    Shao et al. 2024, eq. 3. With the k3 estimate and tokens as actions, the gradient at ratio 1 is
    d loss / d logp = -(Â + β(π_ref/π - 1)) times the weight of the action (eq. 21).

    Args:
      logp, old_logp, mask, clip, clip_high, denominator, normalize, n_tokens: as in `ppo_loss`.
      advantages: [B, N] the group advantage of the row, repeated over its actions.
      kl: [B, N] `kl_estimate(...)` summed over the tokens of each action, nats; needed when beta is not 0.
      beta: weight of the KL penalty, reward per nat.
    """
    per_action = _clipped(logp, old_logp, advantages, mask, clip, clip_high, n_tokens)
    if not beta >= 0 or (beta > 0 and kl is None):
        raise ValueError(f"beta must be 0, or > 0 with kl given, got beta={beta}")
    if kl is not None and beta > 0:
        per_action = per_action + beta * zero_masked(mask, kl=kl)[0]
    return aggregate_zeroed(per_action, mask, denominator, normalize)


def _clipped(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float,
    clip_high: float | None,
    n_tokens: Tensor | None,
) -> Tensor:
    """-min(r A, clip(r, 1 - clip, 1 + clip_high) A), [B, N], to be minimised; 0 where `mask` is False."""
    logp, old_logp, advantages = zero_masked(
        mask, logp=logp, old_logp=old_logp.detach(), advantages=advantages.detach()
    )
    log_ratio = logp - old_logp
    if n_tokens is not None:  # an action of no token has ratio 1, and so have the masked places
        log_ratio = log_ratio / zero_masked(mask, n_tokens=n_tokens)[0].clamp(min=1)
    return log_ratio.clamp(*trust_region(advantages, clip, clip_high)).exp() * -advantages


def trust_region(advantages: Tensor, clip: float, clip_high: float | None = None) -> tuple[Tensor, Tensor]:
    """The least and the greatest log r where min(r A, clip(r, 1-ε, 1+ε) A) is r A; beyond it is constant. [B, N] each.

    Where A > 0 the minimum has an upper end only, where A < 0 a lower one; ±`MAX_LOG_RATIO` stands for none.
    """
    clip_high = clip if clip_high is None else clip_high
    for name, epsilon in (("clip", clip), ("clip_high", clip_high)):
        if not epsilon > 0:
            raise ValueError(f"{name} must be > 0, got {epsilon}")
    least = max(math.log1p(-clip), -MAX_LOG_RATIO) if clip < 1 else -MAX_LOG_RATIO
    low = torch.full_like(advantages, -MAX_LOG_RATIO).masked_fill_(advantages < 0, least)
    high = torch.full_like(advantages, MAX_LOG_RATIO).masked_fill_(advantages > 0, math.log1p(clip_high))
    return low, high


def value_loss(
    values: Tensor,
    targets: Tensor,
    mask: Tensor,
    *,
    old_values: Tensor | None = None,
    clip: float | None = None,
    denominator: Denominator = None,
    normalize: Normalize = "actions",
) -> Tensor:
    """mean (V(s) - V_target)²; with clip: mean max of that and (V_old + clip(V - V_old, ±ε) - V_target)².

    Schulman et al. 2017, eq. 9 (no factor ½); the clipped form is in the authors' code, not in the paper.

    Args:
      values: [B, N] V(s) before each action, in units of reward.
      targets: [B, N] the returns to fit.
      mask: [B, N] True where an action counts.
      old_values: [B, N] V(s) at sampling time; goes with clip.
      clip: ε > 0 in units of *reward*, so it depends on the reward's scale; None: no clipping.
      denominator, normalize: see `aggregate`.
    """
    values, targets = zero_masked(mask, values=values, targets=targets.detach())
    error = (values - targets).square()
    if (clip is None) != (old_values is None) or (clip is not None and not clip > 0):
        raise ValueError(f"clip must be > 0 and come with old_values, got clip={clip}")
    if clip is not None and old_values is not None:
        (old_values,) = zero_masked(mask, old_values=old_values.detach())
        clipped = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (clipped - targets).square())
    return aggregate_zeroed(error, mask, denominator, normalize)
