"""Area scoring (Tromp-Taylor): own stones, and empty regions that touch only own stones; all stones count as alive."""

from __future__ import annotations

import numpy as np

from llmgym.compiled import inlined, kernel
from llmgym.envs.go.cells import action_of, cell_of, colour_at, neighbour
from llmgym.envs.go.layout import BLACK_STONE, BORDER, CELLS, EMPTY, STRIDE, WHITE_STONE

_UNKNOWN = 3


@inlined
def write_area(ints, area):
    """Owner of every point: 0 neutral, 1 Black, 2 White; uint8 or int8 [points]."""
    regions = False
    for action in range(area.shape[0]):
        near = np.int64(ints[CELLS + cell_of(ints, action)])
        colour = near & 3
        if colour == EMPTY:
            black, white = (near >> 5) & 7, (near >> 8) & 7
            colour = BLACK_STONE * (black > 0) + WHITE_STONE * (white > 0)  # 3, both, is neutral
            if (near >> 2) & 7:
                regions, colour = True, _UNKNOWN
            elif colour == BORDER:
                colour = EMPTY
        area[action] = colour
    if regions:
        _fill_regions(ints, area)


@inlined
def _fill_regions(ints, area):
    stack = np.empty(area.shape[0], np.int64)
    for first in range(area.shape[0]):
        if area[first] != _UNKNOWN or colour_at(ints, cell_of(ints, first)) != EMPTY:
            continue
        touched, depth, end = np.int64(0), np.int64(0), np.int64(1)
        stack[0], area[first] = first, EMPTY
        while depth < end:  # the stack keeps what it has seen: it is the region in the end
            cell = np.int64(cell_of(ints, stack[depth]))
            depth += 1
            for k in range(4):
                q = neighbour(cell, np.int64(ints[STRIDE]), k)
                colour = np.int64(colour_at(ints, q))
                if colour == EMPTY:
                    action = np.int64(action_of(ints, q))
                    if area[action] == _UNKNOWN:
                        area[action] = EMPTY
                        stack[end] = action
                        end += 1
                elif colour != BORDER:
                    touched |= colour
        for i in range(end):
            area[stack[i]] = EMPTY if touched == BLACK_STONE | WHITE_STONE else touched


@inlined
def margin(area):
    """Points of Black less those of White, before komi."""
    total = 0
    for i in range(area.shape[0]):
        total += (area[i] == BLACK_STONE) - np.int64(area[i] == WHITE_STONE)
    return total


@kernel
def fill_area(ints, area):
    """`write_area` for Python; returns `margin`."""
    write_area(ints, area)
    return margin(area)
