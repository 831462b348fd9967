"""What a language model predicts after the current texts: the shared core of the wrappers that are given a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmgym.decoder import IncrementalDecoder, Prediction
from llmgym.models import check_vocab, load_model
from llmgym.sampling import sampling_logp
from llmgym.text import TextMDP


class Texts(NamedTuple):
    """Texts of some rows: `rows` [M], `tokens` [M, L] right-padded, `lengths` [M]."""

    rows: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, observations: np.ndarray) -> Texts:
        """From an object array [N] that holds text observations, and None in other rows."""
        rows = np.array([i for i, x in enumerate(observations) if x is not None], np.int64)
        tokens = np.stack([observations[i]["input_ids"] for i in rows])
        return cls(rows, tokens, np.array([observations[i]["attention_mask"].sum() for i in rows], np.int64))


class Shortlist(NamedTuple):
    """The K most probable next tokens of N texts, most probable first.

    Attributes:
        tokens: token ids, int64 [N, K].
        logp: their log-probs (nats) over the allowed tokens, [N, K]; -inf where not legal.
        legal: whether the environment allows them, bool [N, K].
    """

    tokens: np.ndarray
    logp: np.ndarray
    legal: np.ndarray


class Lookahead:
    """A model's predictions after the texts of N rows, each computed once.

    Wrappers stacked on one environment with the same model share one of these (see `lookahead_of`), so that they
    share one forward pass a step. Nothing is assumed about how a text came about: it is compared with what was
    seen last, and a changed one extends the KV cache from the longest common prefix.

    Attributes:
        model: the language model.
        keep_finals: set by a wrapper that shows what an episode ended with; finals are computed only then.
        final_hidden: last hidden states [M, D] of the last call's `finals`, rows in order.
    """

    def __init__(self, model: Any, num_rows: int, vocab_size: int):
        self.model, self.num_rows, self.vocab_size = model, num_rows, vocab_size
        self.decoder = IncrementalDecoder(model)
        self.keep_finals = False
        self.clear()

    def clear(self) -> None:
        """Forget everything: what follows is then computed alike, bit for bit, whatever came before."""
        self.decoder.clear()
        self.final_hidden: Tensor | None = None
        self._seen: Prediction | None = None
        self._tokens, self._lengths = np.zeros((self.num_rows, 0), np.int64), np.zeros(self.num_rows, np.int64)
        self._finals: np.ndarray | None = None
        self._version: tuple[int, ...] = ()
        # A name is a row's place in the cache: the text an episode ended with keeps it, its successor gets another.
        self._names, self._next_name = np.arange(self.num_rows), self.num_rows

    @torch.inference_mode()
    def __call__(
        self,
        tokens: np.ndarray,
        lengths: np.ndarray,
        active: np.ndarray | None = None,
        finals: np.ndarray | None = None,
    ) -> Prediction:
        """Logits [N, V] and last hidden states [N, D] after every row's text, in one forward pass or none.

        Args:
            tokens: int [N, L], right-padded.
            lengths: tokens that count, int [N].
            active: rows that will go on; another row that has not changed loses its place in the cache. bool [N].
            finals: `infos["final_obs"]`, what some rows ended with in this step; ignored without `keep_finals`.
        """
        finals = finals if self.keep_finals and finals is not self._finals else None
        wanted = self._changed(tokens, lengths)
        if not wanted.any() and finals is None:
            return self._seen  # type: ignore[return-value]
        wanted |= active if active is not None else True
        rows = np.flatnonzero(wanted)
        asked = Texts(self._names[rows], tokens[rows], lengths[rows])
        if finals is not None:
            asked = self._with_finals(asked, rows, Texts.of(finals))
        logits, hidden = self.decoder.predict(*asked)
        if hidden is None:
            raise ValueError(f"{type(self.model).__name__} shows no hidden states: wrappers need a Hugging Face model")
        self._store(rows, logits[: len(rows), : self.vocab_size], hidden[: len(rows)])
        if finals is not None:
            self._finals, self.final_hidden = finals, hidden[len(rows) :]
        # Last, so that an interrupted pass leaves nothing that looks finished. Environments write into their arrays.
        self._tokens, self._lengths, self._version = tokens.copy(), lengths.copy(), self.decoder.version()
        return self._seen  # type: ignore[return-value]

    def _changed(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Rows whose prediction is not at hand, bool [N]: another text, or older parameters of the model."""
        if self._seen is None or self.decoder.version() != self._version or tokens.shape != self._tokens.shape:
            return np.ones(self.num_rows, bool)
        beyond = np.arange(tokens.shape[1]) >= lengths[:, None]
        return (lengths != self._lengths) | ~((tokens == self._tokens) | beyond).all(1)

    def _with_finals(self, asked: Texts, rows: np.ndarray, finals: Texts) -> Texts:
        final_names = self._names[finals.rows]
        self._names[finals.rows] = self._next_name + np.arange(len(final_names))
        self._next_name += len(final_names)
        parts = zip((self._names[rows], *asked[1:]), (final_names, *finals[1:]), strict=True)
        return Texts(*(np.concatenate(part) for part in parts))

    def _store(self, rows: np.ndarray, logits: Tensor, hidden: Tensor) -> None:
        if self._seen is None or len(rows) == self.num_rows:
            self._seen = Prediction(logits, hidden)
            return
        index = torch.as_tensor(rows, device=logits.device)
        old = self._seen.hidden
        assert old is not None
        # New tensors: a caller may still hold the old prediction.
        self._seen = Prediction(self._seen.logits.index_copy(0, index, logits), old.index_copy(0, index, hidden))


def lookahead_of(env: Any, model: Any, num_rows: int, mdp: TextMDP) -> Lookahead:
    """The lookahead that a wrapper beneath made for the same model object, else a new one.

    Args:
        env: the environment about to be wrapped, single or vector.
        model: a model, or a name for `load_model` (then it is shared with nobody).
        num_rows: N.
        mdp: whose tokens the model must know.
    """
    model = load_model(model) if isinstance(model, str | Path) else model
    for layer in layers(env):
        shared = getattr(layer, "lookahead", None)
        if isinstance(shared, Lookahead) and shared.model is model:
            return shared
    check_vocab(model, mdp.codec)
    return Lookahead(model.eval(), num_rows, mdp.codec.vocab_size)


def layers(env: Any) -> Iterator[Any]:
    """`env` and what it wraps, outermost first."""
    while True:
        yield env
        if env.unwrapped is env:
            return
        env = env.env


def text_mdp(env: Any) -> TextMDP:
    """The `TextMDP` beneath `env`.

    Raises:
        ValueError: the environment is not one of text.
    """
    mdp = getattr(env.unwrapped, "mdp", None)
    if not isinstance(mdp, TextMDP):
        raise ValueError(f"this wrapper needs a text environment such as llmgym/TokenMDP-v0, got {env}")
    return mdp


def check_shortlist(mdp: TextMDP, k: int, min_prob: float) -> None:
    """Refuse a short-list on blocks, or one with k or min_prob out of range."""
    if mdp.block_size != 1:
        raise ValueError(f"TopKActions needs block_size 1 (llmgym/TokenMDP-v0), got block_size {mdp.block_size}")
    if not 1 <= k <= mdp.codec.vocab_size:
        raise ValueError(f"k must be in [1, {mdp.codec.vocab_size}] (the vocabulary), got {k}")
    if not 0 <= min_prob < 1:
        raise ValueError(f"min_prob must be in [0, 1), got {min_prob}")


@torch.inference_mode()
def shortlist(logits: Tensor, masks: np.ndarray | None, k: int, min_prob: float = 0.0) -> Shortlist:
    """The k most probable next tokens of each row; `[N, V] -> [N, K]`.

    Args:
        logits: of the next token.
        masks: allowed tokens, bool [N, V]; None allows all.
        k: K.
        min_prob: a place whose token is less probable than this holds the row's most probable token instead.
    """
    logp, tokens = allowed_logp(logits, masks).topk(k)
    first = torch.zeros_like(tokens)
    keep = torch.arange(k, device=tokens.device).expand_as(tokens)
    index = torch.where(logp.exp() < min_prob, first, keep)  # min_prob = 0 replaces nothing
    chosen, chosen_logp = tokens.gather(-1, index).cpu().numpy(), logp.gather(-1, index).cpu().numpy()
    if masks is None:
        return Shortlist(chosen, chosen_logp, np.ones(chosen.shape, bool))
    legal = np.take_along_axis(masks, chosen, -1)
    # Which of the forbidden tokens fill the tail is arbitrary: always the lowest id.
    return Shortlist(np.where(legal, chosen, masks.argmin(-1)[:, None]), chosen_logp, legal)


@torch.inference_mode()
def allowed_logp(logits: Tensor, masks: np.ndarray | None) -> Tensor:
    """Log-probs (nats) normalised over the allowed tokens, `[N, V] -> [N, V]`; -inf for the others."""
    mask = None if masks is None else torch.as_tensor(masks, device=logits.device)
    return sampling_logp(logits, mask=mask)


def float32(hidden: Tensor) -> np.ndarray:
    """Hidden states as observations: float32, whatever the model computes in."""
    return hidden.float().cpu().numpy()
