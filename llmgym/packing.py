"""Packing: several short texts in one row, each of which sees only itself, so that no place is padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmgym.forward import FullForward, make_forward

ATTENTION = ("sdpa", "eager")  # implementations that take a mask [rows, 1, W, W]


class PackedForward:
    """A Hugging Face model over packed rows; the same values and gradients as over padded ones.

    Attention is causal within a text and closed between texts, and positions restart with every text. That
    makes it exact for any decoder with full attention whose positions can be given (learnt or rotary). Rows are as wide
    as the longest text.

    Args:
        model: the causal language model.

    Raises:
        ValueError: the model has other layers than full attention, or another implementation of it than "sdpa" or
            "eager" (fused kernels such as flash attention take no such mask).
    """

    def __init__(self, model: Any):
        self.model = model
        if isinstance(make_forward(model), FullForward):
            raise ValueError(f"packing needs full attention in every layer, which {type(model).__name__} has not")
        kind = model.config._attn_implementation
        if kind not in ATTENTION:
            raise ValueError(f"packing needs attn_implementation 'sdpa' or 'eager', the model has {kind!r}")

    def score(
        self, tokens: Tensor, rows: Tensor, places: Tensor, *, logits: bool = True, hidden: bool = False
    ) -> tuple[Tensor | None, Tensor | None]:
        """Logits [m, V] and hidden states [m, D] after `tokens[rows, places]`, each if asked for; differentiable.

        Args:
            tokens: right-padded texts, int64 [B, T].
            rows, places: [m] each; a text is read up to the last of its places.
        """
        lengths = np.zeros(len(tokens), np.int64)
        np.maximum.at(lengths, rows.cpu().numpy(), places.cpu().numpy() + 1)
        row, start = (torch.as_tensor(x, device=tokens.device) for x in pack(lengths.tolist(), int(lengths.max())))
        texts = torch.as_tensor(np.repeat(np.arange(len(lengths)), lengths), device=tokens.device)
        own = torch.as_tensor(np.concatenate([np.arange(n) for n in lengths]), device=tokens.device)
        at = (row[texts], start[texts] + own)  # where each token of each text stands
        shape = (int(row.max()) + 1, int(lengths.max()))
        ids, positions = (tokens.new_zeros(shape).index_put(at, x) for x in (tokens[texts, own], own))
        segments = tokens.new_full(shape, -1).index_put(at, texts)
        output = self.model(
            ids,
            attention_mask=self._mask(segments),
            position_ids=positions,
            use_cache=False,
            output_hidden_states=hidden,
            logits_to_keep=0 if logits else 1,  # 0 keeps all
        )
        found = (row[rows], start[rows] + places)
        return output.logits[found] if logits else None, output.hidden_states[-1][found] if hidden else None

    def _mask(self, segments: Tensor) -> Tensor:
        """Added to attention scores: 0 where a text sees its own past, else the least number; [rows, 1, W, W]."""
        seen = (segments[:, :, None] == segments[:, None]).tril()[:, None]
        zero = torch.zeros((), dtype=self.model.dtype, device=segments.device)
        return torch.where(seen, zero, torch.finfo(self.model.dtype).min)


def pack(lengths: Sequence[int], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Where texts go in rows of `width`: the row of each, and its first place there; int64 [B] each.

    First-fit decreasing: the longest text first, each into the first row that has room. It needs at most 11/9 of the
    fewest possible rows, and one more (Dósa 2007). Texts of no token take no room.

    Raises:
        ValueError: a text is longer than `width`.
    """
    if max(lengths, default=0) > width:
        raise ValueError(f"width must be at least the longest text's, {max(lengths)}, got {width}")
    row, start = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    used: list[int] = []
    for text in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[text]
        place = next((i for i, taken in enumerate(used) if taken + length <= width), len(used))
        if place == len(used):
            used.append(0)
        row[text], start[text] = place, used[place]
        used[place] += length
    return row, start
