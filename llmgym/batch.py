"""What one update learns from: a row is an episode or a fragment of play, a column an action. True in a mask counts."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B rows of up to N actions.

    Attributes:
        mask: real actions, bool [B, N].
        rewards: float64 [B, N].
        logp: behaviour log-prob of each action as `act` recorded it, nats, [B, N].
        n_tokens: tokens of each action, int64 [B, N]; 1 where an action is no text.
        valid: rows to learn from, bool [B]; a row whose scorer failed is not.
        groups: which rows share a problem, int64 [B].
        infos: the final info of each row; empty where rows are fragments.
    """

    mask: Tensor
    rewards: Tensor
    logp: Tensor
    n_tokens: Tensor
    valid: Tensor
    groups: Tensor
    infos: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return self.mask.shape[0]

    @property
    def returns(self) -> Tensor:
        """Undiscounted sum of the rewards of each row, [B]."""
        return self.rewards.masked_fill(~self.mask, 0.0).sum(1)

    def select(self, rows: Tensor) -> Self:
        """The given rows, by index [M] or bool [B]."""
        index = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        parts = {name: x.index_select(0, index.to(x.device)) for name, x in self._tensors().items()}
        infos = [self.infos[i] for i in index.tolist()] if self.infos else []
        return replace(self, **parts, infos=infos)._trimmed()

    def to(self, device: torch.device | str) -> Self:
        """This batch with its tensors on `device`."""
        moved: dict[str, Any] = {name: x.to(device) for name, x in self._tensors().items()}
        return replace(self, **moved)

    def _tensors(self) -> dict[str, Tensor]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: x for name, x in values.items() if isinstance(x, Tensor)}

    def _trimmed(self) -> Self:
        return self


@dataclass(frozen=True, kw_only=True)
class TextBatch(Batch):
    """B finished episodes of text, right-padded to T tokens.

    Attributes:
        tokens: prompt and completion ids, int64 [B, T].
        lengths: tokens of each row, int64 [B].
        action_index: which action each token belongs to, int64 [B, T]; -1 for tokens the policy did not choose.
        cut: rows that an outer limit truncated, bool [B]: their last state has a value of its own. None: no row.
        token_mask: what each token was chosen from, bool [B, T, V]; None without constraints.
    """

    tokens: Tensor
    lengths: Tensor
    action_index: Tensor
    cut: Tensor | None = None
    token_mask: Tensor | None = None

    def _trimmed(self) -> Self:
        """Padding trimmed to the longest text and the most actions."""
        if not len(self):
            return self
        n, t = max(int(self.mask.sum(1).max()), 1), int(self.lengths.max())
        by_action = {k: getattr(self, k)[:, :n] for k in ("mask", "rewards", "logp", "n_tokens")}
        token_mask = None if self.token_mask is None else self.token_mask[:, :t]
        return replace(
            self, **by_action, tokens=self.tokens[:, :t], action_index=self.action_index[:, :t], token_mask=token_mask
        )


@dataclass(frozen=True, kw_only=True)
class Steps(Batch):
    """Actions in any Gymnasium environment.

    Attributes:
        observations: before each action, [B, N, …].
        actions: int64 or float32 [B, N, …].
        action_masks: legal actions, bool [B, N, A]; None without masks.
    """

    observations: Tensor
    actions: Tensor
    action_masks: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Fragments(Steps):
    """B rows of N steps of play, each with the ends of any number of episodes in it.

    A place whose mask is False (the step in which a vector environment resets, whatever follows a row's episode) is
    as if it had not been written.

    Attributes:
        terminated: the episode ended with this action, bool [B, N].
        truncated: an outer limit cut the episode after this action, bool [B, N].
        final_observations: what followed the actions that are truncated, row by row, [K, …].
        last_observations: what followed each row's last step, [B, …]: read where its episode still ran.
        episode_returns: returns of the episodes that ended in this batch, float64 [E].
        episode_lengths: their actions, int64 [E].
    """

    terminated: Tensor
    truncated: Tensor
    final_observations: Tensor
    last_observations: Tensor
    episode_returns: Tensor
    episode_lengths: Tensor

    def select(self, rows: Tensor) -> Self:
        """Refused: the rows of a fragment belong together; select among `steps(…)`."""
        raise TypeError("fragments cannot be divided by rows: select among their steps()")

    def steps(self) -> Steps:
        """Every action that counts as a row of its own, [M, 1]."""
        names = [f.name for f in fields(Steps) if f.name not in ("valid", "groups", "infos")]
        parts = {name: self.each(x) for name in names if (x := getattr(self, name)) is not None}
        rows = torch.arange(len(parts["mask"]), device=self.mask.device)
        return Steps(**parts, valid=torch.ones_like(rows, dtype=torch.bool), groups=rows)  # type: ignore[arg-type]

    def each(self, x: Tensor) -> Tensor:
        """What belongs to the actions that count, in the order of `steps()`: [B, N, …] -> [M, 1, …]."""
        return x[self.mask][:, None]


@dataclass(frozen=True)
class Scored:
    """What a policy says of a batch before it learns from it; without gradient.

    Attributes:
        logp: log-prob of each action, nats, [B, N].
        values: value of the state before each action, [B, N]; None without a value head.
        bootstrap: value of the state after each row's last action, 0 where its episode had ended, [B]; or None.
        final_values: value of the state in which an outer limit cut an episode, [B, N]; None where rows are episodes.
        token_logp: log-prob of each token, nats, [B, T]; None where actions are no text.
        evaluations: what all this was read from, where it was to be kept for the first gradient step: one of each
            part that `by_length` makes of the rows, and these do carry a gradient.
    """

    logp: Tensor
    values: Tensor | None = None
    bootstrap: Tensor | None = None
    final_values: Tensor | None = None
    token_logp: Tensor | None = None
    evaluations: tuple[Evaluation, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """What the current parameters say of a batch; all [B, N], differentiable.

    Attributes:
        logp: log-prob of each action, the sum over its tokens, nats.
        entropy: sum of the conditional entropies on the sampled path, nats. For blocks its direct gradient is a
            biased estimate of the gradient of the block's entropy: the path itself depends on the parameters.
        values: value of the state before the action; None without a value head.
        kl: KL estimate against the reference, formed per token and then summed; None without a reference.
        n_tokens: tokens of each action.
        token_logp: log-prob of each token, nats, [B, T]; None where actions are no text.
    """

    logp: Tensor
    entropy: Tensor | None
    values: Tensor | None
    kl: Tensor | None
    n_tokens: Tensor
    token_logp: Tensor | None = None


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
