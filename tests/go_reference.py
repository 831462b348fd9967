"""Go as one would explain it to a child: whole boards, flood fill, a list of everything that was on the board.

Written from the rules alone and never from the engine, which the tests hold against it. Slow on purpose: nothing is
kept from one move to the next but the boards themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

Board = tuple[int, ...]  # row by row: 0 empty, 1 a black stone, 2 a white one
SIGNS = {".": 0, "X": 1, "O": 2}


def parse(text: str) -> np.ndarray:
    """Board [rows, cols] int8 of lines such as ". X O"; blank lines and blanks do not count."""
    lines = ["".join(line.split()) for line in text.strip().splitlines()]
    return np.array([[SIGNS[sign] for sign in line] for line in lines], dtype=np.int8)


def show(board: np.ndarray) -> str:
    """Lines of `parse`."""
    return "\n".join(" ".join(".XO"[stone] for stone in row) for row in board)


class Grid:
    """A board's shape, and what stones do on it."""

    def __init__(self, rows: int, cols: int):
        self.rows, self.cols = rows, cols
        self.points = rows * cols
        self.near = [list(self._near(*divmod(point, cols))) for point in range(self.points)]

    def _near(self, row: int, col: int) -> Iterator[int]:
        """Up to four points beside one."""
        for r, c in ((row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)):
            if 0 <= r < self.rows and 0 <= c < self.cols:
                yield r * self.cols + c

    def region(self, board: Board, start: int) -> tuple[set[int], set[int]]:
        """Points joined to `start` through points of its own kind, and the points around them."""
        inside, around, waiting = {start}, set(), [start]
        while waiting:
            for point in self.near[waiting.pop()]:
                if board[point] != board[start]:
                    around.add(point)
                elif point not in inside:
                    inside.add(point)
                    waiting.append(point)
        return inside, around

    def liberties(self, board: Board, point: int) -> set[int]:
        """Empty points beside the chain at `point`."""
        return {around for around in self.region(board, point)[1] if board[around] == 0}

    def place(self, board: Board, point: int, stone: int) -> tuple[Board, int, int]:
        """Board after the stone, stones of the other colour taken, own stones lost.

        First chains of the other colour without a liberty come off, then those of one's own.
        """
        after = list(board)
        after[point] = stone
        taken = self._lift(after, [beside for beside in self.near[point] if after[beside] == 3 - stone])
        lost = self._lift(after, [point])
        return tuple(after), len(taken), len(lost)

    def _lift(self, board: list[int], points: list[int]) -> set[int]:
        """Take off the chains at `points` that have no liberty; all their stones."""
        chains = [self.region(board, point)[0] for point in points if not self.liberties(board, point)]  # type: ignore[arg-type]
        gone = set().union(*chains)
        for point in gone:
            board[point] = 0
        return gone

    def legal(self, board: Board) -> bool:
        """Whether every chain has a liberty."""
        return all(self.liberties(board, point) for point in range(self.points) if board[point])

    def area(self, board: Board) -> Board:
        """Owner of every point: its stone's, or the only colour that its empty region touches; 0 for neither."""
        owners = list(board)
        for point in range(self.points):
            if board[point] == 0:
                colours = {board[around] for around in self.region(board, point)[1]}
                owners[point] = colours.pop() if len(colours) == 1 else 0
        return tuple(owners)


class Game:
    """A game in progress; `play` changes it."""

    def __init__(self, rows, cols, *, komi=0.0, ko="positional", suicide=False, max_moves=10**6, board=None, to_play=0):
        self.grid = Grid(rows, cols)
        self.komi, self.ko, self.suicide, self.max_moves = komi, ko, suicide, max_moves
        self.board: Board = tuple(int(stone) for stone in np.ravel(board)) if board is not None else (0,) * rows * cols
        self.to_play = to_play  # 0 is Black
        self.past = [(self.board, to_play)]  # every board there was, and who was to move on it
        self.seen: set = {self.board, self.past[0]}
        self.actions: list[int] = []
        self.captures = [0, 0]  # stones that each has taken
        self.taken, self.lost = 0, 0  # by the last move
        self.ko_point: int | None = None
        self.ending: str | None = None

    def play(self, action: int) -> None:
        """A legal action."""
        if action < self.grid.points:
            self._place(action)
        else:
            self.taken, self.lost, self.ko_point = 0, 0, None
        self.to_play = 1 - self.to_play
        self.actions.append(action)
        self.past.append((self.board, self.to_play))
        self.seen |= {self.board, self.past[-1]}
        if self.actions[-2:] == [self.grid.points] * 2:
            self.ending = "passes"
        elif len(self.actions) == self.max_moves:
            self.ending = "moves"

    def _place(self, point: int) -> None:
        before = self.board
        self.board, self.taken, self.lost = self.grid.place(before, point, self.to_play + 1)
        self.captures[self.to_play] += self.taken
        self.captures[1 - self.to_play] += self.lost
        self.ko_point = self._just_taken(before) if self._is_ko(point) else None

    def _is_ko(self, point: int) -> bool:
        """A stone alone took one stone, and can only be taken back where that one stood."""
        alone = self.board[point] and len(self.grid.region(self.board, point)[0]) == 1
        return bool(alone and self.taken == 1 and len(self.grid.liberties(self.board, point)) == 1)

    def _just_taken(self, before: Board) -> int:
        return next(p for p in range(self.grid.points) if before[p] == 2 - self.to_play and not self.board[p])

    def fits(self, point: int) -> bool:
        """Empty, and no forbidden suicide; ko is another matter."""
        if self.board[point]:
            return False
        return self.suicide or not self.grid.place(self.board, point, self.to_play + 1)[2]

    def barred(self, point: int) -> bool:
        """Whether the ko rule forbids a stone on an empty point."""
        if self.ko == "simple":
            return point == self.ko_point
        after = self.grid.place(self.board, point, self.to_play + 1)[0]
        return after in self.seen if self.ko == "positional" else (after, 1 - self.to_play) in self.seen

    def mask(self) -> np.ndarray:
        """Legal actions, bool [points + 1]."""
        if self.ending:
            return np.zeros(self.grid.points + 1, dtype=bool)
        return np.array([self.fits(p) and not self.barred(p) for p in range(self.grid.points)] + [True])

    def score(self) -> float:
        """Black's area less White's less komi."""
        area = self.grid.area(self.board)
        return area.count(1) - area.count(2) - self.komi

    def stones(self) -> np.ndarray:
        """Board [rows, cols] int8."""
        return np.array(self.board, dtype=np.int8).reshape(self.grid.rows, self.grid.cols)


def planes(game: Game, names: tuple[str, ...]) -> np.ndarray:
    """Observation [C, rows, cols] int8 of the player to move, by the definitions of the documentation."""
    parts = [plane for name in names for plane in PLANES[name](game)]
    return np.array(parts).astype(np.int8).reshape(-1, game.grid.rows, game.grid.cols)


def _pair(board: Board, player: int) -> list[list[bool]]:
    return [[stone == colour for stone in board] for colour in (player + 1, 2 - player)]


def _history(game: Game) -> list[list[bool]]:
    boards = [board for board, _ in game.past[-2::-1]][:7]
    boards += [(0,) * game.grid.points] * (7 - len(boards))
    return [plane for board in boards for plane in _pair(board, game.to_play)]


def _liberties(game: Game) -> list[list[bool]]:
    counts = [len(game.grid.liberties(game.board, p)) if game.board[p] else 0 for p in range(game.grid.points)]
    return [
        [own and min(count, 4) == wanted for own, count in zip(colour, counts, strict=True)]
        for colour in _pair(game.board, game.to_play)
        for wanted in (1, 2, 3, 4)
    ]


def _ko(game: Game) -> list[list[bool]]:
    return [[game.fits(p) and game.barred(p) for p in range(game.grid.points)]]


PLANES = {
    "stones": lambda game: _pair(game.board, game.to_play),
    "history": _history,
    "liberties": _liberties,
    "ko": _ko,
    "colour": lambda game: [[game.to_play == 0] * game.grid.points],
}
