"""Heavy playouts: save what is in atari, take what can be taken, answer locally by 3x3 patterns, else play anywhere.

After MoGo (Gelly, Wang, Munos & Teytaud 2006; its vital points of eye spaces: Chaslot et al. 2009), with self-atari of
more than one stone avoided unless it kills: without that, stones that a single eye cannot save would live by seki.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from llmgym.compiled import inlined
from llmgym.envs.go.cells import at, cell_of, colour_at, gives_atari, head_at, in_atari, neighbour, only_liberty
from llmgym.envs.go.layout import BORDER, CELLS, COLS, EMPTIES, EMPTY, LAST, ROWS, SIZE, STRIDE, TAKEN, TO_PLAY
from llmgym.envs.go.legality import may_play
from llmgym.envs.go.playout import fills_eye, next_random, set_aside
from llmgym.envs.go.shapes import MOST, leaves_one_eye, vital_point

# Of an empty point, seen by X or by O, turned and mirrored: X, O, . empty, # edge, ? whatever, x not X, o not O.
PATTERNS = (
    "XOX .. ???",  # hane
    "XO. .. ?.?",
    "XO? X. x.?",
    "XOO .. ?.?",
    "XO? Oo ?o?",  # cuts
    "?X? OO ooo",
    "X.? O? ###",  # at the side
    "OX? XO ###",
    "?X? xO ###",
    "?XO xx ###",
)
_MEANS = {"X": "X", "O": "O", ".": ".", "#": "#", "?": "XO.#", "x": "O.", "o": "X."}
_CODES = {".": 0, "X": 1, "O": 2, "#": 3}


def pattern_table() -> np.ndarray:
    """For the colours of the eight neighbours, row by row and two bits each, whether one of `PATTERNS` is there."""
    table = np.zeros(1 << 16, np.bool_)
    for drawn in PATTERNS:
        cells = drawn.replace(" ", "")
        square = np.array([*cells[:4], "c", *cells[4:]]).reshape(3, 3)
        for turned in (np.rot90(mirrored, k) for mirrored in (square, square.T) for k in range(4)):
            around = [cell for cell in turned.ravel() if cell != "c"]
            for colours in product(*(_MEANS[cell] for cell in around)):
                codes = [_CODES[c] for c in colours]
                for swap in (codes, [(0, 2, 1, 3)[code] for code in codes]):
                    table[sum(code << (2 * k) for k, code in enumerate(swap))] = True
    return table


_TABLE = pattern_table()
_SKIPPED = 26  # of 256: how often the local rules are skipped, so that no playout is bound to repeat their mistakes


@inlined
def around(ints, cell):
    """Colours of the eight neighbours, row by row, two bits each."""
    stride, code, k = at(ints, STRIDE), np.int64(0), 0
    for row in range(-1, 2):
        for col in range(-1, 2):
            if row != 0 or col != 0:
                near = cell + row * stride + col
                colour = BORDER if near < 0 or near >= at(ints, SIZE) else colour_at(ints, near)
                code |= colour << (2 * k)
                k += 1
    return code


@inlined
def has_pattern(code):
    """Whether these colours are those of a pattern."""
    return _TABLE[code]


@inlined
def has_stone(code):
    """Whether one of these colours is that of a stone."""
    return (code ^ (code >> 1)) & 0x5555 != 0


@inlined
def liberties_after(ints, longs, cell):
    """Liberties of the chain of a stone on this cell of the player to move, counting no further than 2."""
    stride, size, own, one = at(ints, STRIDE), at(ints, SIZE), 1 + at(ints, TO_PLAY), np.int64(0)
    for k in range(4):
        q = neighbour(cell, stride, k)
        colour = colour_at(ints, q)
        if colour == EMPTY or (colour == 3 - own and in_atari(longs, head_at(ints, q))):
            if one != 0 and one != q:
                return 2
            one = q
        elif colour == own:
            stone = q
            for _ in range(at(ints, CELLS + 3 * size + head_at(ints, q))):
                for j in range(4):
                    r = neighbour(stone, stride, j)
                    if colour_at(ints, r) == EMPTY and r != cell and r != one:
                        if one != 0:
                            return 2
                        one = r
                stone = at(ints, CELLS + 2 * size + stone)
    return np.int64(one > 0)


@inlined
def is_sensible(ints, longs, cell, region):
    """Of a legal move: it fills no own eye, and is no self-atari of more than one stone, but one that puts stones in
    atari that would have at most one eye if they took it. `region` is int64 [6] to work in."""
    if fills_eye(ints, cell):
        return False
    near = at(ints, CELLS + cell)
    own = (near >> (5 + 3 * at(ints, TO_PLAY))) & 7
    if (near >> 2) & 7 > 1 or own == 0 or liberties_after(ints, longs, cell) > 1:
        return True
    return gives_atari(ints, longs, cell) and leaves_one_eye(ints, cell, region)


@inlined
def _add(choices, n, cell):
    """One more choice, if there is room for it; returns how many there are."""
    if n < choices.shape[0]:
        choices[n] = cell
        return n + 1
    return n


@inlined
def _urgent(ints, longs, last, choices):
    """What saves own chains that the last stone has put in atari, by taking stones around them or by running away;
    else what takes the last stone. Returns how many cells there are; not all may be legal."""
    stride, size, own, n = at(ints, STRIDE), at(ints, SIZE), 1 + at(ints, TO_PLAY), 0
    for k in range(4):
        q = neighbour(last, stride, k)
        if colour_at(ints, q) != own or not in_atari(longs, head_at(ints, q)):
            continue
        escape = only_liberty(longs, head_at(ints, q))
        if liberties_after(ints, longs, escape) > 1:
            n = _add(choices, n, escape)
        stone = q
        for _ in range(at(ints, CELLS + 3 * size + head_at(ints, q))):
            for j in range(4):
                r = neighbour(stone, stride, j)
                if colour_at(ints, r) == 3 - own and in_atari(longs, head_at(ints, r)):
                    n = _add(choices, n, only_liberty(longs, head_at(ints, r)))
            stone = at(ints, CELLS + 2 * size + stone)
    if n == 0 and colour_at(ints, last) != EMPTY and in_atari(longs, head_at(ints, last)):
        n = _add(choices, n, only_liberty(longs, head_at(ints, last)))
    return n


@inlined
def _local(ints, last, choices):
    """Points around the last stone where a pattern is."""
    n = 0
    for row in range(-1, 2):
        for col in range(-1, 2):
            cell = last + row * at(ints, STRIDE) + col
            if 0 <= cell < at(ints, SIZE) and colour_at(ints, cell) == EMPTY and has_pattern(around(ints, cell)):
                n = _add(choices, n, cell)
    return n


@inlined
def _vital(ints, last, choices, region):
    """Vital points of the eye spaces that the last stone has made by taking three stones or more."""
    n = 0
    for k in range(4 * (at(ints, TAKEN) > 2)):
        q = neighbour(last, at(ints, STRIDE), k)
        vital = vital_point(ints, q, region) if colour_at(ints, q) == EMPTY else np.int64(0)
        if vital > 0:
            n = _add(choices, n, vital)
    return n


@inlined
def _answer(ints, longs, last, seed, choices):
    """An answer to the last move, the vital point of an eye space, or urgent, or else local, uniform over those that
    are legal; 0 if there is none."""
    region = choices[:MOST]
    for kind in range(3):
        if kind == 0:
            n = _vital(ints, last, choices[MOST:], region)
        else:
            n = _urgent(ints, longs, last, choices[MOST:]) if kind == 1 else _local(ints, last, choices[MOST:])
        while n > 0:
            i = MOST + ((next_random(seed) * n) >> 32)
            if may_play(ints, longs, choices[i]) and (kind < 2 or is_sensible(ints, longs, choices[i], region)):
                return choices[i]
            n -= 1
            choices[i] = choices[MOST + n]
    return np.int64(0)


@inlined
def _anywhere(ints, longs, seed, region):
    """A sensible cell, uniform; 0 if there is none."""
    listed, left = CELLS + 4 * at(ints, SIZE), at(ints, EMPTIES)
    while left > 0:
        place = (next_random(seed) * left) >> 32
        cell = at(ints, listed + place)
        if is_sensible(ints, longs, cell, region) and may_play(ints, longs, cell):
            return cell
        left -= 1
        set_aside(ints, place, left)
    return np.int64(0)


@inlined
def heavy_cell(ints, longs, seed, choices):
    """A cell for the player to move, 0 for a pass; `choices` is int64 [n] to work in, n > 6."""
    last, cell = at(ints, LAST), np.int64(0)
    if 0 <= last < at(ints, ROWS) * at(ints, COLS) and next_random(seed) & 255 >= _SKIPPED:
        cell = _answer(ints, longs, cell_of(ints, last), seed, choices)
    return cell if cell > 0 else _anywhere(ints, longs, seed, choices[:MOST])
