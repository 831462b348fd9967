"""Positions that a game begins with: handicap, given stones, given moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llmgym.envs.go.board import begin
from llmgym.envs.go.layout import DEPTH, empty_game
from llmgym.envs.go.rules import BLACK, WHITE, GoRules, check_whole, handicap_points, most_handicap
from llmgym.envs.go.state import GoState

if TYPE_CHECKING:
    from llmgym.envs.go.mdp import GoMDP

OPTIONS = ("handicap", "position", "to_play", "moves")
_CHARACTERS = {".": 0, "+": 0, ",": 0, "#": 1, "X": 1, "x": 1, "O": 2, "o": 2}


def initial(mdp: GoMDP, options: dict[str, Any]) -> GoState:
    """See `GoMDP.initial`."""
    rules = mdp.rules
    for name in options:
        if name not in OPTIONS:
            raise ValueError(f"options of Go are {', '.join(OPTIONS)}, got {name!r}")
    if options.get("position") is not None:
        if options.get("handicap"):
            raise ValueError("options hold a position and a handicap: choose one")
        state = from_stones(rules, options["position"], options.get("to_play", BLACK))
    else:
        state = with_handicap(rules, options.get("handicap"), options.get("to_play"))
    moves = options.get("moves")  # an array has no truth value
    return play_all(mdp, state, () if moves is None else moves)


def with_handicap(
    rules: GoRules, handicap: int | None = None, to_play: int | None = None, depth: int = DEPTH
) -> GoState:
    """The empty board, or handicap stones and White to move."""
    count = rules.handicap if handicap is None else handicap
    check_whole("handicap", count, 0, most_handicap(rules.rows, rules.cols))
    stones = np.zeros(rules.points, np.uint8)
    stones[handicap_points(rules.rows, rules.cols, count)] = 1
    mover = (WHITE if count else BLACK) if to_play is None else to_play
    return from_stones(rules, stones.reshape(rules.rows, rules.cols), mover, depth)


def from_stones(rules: GoRules, stones: Any, to_play: int = BLACK, depth: int = DEPTH) -> GoState:
    """See `GoMDP.position`."""
    check_whole("to_play", to_play, BLACK, WHITE)
    board = _from_text(stones) if isinstance(stones, str) else np.asarray(stones)
    if board.shape != (rules.rows, rules.cols) or board.dtype.kind not in "iu" or not np.isin(board, (0, 1, 2)).all():
        raise ValueError(
            f"a position must be {rules.rows}x{rules.cols} points, 0 empty, 1 Black, 2 White, got {stones!r}"
        )
    ints, longs, boards = empty_game(rules, depth)
    if not begin(ints, longs, boards, board.astype(np.uint8).reshape(-1), int(to_play)):
        raise ValueError(f"a position must give every chain a liberty, got {stones!r}")
    return GoState(ints, longs, boards)


def _from_text(text: str) -> np.ndarray:
    lines = [line.replace(" ", "") for line in text.split("\n") if line.strip()]
    wrong = sorted({c for line in lines for c in line if c not in _CHARACTERS})
    if wrong or len({len(line) for line in lines}) != 1:
        raise ValueError(f"a position is drawn in lines of equal length of . X O, got {text!r}")
    return np.array([[_CHARACTERS[c] for c in line] for line in lines])


def play_all(mdp: GoMDP, state: GoState, actions: Any) -> GoState:
    """Play given moves, all of which must be legal."""
    for number, action in enumerate(actions, 1):
        check_whole("moves", action, 0, mdp.rules.points)
        if not mdp.mask(state)[action]:
            raise ValueError(f"moves must be legal, got {action} as move {number}")
        state = mdp.transition(state, action)
    return state
