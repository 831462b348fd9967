"""From logits to tokens: the one distribution that is sampled from, recorded and trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from llmgym.mdp import NoLegalAction


def sampling_logp(
    logits: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """Log-probs (nats) of the distribution really sampled from: `sampling_logits`, normalised. Arguments as there."""
    named = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    return sampling_logits(logits, mask=mask, **named).log_softmax(-1)  # type: ignore[arg-type]


def sampling_logits(
    logits: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """Scores whose softmax is the distribution really sampled from, `[..., V] -> [..., V]`.

    Order: mask, temperature, top-k, top-p (nucleus, Holtzman et al. 2020); what these exclude is -inf. Computed in
    float32 or wider.

    Args:
        logits: scores of the next token.
        temperature: > 0.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of most probable tokens whose mass reaches top_p; 1 keeps all.
        mask: bool, True for allowed tokens.

    Raises:
        NoLegalAction: a row of `mask` allows nothing.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if mask is not None:
        if not bool(mask.any(-1).all()):
            raise NoLegalAction("a row of the mask allows no token")
        logits = logits.masked_fill(~mask, -torch.inf)
    if temperature != 1.0:
        logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        kth = logits.topk(top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p < 1.0:
        logits = _nucleus(logits, top_p)
    return logits


def sample(logp: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One token a row by inverting the cumulative distribution, `[n, V] -> [n]`.

    One uniform number a row: several times faster on a CPU than `torch.multinomial`, which draws V.
    """
    cumulative = logp.exp().cumsum(-1)
    total = cumulative[:, -1:]
    u = torch.rand(total.shape, generator=generator, device=logp.device, dtype=logp.dtype) * total
    # A product rounded up to the total would point past the last token of positive probability.
    u = torch.minimum(u, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, u, right=True)[:, 0]


def check_sampling(temperature: float, top_k: int, top_p: float) -> None:
    """Refuse settings outside temperature > 0, top_k >= 0 and 0 < top_p <= 1 with one sentence."""
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0 (use deterministic=True for greedy), got {temperature}")
    if top_k < 0:
        raise ValueError(f"top_k must be at least 0 (0 keeps all), got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    ordered, index = logits.sort(-1, descending=True)
    p = ordered.softmax(-1)
    # A token stays while the mass before it is below top_p: the first always stays.
    drop = (p.cumsum(-1) - p) >= top_p
    return logits.masked_fill(torch.zeros_like(drop).scatter(-1, index, drop), -torch.inf)
