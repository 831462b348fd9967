"""Losses as pure functions: a batch `[B, N]` of actions and a mask go in, one number comes out.

An action is a token, a block of tokens or a whole sequence: the environment decides, and no loss asks which.

- `mask` is True where an action counts. Whatever stands elsewhere, NaN and inf included, changes neither the
  loss nor a gradient; a batch in which nothing counts has loss 0 and gradient 0.
- Logs are natural, log-probs are in nats. All is computed in float32, or in float64 if that is given.
- `old_logp`, `ref_logp`, `advantages` and `targets` are data: no gradient flows into them.
- `normalize` and `denominator` are explained once, at `aggregate`.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Normalize = Literal["rows", "actions", "constant"]
KLKind = Literal["k1", "k2", "k3"]

Denominator = float | Tensor | None

MAX_LOG_RATIO = 20.0  # nats; exp(20) is 5e8, far outside any trust region and far inside float32


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
    return [torch.where(mask.bool(), x.to(wider(x)), 0.0) for x in tensors.values()]


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
    """
    if normalize not in get_args(Normalize):
        raise ValueError(f"normalize must be one of {get_args(Normalize)}, got {normalize!r}")
    if normalize == "constant" and denominator is None:
        raise ValueError("normalize='constant' needs a denominator, got None")
    if mask.ndim != 2:
        raise ValueError(f"mask must be [B, N], got shape {tuple(mask.shape)}")
    mask = mask.bool()
    rows = masked_mean(per_action, mask, -1) if normalize == "rows" else masked_sum(per_action, mask, -1)
    if not mask.any():  # nothing counts: 0 with zero gradient, and a count of 0 is no mistake
        return rows.sum()
    if denominator is None:
        denominator = mask.any(-1).sum() if normalize == "rows" else mask.sum()
    if denominator <= 0:
        raise ValueError(f"denominator must be > 0, got {denominator}")
    return rows.sum() / denominator


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
    return aggregate(-logp * advantages, mask, denominator, normalize)


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
    surrogate = _clipped_surrogate(logp, old_logp, advantages, mask, clip, clip_high, n_tokens)
    return aggregate(-surrogate, mask, denominator, normalize)


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
    per_action = -_clipped_surrogate(logp, old_logp, advantages, mask, clip, clip_high, n_tokens)
    if beta < 0 or (beta > 0 and kl is None):
        raise ValueError(f"beta must be 0, or > 0 with kl given, got beta={beta}")
    if kl is not None and beta > 0:
        per_action = per_action + beta * zero_masked(mask, kl=kl)[0]
    return aggregate(per_action, mask, denominator, normalize)


def _clipped_surrogate(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float,
    clip_high: float | None,
    n_tokens: Tensor | None,
) -> Tensor:
    """min(r A, clip(r, 1 - clip, 1 + clip_high) A), [B, N], to be maximised."""
    for name, epsilon in (("clip", clip), ("clip_high", clip_high)):
        if epsilon is not None and not epsilon > 0:
            raise ValueError(f"{name} must be > 0, got {epsilon}")
    logp, old_logp, advantages = zero_masked(
        mask, logp=logp, old_logp=old_logp.detach(), advantages=advantages.detach()
    )
    log_ratio = logp - old_logp
    if n_tokens is not None:  # an action of no token has ratio 1, and so have the masked places
        log_ratio = log_ratio / zero_masked(mask, n_tokens=n_tokens)[0].clamp(min=1)
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    clipped = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    return torch.minimum(ratio * advantages, clipped * advantages)


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
    return aggregate(error, mask, denominator, normalize)


def dpo_loss(
    chosen_logp: Tensor,
    rejected_logp: Tensor,
    ref_chosen_logp: Tensor,
    ref_rejected_logp: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    denominator: Denominator = None,
) -> Tensor:
    """-mean log σ(z), z = β log π(y_w)/π_ref(y_w) - β log π(y_l)/π_ref(y_l). Rafailov et al. 2023, eq. 7.

    log 2 when policy and reference agree. d loss / d chosen_logp = -β σ(-z) / B, the opposite for rejected.

    Args:
      chosen_logp, rejected_logp: [B] log π(y|x) of the whole completion, nats.
      ref_chosen_logp, ref_rejected_logp: [B] the same under the frozen reference.
      beta: inverse temperature of the implied reward, > 0.
      label_smoothing: ε in [0, ½), the chance that a label is flipped: -(1-ε) log σ(z) - ε log σ(-z)
        (cDPO, Mitchell 2023).
      chosen_lengths, rejected_lengths: [B] tokens; when given, each log-ratio is divided by its length
        (Lambert et al. 2024).
      denominator: number of pairs of the whole batch; None: of this one.
    """
    if not beta > 0:
        raise ValueError(f"beta must be > 0, got {beta}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), got {label_smoothing}")
    if (chosen_lengths is None) != (rejected_lengths is None):
        raise ValueError("chosen_lengths and rejected_lengths must be given together, got one of them")
    chosen, rejected, ref_chosen, ref_rejected = _pairs(
        chosen_logp=chosen_logp,
        rejected_logp=rejected_logp,
        ref_chosen_logp=ref_chosen_logp.detach(),
        ref_rejected_logp=ref_rejected_logp.detach(),
    )
    chosen, rejected = chosen - ref_chosen, rejected - ref_rejected
    if chosen_lengths is not None and rejected_lengths is not None:
        chosen, rejected, chosen_lengths, rejected_lengths = _pairs(
            chosen=chosen, rejected=rejected, chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths
        )
        chosen, rejected = chosen / chosen_lengths, rejected / rejected_lengths
    z = beta * (chosen - rejected)
    loss = -(1 - label_smoothing) * F.logsigmoid(z) - label_smoothing * F.logsigmoid(-z)
    return _mean_over_pairs(loss, denominator)


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, *, denominator: Denominator = None) -> Tensor:
    """-mean log σ(r_chosen - r_rejected). Bradley & Terry 1952; Ouyang et al. 2022, eq. 1.

    Args:
      chosen, rejected: [B] scores of a reward model; only their difference matters.
      denominator: number of pairs of the whole batch; None: of this one.
    """
    chosen, rejected = _pairs(chosen=chosen, rejected=rejected)
    return _mean_over_pairs(-F.logsigmoid(chosen - rejected), denominator)


def _pairs(**tensors: Tensor) -> list[Tensor]:
    name, first = next(iter(tensors.items()))
    if first.ndim != 1:
        raise ValueError(f"{name} must be [B], one number a pair, got shape {tuple(first.shape)}")
    return zero_masked(torch.ones_like(first, dtype=torch.bool), **tensors)


def _mean_over_pairs(loss: Tensor, denominator: Denominator) -> Tensor:
    loss = loss[:, None]  # a pair is a row of one action
    return aggregate(loss, torch.ones_like(loss, dtype=torch.bool), denominator)


def kl_estimate(logp: Tensor, ref_logp: Tensor, kind: KLKind, mask: Tensor | None = None) -> Tensor:
    """Estimate of KL(π, π_ref) from a token sampled from π. Schulman 2020, "Approximating KL Divergence".

    | kind | formula                   | value              | expected gradient on-policy, as a loss term |
    |------|---------------------------|--------------------|---------------------------------------------|
    | k1   | log π/π_ref               | unbiased, any sign | 0                                           |
    | k2   | ½ (log π/π_ref)²          | biased, ≥ 0        | ∇KL(π, π_ref)                               |
    | k3   | π_ref/π - 1 - log π_ref/π | unbiased, ≥ 0      | ∇KL(π_ref, π)                               |

    (arXiv 2512.21852.) These are gradients at the visited states, the chance of visiting them held fixed. k1
    steers only as part of the *reward*: subtracted there, without gradient, it gives -∇KL(π, π_ref) of the
    whole sequence. Form the estimate per token, then sum: k3 of a sum is not the sum of k3.

    Args:
      logp: [...] log π of each sampled token, nats.
      ref_logp: [...] log π_ref of the same tokens, nats.
      kind: "k1", "k2" or "k3".
      mask: [...] True where a token counts; the estimate is 0 elsewhere. None: everywhere.
    """
    if kind not in get_args(KLKind):
        raise ValueError(f"kind must be one of {get_args(KLKind)}, got {kind!r}")
    mask = torch.ones_like(logp, dtype=torch.bool) if mask is None else mask
    logp, ref_logp = zero_masked(mask, logp=logp, ref_logp=ref_logp.detach())
    log_ratio = logp - ref_logp
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return 0.5 * log_ratio.square()
    # Only the upper end is clamped: at the lower one exp is harmless, k3 is exact and keeps its gradient.
    # expm1, because exp(x) - 1 - x is all rounding error, of either sign, for small x.
    ref_log_ratio = (-log_ratio).clamp(max=MAX_LOG_RATIO)
    return torch.expm1(ref_log_ratio) - ref_log_ratio


def exact_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """KL(π, π_ref) = Σ_v π(v) log π(v)/π_ref(v) over the vocabulary, [..., V] -> [...], nats.

    Args:
      logits: [..., V] of π, normalised or not (log-probs are logits too); -inf marks a forbidden token.
      ref_logits: [..., V] of π_ref. Swap the arguments for KL(π_ref, π): gradients flow into both.
    """
    if logits.shape != ref_logits.shape:
        raise ValueError(f"ref_logits must have shape {tuple(logits.shape)}, got {tuple(ref_logits.shape)}")
    logp, ref_logp = (F.log_softmax(x, -1, dtype=wider(x)) for x in (logits, ref_logits))
    allowed = logp > -torch.inf  # 0 log 0 = 0, and its gradient is 0, not NaN
    log_ratio = torch.where(allowed, logp, 0.0) - torch.where(allowed, ref_logp, 0.0)
    return (logp.exp() * log_ratio).sum(-1)
