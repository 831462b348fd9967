"""One step of a causal language model over a slot cache, in three forms behind one interface.

`FusedLlama` runs small Llama-shaped models with as few kernels as they need; `CachedForward` runs any model with full
attention through Hugging Face's own code; `FullForward` recomputes the whole text for everything else (recurrent
layers, sliding windows). Parity of each with a plain forward pass is tested.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache

from llmgym.fused import FusedLlama, is_small_llama
from llmgym.slots import SlotCache, Where


def make_forward(model: Any) -> Any:
    """The fastest form that is exact for `model`."""
    if not _full_attention(model):
        return FullForward(model)
    return FusedLlama(model) if is_small_llama(model) else CachedForward(model)


class _Transformers:
    """What both forms through Hugging Face's own code share."""

    model: Any

    def refresh(self) -> None:
        """Nothing is copied from the weights."""

    def score(
        self, tokens: Tensor, rows: Tensor, places: Tensor, *, logits: bool = True, hidden: bool = False
    ) -> tuple[Tensor | None, Tensor | None]:
        """Logits [m, V] and hidden states [m, D] after `tokens[rows, places]`, each if asked for; differentiable.

        No attention mask: padding is on the right, where a causal model cannot see it, and without one the attention
        kernel skips the upper triangle.
        """
        first = int(places.min()) if len(places) else 0
        keep = torch.arange(first if logits else tokens.shape[1] - 1, tokens.shape[1], device=tokens.device)
        output = self.model(tokens, use_cache=False, output_hidden_states=hidden, logits_to_keep=keep)
        states = output.hidden_states[-1][rows, places] if hidden else None
        return output.logits[rows, places - first] if logits else None, states


class CachedForward(_Transformers):
    """Any decoder with full attention, through Hugging Face's forward with our cache and a 4-D mask."""

    def __init__(self, model: Any):
        self.model, self.cache = model, SlotCache()

    def copy(self, source: np.ndarray, target: np.ndarray, length: int) -> None:
        """Copy cache entries between slots."""
        self.cache.copy(source, target, length)

    def __call__(self, ids: np.ndarray, positions: np.ndarray, slots: np.ndarray | None) -> tuple[Tensor, Tensor]:
        """Logits [n, V] and hidden states [n, D] after the last of `ids` [n, q] at `positions` [n, q]."""
        return self.read(Where(ids, positions, slots, next(self.model.parameters()), always_mask=True))

    def read(self, where: Where) -> tuple[Tensor, Tensor]:
        """The same for a place of any kind in the cache."""
        self.cache.reserve(where.n_slots, where.n_positions)
        output = self.model(
            where.ids,
            attention_mask=where.mask,
            position_ids=where.positions,
            past_key_values=_HuggingFaceCache(self.cache, where),
            use_cache=True,
            output_hidden_states=True,
            logits_to_keep=1,
        )
        return _as_float(output.logits[:, -1]), output.hidden_states[-1][:, -1]


class FullForward(_Transformers):
    """No cache: the whole text of every row, every time. Right for any causal model."""

    def __init__(self, model: Any):
        self.model = model
        self.tokens = np.zeros((0, 0), np.int64)

    def copy(self, source: np.ndarray, target: np.ndarray, length: int) -> None:
        """Copy remembered tokens between slots."""
        self._reserve(int(target.max()) + 1, length)
        self.tokens[target, :length] = self.tokens[source, :length]

    def __call__(self, ids: np.ndarray, positions: np.ndarray, slots: np.ndarray | None) -> tuple[Tensor, Tensor]:
        """Logits [n, V] and hidden states [n, D] after the last of `ids` [n, q] at `positions` [n, q]."""
        index = np.arange(len(ids)) if slots is None else slots
        self._reserve(int(index.max()) + 1, int(positions.max()) + 1)
        self.tokens[index[:, None], positions] = ids
        ends, device = positions[:, -1], next(self.model.parameters()).device
        text = torch.as_tensor(self.tokens[index][:, : ends.max() + 1], device=device)
        last = torch.as_tensor(ends, device=device)
        mask = (torch.arange(text.shape[1], device=device) <= last[:, None]).long()
        output = self.model(text, attention_mask=mask, use_cache=False, output_hidden_states=True)
        rows = torch.arange(len(index), device=device)
        return _as_float(output.logits[rows, last]), output.hidden_states[-1][rows, last]

    def _reserve(self, slots: int, width: int) -> None:
        held_slots, held_width = self.tokens.shape
        if slots > held_slots or width > held_width:
            grown = np.zeros((max(slots, held_slots), max(width, held_width)), np.int64)
            grown[:held_slots, :held_width] = self.tokens
            self.tokens = grown


class _HuggingFaceCache(Cache):
    """Our slot cache as Hugging Face models expect one, for a single call."""

    def __init__(self, cache: SlotCache, where: Where):
        super().__init__(layers=[])
        self._cache, self._where = cache, where

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        """Store and return, as `Cache.update`; both [n, heads, q, dimension]."""
        held = []
        for index, new in ((2 * layer_idx, key_states), (2 * layer_idx + 1, value_states)):
            entries, where = new.transpose(1, 2), self._where
            held.append(where.write(self._cache.store(index, entries[:, 0], where.n_slots, where.n_positions), entries))
        return tuple(held)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before this call, of the longest row."""
        return self._where.kv_length - self._where.q


def _as_float(logits: Tensor) -> Tensor:
    # Log-softmax in bfloat16 drifts by whole percent; float64 stays for parity tests.
    return logits if logits.dtype == torch.float64 else logits.float()


def _full_attention(model: Any) -> bool:
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    sliding = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return kinds == {"full_attention"} and not sliding and hasattr(config, "num_attention_heads")
