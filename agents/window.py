"""The last positions of self-play, from which minibatches are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from llmgym.agents.selfplay import Positions

_FIELDS = ("observations", "masks", "policies", "returns")


class Window:
    """A ring of the last `size` positions.

    Args:
        size: most positions that are kept.

    Attributes:
        added: positions that were ever put in.
    """

    def __init__(self, size: int):
        self.size, self.added = size, 0
        self._rings: list[np.ndarray] = []

    def __len__(self) -> int:
        return min(self.added, self.size)

    def add(self, positions: Positions) -> None:
        """Put positions in, in place of the oldest."""
        arrays = [getattr(positions, name)[-self.size :] for name in _FIELDS]
        if not self._rings:
            self._rings = [np.empty((self.size, *array.shape[1:]), array.dtype) for array in arrays]
        places = (self.added + np.arange(len(arrays[0]))) % self.size
        for ring, array in zip(self._rings, arrays, strict=True):
            ring[places] = array
        self.added += len(places)

    def sample(self, n: int, rng: np.random.Generator) -> Positions:
        """n positions, uniform, with replacement.

        Raises:
            ValueError: the window is empty.
        """
        if not len(self):
            raise ValueError("the window holds no position yet: no game has ended")
        rows = rng.integers(len(self), size=n)
        return Positions(*(ring[rows] for ring in self._rings))

    def save(self, path: Path) -> None:
        """Write what is there, the oldest first."""
        order = (self.added - len(self) + np.arange(len(self))) % self.size
        found = zip(_FIELDS, self._rings, strict=False)
        save_file({name: torch.from_numpy(ring[order]).contiguous() for name, ring in found}, path)

    def load(self, path: Path) -> None:
        """Read what `save` wrote; of more positions than fit here, the newest."""
        saved = load_file(path)
        if saved:
            self.add(Positions(*(saved[name].numpy() for name in _FIELDS)))
