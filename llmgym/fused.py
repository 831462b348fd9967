"""Small Llama-shaped models with as few kernels as they need, for acting and for learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmgym.kernels import rows_of, swiglu, unit
from llmgym.slots import SlotCache, Where, round_up

# Below this many parameters, calling a kernel costs more than running it.
FUSE_BELOW = 20_000_000

Layer = tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]


class FusedLlama:
    """Llama, Qwen2 and Mistral models as fifteen kernels a layer, on fused copies of their weights.

    Folded into the copies: the norms' weights, the attention scale, and an order of rows that makes the rotary
    embedding one complex product (a dot product does not mind a permutation of its dimensions) and keys lie beside
    values, so that one write stores both. Residuals are added by the matrix products themselves. Gradients flow
    through the fusion to the model's own parameters.
    """

    def __init__(self, model: Any):
        config = model.config
        self.model, self.cache = model, SlotCache()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.width, self.eps = config.hidden_size, config.rms_norm_eps
        self.table = torch.empty(0)

    def refresh(self) -> None:
        """Read the weights anew."""
        self.layers = [self._fused(layer) for layer in self.model.model.layers]

    def copy(self, source: np.ndarray, target: np.ndarray, length: int) -> None:
        """Copy cache entries between slots."""
        self.cache.copy(source, target, length)

    def __call__(self, ids: np.ndarray, positions: np.ndarray, slots: np.ndarray | None) -> tuple[Tensor, Tensor]:
        """Logits [n, V] and hidden states [n, D] after the last of `ids` [n, q] at `positions` [n, q]."""
        return self.read(Where(ids, positions, slots, self.model.model.embed_tokens.weight))

    def read(self, where: Where) -> tuple[Tensor, Tensor]:
        """The same for a place of any kind in the cache."""
        self.cache.reserve(where.n_slots, where.n_positions)
        turns = self._turns(where.kv_length)[where.positions.view(-1)]
        x = self._run(where.ids, turns, self.layers, lambda i, turned: self._attend(i, turned, where))
        hidden = self._norm(x.view(where.n, where.q, -1)[:, -1])
        return self.model.lm_head(hidden), hidden

    def score(
        self, tokens: Tensor, rows: Tensor, places: Tensor, *, logits: bool = True, hidden: bool = False
    ) -> tuple[Tensor | None, Tensor | None]:
        """Logits [m, V] and hidden states [m, D] after `tokens[rows, places]`, each if asked for; differentiable.

        Texts that begin alike (a prompt's samples) share the work on what they have in common, and padding costs
        nothing: projections run over the nodes of the texts' prefix tree, only attention over whole texts.
        """
        tree = PrefixTree(tokens, rows, places)
        turns = self._turns(tokens.shape[1])[tree.depth]
        layers = [self._fused(layer) for layer in self.model.model.layers]
        wanted, at = tree.node[rows, places].unique(return_inverse=True)
        x = self._run(tree.ids, turns, layers, lambda i, turned: self._attend_texts(turned, tree), wanted)
        states = rows_of(self._norm(x), at)
        return self.model.lm_head(states) if logits else None, states if hidden else None

    def _run(
        self,
        ids: Tensor,
        turns: Tensor,
        layers: list[Layer],
        attend: Callable[[int, Tensor], Tensor],
        wanted: Tensor | None = None,
    ) -> Tensor:
        """The residual stream after all layers, [tokens, D]; of the `wanted` tokens, if they are named."""
        x = F.embedding(ids.reshape(-1), self.model.model.embed_tokens.weight)
        root = x.new_tensor((self.width * self.eps) ** 0.5)
        for i, (qkv, bias, out, gate_up, down) in enumerate(layers):
            projected = F.linear(unit(x, root), qkv, bias).view(*turns.shape, 2)
            turned = torch.view_as_real(torch.view_as_complex(projected) * turns).flatten(-2)
            attended = attend(i, turned)
            if wanted is not None and i == len(layers) - 1:  # nothing after this looks at other tokens
                x, attended = rows_of(x, wanted), rows_of(attended, wanted)
            x = torch.addmm(x, attended, out)
            x = torch.addmm(x, swiglu(F.linear(unit(x, root), gate_up)), down)
        return x

    def _attend_texts(self, turned: Tensor, tree: PrefixTree) -> Tensor:
        """Causal attention within each text, from nodes [M, heads + 2 kv_heads, dim] to nodes [M, heads · dim]."""
        texts = rows_of(turned, tree.node).transpose(1, 2)
        query, entries = texts.split([self.heads, 2 * self.kv_heads], 1)
        keys, values = entries.unflatten(1, (-1, 2)).unbind(2)
        more = self.heads != self.kv_heads
        out = F.scaled_dot_product_attention(query, keys, values, is_causal=True, scale=1.0, enable_gqa=more)
        return rows_of(out.transpose(1, 2).flatten(0, 1), tree.first).flatten(1)

    def _attend(self, i: int, turned: Tensor, where: Where) -> Tensor:
        """Attention of `turned` [n q, heads, dim] over the cache, [n q, heads · dim]."""
        n, q, k = where.n, where.q, self.kv_heads
        entries = turned[:, self.heads :].view(n, q, k, 2, self.dim)
        store = self.cache.store(i, entries[:, 0], where.n_slots, where.n_positions)
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

    def _norm(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (self.width,), self.model.model.norm.weight, self.eps)

    def _turns(self, length: int) -> Tensor:
        """exp(i θ) by position and head, complex [positions, heads + 2 kv_heads, dim / 2]; 1 for values."""
        if self.table.shape[0] < length:
            # The same table serves acting, in inference mode, and learning, which cannot save inference tensors.
            with torch.inference_mode(False), torch.no_grad():
                self.table = self._make_table(round_up(length))
        return self.table

    def _make_table(self, length: int) -> Tensor:
        weight = self.model.model.embed_tokens.weight
        cos, sin = self.model.model.rotary_emb(weight, torch.arange(length, device=weight.device)[None])
        turn = torch.complex(cos[0, :, : self.dim // 2], sin[0, :, : self.dim // 2])[:, None]
        pairs = torch.stack([turn, torch.ones_like(turn)], 2).expand(-1, self.kv_heads, -1, -1).flatten(1, 2)
        return torch.cat([turn.expand(-1, self.heads, -1), pairs], 1)

    def _fused(self, layer: Any) -> Layer:
        """Weights of one layer: [q; k, v by head], its bias, out (transposed), [gate; up], down (transposed)."""
        attention, mlp = layer.self_attn, layer.mlp
        first, second = (n.weight * self.width**0.5 for n in (layer.input_layernorm, layer.post_attention_layernorm))
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        qkv = self._by_head([m.weight * first for m in projections])
        biases = [m.bias[:, None] for m in projections if m.bias is not None]
        bias = self._by_head(biases)[:, 0] if biases else None
        gate_up = torch.cat([m.weight * second for m in (mlp.gate_proj, mlp.up_proj)])
        return qkv, bias, attention.o_proj.weight.t(), gate_up, mlp.down_proj.weight.t()

    def _by_head(self, qkv: list[Tensor]) -> Tensor:
        """Rows of q, k, v [heads · dim, *] in our order: rotary pairs adjacent, each key head before its value."""
        q, k, v = (x.view(-1, self.dim, x.shape[-1]) for x in qkv)
        pairs = torch.arange(self.dim).view(2, -1).t().reshape(-1)
        kv = torch.stack([k[:, pairs], v], 1)
        return torch.cat([q[:, pairs].flatten(0, 1) * self.dim**-0.5, kv.flatten(0, 2)])


class PrefixTree:
    """The distinct prefixes of some texts: two places share a node if everything up to them is equal.

    Attributes:
        node: the node of every place, [B, T]; places after a row's last needed one have node 0 and mean nothing.
        first: one place of every node, as an index into [B · T]; [M].
        ids: the token of every node, [M].
        depth: the position of every node, [M].
    """

    def __init__(self, tokens: Tensor, rows: Tensor, places: Tensor):
        """Up to the last of `places` in each of `rows`; rows without one take no part."""
        ids, last = tokens.cpu().numpy(), np.full(len(tokens), -1)
        np.maximum.at(last, rows.cpu().numpy(), places.cpu().numpy())
        node, first, count = np.zeros(ids.shape, np.int64), [], 0
        parent = np.zeros(len(ids), np.int64)
        for t in range(int(last.max(initial=0)) + 1):
            live = np.flatnonzero(last >= t)
            _, at, same = np.unique((parent[live] << 32) | ids[live, t], return_index=True, return_inverse=True)
            node[live, t], parent[live] = count + same, same
            first.append(live[at] * ids.shape[1] + t)
            count += len(at)
        found = np.concatenate(first)
        self.node, self.first = (torch.as_tensor(x, device=tokens.device) for x in (node, found))
        self.ids, self.depth = tokens.reshape(-1)[self.first], self.first % tokens.shape[1]


def is_small_llama(model: Any) -> bool:
    """Whether `FusedLlama` runs `model` exactly, and faster than its own code would."""
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
