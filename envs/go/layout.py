"""How a game of Go lies in memory: a row of 16-bit integers, a row of 64-bit ones, and the last boards as bytes.

    integers  header | cells | heads | nexts | sizes | empties | where | scratch
    longs     hash | liberties | hashes | seen | past
    boards    the last positions, a ring of `depth` boards, one byte a point

Cells are the board with a border, so that every point has four neighbours: cell (row + 1) · stride + col, with
stride = cols + 1, one border column serving as the right edge of its row and the left edge of the next. A cell holds
its colour (bits 0-1: empty, black, white, border), how many of its neighbours are empty (2-4), black (5-7) and white
(8-10), and whether a black (11) or white (12) stone has ever been taken off it.

A chain is a circular list (`nexts`) and known by its head: `heads`, `sizes`, `liberties` and `hashes` are those of the
chain at its head. `liberties` packs (count, sum, sum of squares) of the cells of its pseudo-liberties, a liberty
counted once for each stone it touches: the chain is in atari where count · sum of squares = sum². With s stones and e
empty points a chain has at most min(2s + 2, 4e) < 840 of them, so that no field overflows on 25x25.

`empties` lists the empty cells in no order, `where` is the place of each in it. `past` holds the Zobrist hash of every
position (with the player to move, if ko is situational), `seen` is a bit set of them: most look-ups end there.
"""

from __future__ import annotations

import numpy as np

from llmgym.envs.go.rules import KO_RULES, GoRules

# The header.
ROWS, COLS, STRIDE, SIZE = 0, 1, 2, 3  # SIZE: number of cells
KO, SUICIDE, CAP, WORDS = 4, 5, 6, 7  # WORDS: of `seen`
TO_PLAY, MOVES, PASSES, LAST, ENDING = 8, 9, 10, 11, 12  # LAST: an action or -1; ENDING: an index into ENDINGS
BARRED, EMPTIES, RECORDED = 13, 14, 15  # BARRED: cell of simple ko or 0
TAKEN, LOST = 16, 17  # by the last move: stones of the opponent, and own ones (suicide)
CAPTURES = 18  # stones taken by Black, by White
CELLS = 20
HASH, LIBERTIES = 0, 1
SIMPLE, POSITIONAL, SITUATIONAL = range(len(KO_RULES))
ENDED_BY_PASSES, ENDED_BY_MOVES, ENDED_BY_ILLEGAL = 1, 2, 3
EMPTY, BLACK_STONE, WHITE_STONE, BORDER = 0, 1, 2, 3
WAS_BLACK = 1 << 11  # of a cell, shifted by the player
DEPTH = 8  # boards kept for the planes of history

_MOST_CELLS = 1024
_KEYS = np.random.default_rng(20161).integers(-(2**63), 2**63, 2 * _MOST_CELLS + 1)
ZOBRIST = _KEYS[:-1].reshape(2, _MOST_CELLS).copy()  # int64 [player, cell]
TURN = int(_KEYS[-1])  # of White to move


def lengths(rules: GoRules) -> tuple[int, int]:
    """16-bit and 64-bit integers of a game."""
    size, words = _size(rules), _words(rules)
    return CELLS + 7 * size, LIBERTIES + 2 * size + words + rules.cap + 1


def empty_game(rules: GoRules, depth: int = DEPTH) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The empty board with Black to move: int16, int64 and uint8 [depth, points]."""
    n_ints, n_longs = lengths(rules)
    ints, longs = np.zeros(n_ints, np.int16), np.zeros(n_longs, np.int64)
    size = _size(rules)
    ints[[ROWS, COLS, STRIDE, SIZE]] = rules.rows, rules.cols, rules.cols + 1, size
    ints[[KO, SUICIDE, CAP, WORDS]] = KO_RULES.index(rules.ko), rules.suicide, rules.cap, _words(rules)
    ints[LAST], ints[EMPTIES] = -1, rules.points
    inside = np.zeros(size, bool)
    inside.reshape(-1, rules.cols + 1)[1:-1, :-1] = True
    ints[CELLS : CELLS + size] = np.where(inside, 4 * _neighbours(inside, rules.cols + 1), BORDER)
    cells = np.flatnonzero(inside)
    ints[CELLS + 4 * size : CELLS + 4 * size + rules.points] = cells
    ints[CELLS + 5 * size + cells] = np.arange(rules.points)
    return ints, longs, np.zeros((depth, rules.points), np.uint8)


def _neighbours(inside: np.ndarray, stride: int) -> np.ndarray:
    padded = np.pad(inside.astype(np.int16), stride)
    return (
        padded[: -2 * stride]
        + padded[stride - 1 : -stride - 1]
        + padded[stride + 1 :][: len(inside)]
        + padded[2 * stride :]
    )


def _size(rules: GoRules) -> int:
    return (rules.rows + 2) * (rules.cols + 1)


def _words(rules: GoRules) -> int:
    """64-bit words of `seen`, a power of two with at least 16 bits a move."""
    return 1 << max(0, (rules.cap * 16 // 64).bit_length())
