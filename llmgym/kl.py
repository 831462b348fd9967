"""KL(π, π_ref): estimates from sampled tokens, the exact number over the vocabulary, and a controller of its weight.

What the gradient of each is depends on where it stands, in the loss or in the reward: see `kl_estimate`.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from llmgym.masked import wider, zero_masked

KLKind = Literal["k1", "k2", "k3"]

MAX_LOG_RATIO = 20.0  # nats; exp(20) is 5e8, far outside any trust region and far inside float32
MAX_KL_ERROR = 0.2  # share of the target; one update of the weight sees no larger error

_KINDS = get_args(KLKind)


def kl_estimate(logp: Tensor, ref_logp: Tensor, kind: KLKind, mask: Tensor | None = None) -> Tensor:
    """Estimate of KL(π, π_ref) from a token sampled from π. Schulman 2020, "Approximating KL Divergence".

    | kind | formula                   | E[Σ k]         | its gradient in the loss | its gradient in the reward     |
    |------|---------------------------|----------------|--------------------------|--------------------------------|
    | k1   | log π/π_ref               | KL(π, π_ref)   | 0                        | ∇KL(π, π_ref)                  |
    | k2   | ½ (log π/π_ref)² ≥ 0      | no divergence  | ∇ₛKL(π, π_ref)           | ∇E[Σ k2] - ∇ₛKL(π, π_ref)      |
    | k3   | π_ref/π - 1 - log π_ref/π | KL(π, π_ref)   | ∇ₛKL(π_ref, π)           | ∇KL(π, π_ref) - ∇ₛKL(π_ref, π) |
    |      | `exact_kl` of the state   | KL(π, π_ref)   | ∇ₛKL(π, π_ref)           | ∇KL(π, π_ref) - ∇ₛKL(π, π_ref) |

    The expectations are over sequences of tokens sampled from π; KL without an index is that of whole sequences.

    - ∇ₛKL = Σ_s d(s) ∇KL(π(·|s), π_ref(·|s)): the gradient at the states s that π visits, the chance d(s) of
      visiting them held fixed.
    - *In the loss*: Σ_t k_t is differentiated at the sampled tokens, E[Σ_t ∇k_t]. k1 does nothing there.
    - *In the reward*: k_t is taken off the reward of token t without gradient, and the score function gives
      E[Σ_t ∇log π(a_t) Σ_{u≥t} k_u], to be descended. Only k1 is the gradient of KL there; of `exact_kl` the part
      is left that comes from which states are visited.

    So the two places add up to the gradient of E[Σ k] (arXiv 2512.21852; `tests/test_kl.py` proves each by
    enumeration). k3 is ≥ 0, and unbiased if π gives a chance to whatever π_ref does. Form the estimate per token,
    then sum: k3 of a sum is not the sum of k3.

    Args:
      logp: [...] log π of each sampled token, nats.
      ref_logp: [...] log π_ref of the same tokens, nats. No gradient flows into it.
      kind: "k1", "k2" or "k3".
      mask: [...] True where a token counts; the estimate is 0 elsewhere. None: everywhere.

    Raises:
      ValueError: an unknown kind, or unequal shapes.
    """
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {_KINDS}, got {kind!r}")
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

    In the loss, at the visited states, its expected gradient is ∇ₛKL(π, π_ref), that of k2 without k2's noise. In the
    reward, without gradient, it is ∇KL(π, π_ref) - ∇ₛKL(π, π_ref), that of k1 less what it has in the loss. The
    words are those of `kl_estimate`.

    Args:
      logits: [..., V] of π, normalised or not (log-probs are logits too); -inf marks a forbidden token.
      ref_logits: [..., V] of π_ref. Swap the arguments for KL(π_ref, π): gradients flow into both.

    Raises:
      ValueError: unequal shapes.
    """
    if logits.shape != ref_logits.shape:
        raise ValueError(f"ref_logits must have shape {tuple(logits.shape)}, got {tuple(ref_logits.shape)}")
    logp, ref_logp = (F.log_softmax(x, -1, dtype=wider(x)) for x in (logits, ref_logits))
    allowed = logp > -torch.inf  # 0 log 0 = 0, and its gradient is 0, not NaN
    log_ratio = torch.where(allowed, logp, 0.0) - torch.where(allowed, ref_logp, 0.0)
    return (logp.exp() * log_ratio).sum(-1)


def adapt_beta(beta: float, kl: float, target: float, *, horizon: float, n: float) -> float:
    """The next weight of a KL penalty, β (1 + n/horizon · clip(kl/target - 1, ±0.2)). Ziegler et al. 2019, sec. 2.2.

    A proportional controller on log β: too far from the reference makes the penalty dearer, too near cheaper. The
    paper's gain K_β = 0.1 is n/horizon here.

    >>> adapt_beta(0.5, kl=9.0, target=6.0, horizon=10_000, n=1_000)
    0.51

    Args:
      beta: the weight so far, > 0, reward per nat.
      kl: measured KL(π, π_ref) of the last update, nats; of an episode or of a token, as `target` is.
      target: the KL to steer to, > 0, nats.
      horizon: what must be consumed for a change of the weight by a fifth, the most; such as 10,000 episodes.
      n: what the last update consumed, in the unit of horizon and in [0, horizon].

    Raises:
      ValueError: an argument out of range, or a KL that is not finite.
    """
    for name, value in (("beta", beta), ("target", target), ("horizon", horizon)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be above 0 and finite, got {value}")
    if not 0 <= n <= horizon:
        raise ValueError(f"n must be in [0, horizon = {horizon}], got {n}")
    if not abs(kl) < float("inf"):  # k1 averages may be below 0
        raise ValueError(f"kl must be finite, got {kl}")
    error = min(max(kl / target - 1, -MAX_KL_ERROR), MAX_KL_ERROR)
    return beta * (1 + error * n / horizon)
