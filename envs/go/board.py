"""The rules as kernels on one row of memory (`layout`): legal moves, play in place, and the mask.

Superko is masked exactly, up to collisions of 64-bit Zobrist hashes: the hash after a move is known without playing
it, since every chain keeps its own.
"""

from __future__ import annotations

import numpy as np

from llmgym.compiled import inlined, kernel
from llmgym.envs.go.layout import (
    BARRED,
    BLACK_STONE,
    BORDER,
    CAP,
    CAPTURES,
    CELLS,
    COLS,
    EMPTIES,
    EMPTY,
    ENDED_BY_ILLEGAL,
    ENDED_BY_MOVES,
    ENDED_BY_PASSES,
    ENDING,
    HASH,
    KO,
    LAST,
    LIBERTIES,
    LOST,
    MOVES,
    PASSES,
    POSITIONAL,
    RECORDED,
    ROWS,
    SIMPLE,
    SITUATIONAL,
    SIZE,
    STRIDE,
    SUICIDE,
    TAKEN,
    TO_PLAY,
    TURN,
    WAS_BLACK,
    WORDS,
    ZOBRIST,
)

_COUNT, _SUM = (1 << 12) - 1, (1 << 21) - 1  # fields of packed liberties
_SQUARES = 33
_FREE = 7 << 2  # of a cell: its empty neighbours
_UNSURE = 2


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
def _liberty(cell):
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
    stride, enemy, key = at(ints, STRIDE), 2 - at(ints, TO_PLAY), _liberty(cell)
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
def _put(ints, longs, cell, player):
    """A stone as a chain of its own; it takes a liberty from each chain it touches."""
    size, stride = at(ints, SIZE), at(ints, STRIDE)
    change = 28 if player == 0 else 252  # a neighbour has one empty neighbour less, one black or white one more
    key, liberties = _liberty(cell), np.int64(0)
    for k in range(4):
        q = neighbour(cell, stride, k)
        near = at(ints, CELLS + q)
        ints[np.uintp(CELLS + q)] = near + change
        if near & 3 == EMPTY:
            liberties += _liberty(q)
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
def _join(ints, longs, head, other):
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
        key = _liberty(stone)
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
    _put(ints, longs, cell, player)
    head, taken, hole = cell, np.int64(0), np.int64(0)
    for k in range(4):
        q = neighbour(cell, stride, k)
        colour = colour_at(ints, q)
        if colour == player + 1:
            other = head_at(ints, q)
            if other != head:
                head = _join(ints, longs, head, other)
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
            _put(ints, longs, cell_of(ints, action), np.int64(stones[action] - BLACK_STONE))
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
                _join(ints, longs, head_at(ints, cell), head_at(ints, q))
    for action in range(points):
        cell = cell_of(ints, action)
        if colour_at(ints, cell) != EMPTY and at(longs, LIBERTIES + head_at(ints, cell)) == 0:
            return False
    return True
