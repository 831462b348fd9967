"""The rules of one game of Go as data: sizes, komi, ko, suicide, move cap, handicap."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from numbers import Real

BLACK, WHITE = 0, 1  # players; their stones on a board are 1 and 2
KO_RULES = ("simple", "positional", "situational")
PASSES_PLAYED, MOVES_SPENT, ILLEGAL = "passes", "moves", "illegal"  # why a game has ended
MAX_SIZE = 25


@dataclass(frozen=True)
class GoRules:
    """Area scoring; two passes in a row end the game (Tromp-Taylor), and so does the cap on moves.

    Raises:
        ValueError: an argument out of range.
    """

    board_size: int | tuple[int, int] = 9  # a side, or (rows, cols); 1 to 25 each
    komi: float = 7.5  # points White is given; a whole number makes draws possible
    ko: str = "positional"  # no earlier position; "situational": … with the same player to move; "simple": no retaking
    suicide: bool = False  # whether a move may take its own stones
    max_moves: int | None = None  # passes included; the board is then scored as it stands; None: three times its points
    handicap: int = 0  # stones of Black before White moves first

    def __post_init__(self):
        sides = self.board_size if isinstance(self.board_size, tuple | list) else (self.board_size,) * 2
        if len(sides) != 2:
            raise ValueError(f"board_size must be a side or (rows, cols), got {self.board_size!r}")
        for side in sides:
            check_whole("board_size", side, 1, MAX_SIZE)
        rows, cols = sides
        object.__setattr__(self, "board_size", (int(rows), int(cols)))
        check_number("komi", self.komi, " of points")
        if self.ko not in KO_RULES:
            raise ValueError(f"ko must be one of {', '.join(KO_RULES)}, got {self.ko!r}")
        if self.suicide not in (False, True):
            raise ValueError(f"suicide must be True or False, got {self.suicide!r}")
        if self.max_moves is not None:
            check_whole("max_moves", self.max_moves, 1, MAX_CAP)
        check_whole("handicap", self.handicap, 0, most_handicap(rows, cols))

    @cached_property
    def rows(self) -> int:
        """Rows of the board."""
        return self.board_size[0]  # type: ignore[index]

    @cached_property
    def cols(self) -> int:
        """Columns of the board."""
        return self.board_size[1]  # type: ignore[index]

    @cached_property
    def points(self) -> int:
        """Points of the board, which is also the action "pass"."""
        return self.rows * self.cols

    @cached_property
    def cap(self) -> int:
        """Moves, passes included, after which the game ends."""
        return self.max_moves or max(3 * self.points, 8)


MAX_CAP = 10_000  # move numbers are 16-bit integers


def handicap_points(rows: int, cols: int, stones: int) -> list[int]:
    """Points of that many handicap stones: corners, sides, and the centre of an odd number, as GTP's fixed handicap.

    The lines are the fourth from 13 rows or columns on, else the third, and on small boards the second or the first.
    """
    places, centre = _places(rows, cols)
    if centre is not None and stones % 2 and stones >= 5:
        places = [*places[: stones - 1], centre]
    return places[:stones]


def most_handicap(rows: int, cols: int) -> int:
    """The most handicap stones that a board takes; at least one point stays empty."""
    places, centre = _places(rows, cols)
    return min(len(places) + (centre is not None), rows * cols - 1)


def _places(rows: int, cols: int) -> tuple[list[int], int | None]:
    """Corners and sides in the order they are taken, and the centre where it is one of nine points."""
    north, west = _line(rows), _line(cols)
    south, east = rows - 1 - north, cols - 1 - west
    places = [(south, west), (north, east), (north, west), (south, east)]
    middle = (rows // 2 if rows % 2 and rows >= 7 else None, cols // 2 if cols % 2 and cols >= 7 else None)
    if middle[0] is not None:
        places += [(middle[0], west), (middle[0], east)]
    if middle[1] is not None:
        places += [(south, middle[1]), (north, middle[1])]
    points = list(dict.fromkeys(row * cols + col for row, col in places))
    return points, None if None in middle else middle[0] * cols + middle[1]  # type: ignore[operator]


def _line(side: int) -> int:
    """Distance of handicap stones from the edge."""
    return 3 if side >= 13 else 2 if side >= 7 else 1 if side >= 4 else 0


def check_number(name: str, value: float, unit: str = "") -> None:
    """A finite number, else a `ValueError` that says so."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number{unit}, got {value!r}")


def check_whole(name: str, value: int, low: int, high: int) -> None:
    """A whole number in [low, high], else a `ValueError` that says so."""
    whole = hasattr(value, "__index__") and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number in [{low}, {high}], got {value!r}")
