"""Random bits of many rows: each row's own generator, read ahead so that numpy serves all rows at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.utils import seeding


class Streams:
    """N generators, each seeded as `Env.np_random` is; `draw` gives what `llmgym.envs.go.mdp.draw` gives one by one.

    Args:
        rows: N.
        block: words read from a generator at a time. Only with 1 is `generator` where its row is.
    """

    def __init__(self, rows: int, block: int):
        self._generators: list[np.random.Generator | None] = [None] * rows
        self._words = np.zeros((rows, block), np.uint64)
        self._used = np.full(rows, block)

    def seed(self, row: int, seed: int) -> None:
        """Begin a row's stream anew."""
        self._generators[row], self._used[row] = seeding.np_random(seed)[0], self._words.shape[1]

    def generator(self, row: int) -> np.random.Generator:
        """A row's generator, from fresh entropy if it was never seeded."""
        if self._generators[row] is None:
            self._generators[row] = seeding.np_random()[0]
        return self._generators[row]  # type: ignore[return-value]

    def draw(self, rows: np.ndarray) -> np.ndarray:
        """32 random bits for each of some rows; bool [N] -> int64 [N], 0 elsewhere."""
        block, drawn = self._words.shape[1], np.zeros(len(rows), np.int64)
        for row in np.flatnonzero(rows & (self._used == block)).tolist():
            self._words[row], self._used[row] = self.generator(row).bit_generator.random_raw(block), 0
        at = np.flatnonzero(rows)
        drawn[at] = self._words[at, self._used[at]] >> np.uint64(32)
        self._used[at] += 1
        return drawn

    def get_state(self) -> dict[str, Any]:
        """A picklable snapshot."""
        states = [None if g is None else g.bit_generator.state for g in self._generators]
        return {"generators": states, "words": self._words.copy(), "used": self._used.copy()}

    def set_state(self, snapshot: dict[str, Any]) -> None:
        """Continue from `get_state()`."""
        self._words[:], self._used[:] = snapshot["words"], snapshot["used"]
        for row, state in enumerate(snapshot["generators"]):
            self._generators[row] = None
            if state is not None:
                self.generator(row).bit_generator.state = state
