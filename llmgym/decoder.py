"""Incremental decoding: next-token logits of many rows, feeding a model only what its KV cache lacks.

Slot j of a row's cache holds token j of that row, so a position is a slot, a shorter prefix is a smaller number and
padding does not exist. The cache is only speed: what it held never changes what comes out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from llmgym.counters import Counters
from llmgym.forward import make_forward

# Fused optimisers change parameters without raising their version counters, so steps are counted beside these.
_optimizer_steps = [0]


def _count_step(*_: Any) -> None:
    _optimizer_steps[0] += 1


register_optimizer_step_post_hook(_count_step)


class Prediction(NamedTuple):
    """Of each requested row, after its last token.

    Attributes:
        logits: of the next token, float32 [n, V] (float64 for a float64 model).
        hidden: last hidden state [n, D], or None when the model does not show it.
    """

    logits: Tensor
    hidden: Tensor | None


class IncrementalDecoder:
    """Keeps the longest common prefix of every row and feeds the rest.

    Rows that are no longer asked for lose their place, so that they cost nothing; asked for again, they are computed
    afresh. An optimiser's step or an in-place change of a parameter empties the cache; after writing through
    `parameter.data`, which leaves no trace, call `clear()`.

    Args:
        model: a Hugging Face causal language model.
        counters: where forward passes, fed tokens and cache hits are counted.
    """

    def __init__(self, model: Any, counters: Counters | None = None):
        self.model, self.counters = model, counters or Counters()
        self.forward = make_forward(model)
        self._parameters = list(model.parameters())  # walking the modules would cost a fifth of a small model's step
        self._version: tuple[int, ...] = ()
        self._rows = np.empty(0, np.int64)  # row held in each slot
        self._held = np.empty((0, 0), np.int64)  # token ids in each slot
        self._held_length = np.empty(0, np.int64)

    def clear(self) -> None:
        """Forget every prefix and read the weights anew at the next call (memory stays allocated)."""
        self._rows, self._held_length = np.empty(0, np.int64), np.empty(0, np.int64)
        self._version = ()

    @torch.inference_mode()
    def predict(self, rows: np.ndarray, tokens: np.ndarray, lengths: np.ndarray) -> Prediction:
        """Logits after the tokens of each row.

        Args:
            rows: which rows, distinct ints [n]; a row's name for its place in the cache.
            tokens: their token ids, int [n, L], right-padded.
            lengths: how many of these count, int [n], each at least 1.
        """
        self._refresh()
        order = self._place(rows, tokens.shape[1])
        tokens, lengths = tokens[order], lengths[order]
        common = np.minimum(self._common_prefix(tokens, lengths), lengths - 1)  # the last token gives the logits
        n, width = len(rows), tokens.shape[1]
        self._held_length[:n] = common  # an interrupted pass leaves what lies beyond half written
        logits, hidden = self._feed(tokens, common, lengths)
        self._held[:n, :width], self._held_length[:n] = tokens, lengths
        back = np.empty(n, np.int64)
        back[order] = np.arange(n)
        if np.array_equal(back, np.arange(n)):
            return Prediction(logits, hidden)
        index = torch.as_tensor(back, device=logits.device)
        return Prediction(logits[index], None if hidden is None else hidden[index])

    def _refresh(self) -> None:
        """Drop everything that belongs to older parameters."""
        version = (_optimizer_steps[0], *(p._version for p in self._parameters))
        if version != self._version:
            self.clear()
            self.forward.refresh()
            self._version = version

    def _place(self, rows: np.ndarray, width: int) -> np.ndarray:
        """Give every requested row one of the first n slots; returns which requested row sits in each slot."""
        if not np.array_equal(rows, self._rows):
            keep = np.isin(self._rows, rows)
            n_keep = int(keep.sum())
            holes, movers = np.flatnonzero(~keep[:n_keep]), n_keep + np.flatnonzero(keep[n_keep:])
            self._move(movers, holes)
            new = rows[~np.isin(rows, self._rows[:n_keep])]
            self._rows = np.concatenate([self._rows[:n_keep], new])
            self._held_length = np.concatenate([self._held_length[:n_keep], np.zeros(len(new), np.int64)])
        self._grow(len(rows), width)
        at = np.argsort(rows, kind="stable")
        return at[np.searchsorted(rows[at], self._rows)]

    def _move(self, source: np.ndarray, target: np.ndarray) -> None:
        if source.size:
            self.forward.copy(source, target, int(self._held_length[source].max()))
            self._held[target], self._rows[target] = self._held[source], self._rows[source]
            self._held_length[target] = self._held_length[source]

    def _grow(self, n: int, width: int) -> None:
        slots, columns = self._held.shape
        if n > slots or width > columns:
            held = np.zeros((max(n, slots), max(width, columns)), np.int64)
            held[:slots, :columns] = self._held
            self._held = held

    def _common_prefix(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        n, width = tokens.shape
        limit = np.minimum(self._held_length[:n], lengths)
        differs = (self._held[:n, :width] != tokens) | (np.arange(width) >= limit[:, None])
        # argmax finds the first difference; a row without one shares its whole width.
        return np.where(differs.any(1), differs.argmax(1), width)

    def version(self) -> tuple[int, ...]:
        """Changes whenever the model's parameters do."""
        self._refresh()
        return self._version

    def _feed(self, tokens: np.ndarray, start: np.ndarray, lengths: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Run the model over tokens[start:length] of every slot, new texts apart from single tokens of running ones.

        In one padded pass every running row would repeat its token as often as the longest new text has tokens.
        """
        self.counters.cache_hits += int(start.sum())
        longer = lengths - start > 1
        if longer.all():
            return self._feed_texts(tokens, start, lengths, np.arange(len(start)))
        # One token of every row: picking the running rows would copy their cache. What this writes for the others is
        # overwritten by the second pass.
        last = lengths - 1
        logits, hidden = self.forward(tokens[np.arange(len(last)), last][:, None], last[:, None], None)
        self._count(int((~longer).sum()))
        if longer.any():
            rows = np.flatnonzero(longer)
            index = torch.as_tensor(rows, device=logits.device)
            logits[index], hidden[index] = self._feed_texts(tokens[rows], start[rows], lengths[rows], rows)
        return logits, hidden

    def _feed_texts(
        self, tokens: np.ndarray, start: np.ndarray, lengths: np.ndarray, slots: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Several tokens a row; equal rows are computed once."""
        filled = np.where(np.arange(tokens.shape[1]) < lengths[:, None], tokens, -1)
        _, first, inverse = np.unique(filled, axis=0, return_index=True, return_inverse=True)
        first = np.sort(first) if len(first) == len(tokens) else first
        inverse = inverse.reshape(-1) if len(first) < len(tokens) else np.arange(len(tokens))
        start, new = start[first], lengths[first] - start[first]
        self._count(int(new.sum()))
        # Shorter rows repeat their last token: same token, same position, so the same entry is written again
        # and the last column is every row's last token.
        positions = np.minimum(start[:, None] + np.arange(new.max()), lengths[first, None] - 1)
        every = len(first) == len(self._rows)
        ids = np.take_along_axis(tokens[first], positions, 1)
        logits, hidden = self.forward(ids, positions, None if every else slots[first])
        if len(first) == len(tokens):
            return logits, hidden
        self.forward.copy(slots[first][inverse], slots, int(lengths.max()))
        index = torch.as_tensor(inverse, device=logits.device)
        return logits[index], hidden[index]

    def _count(self, tokens: int) -> None:
        self.counters.forward_passes += 1
        self.counters.forward_tokens += tokens
