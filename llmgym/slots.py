"""Where tokens are kept: a cache whose slot j holds token j of its row."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


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
            shape = (max(slots, 1), *like.shape[1:-1], round_up(positions), like.shape[-1])
            self.stores.append(like.new_zeros(shape))
        return self.stores[index]

    def copy(self, source: np.ndarray, target: np.ndarray, length: int) -> None:
        """Copy the first `length` positions of slots `source` to `target`."""
        self.reserve(int(target.max()) + 1, length)
        for store in self.stores:
            store[target, ..., :length, :] = store[source, ..., :length, :]


class Where:
    """Where one call reads and writes: ids, positions, slots and the attention mask as tensors."""

    def __init__(
        self, ids: np.ndarray, positions: np.ndarray, slots: np.ndarray | None, like: Tensor, always_mask: bool = False
    ):
        n, q = ids.shape
        self.n, self.q, self.kv_length = n, q, int(positions.max()) + 1
        self.n_slots, self.n_positions = n if slots is None else int(slots.max()) + 1, self.kv_length
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
        """Store new entries [n, q, …, dimension]; returns these rows' up to `kv_length`, [n, …, T, dimension]."""
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


def round_up(length: int) -> int:
    """The next power of two, at least 64: memory grows by doubling."""
    return max(64, 1 << (length - 1).bit_length())


def _enlarged(x: Tensor, slots: int, positions: int) -> Tensor:
    slots, positions = max(slots, x.shape[0]), max(round_up(positions), x.shape[-2])
    bigger = x.new_zeros(slots, *x.shape[1:-2], positions, x.shape[-1])
    bigger[: x.shape[0], ..., : x.shape[-2], :] = x
    return bigger
