"""Light playouts: uniform over the legal moves that fill no own eye, until nobody has one."""

from __future__ import annotations

import numpy as np

from llmgym.compiled import inlined, kernel
from llmgym.envs.go.area import margin, write_area
from llmgym.envs.go.board import advance, keep_board
from llmgym.envs.go.cells import action_of, at, colour_at
from llmgym.envs.go.layout import BORDER, CELLS, COLS, EMPTIES, ENDING, ROWS, SIZE, STRIDE, TO_PLAY
from llmgym.envs.go.legality import may_play, write_mask


@inlined
def next_random(seed):
    """Advance a generator, uint64 [1]; returns its next 32 bits (SplitMix64: Steele, Lea & Flood 2014)."""
    seed[0] += np.uint64(0x9E3779B97F4A7C15)
    z = seed[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64((z ^ (z >> np.uint64(31))) >> np.uint64(32))


@inlined
def fills_eye(ints, cell):
    """Whether an empty cell is an eye of the player to move: own stones or the edge on all four sides, and the
    opponent on no more than one corner, or none at the edge."""
    mover, near = at(ints, TO_PLAY), at(ints, CELLS + cell)
    if (near >> 2) & 7 or (near >> (8 - 3 * mover)) & 7:
        return False
    stride, enemies, edge = at(ints, STRIDE), 0, 0
    for k in range(4):
        # Rows above the first and below the last are there, but a corner may lie before or behind them.
        corner = cell + (k // 2 * 2 - 1) * stride + (k % 2 * 2 - 1)
        colour = BORDER if corner >= at(ints, SIZE) or corner < 0 else colour_at(ints, corner)
        enemies += colour == 2 - mover
        edge |= colour == BORDER
    return enemies + edge < 2


@inlined
def set_aside(ints, place, last):
    """Let two of the listed empty cells change places: one that was refused is then not drawn again."""
    listed, where = CELLS + 4 * at(ints, SIZE), CELLS + 5 * at(ints, SIZE)
    cell, other = at(ints, listed + place), at(ints, listed + last)
    ints[np.uintp(listed + place)], ints[np.uintp(listed + last)] = other, cell
    ints[np.uintp(where + other)], ints[np.uintp(where + cell)] = place, last


@inlined
def light_cell(ints, longs, seed):
    """A cell for the player to move, uniform among legal ones that fill no own eye; 0 if there is none."""
    listed, left = CELLS + 4 * at(ints, SIZE), at(ints, EMPTIES)
    while left > 0:
        place = (next_random(seed) * left) >> 32
        cell = at(ints, listed + place)
        if not fills_eye(ints, cell) and may_play(ints, longs, cell):
            return cell
        left -= 1
        set_aside(ints, place, left)
    return np.int64(0)


@inlined
def play_light(ints, longs, seed):
    """One light move, in place."""
    cell = light_cell(ints, longs, seed)
    advance(ints, longs, action_of(ints, cell) if cell else at(ints, ROWS) * at(ints, COLS), cell)


@kernel
def finish(ints, longs, boards, seed):
    """Play one game to its end, in place."""
    while at(ints, ENDING) == 0:
        play_light(ints, longs, seed)
        keep_board(ints, boards)


@kernel
def playouts(ints, longs, seed, margins):
    """Light playouts from one position, which stays as it is; fills the margins of Black before komi, int64 [n]."""
    board, past = np.empty_like(ints), np.empty_like(longs)
    area = np.empty(at(ints, ROWS) * at(ints, COLS), np.uint8)
    for i in range(margins.shape[0]):
        board[:], past[:] = ints, longs
        while at(board, ENDING) == 0:
            play_light(board, past, seed)
        write_area(board, area)
        margins[i] = margin(area)


@inlined
def write_light_mask(ints, longs, mask):
    """The mask less own eyes; passing counts only if nothing else does."""
    write_mask(ints, longs, mask)
    if at(ints, ENDING) == 0:
        spare_eyes(ints, mask)


@inlined
def spare_eyes(ints, mask):
    """Make a mask a light one."""
    listed, stride, last = CELLS + 4 * at(ints, SIZE), at(ints, STRIDE), mask.shape[0] - 1
    moves = 0
    for i in range(listed, listed + at(ints, EMPTIES)):
        cell = at(ints, i)
        action = cell - stride - cell // stride + 1
        mask[action] = mask[action] and not fills_eye(ints, cell)
        moves += mask[action]
    mask[last] = moves == 0


@inlined
def pick(mask, draw):
    """The action that 32 random bits choose, uniform among True ones; the last action if there are none."""
    count = 0
    for action in range(mask.shape[0]):
        count += mask[action]
    left = (np.int64(draw) * count) >> 32
    for action in range(mask.shape[0]):
        left -= mask[action]
        if left < 0:
            return action
    return mask.shape[0] - 1


@kernel
def pick_light(ints, longs, draw):
    """A light move of one game, chosen by 32 random bits."""
    mask = np.empty(at(ints, ROWS) * at(ints, COLS) + 1, np.bool_)
    write_light_mask(ints, longs, mask)
    return pick(mask, draw)


@kernel
def pick_random(ints, longs, draw):
    """A legal action of one game, chosen by 32 random bits."""
    mask = np.empty(at(ints, ROWS) * at(ints, COLS) + 1, np.bool_)
    write_mask(ints, longs, mask)
    return pick(mask, draw)
