"""Cells, points and chains of a board on one row of memory (`layout`), as kernels read them."""

from __future__ import annotations

import numpy as np

from llmgym.compiled import inlined
from llmgym.envs.go.layout import CELLS, COLS, LIBERTIES, SIZE, STRIDE, TO_PLAY

_COUNT, _SUM = (1 << 12) - 1, (1 << 21) - 1  # fields of packed liberties
_SQUARES = 33


@inlined
def at(array, i):
    """An element as int64. The index is unsigned: numba then writes no code for negative ones, a third of a move."""
    return np.int64(array[np.uintp(i)])


@inlined
def cell_of(ints, action):
    """Cell of a point."""
    return at(ints, STRIDE) + action + action // at(ints, COLS)


@inlined
def action_of(ints, cell):
    """Point of a cell."""
    return cell - at(ints, STRIDE) - cell // at(ints, STRIDE) + 1


@inlined
def colour_at(ints, cell):
    """EMPTY, BLACK_STONE, WHITE_STONE or BORDER."""
    return at(ints, CELLS + cell) & 3


@inlined
def head_at(ints, cell):
    """Head of the chain of a stone."""
    return at(ints, CELLS + at(ints, SIZE) + cell)


@inlined
def neighbour(cell, stride, k):
    """The k-th of the four neighbours."""
    if k == 0:
        return cell - stride
    if k == 1:
        return cell - 1
    return cell + 1 if k == 2 else cell + stride


@inlined
def liberty(cell):
    return 1 | (cell << 12) | ((cell * cell) << _SQUARES)


@inlined
def in_atari(longs, head):
    """Whether the chain has exactly one liberty: its pseudo-liberties are all the same cell (Cauchy-Schwarz)."""
    packed = at(longs, LIBERTIES + head)
    total = (packed >> 12) & _SUM
    return (packed & _COUNT) * (packed >> _SQUARES) == total * total


@inlined
def only_liberty(longs, head):
    """The liberty of a chain in atari, a cell."""
    packed = at(longs, LIBERTIES + head)
    return ((packed >> 12) & _SUM) // (packed & _COUNT)


@inlined
def gives_atari(ints, longs, cell):
    """Whether a stone of the player to move on this empty cell leaves a chain of the opponent exactly one liberty.

    A stone takes one pseudo-liberty from a chain for each of the chain's stones that it touches.
    """
    stride, enemy, key = at(ints, STRIDE), 2 - at(ints, TO_PLAY), liberty(cell)
    for k in range(4):
        q = neighbour(cell, stride, k)
        if colour_at(ints, q) != enemy:
            continue
        head, packed = head_at(ints, q), at(longs, LIBERTIES + head_at(ints, q))
        for j in range(4):
            r = neighbour(cell, stride, j)
            packed -= key if colour_at(ints, r) == enemy and head_at(ints, r) == head else 0
        total = (packed >> 12) & _SUM
        if packed != 0 and (packed & _COUNT) * (packed >> _SQUARES) == total * total:
            return True
    return False
