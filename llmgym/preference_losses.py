"""Losses on pairs, `[B] -> []`: one number for the chosen completion, one for the rejected."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from llmgym.masked import Denominator, aggregate_zeroed, zero_masked

PreferenceKind = Literal["sigmoid", "ipo"]

_KINDS = get_args(PreferenceKind)


def dpo_loss(
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
    denominator: Denominator = None,
) -> Tensor:
    """-mean log σ(z), z = β h, h = log π(y_w)/π_ref(y_w) - log π(y_l)/π_ref(y_l). Rafailov et al. 2023, eq. 7.

    log 2 when policy and reference agree. d loss / d chosen_logp = -β σ(-z) / B, the opposite for rejected; for
    every variant see `gradient_coefficients`. The variants:

    - label smoothing (cDPO, Mitchell 2023): `label_smoothing`.
    - length-normalised (Lambert et al. 2024; TRL's "sigmoid_norm"): lengths.
    - IPO, mean (h - 1/(2β))² (Azar et al. 2023, eq. 17): kind="ipo". In the paper h is the difference of two sums
      over tokens. TRL's "ipo" takes the means per token, which its authors say is what the paper's results used:
      that is kind="ipo" with lengths.
    - reference-free (the preference term of CPO, Xu et al. 2024, eq. 3): both reference log-probs None.
    - SimPO (Meng et al. 2024, eq. 6): reference-free, with lengths and `margin`.

    Args:
      chosen_logp, rejected_logp: [B] log π(y|x) of the whole completion, summed over its tokens, nats.
      ref_chosen_logp, ref_rejected_logp: [B] the same under the frozen reference; both None for 0. Then nothing
        ties the policy to where it started.
      beta: inverse temperature of the implied reward, > 0. In IPO the regularisation τ: h is drawn to 1/(2β) nats,
        from both sides.
      kind: "sigmoid" or "ipo".
      label_smoothing: ε in [0, ½), the chance that a label is flipped: -(1-ε) log σ(z) - ε log σ(-z). Not in IPO.
      margin: γ ≥ 0, by which the chosen's implied reward must lead: z = β h - γ. Not in IPO.
      chosen_lengths, rejected_lengths: [B] tokens; when given, each log-ratio in h is divided by its length. For
        the same strength β must then be larger by about a length.
      denominator: number of pairs of the whole batch; None: of this one.

    Raises:
      ValueError: an argument out of range, one of two that go together, or a shape that is not [B].
    """
    check_preference(beta, kind, label_smoothing, margin)
    h = log_ratio_difference(
        chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp, chosen_lengths, rejected_lengths
    )
    if kind == "ipo":
        return _mean_over_pairs((h - 0.5 / beta).square(), denominator)
    z = beta * h - margin
    loss = -(1 - label_smoothing) * F.logsigmoid(z) - label_smoothing * F.logsigmoid(-z)
    return _mean_over_pairs(loss, denominator)


def check_preference(beta: float, kind: str, label_smoothing: float, margin: float) -> None:
    """The numbers of `dpo_loss`; ValueError names the one that is out of range."""
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {_KINDS}, got {kind!r}")
    if not beta > 0:
        raise ValueError(f"beta must be > 0, got {beta}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), got {label_smoothing}")
    if not margin >= 0:
        raise ValueError(f"margin must be >= 0, got {margin}")
    if kind == "ipo" and (label_smoothing or margin):
        raise ValueError(f"kind='ipo' takes label_smoothing=0 and margin=0, got {label_smoothing} and {margin}")


def log_ratio_difference(
    chosen_logp: Tensor,
    rejected_logp: Tensor,
    ref_chosen_logp: Tensor | None,
    ref_rejected_logp: Tensor | None,
    chosen_lengths: Tensor | None,
    rejected_lengths: Tensor | None,
) -> Tensor:
    """h = log π(y_w)/π_ref(y_w) - log π(y_l)/π_ref(y_l), each over its length if lengths are given, [B]."""
    given = {"chosen_logp": chosen_logp, "rejected_logp": rejected_logp}
    given |= _both("ref_chosen_logp", ref_chosen_logp, "ref_rejected_logp", ref_rejected_logp)
    given |= _both("chosen_lengths", chosen_lengths, "rejected_lengths", rejected_lengths)
    chosen, rejected, *rest = check_pairs(**given)
    if ref_chosen_logp is not None:
        chosen, rejected, rest = chosen - rest[0].detach(), rejected - rest[1].detach(), rest[2:]
    if rest:  # a completion of no token has log-ratio 0, whatever it is divided by
        chosen, rejected = chosen / rest[0].clamp(min=1), rejected / rest[1].clamp(min=1)
    return chosen - rejected


def _both(first_name: str, first: Tensor | None, second_name: str, second: Tensor | None) -> dict[str, Tensor]:
    if first is not None and second is not None:
        return {first_name: first, second_name: second}
    if first is None and second is None:
        return {}
    raise ValueError(f"{first_name} and {second_name} must be given together, got one of them")


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, *, denominator: Denominator = None) -> Tensor:
    """-mean log σ(r_chosen - r_rejected). Bradley & Terry 1952; Ouyang et al. 2022, eq. 1.

    Args:
      chosen, rejected: [B] scores of a reward model; only their difference matters.
      denominator: number of pairs of the whole batch; None: of this one.
    """
    chosen, rejected = check_pairs(chosen=chosen, rejected=rejected)
    return _mean_over_pairs(-F.logsigmoid(chosen - rejected), denominator)


def check_pairs(**tensors: Tensor) -> list[Tensor]:
    """The tensors in float32 or wider; ValueError unless all are [B]."""
    name, first = next(iter(tensors.items()))
    if first.ndim != 1:
        raise ValueError(f"{name} must be [B], one number a pair, got shape {tuple(first.shape)}")
    return zero_masked(torch.ones_like(first, dtype=torch.bool), **tensors)


def _mean_over_pairs(loss: Tensor, denominator: Denominator) -> Tensor:
    loss = loss[:, None]  # a pair is a row of one action
    return aggregate_zeroed(loss, torch.ones_like(loss, dtype=torch.bool), denominator, "actions")
