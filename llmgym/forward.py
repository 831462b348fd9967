"""One step of a causal language model over a slot cache, in three forms behind one call.

`LlamaForward` runs Llama-shaped models without the layers of Python around them; `CachedForward` runs any model with
full attention through Hugging Face's own code; `FullForward` recomputes the whole text for everything else
(recurrent layers, sliding windows). Parity of the first two with a full pass is tested in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache

# Below this many parameters, calling a kernel costs more than running it: projections are fused into copies.
FUSE_BELOW = 20_000_000


def make_forward(model: Any) -> Any:
    """The fastest form that is exact for `model`."""
    if _is_llama(model):
        return LlamaForward(model)
    return CachedForward(model) if _full_attention(model) else FullForward(model)


class SlotCache:
    """Keys and values by layer, [slots, heads, positions, head dimension] each, grown by doubling."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def reserve(self, slots: int, positions: int) -> None:
        """Make room; contents stay."""
        if self.keys and (self.keys[0].shape[0] < slots or self.keys[0].shape[2] < positions):
            self.keys = [_enlarged(k, slots, positions) for k in self.keys]
            self.values = [_enlarged(v, slots, positions) for v in self.values]

    def add_layer(self, k: Tensor, v: Tensor, slots: int, positions: int) -> None:
        """A layer shaped like the new entries `k`, `v` [n, heads, q, dimension]."""
        for store, x in ((self.keys, k), (self.values, v)):
            store.append(x.new_zeros(max(slots, 1), x.shape[1], _round_up(positions), x.shape[3]))

    def copy(self, source: np.ndarray, target: np.ndarray, length: int) -> None:
        """Copy the first `length` positions of slots `source` to `target`."""
        self.reserve(int(target.max()) + 1, length)
        for store in (*self.keys, *self.values):
            store[target, :, :length] = store[source, :, :length]


class LlamaForward:
    """Llama, Qwen2 and Mistral models as a dozen tensor operations a layer, on the model's own weights."""

    def __init__(self, model: Any):
        config = model.config
        self.model, self.cache = model, SlotCache()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.eps = config.rms_norm_eps
        self.fuse = sum(p.numel() for p in model.parameters()) < FUSE_BELOW
        self.tables: tuple[Tensor, Tensor] | None = None

    def refresh(self) -> None:
        """Read the weights anew: fused projections are copies."""
        self.layers = [self._weights(layer) for layer in self.model.model.layers]
        self.tables = None

    def copy(self, source: np.ndarray, target: np.ndarray, length: int) -> None:
        """Copy cache entries between slots."""
        self.cache.copy(source, target, length)

    def __call__(self, ids: np.ndarray, positions: np.ndarray, slots: np.ndarray | None) -> tuple[Tensor, Tensor]:
        """Logits [n, V] and hidden states [n, D] after the last of `ids` [n, q] at `positions` [n, q]."""
        n, q = ids.shape
        weight = self.model.model.embed_tokens.weight
        where = _Where(ids, positions, slots, weight)
        x = F.embedding(where.ids, weight)
        self.cache.reserve(where.n_slots, where.kv_length)
        cos, sin = (t[where.positions][:, None] for t in self._tables(where.kv_length))
        for i, layer in enumerate(self.layers):
            x = x + self._attention(i, layer, self._norm(x, layer["norm1"]), cos, sin, where)
            gate, up = _project(self._norm(x, layer["norm2"]), layer["gate_up"]).chunk(2, -1)
            x = x + _project(F.silu(gate) * up, layer["down"])
        hidden = self._norm(x[:, -1], self.model.model.norm.weight)
        return _as_float(self.model.lm_head(hidden)), hidden

    def _attention(self, i: int, layer: dict, x: Tensor, cos: Tensor, sin: Tensor, where: _Where) -> Tensor:
        n, q, _ = x.shape
        qkv = _project(x, layer["qkv"]).view(n, q, self.heads + 2 * self.kv_heads, self.dim).transpose(1, 2)
        rotated, v = qkv[:, : -self.kv_heads], qkv[:, -self.kv_heads :]
        rotated = rotated * cos + torch.roll(rotated, self.dim // 2, -1) * sin
        query, k = rotated[:, : self.heads], rotated[:, self.heads :]
        keys, values = where.write(self.cache, i, k, v)
        if q == 1:
            out = _attend_one(query, keys, values, where.mask)
        else:
            out = F.scaled_dot_product_attention(
                query, keys, values, attn_mask=where.mask, enable_gqa=self.heads != self.kv_heads
            )
        return _project(out.transpose(1, 2).reshape(n, q, -1), layer["out"])

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return F.rms_norm(x, (x.shape[-1],), weight, self.eps)
        # Hugging Face rounds to float32 here whatever the model's dtype; parity in float64 needs the same rounding.
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)

    def _tables(self, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin [positions, dimension]; the sign of the rotated half is folded into sin."""
        if self.tables is None or self.tables[0].shape[0] < length:
            weight = self.model.model.embed_tokens.weight
            positions = torch.arange(_round_up(length), device=weight.device)[None]
            cos, sin = self.model.model.rotary_emb(weight, positions)
            half = self.dim // 2
            self.tables = (cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1))
        return self.tables

    def _weights(self, layer: Any) -> dict[str, Any]:
        attention, mlp = layer.self_attn, layer.mlp
        return {
            "norm1": layer.input_layernorm.weight,
            "norm2": layer.post_attention_layernorm.weight,
            "qkv": self._group(attention.q_proj, attention.k_proj, attention.v_proj),
            "out": self._group(attention.o_proj),
            "gate_up": self._group(mlp.gate_proj, mlp.up_proj),
            "down": self._group(mlp.down_proj),
        }

    def _group(self, *linears: nn.Linear) -> list[tuple[Tensor, Tensor | None]]:
        pairs = [(m.weight.detach(), None if m.bias is None else m.bias.detach()) for m in linears]
        if not self.fuse or len(pairs) == 1:
            return pairs
        bias = None if pairs[0][1] is None else torch.cat([b for _, b in pairs if b is not None])
        return [(torch.cat([w for w, _ in pairs]), bias)]


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

    def write(self, cache: SlotCache, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store new entries [n, heads, q, dimension]; returns all entries of these rows up to `kv_length`."""
        if layer == len(cache.keys):
            cache.add_layer(k, v, self.n_slots, self.kv_length)
        for store, new in ((cache.keys[layer], k), (cache.values[layer], v)):
            if self.column is not None:
                store[: self.n, :, self.column] = new[:, :, 0]
            else:
                store[self.rows, :, self.positions] = new.transpose(1, 2)
        keys, values = cache.keys[layer], cache.values[layer]
        chosen = slice(0, self.n) if self.slots is None else self.slots
        return keys[chosen][:, :, : self.kv_length], values[chosen][:, :, : self.kv_length]

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
        """Store and return, as `Cache.update`."""
        return self._where.write(self._cache, layer_idx, key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before this call, of the longest row."""
        return self._where.kv_length - self._where.q


def _attend_one(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of one query a head: [n, H, 1, D] over [n, K, T, D] -> [n, H, 1, D].

    The H / K queries that share a key head are rows of one small matrix product, and batched products on strided
    views need no copy of the cache: at this size both beat the fused kernel.
    """
    n, heads, _, dim = query.shape
    kv_heads = keys.shape[1]
    scores = torch.matmul(query.reshape(n, kv_heads, heads // kv_heads, dim), keys.transpose(-1, -2)) * dim**-0.5
    if mask is not None:
        scores += mask
    weights = scores.softmax(-1, dtype=torch.float32 if scores.dtype == torch.bfloat16 else None)
    return torch.matmul(weights.to(values.dtype), values).view(n, heads, 1, dim)


def _project(x: Tensor, group: list[tuple[Tensor, Tensor | None]]) -> Tensor:
    parts = [F.linear(x, weight, bias) for weight, bias in group]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _as_float(logits: Tensor) -> Tensor:
    # Log-softmax in bfloat16 drifts by whole percent; float64 stays for parity tests.
    return logits if logits.dtype == torch.float64 else logits.float()


def _round_up(length: int) -> int:
    return max(64, 1 << (length - 1).bit_length())


def _enlarged(x: Tensor, slots: int, positions: int) -> Tensor:
    slots, positions = max(slots, x.shape[0]), max(_round_up(positions), x.shape[2])
    bigger = x.new_zeros(slots, x.shape[1], positions, x.shape[3])
    bigger[: x.shape[0], :, : x.shape[2]] = x
    return bigger


def _is_llama(model: Any) -> bool:
    known = type(model).__name__ in ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
    if not known or not _full_attention(model) or model.config.hidden_act != "silu":
        return False
    # Adapters and quantised layers replace the linear modules; their own forward must then run.
    return all(type(m) is nn.Linear for n, m in model.named_modules() if n.endswith("_proj"))


def _full_attention(model: Any) -> bool:
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    sliding = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    # These rotary embeddings change with the length of the text: what was cached at a shorter one is stale.
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type") in ("dynamic", "longrope")
    return kinds == {"full_attention"} and not (sliding or rope) and hasattr(config, "num_attention_heads")
