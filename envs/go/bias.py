"""First impressions: what a move looks like before it is tried, as simulations that the tree pretends to have seen.

Each feature counts as so many all-moves-as-first simulations that were won, or lost (Gelly & Silver 2011, section 6:
"heuristic prior knowledge"); real ones soon outnumber them.
"""

from __future__ import annotations

import numpy as np

from llmgym.compiled import inlined
from llmgym.envs.go.cells import at, cell_of, colour_at, head_at, in_atari, neighbour
from llmgym.envs.go.heavy import around, has_pattern, has_stone, liberties_after
from llmgym.envs.go.layout import CELLS, COLS, LAST, PASSES, ROWS, SIZE, STRIDE, TO_PLAY

# Simulations that a feature counts as; won above 0, lost below.
EVEN, SELF_ATARI, CAPTURE, ESCAPE, PATTERN, NEAR, CLOSE, FIRST_LINE, SECOND_LINE, THIRD_LINE = range(10)
WEIGHTS = np.array([10, -20, 15, 15, 10, 15, 8, -10, -4, 6], np.float64)
_PASS = 5  # lost: a pass has no all-moves-as-first simulations, and would be tried first everywhere


@inlined
def _impressions(ints, longs, cell, weights, told):
    """Simulations won and lost of a legal move, into float64 [2], by the stones around it."""
    stride, size, own = at(ints, STRIDE), at(ints, SIZE), 1 + at(ints, TO_PLAY)
    taken, saved = np.int64(0), np.int64(0)
    for k in range(4):
        q = neighbour(cell, stride, k)
        colour = colour_at(ints, q)
        if (colour == own or colour == 3 - own) and in_atari(longs, head_at(ints, q)):
            stones = at(ints, CELLS + 3 * size + head_at(ints, q))
            if colour == own:
                saved = max(saved, stones)
            else:
                taken = max(taken, stones)
    room = liberties_after(ints, longs, cell)
    if taken > 0:
        _count(told, weights[CAPTURE] * (1 + (taken > 1)))
    if room < 2:
        _count(told, weights[SELF_ATARI])
    elif saved > 0:
        _count(told, weights[ESCAPE] * (1 + (saved > 1)))


@inlined
def _count(told, weight):
    """So many more simulations, won if above 0."""
    told[0] += max(weight, 0.0)
    told[1] += max(-weight, 0.0)


@inlined
def _place(ints, cell, last, weights, told):
    """The same by the place: how near to the last move, and how far from the edge where nothing is around."""
    stride, code = at(ints, STRIDE), around(ints, cell)
    row, col = cell // stride - 1, cell % stride
    if last > 0:
        rows, cols = abs(row - (last // stride - 1)), abs(col - last % stride)
        distance = rows + cols + max(rows, cols)
        if distance <= 3:
            _count(told, weights[NEAR])
            if has_pattern(code):
                _count(told, weights[PATTERN])
        elif distance <= 6:
            _count(told, weights[CLOSE])
    if not has_stone(code):
        line = min(min(row, at(ints, ROWS) - 1 - row), min(col, at(ints, COLS) - 1 - col))
        if line < 3:
            _count(told, weights[FIRST_LINE + line])


@inlined
def impress(edges, first, degree, ints, longs, weights):
    """Let the edges of a new node, legal moves of the board, begin with simulations that were never made."""
    points, last, told = at(ints, ROWS) * at(ints, COLS), at(ints, LAST), np.empty(2)
    last_cell = cell_of(ints, last) if 0 <= last < points else np.int64(0)
    for edge in range(first, first + degree):
        action = np.int64(edges[edge].action)
        told[:] = weights[EVEN] / 2
        if action == points and at(ints, PASSES) > 0:
            told[:] = 0  # it ends the game, and is tried first: its result is exact
        elif action == points:
            told[1] += _PASS
        elif weights[EVEN] > 0:
            cell = cell_of(ints, action)
            _impressions(ints, longs, cell, weights, told)
            _place(ints, cell, last_cell, weights, told)
        edges[edge].all_visits = np.int32(told[0] + told[1])
        edges[edge].all_total = told[0] - told[1]
