"""One step of a causal language model over a slot cache, in three forms behind one call.

`FusedLlama` runs small Llama-shaped models with as few kernels as they need; `CachedForward` runs any model with full
attention through Hugging Face's own code; `FullForward` recomputes the whole text for everything else (recurrent
layers, sliding windows). Parity of each with a plain forward pass is tested in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache

# Below this many parameters, calling a kernel costs more than running it.
FUSE_BELOW = 20_000_000


def make_forward(model: Any) -> Any:
    """The fastest form that is exact for `model`."""
    if not _full_attention(model):
        return FullForward(model)
    return FusedLlama(model) if _is_small_llama(model) else CachedForward(model)


class SlotCache:
    """Tensors [slots, …, positions, head dimension], grown by doubling."""

    def __init__(self) -> None:
        self.stores: list[Tensor] = []

    def reserve(self, slots: int, positions: int) -> None:
        """Make room; contents stay."""
        if self.stores and (self.stores[0].shape[0] < slots or self.stores[0].shape[-2] < positions):
            self.stores = [_enlarged(store, slots, positions) for store in self.stores]

    def store(self, index: int, like: Tensor, slots: int, positions: int) -> Tensor:
        """Store number `index`; a new one is shaped like an entry [n, …, head dimension] with positions inserted."""
        if index == len(self.stores):
            shape = (max(slots, 1), *like.shape[1:-1], _round_up(positions), like.shape[-1])
            self.stores.append(like.new_zeros(shape))
        return self.stores[index]

    def copy(self, source: np.ndarray, target: np.ndarray, length: int) -> None:
        """Copy the first `length` positions of slots `source` to `target`."""
        self.reserve(int(target.max()) + 1, length)
        for store in self.stores:
            store[target, ..., :length, :] = store[source, ..., :length, :]


class FusedLlama:
    """Llama, Qwen2 and Mistral models as fifteen kernels a layer, on fused copies of their weights.

    Folded into the copies: the norms' weights, the attention scale, and an order of rows that makes the rotary
    embedding one complex product (a dot product does not mind a permutation of its dimensions) and keys lie beside
    values, so that one write stores both. Residuals are added by the matrix products themselves.
    """

    def __init__(self, model: Any):
        config = model.config
        self.model, self.cache = model, SlotCache()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.width, self.eps = config.hidden_size, config.rms_norm_eps
        self.turns = torch.empty(0)

    def refresh(self) -> None:
        """Read the weights anew."""
        self.layers = [self._fused(layer) for layer in self.model.model.layers]
        self.turns = torch.empty(0)

    def copy(self, source: np.ndarray, target: np.ndarray, length: int) -> None:
        """Copy cache entries between slots."""
        self.cache.copy(source, target, length)

    def __call__(self, ids: np.ndarray, positions: np.ndarray, slots: np.ndarray | None) -> tuple[Tensor, Tensor]:
        """Logits [n, V] and hidden states [n, D] after the last of `ids` [n, q] at `positions` [n, q]."""
        weight = self.model.model.embed_tokens.weight
        where = _Where(ids, positions, slots, weight)
        x = F.embedding(where.ids.view(-1), weight)
        self.cache.reserve(where.n_slots, where.kv_length)
        turns = self._turns(where.kv_length)[where.positions.view(-1)]
        root = x.new_tensor((self.width * self.eps) ** 0.5)
        for i, (qkv, bias, out, gate_up, down) in enumerate(self.layers):
            projected = F.linear(_unit(x, root), qkv, bias).view(*turns.shape, 2)
            turned = torch.view_as_real(torch.view_as_complex(projected) * turns).flatten(-2)
            x = torch.addmm(x, self._attend(i, turned, where), out)
            gate, up = F.linear(_unit(x, root), gate_up).chunk(2, -1)
            x = torch.addmm(x, F.silu(gate).mul_(up), down)
        last = x.view(where.n, where.q, -1)[:, -1]
        hidden = F.rms_norm(last, (self.width,), self.model.model.norm.weight, self.eps)
        return self.model.lm_head(hidden), hidden

    def _attend(self, i: int, turned: Tensor, where: _Where) -> Tensor:
        """Attention of `turned` [n q, heads, dim] over the cache, [n q, heads · dim]."""
        n, q, k = where.n, where.q, self.kv_heads
        entries = turned[:, self.heads :].view(n, q, k, 2, self.dim)
        store = self.cache.store(i, entries[:, 0], where.n_slots, where.kv_length)
        held = where.write(store, entries)
        if q > 1:
            query = turned[:, : self.heads].view(n, q, self.heads, self.dim).transpose(1, 2)
            out = F.scaled_dot_product_attention(
                query, held[:, :, 0], held[:, :, 1], attn_mask=where.mask, scale=1.0, enable_gqa=self.heads != k
            )
            return out.transpose(1, 2).reshape(n * q, -1)
        # One query a head: the queries that share a key are rows of one small product, and products on strided
        # views need no copy of the cache. Both beat the fused attention kernel at this size.
        keys, values = held.view(n * k, 2, *held.shape[-2:]).unbind(1)
        scores = torch.bmm(turned[:, : self.heads].reshape(n * k, -1, self.dim), keys.transpose(1, 2))
        if where.mask is not None:
            scores.view(n, -1, scores.shape[-1]).add_(where.mask[:, 0])
        return torch.bmm(scores.softmax(-1), values).view(n, -1)

    def _turns(self, length: int) -> Tensor:
        """exp(i θ) by position and head, complex [positions, heads + 2 kv_heads, dim / 2]; 1 for values."""
        if self.turns.shape[0] < length:
            weight = self.model.model.embed_tokens.weight
            cos, sin = self.model.model.rotary_emb(weight, torch.arange(_round_up(length), device=weight.device)[None])
            turn = torch.complex(cos[0, :, : self.dim // 2], sin[0, :, : self.dim // 2])[:, None]
            pairs = torch.stack([turn, torch.ones_like(turn)], 2).expand(-1, self.kv_heads, -1, -1).flatten(1, 2)
            self.turns = torch.cat([turn.expand(-1, self.heads, -1), pairs], 1)
        return self.turns

    def _fused(self, layer: Any) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
        """Weights of one layer: [q; k, v by head], its bias, out (transposed), [gate; up], down (transposed)."""
        attention, mlp = layer.self_attn, layer.mlp
        first, second = (
            norm.weight.detach() * self.width**0.5 for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        )
        qkv = self._by_head([m.weight.detach() * first for m in (attention.q_proj, attention.k_proj, attention.v_proj)])
        biases = [m.bias for m in (attention.q_proj, attention.k_proj, attention.v_proj)]
        bias = None if biases[0] is None else self._by_head([b.detach()[:, None] for b in biases])[:, 0]
        gate_up = torch.cat([m.weight.detach() * second for m in (mlp.gate_proj, mlp.up_proj)])
        return qkv, bias, attention.o_proj.weight.detach().t(), gate_up, mlp.down_proj.weight.detach().t()

    def _by_head(self, qkv: list[Tensor]) -> Tensor:
        """Rows of q, k, v [heads · dim, *] in our order: rotary pairs adjacent, each key head before its value."""
        q, k, v = (x.view(-1, self.dim, x.shape[-1]) for x in qkv)
        pairs = torch.arange(self.dim).view(2, -1).t().reshape(-1)
        kv = torch.stack([k[:, pairs], v], 1)
        return torch.cat([q[:, pairs].flatten(0, 1) * self.dim**-0.5, kv.flatten(0, 2)])


class CachedForward:
    """Any decoder with full attention, through Hugging Face's forward with our cache and a 4-D mask."""

    def __init__(self, model: Any):
        self.model, self.cache = model, SlotCache()

    def refresh(self) -> None:
        """Nothing is copied from the weights."""

    def copy(self, source: np.ndarray, target: np.ndarray, length: int) -> None:
        """Copy cache entries between slots."""
        self.cache.copy(source, target, length)

    def __call__(self, ids: np.ndarray, positions: np.ndarray, slots: np.ndarray | None) -> tuple[Tensor, Tensor]:
        """Logits [n, V] and hidden states [n, D] after the last of `ids` [n, q] at `positions` [n, q]."""
        where = _Where(ids, positions, slots, next(self.model.parameters()), always_mask=True)
        self.cache.reserve(where.n_slots, where.kv_length)
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


class FullForward:
    """No cache: the whole text of every row, every time. Right for any causal model."""

    def __init__(self, model: Any):
        self.model = model
        self.tokens = np.zeros((0, 0), np.int64)

    def refresh(self) -> None:
        """Nothing is copied from the weights."""

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


class _Where:
    """Where one call reads and writes: ids, positions, slots and the attention mask as tensors."""

    def __init__(
        self, ids: np.ndarray, positions: np.ndarray, slots: np.ndarray | None, like: Tensor, always_mask: bool = False
    ):
        n, q = ids.shape
        self.n, self.q, self.kv_length = n, q, int(positions.max()) + 1
        self.n_slots = n if slots is None else int(slots.max()) + 1
        self.ids = torch.as_tensor(ids, device=like.device)
        self.positions = torch.as_tensor(positions, device=like.device)
        self.slots = None if slots is None else torch.as_tensor(slots, device=like.device)
        rows = torch.arange(n, device=like.device) if self.slots is None else self.slots
        self.rows = rows[:, None]
        # Rows of one length at one position see the whole cache: nothing to mask.
        same = q == 1 and int(positions.min()) + 1 == self.kv_length
        self.column = self.kv_length - 1 if same and slots is None else None
        self.mask = None if same and not always_mask else self._mask(like.dtype)

    def write(self, store: Tensor, entries: Tensor) -> Tensor:
        """Store new entries [n, q, …, dimension]; returns those of these rows up to `kv_length`, [n, …, T, dimension]."""
        if self.column is not None:
            store[: self.n, ..., self.column, :] = entries[:, 0]
        else:
            store.movedim(-2, 1)[self.rows, self.positions] = entries
        held = store[: self.n] if self.slots is None else store[self.slots]
        return held[..., : self.kv_length, :]

    def _mask(self, dtype: torch.dtype) -> Tensor:
        """Additive [n, 1, q, kv_length]: 0 for slots up to the query's position, the dtype's lowest value beyond."""
        hidden = torch.arange(self.kv_length, device=self.positions.device) > self.positions[:, :, None]
        zeros = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        return zeros.masked_fill_(hidden, torch.finfo(dtype).min)[:, None]


class _HuggingFaceCache(Cache):
    """Our slot cache as Hugging Face models expect one, for a single call."""

    def __init__(self, cache: SlotCache, where: _Where):
        super().__init__(layers=[])
        self._cache, self._where = cache, where

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        """Store and return, as `Cache.update`; both [n, heads, q, dimension]."""
        held = []
        for index, new in ((2 * layer_idx, key_states), (2 * layer_idx + 1, value_states)):
            entries, where = new.transpose(1, 2), self._where
            held.append(where.write(self._cache.store(index, entries[:, 0], where.n_slots, where.kv_length), entries))
        return tuple(held)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before this call, of the longest row."""
        return self._where.kv_length - self._where.q


def _unit(x: Tensor, root: Tensor) -> Tensor:
    """x / sqrt(|x|² + D ε): an RMS norm whose weight and √D are folded into the next projection."""
    return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), root)


def _as_float(logits: Tensor) -> Tensor:
    # Log-softmax in bfloat16 drifts by whole percent; float64 stays for parity tests.
    return logits if logits.dtype == torch.float64 else logits.float()


def _round_up(length: int) -> int:
    return max(64, 1 << (length - 1).bit_length())


def _enlarged(x: Tensor, slots: int, positions: int) -> Tensor:
    slots, positions = max(slots, x.shape[0]), max(_round_up(positions), x.shape[-2])
    bigger = x.new_zeros(slots, *x.shape[1:-2], positions, x.shape[-1])
    bigger[: x.shape[0], ..., : x.shape[-2], :] = x
    return bigger


def _is_small_llama(model: Any) -> bool:
    known = type(model).__name__ in ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
    # Only float32: in a float64 model, Hugging Face's norms still round to float32, and ours would differ by 1e-7.
    if not known or model.config.hidden_act != "silu" or model.dtype != torch.float32:
        return False
    # Adapters and quantised layers replace the linear modules; their own forward must then run.
    linears = [m for name, m in model.named_modules() if name.endswith("_proj")]
    plain = all(type(m) is nn.Linear for m in linears) and all(
        m.bias is None
        for layer in model.model.layers
        for m in (layer.self_attn.o_proj, *layer.mlp.children())
        if isinstance(m, nn.Linear)
    )
    return plain and sum(p.numel() for p in model.parameters()) < FUSE_BELOW


def _full_attention(model: Any) -> bool:
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    sliding = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return kinds == {"full_attention"} and not sliding and hasattr(config, "num_attention_heads")
