"""A game of Go as a value: what was agreed, who played where, how it ended and why."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from llmgym.envs.go.rules import BLACK, ILLEGAL, MOVES_SPENT, PASSES_PLAYED, WHITE, GoRules, handicap_points

RESIGN, TIME, VOID = "resign", "time", "void"  # endings that only a record knows, beside those of the rules
ENDINGS = (PASSES_PLAYED, MOVES_SPENT, ILLEGAL, RESIGN, TIME, VOID)
LETTER = "BW"  # of a player, in results and in SGF
Move = tuple[int, int]  # player, action
_RESULT = re.compile(r"|\?|0|Void|[BW]\+(?:R|T|F|\d+(?:\.\d+)?)?")


@dataclass(frozen=True)
class GameRecord:
    """One game, finished or not. The same player may move twice in a row: moves name who plays them.

    Stones that lie as those of a handicap, with White to move, become `rules.handicap`; others stay in `stones`.

    Raises:
        ValueError: a field that no game can have.
    """

    rules: GoRules
    moves: tuple[Move, ...] = ()  # player and action of each
    stones: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())  # Black's and White's points at first, handicap aside
    to_play: int | None = None  # at first; None: Black, and White after a handicap
    names: tuple[str, str] = ("", "")  # Black's and White's
    result: str = ""  # as SGF writes it: "B+7.5", "W+R", "0" (a draw), "Void", "?" (unknown), or "" (none yet)
    ending: str = ""  # why it ended: one of ENDINGS, or "" where that is not known
    comment: str = ""  # about the whole game

    def __post_init__(self):
        set_ = object.__setattr__
        set_(self, "moves", tuple((int(player), int(action)) for player, action in self.moves))
        set_(self, "stones", tuple(tuple(sorted(map(int, points))) for points in self.stones))
        if self.to_play is None:
            set_(self, "to_play", WHITE if self.rules.handicap else BLACK)
        self._check()
        handicap, stones = _as_handicap(self.rules, *self.first_stones, self.to_play)
        set_(self, "rules", replace(self.rules, handicap=handicap))
        set_(self, "stones", stones)

    @property
    def first_stones(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Black's and White's points at first, those of the handicap among them."""
        given = handicap_points(self.rules.rows, self.rules.cols, self.rules.handicap)
        return tuple(sorted(given)) or self.stones[0], self.stones[1]

    @property
    def winner(self) -> int | None:
        """Who has won; None for a draw, a void game and one without a result."""
        return LETTER.index(self.result[0]) if self.result[:1] in ("B", "W") else None

    @property
    def draw(self) -> bool:
        """Whether it ended in a draw."""
        return self.result == "0"

    def _check(self) -> None:
        _check_points(self.rules, *self.stones)
        for player, action in (*self.moves, (self.to_play, 0)):
            if player not in (BLACK, WHITE) or not 0 <= action <= self.rules.points:
                limits = f"player 0 or 1 and an action in [0, {self.rules.points}]"
                raise ValueError(f"a move has {limits}, got {(player, action)}")
        if not _RESULT.fullmatch(self.result):
            raise ValueError(f"result must be such as 'B+7.5', 'W+R', '0', 'Void', '?' or '', got {self.result!r}")
        if self.ending not in ("", *ENDINGS):
            raise ValueError(f"ending must be one of {', '.join(ENDINGS)} or '', got {self.ending!r}")


def result_of(score: float) -> str:
    """A result as SGF writes it, of Black's area minus White's minus komi."""
    return f"{LETTER[score < 0]}+{abs(score):g}" if score else "0"


def won_by(player: int, how: str = "") -> str:
    """A result without a score: `how` is "R" (resigned), "T" (time), "F" (forfeit) or "" (not known)."""
    return f"{LETTER[player]}+{how}"


def _as_handicap(
    rules: GoRules, black: tuple[int, ...], white: tuple[int, ...], to_play: int
) -> tuple[int, tuple[tuple[int, ...], tuple[int, ...]]]:
    """The handicap, and the other stones: the same position is always told in the same way."""
    count = len(black)
    usual = handicap_points(rules.rows, rules.cols, count)
    if white or to_play == BLACK or not 0 < count < rules.points or sorted(usual) != list(black):
        return 0, (black, white)
    return count, ((), ())


def _check_points(rules: GoRules, black: tuple[int, ...], white: tuple[int, ...]) -> None:
    points = black + white
    if len(set(points)) != len(points) or not all(0 <= point < rules.points for point in points):
        raise ValueError(f"stones must lie on different points in [0, {rules.points - 1}], got {black} and {white}")
    if points and rules.handicap:
        raise ValueError(f"handicap {rules.handicap} has stones of its own: others cannot be set up beside it")
