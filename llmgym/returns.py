"""Returns and advantages: pure functions of rewards, `[B, N]` -> `[B, N]`; nothing here carries a gradient.

A row is an episode, or a fragment that may hold the ends of several. `mask` is True where an action counts; a
place where it is False gets 0 and is skipped, as if the row had been written without it.
"""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from llmgym.masked import wider, zero_masked

Baseline = Literal["mean", "leave_one_out"]
Scale = Literal["std", "none"]


def discounted_returns(
    rewards: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    bootstrap: Tensor | None = None,
    durations: Tensor | None = None,
    terminated: Tensor | None = None,
    truncated: Tensor | None = None,
    final_values: Tensor | None = None,
) -> Tensor:
    """G_t = r_t + γ G_{t+1}. Sutton & Barto 2018, eq. 3.9. It is GAE with λ = 1 and V = 0.

    >>> discounted_returns(torch.tensor([[0.0, 0.0, 1.0]]), torch.ones(1, 3), gamma=0.5)
    tensor([[0.2500, 0.5000, 1.0000]])

    Args: as in `gae`.
    """
    advantages, _ = gae(
        rewards,
        torch.zeros_like(rewards),
        mask,
        gamma=gamma,
        bootstrap=bootstrap,
        durations=durations,
        terminated=terminated,
        truncated=truncated,
        final_values=final_values,
    )
    return advantages


@torch.no_grad()
def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    bootstrap: Tensor | None = None,
    durations: Tensor | None = None,
    terminated: Tensor | None = None,
    truncated: Tensor | None = None,
    final_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages A_t = δ_t + γλ A_{t+1} with δ_t = r_t + γ V_{t+1} - V_t, and returns A_t + V_t.

    Schulman et al. 2016, eq. 16. λ = 1 gives returns minus values, λ = 0 the one-step error δ.

    Args:
      rewards: [B, N] reward of each action.
      values: [B, N] V(s) before each action, in units of reward.
      mask: [B, N] True where an action counts.
      gamma: discount in [-1, 1] (-1: zero-sum play, each next state being the opponent's).
      lam: λ in [0, 1], per action whatever its duration.
      bootstrap: [B] V after the last action of a row that was cut; 0 for one that ended. None: 0 everywhere.
      durations: [B, N] tokens d of each action, to discount by tokens instead of by actions: γ^d in place of
        γ, and γ^(d-1) on the reward, which falls on the last token. So an episode has the same return in
        tokens, in blocks and as one sequence.
      terminated: [B, N] True where the episode ended with this action: the next value is 0.
      truncated: [B, N] True where an outer limit cut the episode after this action: the next value is that of
        final_values.
      final_values: [B, N] V of the last state of an episode, read only where truncated.

    An ended episode passes nothing back across its end. With both flags, termination wins.
    """
    _check_range("gamma", gamma, -1.0)
    _check_range("lam", lam, 0.0)
    if truncated is not None and final_values is None:
        raise ValueError("truncated needs final_values, V of the states where episodes were cut, got None")
    if bootstrap is not None and bootstrap.shape != mask.shape[:1]:
        raise ValueError(f"bootstrap must have shape {tuple(mask.shape[:1])}, got {tuple(bootstrap.shape)}")
    mask = mask.bool()
    rewards, values = zero_masked(mask, rewards=rewards, values=values)
    values = values.to(torch.promote_types(values.dtype, rewards.dtype))
    ended, final_values = _episode_ends(mask, terminated, truncated, final_values)
    next_values = torch.where(ended, final_values, _next_values(values, mask, bootstrap))
    discount = torch.full_like(values, gamma)
    if durations is not None:
        d = zero_masked(mask, durations=durations)[0].to(values).clamp(min=1)
        discount, rewards = gamma**d, gamma ** (d - 1) * rewards
    deltas = torch.where(mask, rewards + discount * next_values - values, 0.0)
    # What of A_{t+1} is in A_t: all of it where there is no action, nothing where an episode ended.
    carried = torch.where(mask, discount * lam * ~ended, 1.0)
    advantages = torch.where(mask, _discounted_sums(deltas, carried), 0.0)
    return advantages, advantages + values


def _next_values(values: Tensor, mask: Tensor, bootstrap: Tensor | None) -> Tensor:
    """V of the next place of the row that counts, [B, N]; `bootstrap` after the last of them."""
    last = torch.zeros_like(values[:, :1]) if bootstrap is None else bootstrap.to(values)[:, None]
    n = mask.shape[1]
    place = torch.arange(n, device=mask.device).masked_fill(~mask, n)
    following = place.flip(-1).cummin(-1).values.flip(-1)  # the first place at or after each that counts
    following = torch.cat([following[:, 1:], torch.full_like(following[:, :1], n)], -1)
    return torch.cat([values, last], -1).gather(-1, following)


def _discounted_sums(x: Tensor, carried: Tensor) -> Tensor:
    """y_t = x_t + c_t y_{t+1}, [B, N].

    In numpy, whose small operations cost a fifth of torch's, over rows of contiguous columns; from a GPU the two copies
    are cheaper than a launch a step.
    """
    y, c = (np.ascontiguousarray(z.cpu().numpy().T) for z in (x, carried))
    for t in reversed(range(len(y) - 1)):
        y[t] += c[t] * y[t + 1]
    return torch.from_numpy(y.T).to(x)


def _episode_ends(
    mask: Tensor, terminated: Tensor | None, truncated: Tensor | None, final_values: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Where an episode ends inside a row, [B, N] bool, and the value of what follows there, [B, N]."""
    none = torch.zeros_like(mask)
    end, cut = zero_masked(
        mask,
        terminated=none if terminated is None else terminated,
        truncated=none if truncated is None else truncated,
    )
    terminated, truncated = end.bool(), cut.bool() & ~end.bool()
    (final_values,) = zero_masked(truncated, final_values=end if final_values is None else final_values)
    return terminated | truncated, final_values


def _check_range(name: str, x: float, low: float) -> None:
    if not low <= x <= 1.0:
        raise ValueError(f"{name} must be in [{low:g}, 1], got {x}")


@torch.no_grad()
def group_advantages(
    returns: Tensor,
    groups: Tensor | None = None,
    *,
    normalize: Scale = "std",
    baseline: Baseline = "mean",
    mask: Tensor | None = None,
) -> Tensor:
    """Â_i = (R_i - mean R) / std R over the completions of one prompt. Shao et al. 2024, sec. 4.1.2.

    The standard deviation is the sample's (ddof = 1), nothing is added to it, and |Â| ≤ (G-1)/√G. A group
    of one row, or one whose returns are equal up to rounding, gets exactly 0.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    tensor([[ 1.1547, -0.5774, -0.5774],
            [ 0.0000,  0.0000,  0.0000]])

    Args:
      returns: [P, G], a row a prompt; or [B] with groups.
      groups: [B] integer, equal for rows of one prompt, in any order; groups may differ in size.
      normalize: "std", or "none": no division (Dr. GRPO, Liu et al. 2025).
      baseline: "mean" of the group, or "leave_one_out": the mean of the others (RLOO, Ahmadian et al. 2024),
        which makes Â G/(G-1) times larger and, with normalize="none", the policy gradient unbiased.
      mask: shape of returns, True where a row counts; a dropped one (its scorer failed) enters no mean and no
        deviation, and gets 0.
    """
    if normalize not in get_args(Scale):
        raise ValueError(f"normalize must be one of {get_args(Scale)}, got {normalize!r}")
    if baseline not in get_args(Baseline):
        raise ValueError(f"baseline must be one of {get_args(Baseline)}, got {baseline!r}")
    mask = torch.ones_like(returns, dtype=torch.bool) if mask is None else mask.bool()
    if groups is not None:
        return _by_index(returns, groups, normalize, baseline, mask)
    if returns.ndim != 2:
        raise ValueError(f"returns must be [P, G], or [B] with groups, got shape {tuple(returns.shape)}")
    centred, n = _centre(returns, mask)
    scale = n / (n - 1).clamp(min=1) if baseline == "leave_one_out" else torch.ones_like(n)
    if normalize == "std":
        std = (centred.square().sum(-1, keepdim=True) / (n - 1).clamp(min=1)).sqrt()
        scale = scale / torch.where(std > 0, std, 1.0)
    return (centred * scale).to(wider(returns))


def _centre(returns: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns minus the mean of their group, [P, G] float64, and the size of each group, [P, 1].

    The smallest return is taken off first, which is exact for nearly equal numbers. The rounded mean of equal
    ones differs from them, and dividing that by its own deviation has made advantages in the thousands.
    """
    (x,) = zero_masked(mask, returns=returns.double())
    if not x.isfinite().all():
        raise ValueError("returns must be finite where mask is True, got NaN or inf")
    n = mask.double().sum(-1, keepdim=True)
    low = torch.where(mask, x, torch.inf).amin(-1, keepdim=True)
    high = torch.where(mask, x, -torch.inf).amax(-1, keepdim=True)
    x = torch.where(mask, x - low, 0.0)
    centred = torch.where(mask, x - x.sum(-1, keepdim=True) / n.clamp(min=1), 0.0)
    rounding = 4 * torch.finfo(wider(returns)).eps * torch.maximum(low.abs(), high.abs())
    return torch.where(high - low > rounding, centred, 0.0), n


def _by_index(returns: Tensor, groups: Tensor, normalize: Scale, baseline: Baseline, mask: Tensor) -> Tensor:
    """group_advantages for [B]: each group fills a row of a [P, B] table, and the results are read back."""
    if returns.ndim != 1 or groups.shape != returns.shape:
        raise ValueError(f"groups and returns must be [B], got {tuple(groups.shape)}, {tuple(returns.shape)}")
    ids, group = torch.unique(groups, return_inverse=True)
    rows = torch.arange(len(returns), device=returns.device)
    member = (group == torch.arange(len(ids), device=returns.device)[:, None]) & mask
    table = group_advantages(returns.expand_as(member), normalize=normalize, baseline=baseline, mask=member)
    return table[group, rows]
