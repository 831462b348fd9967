"""Stones that come and go, as kernels on one row of memory (`layout`); chains, liberties and hashes go along."""

from __future__ import annotations

import numpy as np

from llmgym.compiled import inlined
from llmgym.envs.go.cells import at, colour_at, head_at, in_atari, liberty, neighbour
from llmgym.envs.go.layout import (
    BARRED,
    BORDER,
    CELLS,
    EMPTIES,
    EMPTY,
    HASH,
    LIBERTIES,
    LOST,
    SIZE,
    STRIDE,
    TAKEN,
    WAS_BLACK,
    ZOBRIST,
)


@inlined
def put_alone(ints, longs, cell, player):
    """A stone as a chain of its own; it takes a liberty from each chain it touches."""
    size, stride = at(ints, SIZE), at(ints, STRIDE)
    change = 28 if player == 0 else 252  # a neighbour has one empty neighbour less, one black or white one more
    key, liberties = liberty(cell), np.int64(0)
    for k in range(4):
        q = neighbour(cell, stride, k)
        near = at(ints, CELLS + q)
        ints[np.uintp(CELLS + q)] = near + change
        if near & 3 == EMPTY:
            liberties += liberty(q)
        elif near & 3 != BORDER:
            longs[np.uintp(LIBERTIES + head_at(ints, q))] -= key
    ints[np.uintp(CELLS + cell)] += player + 1
    ints[np.uintp(CELLS + size + cell)] = ints[np.uintp(CELLS + 2 * size + cell)] = cell
    ints[np.uintp(CELLS + 3 * size + cell)] = 1
    longs[np.uintp(LIBERTIES + cell)] = liberties
    longs[np.uintp(LIBERTIES + size + cell)] = ZOBRIST[player, cell]
    longs[HASH] ^= ZOBRIST[player, cell]
    _no_longer_empty(ints, cell)


@inlined
def _no_longer_empty(ints, cell):
    listed, where = CELLS + 4 * at(ints, SIZE), CELLS + 5 * at(ints, SIZE)
    ints[EMPTIES] -= 1
    last, place = ints[np.uintp(listed + at(ints, EMPTIES))], at(ints, where + cell)
    ints[np.uintp(listed + place)] = last
    ints[np.uintp(where + last)] = place


@inlined
def join(ints, longs, head, other):
    """Make one chain of two; the larger keeps its head, which is returned."""
    size = at(ints, SIZE)
    heads, nexts, sizes = CELLS + size, CELLS + 2 * size, CELLS + 3 * size
    if at(ints, sizes + head) < at(ints, sizes + other):
        head, other = other, head
    stone = other
    while True:
        ints[np.uintp(heads + stone)] = head
        stone = at(ints, nexts + stone)
        if stone == other:
            break
    ints[np.uintp(nexts + head)], ints[np.uintp(nexts + other)] = ints[np.uintp(nexts + other)], at(ints, nexts + head)
    ints[np.uintp(sizes + head)] += at(ints, sizes + other)
    longs[np.uintp(LIBERTIES + head)] += at(longs, LIBERTIES + other)
    longs[np.uintp(LIBERTIES + size + head)] ^= at(longs, LIBERTIES + size + other)
    return head


@inlined
def _remove(ints, longs, head, player):
    """Take a chain of `player` off the board; returns its number of stones."""
    size, stride = at(ints, SIZE), at(ints, STRIDE)
    change = 28 if player == 0 else 252
    longs[HASH] ^= at(longs, LIBERTIES + size + head)
    stones, stone = at(ints, CELLS + 3 * size + head), head
    for _ in range(stones):
        ints[np.uintp(CELLS + stone)] = (at(ints, CELLS + stone) - player - 1) | (WAS_BLACK << player)
        key = liberty(stone)
        for k in range(4):
            q = neighbour(stone, stride, k)
            near = at(ints, CELLS + q)
            ints[np.uintp(CELLS + q)] = near - change
            if near & 3 == 2 - player:  # the stones around are of the other colour, or of this chain
                longs[np.uintp(LIBERTIES + head_at(ints, q))] += key
        ints[np.uintp(CELLS + 4 * size + at(ints, EMPTIES))] = stone
        ints[np.uintp(CELLS + 5 * size + stone)] = at(ints, EMPTIES)
        ints[EMPTIES] += 1
        stone = at(ints, CELLS + 2 * size + stone)
    return stones


@inlined
def put_stone(ints, longs, cell, player):
    """Put a stone on the board, join chains, take what has no liberty; fills TAKEN, LOST and BARRED."""
    stride, size = at(ints, STRIDE), at(ints, SIZE)
    put_alone(ints, longs, cell, player)
    head, taken, hole = cell, np.int64(0), np.int64(0)
    for k in range(4):
        q = neighbour(cell, stride, k)
        colour = colour_at(ints, q)
        if colour == player + 1:
            other = head_at(ints, q)
            if other != head:
                head = join(ints, longs, head, other)
        elif colour == 2 - player and at(longs, LIBERTIES + head_at(ints, q)) == 0:
            taken += _remove(ints, longs, head_at(ints, q), 1 - player)
            hole = q
    lost = np.int64(0)
    if at(longs, LIBERTIES + head) == 0:
        lost = _remove(ints, longs, head, player)
    # Simple ko: a lone stone that has taken a lone stone and has no liberty but its place may not be retaken at once.
    retakable = taken == 1 and at(ints, CELLS + 3 * size + head) == 1 and in_atari(longs, head)
    ints[BARRED] = hole if retakable else 0
    ints[TAKEN], ints[LOST] = taken, lost
