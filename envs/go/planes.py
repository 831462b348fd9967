"""A position as planes for a network: those of the player to move first.

| name | planes | ones at |
|---|---|---|
| `stones` | 2 | own stones, the opponent's |
| `history` | 14 | the same of the 7 positions before, newest first |
| `liberties` | 8 | own chains with 1, 2, 3, 4 and more liberties, then the opponent's |
| `ko` | 1 | empty points that only the ko rule forbids |
| `colour` | 1 | everywhere if Black is to move |
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmgym.compiled import inlined, kernel
from llmgym.envs.go.cells import action_of, cell_of, colour_at, head_at, neighbour
from llmgym.envs.go.layout import (
    BARRED,
    CELLS,
    DEPTH,
    EMPTIES,
    EMPTY,
    ENDING,
    KO,
    MOVES,
    SIMPLE,
    SIZE,
    STRIDE,
    TO_PLAY,
)
from llmgym.envs.go.legality import may_play

PLANES = {"stones": 2, "history": 2 * (DEPTH - 1), "liberties": 8, "ko": 1, "colour": 1}
DEFAULT_PLANES = ("stones", "history", "colour")


def check_planes(names: Sequence[str]) -> tuple[str, ...]:
    """The names in the order of their planes.

    Raises:
        ValueError: a name that is none of `PLANES`.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if name not in PLANES:
            raise ValueError(f"planes must be some of {', '.join(PLANES)}, got {name!r}")
    return tuple(name for name in PLANES if name in names)


def plane_count(names: Sequence[str]) -> int:
    """Planes of these names."""
    return sum(PLANES[name] for name in check_planes(names))


def plane_flags(names: Sequence[str]) -> np.ndarray:
    """Which of `PLANES` are asked for, as `write_planes` reads them; bool [5]."""
    return np.array([name in check_planes(names) for name in PLANES])


def boards_needed(names: Sequence[str]) -> int:
    """Last boards that a game must keep for these planes."""
    names = check_planes(names)
    return DEPTH if "history" in names else int("stones" in names)


@inlined
def write_planes(ints, longs, boards, flags, planes):
    """Fill planes int8 [C, points] for the player to move."""
    at = 0
    for time in range(0 if flags[0] else 1, DEPTH if flags[1] else 1):
        _stones(ints, boards[(ints[MOVES] - time) % boards.shape[0]], planes[at], planes[at + 1])
        at += 2
    if flags[2]:
        _liberties(ints, planes[at : at + 8])
        at += 8
    if flags[3]:
        _barred(ints, longs, planes[at])
        at += 1
    if flags[4]:
        planes[at] = 1 - ints[TO_PLAY]


@inlined
def _stones(ints, board, own, other):
    mine = np.uint8(1 + ints[TO_PLAY])
    theirs = np.uint8(3 - mine)
    for i in range(own.shape[0]):
        own[i] = board[i] == mine
        other[i] = board[i] == theirs


@inlined
def _liberties(ints, planes):
    planes[:] = 0
    for action in range(planes.shape[1]):
        cell = np.int64(cell_of(ints, action))
        if colour_at(ints, cell) != EMPTY and head_at(ints, cell) == cell:
            first = 0 if colour_at(ints, cell) == 1 + ints[TO_PLAY] else 4
            plane = planes[first + min(count_liberties(ints, cell), 4) - 1]
            stone = cell
            for _ in range(ints[CELLS + 3 * np.int64(ints[SIZE]) + cell]):
                plane[np.int64(action_of(ints, stone))] = 1
                stone = np.int64(ints[CELLS + 2 * np.int64(ints[SIZE]) + stone])


@inlined
def count_liberties(ints, head):
    """Liberties of a chain, counting no further than 4."""
    a = b = c = np.int64(0)  # the first three; no cell of the board is 0
    stone, size = head, np.int64(ints[SIZE])
    for _ in range(ints[CELLS + 3 * size + head]):
        for k in range(4):
            q = neighbour(stone, np.int64(ints[STRIDE]), k)
            if colour_at(ints, q) == EMPTY and q != a and q != b and q != c:
                if c:
                    return 4
                a, b, c = q, a, b
        stone = np.int64(ints[CELLS + 2 * size + stone])
    return (a > 0) + (b > 0) + (c > 0)


@inlined
def _barred(ints, longs, plane):
    """What would be legal without a ko rule and is not."""
    for i in range(plane.shape[0]):
        plane[i] = 0
    if ints[ENDING] > 0:
        return
    rule, barred = ints[KO], ints[BARRED]
    listed = CELLS + 4 * np.int64(ints[SIZE])
    for i in range(listed, listed + ints[EMPTIES]):
        cell = np.int64(ints[i])
        if not may_play(ints, longs, cell):
            ints[KO], ints[BARRED] = SIMPLE, 0
            plane[action_of(ints, cell)] = may_play(ints, longs, cell)
            ints[KO], ints[BARRED] = rule, barred


@kernel
def fill_planes(ints, longs, boards, flags, planes):
    """`write_planes` for Python."""
    write_planes(ints, longs, boards, flags, planes)
