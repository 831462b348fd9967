"""What an update learns from, cut into minibatches and micro-batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from llmgym.batch import Evaluation, TextBatch, by_length


@dataclass(frozen=True)
class Part:
    """Rows to learn from with what belongs to them; all but `batch` are [b, n]."""

    batch: Any  # TextBatch, or Steps as rows of one action
    advantages: Tensor
    returns: Tensor | None = None  # what a value should have been
    old_logp: Tensor | None = None  # None: the first step on fresh data, where it equals the current log-prob
    ref_logp: Tensor | None = None  # per token, [b, t]
    old_values: Tensor | None = None
    evaluations: tuple[Evaluation, ...] = ()  # of `parts` of all rows by the parameters as they are; lost in `select`

    def select(self, rows: Tensor) -> Part:
        """Some of the rows, with padding trimmed as `Batch.select` trims it."""
        batch = self.batch.select(rows)
        n, at = batch.mask.shape[1], rows.to(self.advantages.device)
        named = {name: getattr(self, name) for name in ("advantages", "old_logp", "returns", "old_values")}
        cut = {name: None if x is None else x[at, :n] for name, x in named.items()}
        ref_logp = None if self.ref_logp is None else self.ref_logp[at, : batch.tokens.shape[1]]
        return Part(batch, **cut, ref_logp=ref_logp)  # type: ignore[arg-type]

    def parts(self, rows: Tensor, most_rows: int) -> list[Tensor]:
        """`rows` in micro-batches: texts of similar length together."""
        if isinstance(self.batch, TextBatch):
            return by_length(self.batch.lengths, rows, most_rows)
        return list(rows.split(most_rows)) if most_rows else [rows]


class Credit(NamedTuple):
    """Advantages [B, N], and the returns that values are fitted to."""

    advantages: Tensor
    returns: Tensor | None = None
