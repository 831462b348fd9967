"""Legal moves, as kernels on one row of memory (`layout`).

Superko is masked exactly, up to collisions of 64-bit Zobrist hashes: the hash after a move is known without playing
it, since every chain keeps its own.
"""

from __future__ import annotations

import numpy as np

from llmgym.compiled import inlined
from llmgym.envs.go.cells import action_of, at, cell_of, colour_at, head_at, in_atari, neighbour
from llmgym.envs.go.layout import (
    BARRED,
    CELLS,
    COLS,
    EMPTY,
    ENDING,
    HASH,
    KO,
    LIBERTIES,
    RECORDED,
    ROWS,
    SIMPLE,
    SITUATIONAL,
    SIZE,
    STRIDE,
    SUICIDE,
    TO_PLAY,
    TURN,
    WAS_BLACK,
    WORDS,
    ZOBRIST,
)

_FREE = 7 << 2  # of a cell: its empty neighbours
_UNSURE = 2


@inlined
def _repeats(ints, longs, hash, mover):
    """Whether the position of this hash, after a move of `mover`, has been before."""
    if at(ints, KO) == SITUATIONAL and mover == 0:
        hash ^= TURN
    seen = LIBERTIES + 2 * at(ints, SIZE)
    if not (at(longs, seen + ((hash >> 6) & (at(ints, WORDS) - 1))) >> (hash & 63)) & 1:
        return False
    past = seen + at(ints, WORDS)
    for i in range(past, past + at(ints, RECORDED)):  # noqa: SIM110 (kernels know no generators)
        if at(longs, i) == hash:
            return True
    return False


@inlined
def record(ints, longs, mover):
    """Remember the position after a move of `mover`."""
    hash = at(longs, HASH)
    if at(ints, KO) == SITUATIONAL and mover == 0:
        hash ^= TURN
    seen = LIBERTIES + 2 * at(ints, SIZE)
    longs[np.uintp(seen + ((hash >> 6) & (at(ints, WORDS) - 1)))] |= np.int64(1) << (hash & 63)
    longs[np.uintp(seen + at(ints, WORDS) + at(ints, RECORDED))] = hash
    ints[RECORDED] += 1


@inlined
def may_play(ints, longs, cell):
    """Whether the player to move may put a stone on this empty cell."""
    own, enemy = 1 + at(ints, TO_PLAY), 2 - at(ints, TO_PLAY)
    heads, stride, near = CELLS + at(ints, SIZE), at(ints, STRIDE), at(ints, CELLS + cell)
    alive, takes = (near >> 2) & 7, np.int64(0)
    for k in range(4):
        # No branches, which would be guessed wrong half the time: empty and border cells are looked at in vain.
        q = neighbour(cell, stride, k)
        colour, atari = at(ints, CELLS + q) & 3, np.int64(in_atari(longs, at(ints, heads + q)))
        alive |= np.int64(colour == own) & (1 - atari)
        takes |= np.int64(colour == enemy) & atari
    dead = (alive | takes) == 0
    if dead and at(ints, SUICIDE) == 0:
        return False
    if at(ints, KO) == SIMPLE:
        return cell != at(ints, BARRED)
    if not dead and not near & _lost_here(ints):
        return True
    return not _repeats(ints, longs, _hash_after(ints, longs, cell, dead, takes), at(ints, TO_PLAY))


@inlined
def _lost_here(ints):
    """Bit of a cell that says that the player to move has lost a stone there.

    Only there can its stone bring back a position: that position had the stone, and now the point is empty.
    """
    return WAS_BLACK << at(ints, TO_PLAY)


@inlined
def _hash_after(ints, longs, cell, dead, takes):
    own, after = 1 + at(ints, TO_PLAY), at(longs, HASH)
    if dead:  # the stone itself goes too
        return _without(ints, longs, cell, own, False, after)
    after ^= ZOBRIST[own - 1, cell]
    return _without(ints, longs, cell, 3 - own, True, after) if takes else after


@inlined
def _without(ints, longs, cell, colour, only_atari, after):
    """The hash without the chains of one colour around a cell, or those of them that are in atari."""
    counted0 = counted1 = counted2 = np.int64(-1)
    for k in range(4):
        q = neighbour(cell, at(ints, STRIDE), k)
        head = head_at(ints, q)
        if colour_at(ints, q) != colour or (only_atari and not in_atari(longs, head)):
            continue
        if head != counted0 and head != counted1 and head != counted2:
            after ^= at(longs, LIBERTIES + at(ints, SIZE) + head)
            counted0, counted1, counted2 = head, counted0, counted1
    return after


@inlined
def is_legal(ints, longs, action):
    """Whether the player to move may play this action."""
    points = at(ints, ROWS) * at(ints, COLS)
    if action < 0 or action > points or at(ints, ENDING) > 0:
        return False
    if action == points:
        return True
    cell = cell_of(ints, action)
    return colour_at(ints, cell) == EMPTY and may_play(ints, longs, cell)


@inlined
def write_mask(ints, longs, mask):
    """Legal actions of the player to move, bool [points + 1]; none once the game is over."""
    if at(ints, ENDING) > 0:
        mask[:] = False
        return
    rows, cols, stride, codes = at(ints, ROWS), at(ints, COLS), at(ints, STRIDE), CELLS + 6 * at(ints, SIZE)
    _write_codes(ints)
    for row in range(rows):
        start, first = row * cols, (row + 1) * stride
        for col in range(cols):
            code = at(ints, codes + first + col)
            if code == _UNSURE:
                code = np.int64(may_play(ints, longs, first + col))
            mask[np.uintp(start + col)] = code
    if at(ints, BARRED) > 0 and at(ints, KO) == SIMPLE:
        mask[np.uintp(action_of(ints, at(ints, BARRED)))] = False
    mask[np.uintp(rows * cols)] = True


@inlined
def _write_codes(ints):
    """What a cell alone tells, which is enough for most: 0 not empty, 1 legal, or unsure."""
    barred, size = np.int16(_lost_here(ints) if at(ints, KO) != SIMPLE else 0), at(ints, SIZE)
    cells, codes = ints[CELLS : CELLS + size], ints[CELLS + 6 * size : CELLS + 7 * size]
    for cell in range(size):  # a plain counter over whole arrays: LLVM vectorises it
        near = cells[cell]
        plain = np.int16(near & _FREE != 0) & np.int16(near & barred == 0)
        codes[cell] = np.int16(near & 3 == EMPTY) * (np.int16(_UNSURE) - plain)
