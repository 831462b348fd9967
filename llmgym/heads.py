"""Log-probs of given tokens out of hidden states: the scores of a whole vocabulary are never held for all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llmgym.kernels import read_off
from llmgym.lora import is_lora
from llmgym.sampling import sampling_logits

TILE = 1 << 24  # scores held at once, 64 MiB in float32
# Models whose scores are what their last layer makes of the last hidden state; others scale or cap them.
PLAIN = (
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
)


def output_head(model: Any) -> Any:
    """The layer from hidden states to scores; None for a model whose own code does more, or is not known."""
    own = model.get_base_model() if is_lora(model) else model
    return own.get_output_embeddings() if type(own).__name__ in PLAIN else None


def token_logp(head: Any, hidden: Tensor, tokens: Tensor, vocab_size: int, mask: Tensor | None = None) -> Tensor:
    """log softmax(head(hidden))[tokens], nats [m], float32 or wider; differentiable.

    In tiles, whose scores the backward pass computes again; where all fit in one tile they are kept.

    Args:
        head: from hidden states [m, D] to scores [m, at least V].
        hidden: where each token is predicted, [m, D].
        tokens: int64 [m].
        vocab_size: V; a model may have more rows than its tokenizer has ids.
        mask: allowed tokens, bool [m, V]; None allows all.
    """
    size = max(TILE // vocab_size, 1)
    if len(tokens) <= size:
        return _logp(head, hidden, tokens, vocab_size, mask)
    tiles = [slice(i, i + size) for i in range(0, len(tokens), size)]
    return torch.cat(
        [
            checkpoint(
                _logp,
                head,
                hidden[tile],
                tokens[tile],
                vocab_size,
                None if mask is None else mask[tile],
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for tile in tiles
        ]
    )


def chosen_logp(logits: Tensor, tokens: Tensor, vocab_size: int, mask: Tensor | None = None) -> Tensor:
    """The same out of scores [m, at least V]."""
    return read_off(sampling_logits(logits[:, :vocab_size], mask=mask), tokens, entropy=False)[0]


def _logp(head: Any, hidden: Tensor, tokens: Tensor, vocab_size: int, mask: Tensor | None) -> Tensor:
    return chosen_logp(head(hidden), tokens, vocab_size, mask)
