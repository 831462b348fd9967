"""Given texts as batches: what learning from data scores, in place of a rollout."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmgym.batch import TextBatch
from llmgym.completions import encode, token_masks
from llmgym.heads import chosen_logp, output_head, token_logp
from llmgym.tasks.base import Problem
from llmgym.text import TextMDP


class Text(NamedTuple):
    """Token ids of one text, and how many of them are given; the rest is what is scored.

    Attributes:
        tokens: int32 [T].
        n_prompt: in [1, T].
        problem: what the environment's masks are asked about; None where the text is none of the environment's.
    """

    tokens: np.ndarray
    n_prompt: int
    problem: Problem | None = None

    @property
    def n_completion(self) -> int:
        """Tokens that are scored."""
        return len(self.tokens) - self.n_prompt


def text_of(mdp: TextMDP, problem: Problem, completion: str, finished: bool = True) -> Text:
    """A prompt and its completion, with EOS if it is finished; unchecked, see `check_completion`."""
    tokens, n_prompt = encode(mdp, problem, completion, finished)
    return Text(np.array(tokens, np.int32), n_prompt, problem)


def batch_of(texts: Sequence[Text], mdp: TextMDP) -> TextBatch:
    """The texts as rows of one action each: everything after the prompt. No rewards, and nobody's behaviour."""
    lengths, given = (np.array([f(text) for text in texts]) for f in (lambda x: len(x.tokens), lambda x: x.n_prompt))
    places = np.arange(lengths.max(initial=0))
    tokens = np.full((len(texts), len(places)), mdp.codec.pad_id, np.int64)
    tokens[places < lengths[:, None]] = np.concatenate([text.tokens for text in texts])
    scored = (places >= given[:, None]) & (places < lengths[:, None])
    rows, nothing = torch.arange(len(texts)), torch.zeros(len(texts), 1, dtype=torch.float64)
    return TextBatch(
        tokens=torch.as_tensor(tokens),
        lengths=torch.as_tensor(lengths),
        action_index=torch.as_tensor(np.where(scored, 0, -1)),
        n_tokens=torch.as_tensor(lengths - given)[:, None],
        mask=torch.as_tensor(lengths > given)[:, None],
        rewards=nothing,
        logp=nothing,
        valid=torch.ones_like(rows, dtype=torch.bool),
        groups=rows,
        token_mask=_masks(texts, mdp, tokens.shape[1]) if mdp.constraints else None,
    )


def completion_logp(policy: Any, batch: TextBatch, forward: Any = None) -> Tensor:
    """log π(completion | prompt), the sum over its tokens, nats; differentiable; [B], float32 or wider.

    What `policy.evaluate` gives at temperature 1 for rows of one action, without what only acting needs.

    Args:
        policy: an `LMPolicy`.
        batch: as `batch_of` makes it, on any device.
        forward: another form of the policy's model, such as `PackedForward`.
    """
    batch = batch.to(policy.device)
    rows, places = (batch.action_index >= 0).nonzero(as_tuple=True)
    policy.counters.forward_passes += 1
    policy.counters.forward_tokens += int((batch.lengths - 1).sum())
    forward, head = policy.decoder.forward if forward is None else forward, output_head(policy.model)
    wanted = {"logits": head is None, "hidden": head is not None}
    fed, size = batch.tokens[:, : max(batch.tokens.shape[1] - 1, 1)], policy.mdp.codec.vocab_size
    logits, hidden = forward.score(fed, rows, places - 1, **wanted)
    tokens, mask = batch.tokens[rows, places], None if batch.token_mask is None else batch.token_mask[rows, places]
    if head is None:
        per_token = chosen_logp(logits, tokens, size, mask)
    else:
        per_token = token_logp(head, hidden, tokens, size, mask)
    return per_token.new_zeros(len(batch)).index_add(0, rows, per_token)


def fingerprint(texts: Iterable[Text]) -> str:
    """A hash of the texts and their order: data with the same one are the same data."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(np.array([len(text.tokens), text.n_prompt], np.int64).tobytes())
        digest.update(text.tokens.tobytes())
    return digest.hexdigest()


def _masks(texts: Sequence[Text], mdp: TextMDP, width: int) -> Tensor:
    """What each scored token is chosen from, bool [B, T, V]; everything where the environment has no say."""
    masks = np.ones((len(texts), width, mdp.codec.vocab_size), bool)
    for row, (tokens, n_prompt, problem) in enumerate(texts):
        if problem is not None:
            for place, mask in enumerate(token_masks(mdp, problem, tokens[n_prompt:].tolist()), n_prompt):
                masks[row, place] = mask
    return torch.as_tensor(masks)
