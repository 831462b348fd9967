"""`Batch`: what one update learns from. A row is an episode, a column an action."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B finished episodes of up to N actions; texts are right-padded to T tokens. True in a mask counts.

    Attributes:
        mask: real actions, bool [B, N].
        rewards: float64 [B, N].
        logp: behaviour log-prob of each action as `act` recorded it, nats, float64 [B, N].
        n_tokens: tokens of each action, int64 [B, N].
        tokens: prompt and completion ids, int64 [B, T].
        lengths: tokens of each row, int64 [B].
        action_index: which action each token belongs to, int64 [B, T]; -1 for tokens the policy did not choose.
        token_mask: what each token was chosen from, bool [B, T, V]; None without constraints.
        valid: rows to learn from, bool [B]; a row whose scorer failed is not.
        infos: the final info of each row.
        groups: which rows share a problem, int64 [B].
    """

    mask: Tensor
    rewards: Tensor
    logp: Tensor
    n_tokens: Tensor
    tokens: Tensor
    lengths: Tensor
    action_index: Tensor
    valid: Tensor
    groups: Tensor
    token_mask: Tensor | None = None
    infos: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return self.mask.shape[0]

    @property
    def returns(self) -> Tensor:
        """Undiscounted return of each row, [B]."""
        return self.rewards.masked_fill(~self.mask, 0.0).sum(1)

    def select(self, rows: Tensor) -> Batch:
        """The given rows (indices [M] or bool [B]), padding trimmed to their longest text and most actions."""
        index = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        parts = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "infos"}
        parts = {name: None if x is None else x[index.to(x.device)] for name, x in parts.items()}
        infos = [self.infos[i] for i in index.tolist()] if self.infos else []
        return replace(self, **parts, infos=infos)._trimmed()

    def to(self, device: torch.device | str) -> Batch:
        """This batch with its tensors on `device`."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "infos"}
        moved: dict[str, Any] = {k: None if x is None else x.to(device) for k, x in tensors.items()}
        return replace(self, **moved)

    def _trimmed(self) -> Batch:
        if not len(self):
            return self
        n, t = max(int(self.mask.sum(1).max()), 1), int(self.lengths.max())
        by_action = {k: getattr(self, k)[:, :n] for k in ("mask", "rewards", "logp", "n_tokens")}
        token_mask = None if self.token_mask is None else self.token_mask[:, :t]
        return replace(
            self, **by_action, tokens=self.tokens[:, :t], action_index=self.action_index[:, :t], token_mask=token_mask
        )


def by_length(lengths: Tensor, rows: Tensor, most_rows: int = 0) -> list[Tensor]:
    """Parts of `rows` with texts of similar length, longest first: padding costs as much as tokens do.

    Args:
        lengths: tokens of every row of the batch, [B].
        rows: indices to divide, [M].
        most_rows: largest part; 0 sets no limit.
    """
    order = rows[lengths.to(rows.device)[rows].argsort(descending=True, stable=True)]
    sizes = lengths.tolist()
    parts: list[list[int]] = [[]]
    for row in order.tolist():
        part = parts[-1]
        # Parts of fewer than eight rows would cost more in overhead than they save in padding.
        if (len(part) >= 8 and sizes[row] < 0.7 * sizes[part[0]]) or (most_rows and len(part) == most_rows):
            parts.append(part := [])
        part.append(row)
    # A single part keeps its order: the same rows in the same order give the same bits, and a first ratio of exactly 1.
    return [torch.tensor(part) for part in parts] if len(parts) > 1 else [rows] if len(rows) else []


def sum_by_action(per_token: Tensor, action_index: Tensor, n_actions: int) -> Tensor:
    """Σ of a token quantity over each action's tokens: [B, T], [B, T] -> [B, N]; tokens with index -1 drop out."""
    out = per_token.new_zeros(per_token.shape[0], n_actions + 1)
    index = action_index.masked_fill(action_index < 0, n_actions)
    return out.scatter_add(1, index, per_token)[:, :n_actions]


def first_token(action_index: Tensor, n_actions: int) -> Tensor:
    """Position of each action's first token, [B, T] -> [B, N]; 1 where there is no such action."""
    b, t = action_index.shape
    positions = torch.arange(t, device=action_index.device).expand(b, t)
    index = action_index.masked_fill(action_index < 0, n_actions)
    first = torch.full((b, n_actions + 1), t, device=action_index.device)
    first = first.scatter_reduce(1, index, positions, "amin")[:, :n_actions]
    return first.masked_fill(first == t, 1)
