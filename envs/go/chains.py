"""The chains of a board, for protocols that list them."""

from __future__ import annotations

import numpy as np


def chains_of(stones: np.ndarray) -> list[list[int]]:
    """The points of each chain, in the order in which one reads the board; stones int [rows, cols]."""
    rows, cols = stones.shape
    flat, seen, chains = stones.reshape(-1), set[int](), []
    for start in np.flatnonzero(flat).tolist():
        chain, found = [start], {start} - seen
        for point in chain if found else ():
            near = {point - cols, point + cols} | ({point - 1} if point % cols else set())
            near |= {point + 1} if (point + 1) % cols else set()
            new = {q for q in near - found if 0 <= q < rows * cols and flat[q] == flat[start]}
            found |= new
            chain += sorted(new)
        seen |= found
        chains += [sorted(chain)] if found else []
    return chains
