"""The rules as kernels on one row of memory (`layout`): play in place, and how a game begins and ends."""

from __future__ import annotations

import numpy as np

from llmgym.compiled import inlined, kernel
from llmgym.envs.go.cells import at, cell_of, colour_at, head_at
from llmgym.envs.go.layout import (
    BARRED,
    BLACK_STONE,
    CAP,
    CAPTURES,
    CELLS,
    COLS,
    EMPTY,
    ENDED_BY_ILLEGAL,
    ENDED_BY_MOVES,
    ENDED_BY_PASSES,
    ENDING,
    KO,
    LAST,
    LIBERTIES,
    LOST,
    MOVES,
    PASSES,
    POSITIONAL,
    ROWS,
    SITUATIONAL,
    STRIDE,
    TAKEN,
    TO_PLAY,
)
from llmgym.envs.go.legality import is_legal, record, write_mask
from llmgym.envs.go.stones import join, put_alone, put_stone


@inlined
def _note(ints, action):
    """What every action changes: whose turn it is, counters, the ends of the game."""
    mover = at(ints, TO_PLAY)
    ints[LAST] = action
    ints[TO_PLAY] = 1 - mover
    ints[MOVES] += 1
    ints[np.uintp(CAPTURES + mover)] += at(ints, TAKEN)
    ints[np.uintp(CAPTURES + 1 - mover)] += at(ints, LOST)
    if at(ints, PASSES) == 2:
        ints[ENDING] = ENDED_BY_PASSES
    elif at(ints, MOVES) >= at(ints, CAP):
        ints[ENDING] = ENDED_BY_MOVES


@inlined
def keep_board(ints, boards):
    """Write the position into the ring of the last ones."""
    write_board(ints, boards[at(ints, MOVES) % boards.shape[0]])


@inlined
def write_board(ints, board):
    """The stones as bytes, row by row."""
    rows, cols, stride = at(ints, ROWS), at(ints, COLS), at(ints, STRIDE)
    for row in range(rows):
        start, first = row * cols, CELLS + (row + 1) * stride
        for col in range(cols):  # a plain counter: LLVM vectorises it
            board[start + col] = at(ints, first + col) & 3


@inlined
def advance(ints, longs, action, cell):
    """Play a legal action for the player to move, in place; `cell` is its cell, 0 for a pass."""
    mover = at(ints, TO_PLAY)
    if cell == 0:
        ints[PASSES] += 1
        ints[BARRED] = ints[TAKEN] = ints[LOST] = 0
    else:
        ints[PASSES] = 0
        put_stone(ints, longs, cell, mover)
    # A pass leaves the board as it is: only with the player to move is that a new situation.
    if at(ints, KO) == SITUATIONAL or (at(ints, KO) == POSITIONAL and cell > 0):
        record(ints, longs, mover)
    _note(ints, action)


@inlined
def play(ints, longs, action):
    """`advance` by the action alone."""
    is_pass = action == at(ints, ROWS) * at(ints, COLS)
    advance(ints, longs, action, 0 if is_pass else cell_of(ints, action))


@inlined
def forfeit(ints, action):
    """An illegal action ends the game; the board stays as it is."""
    ints[LAST] = action if 0 <= action <= at(ints, ROWS) * at(ints, COLS) else -1
    ints[TO_PLAY] = 1 - at(ints, TO_PLAY)
    ints[MOVES] += 1
    ints[TAKEN] = ints[LOST] = 0
    ints[ENDING] = ENDED_BY_ILLEGAL


@inlined
def move(ints, longs, action):
    """Play an action if it is legal, else forfeit."""
    if is_legal(ints, longs, action):
        play(ints, longs, action)
    else:
        forfeit(ints, action)


@kernel
def step(ints, longs, boards, action):
    """`move`, for Python, and the board into the ring of the last ones."""
    move(ints, longs, action)
    if boards.shape[0] > 0:
        keep_board(ints, boards)


@kernel
def fill_mask(ints, longs, mask):
    """`write_mask` for Python."""
    write_mask(ints, longs, mask)


@kernel
def fill_board(ints, board):
    """`write_board` for Python: uint8 or int8 [points]."""
    write_board(ints, board)


@kernel
def begin(ints, longs, boards, stones, to_play):
    """Make an empty game one that begins with these stones, uint8 [points]; whether every chain has a liberty."""
    for action in range(stones.shape[0]):
        if stones[action] != EMPTY:
            put_alone(ints, longs, cell_of(ints, action), np.int64(stones[action] - BLACK_STONE))
    alive = _join_all(ints, longs, stones.shape[0])
    ints[TO_PLAY] = to_play
    record(ints, longs, 1 - to_play)
    if boards.shape[0] > 0:
        keep_board(ints, boards)
    return alive


@inlined
def _join_all(ints, longs, points):
    for action in range(points):
        cell = cell_of(ints, action)
        colour = colour_at(ints, cell)
        if colour == EMPTY:
            continue
        for q in (cell + 1, cell + at(ints, STRIDE)):
            if colour_at(ints, q) == colour and head_at(ints, q) != head_at(ints, cell):
                join(ints, longs, head_at(ints, cell), head_at(ints, q))
    for action in range(points):
        cell = cell_of(ints, action)
        if colour_at(ints, cell) != EMPTY and at(longs, LIBERTIES + head_at(ints, cell)) == 0:
            return False
    return True
