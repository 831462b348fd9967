"""From rewards and values to advantages, whatever the batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from llmgym.batch import Fragments, Scored
from llmgym.losses import masked_mean


def ends(batch: Any, scored: Scored | None) -> dict[str, Any]:
    """Where the batch's episodes end and what follows there: the keyword arguments of `gae`."""
    if isinstance(batch, Fragments):
        named = {"terminated": batch.terminated, "truncated": batch.truncated}
        # Without values nothing is known of what follows a cut: 0, as if the episode had ended there.
        final = batch.rewards.new_zeros(batch.rewards.shape)
        bootstrap = None
        if scored is not None and scored.final_values is not None:
            final, bootstrap = scored.final_values, scored.bootstrap
        return named | {"final_values": final, "bootstrap": bootstrap}
    return {"bootstrap": None if scored is None else scored.bootstrap}


def whitened(x: Tensor, mask: Tensor) -> Tensor:
    """(x - mean) / deviation over the places that count; 0 elsewhere, and everywhere for numbers that are equal."""
    centred = (x - masked_mean(x, mask)).masked_fill(~mask, 0.0)
    deviation = masked_mean(centred.square(), mask).sqrt()
    # Equal up to rounding: dividing by it would make noise into advantages.
    scale = x.masked_fill(~mask, 0.0).abs().max() * 1e-6 if x.numel() else deviation
    return centred / deviation if bool(deviation > scale) else centred * 0.0
