"""`GoState`: a position with everything the rules need to go on, as a value."""

from __future__ import annotations

import numpy as np

from llmgym.envs.go.board import fill_board
from llmgym.envs.go.layout import (
    CAPTURES,
    CELLS,
    COLS,
    ENDING,
    HASH,
    LAST,
    LIBERTIES,
    MOVES,
    PASSES,
    RECORDED,
    ROWS,
    SIZE,
    TO_PLAY,
    TURN,
    WAS_BLACK,
    WORDS,
)
from llmgym.envs.go.rules import ILLEGAL, MOVES_SPENT, PASSES_PLAYED

ENDINGS = (None, PASSES_PLAYED, MOVES_SPENT, ILLEGAL)


class GoState:
    """A frozen position. Equal positions hash equal; == also compares passes, moves, last boards and ko history.

    The arrays are those of `layout`; nothing writes to them after the state is made.
    """

    __slots__ = ("boards", "ints", "longs")

    def __init__(self, ints: np.ndarray, longs: np.ndarray, boards: np.ndarray):
        self.ints, self.longs, self.boards = ints, longs, boards

    @property
    def rows(self) -> int:
        """Rows of the board."""
        return self.ints.item(ROWS)

    @property
    def cols(self) -> int:
        """Columns of the board."""
        return self.ints.item(COLS)

    @property
    def to_play(self) -> int:
        """Who moves: 0 Black, 1 White."""
        return self.ints.item(TO_PLAY)

    @property
    def n_moves(self) -> int:
        """Moves played, passes included."""
        return self.ints.item(MOVES)

    @property
    def passes(self) -> int:
        """Passes in a row before this position."""
        return self.ints.item(PASSES)

    @property
    def last_action(self) -> int | None:
        """The move that led here; None at the start."""
        action = self.ints.item(LAST)
        return None if action < 0 else action

    @property
    def ending(self) -> str | None:
        """Why the game is over: "passes", "moves" or "illegal"; None while it goes on."""
        return ENDINGS[self.ints.item(ENDING)]

    @property
    def captures(self) -> tuple[int, int]:
        """Stones taken by Black and by White; those of a suicide go to the other player."""
        return self.ints.item(CAPTURES), self.ints.item(CAPTURES + 1)

    @property
    def stones(self) -> np.ndarray:
        """int8 [rows, cols], a copy: 0 empty, 1 Black, 2 White."""
        board = np.empty((self.rows, self.cols), np.int8)
        fill_board(self.ints, board.reshape(-1))
        return board

    def history(self, k: int) -> np.ndarray:
        """The boards now, one move ago, …; int8 [k, rows, cols], empty ones from before the start.

        Raises:
            ValueError: k is larger than the number of boards that are kept.
        """
        kept = len(self.boards)
        if not 0 <= k <= kept:
            raise ValueError(f"a state keeps its last {kept} boards, got k = {k}")
        now = self.n_moves
        return self.boards[[(now - t) % kept for t in range(k)]].astype(np.int8).reshape(k, self.rows, self.cols)

    def __hash__(self) -> int:
        turn = TURN if self.to_play else 0
        return hash((self.longs.item(HASH) ^ turn, self.ints.item(ROWS), self.ints.item(COLS)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GoState):
            return NotImplemented
        return self is other or (hash(self) == hash(other) and self._content() == other._content())

    def __repr__(self) -> str:
        over = f", over by {self.ending}" if self.ending else ""
        return f"GoState({self.rows}x{self.cols}, move {self.n_moves}, {'WB'[1 - self.to_play]} to play{over})"

    def _content(self) -> tuple:
        ints, size = self.ints, self.ints.item(SIZE)
        past = LIBERTIES + 2 * size + ints.item(WORDS)
        seen = np.unique(self.longs[past : past + ints.item(RECORDED)])
        header = ints[:CELLS].copy()
        header[RECORDED] = 0
        ring = np.roll(self.boards, -self.n_moves, axis=0)
        cells = ints[CELLS : CELLS + size] % WAS_BLACK  # where stones were lost follows from the history, for speed
        return header.tobytes(), cells.tobytes(), seen.tobytes(), ring.tobytes()
