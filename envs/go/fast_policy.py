"""A fast policy for playouts: the softmax of a linear function of local features, sampled by a compiled kernel.

A candidate is a legal move that fills no own eye; where there is none, the policy passes. Each candidate has at most
one feature of each kind, and a score that is the product of their factors γ = exp(weight); it is played with its share
of all scores (a Bradley-Terry model of moves: Coulom 2007; the rollout policy of Silver et al. 2016).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from llmgym.compiled import inlined, kernel
from llmgym.envs.go.area import margin, write_area
from llmgym.envs.go.board import advance
from llmgym.envs.go.cells import action_of, at, cell_of, colour_at, head_at, in_atari, neighbour
from llmgym.envs.go.heavy import around, liberties_after
from llmgym.envs.go.layout import CELLS, COLS, EMPTIES, EMPTY, ENDING, LAST, ROWS, SIZE, STRIDE, TO_PLAY
from llmgym.envs.go.legality import may_play
from llmgym.envs.go.many import stacked
from llmgym.envs.go.playout import fills_eye, next_random
from llmgym.envs.go.rules import MAX_CAP
from llmgym.envs.go.state import GoState
from llmgym.files import read_json, write_json

# Kinds of features, and the first number of each; 0 is the feature that says nothing.
KINDS = ("capture", "escape", "self_atari", "near", "line", "pattern")
CAPTURE, ESCAPE, SELF_ATARI, NEAR, LINE, PATTERN = 1, 3, 5, 7, 14, 18
_FURTHEST = 8  # distances from here on are one feature


def canonical_patterns() -> np.ndarray:
    """For the colours of the eight neighbours, as `around` codes them, the number of their 3x3 pattern from 0 on;
    int16 [65536]. Turned and mirrored neighbourhoods are one pattern."""
    codes = np.arange(1 << 16)
    cells = np.insert(np.stack([codes >> 2 * k & 3 for k in range(8)], 1), 4, 0, 1).reshape(-1, 3, 3)
    images = [np.rot90(board, k, (1, 2)) for board in (cells, cells.transpose(0, 2, 1)) for k in range(4)]
    around_it = np.delete(np.stack(images).reshape(8, -1, 9), 4, 2)
    return np.unique((around_it << 2 * np.arange(8)).sum(2).min(0), return_inverse=True)[1].astype(np.int16)


_PATTERNS = canonical_patterns()
FEATURES = PATTERN + int(_PATTERNS.max()) + 1


@inlined
def write_features(ints, longs, cell, last, told):
    """The features of a legal move, one of each kind, into int64 [6].

    Of stones that the move takes, those beside it count as liberties, and those elsewhere do not.

    Args:
        last: row and column of the last stone, and the reciprocal of `row_of`.
    """
    stride, size, own = at(ints, STRIDE), at(ints, SIZE), 1 + at(ints, TO_PLAY)
    taken, saved, takes, friends = np.int64(0), np.int64(0), 0, 0
    for k in range(4):
        q = neighbour(cell, stride, k)
        colour = colour_at(ints, q)
        friends += colour == own
        if (colour == own or colour == 3 - own) and in_atari(longs, head_at(ints, q)):
            stones = at(ints, CELLS + 3 * size + head_at(ints, q))
            if colour == own:
                saved = max(saved, stones)
            else:
                taken, takes = max(taken, stones), takes + 1
    room = ((at(ints, CELLS + cell) >> 2) & 7) + takes  # liberties of the stone alone
    safe = room > 1 or (friends > 0 and liberties_after(ints, longs, cell) > 1)
    told[0] = 0 if taken == 0 else CAPTURE + (taken > 1)
    told[1] = 0 if saved == 0 or not safe else ESCAPE + (saved > 1)
    told[2] = 0 if safe else SELF_ATARI + (friends > 0)
    row = row_of(cell, last[2])
    col = cell - row * stride
    rows, cols = abs(row - last[0]), abs(col - last[1])
    told[3] = NEAR + min(rows + cols + max(rows, cols), _FURTHEST) - 2  # 2 beside the last move, 3 at its corners
    line = min(min(row - 1, at(ints, ROWS) - row), min(col, at(ints, COLS) - 1 - col))
    told[4] = LINE + min(line, PATTERN - LINE - 1)
    code = around(ints, cell)
    if own == 2:  # patterns are seen by who moves
        code = ((code & 0x5555) << 1) | ((code >> 1) & 0x5555)
    told[5] = PATTERN + np.int64(_PATTERNS[np.uintp(code)])


@inlined
def row_of(cell, reciprocal):
    """Row of a cell, 0 the border above, without a division: `reciprocal` is ceil(65536 / stride), and exact here."""
    return (cell * reciprocal) >> 16


@inlined
def last_place(ints):
    """Row and column of the last stone, far off after a pass and at the start; and the reciprocal of `row_of`."""
    last, stride = at(ints, LAST), at(ints, STRIDE)
    reciprocal = 65535 // stride + 1
    if last < 0 or last >= at(ints, ROWS) * at(ints, COLS):
        return -_FURTHEST, -_FURTHEST, reciprocal
    cell = cell_of(ints, last)
    row = row_of(cell, reciprocal)
    return row, cell - row * stride, reciprocal


@inlined
def write_scores(ints, longs, factors, scores, told):
    """Scores of the listed empty cells, 0 in own eyes; legality is not asked. Returns their sum."""
    listed, last, total = CELLS + 4 * at(ints, SIZE), last_place(ints), 0.0
    for i in range(at(ints, EMPTIES)):
        cell, score = at(ints, listed + i), 0.0
        if not fills_eye(ints, cell):
            write_features(ints, longs, cell, last, told)
            score = 1.0
            for k in range(6):
                score *= factors[np.uintp(told[k])]
        scores[i] = score
        total += score
    return total


@inlined
def pick(scores, n, draw):
    """The place that a draw in (0, sum of the scores) falls on; a last one with a score if rounding leaves it over."""
    chosen = np.int64(-1)
    for i in range(n):
        if scores[i] > 0.0:
            chosen, draw = i, draw - scores[i]
            if draw < 0.0:
                break
    return chosen


@inlined
def fast_cell(ints, longs, factors, seed, scores, told):
    """A cell for the player to move, drawn by scores; 0 for a pass.

    Args:
        factors: γ of every feature, float64 [FEATURES].
        seed: uint64 [1], advanced.
        scores, told: float64 [points] and int64 [6] to work in.
    """
    n, total = at(ints, EMPTIES), write_scores(ints, longs, factors, scores, told)
    while total > 0.0:
        i = pick(scores, n, (next_random(seed) + 0.5) / 4294967296.0 * total)
        cell = at(ints, CELLS + 4 * at(ints, SIZE) + i)
        if may_play(ints, longs, cell):  # most cells are: to ask for each costs more than to draw again
            return cell
        scores[i] = total = 0.0
        for k in range(n):
            total += scores[k]
    return np.int64(0)


@kernel
def play_on(ints, longs, factors, seed, moves, margins):
    """Up to so many moves of the policy in each of n games, in place; fills the margins of Black before komi.

    Args:
        ints, longs: [n, …].
        factors: γ of every feature, float64 [FEATURES].
        seed: uint64 [1], advanced.
        moves: most moves a game.
        margins: filled, int64 [n].
    """
    points = at(ints[0], ROWS) * at(ints[0], COLS)
    scores, told, area = np.empty(points), np.empty(6, np.int64), np.empty(points, np.uint8)
    for i in range(margins.shape[0]):
        board, past, left = ints[i], longs[i], moves
        while at(board, ENDING) == 0 and left > 0:
            cell = fast_cell(board, past, factors, seed, scores, told)
            advance(board, past, action_of(board, cell) if cell else points, cell)
            left -= 1
        write_area(board, area)
        margins[i] = margin(area)


@kernel
def fill_features(ints, longs, features, candidates):
    """Features int16 [points, 6] of every candidate, bool [points]; zeros elsewhere."""
    told, last = np.empty(6, np.int64), last_place(ints)
    features[:] = 0
    for action in range(candidates.shape[0]):
        cell = cell_of(ints, action)
        empty = at(ints, ENDING) == 0 and colour_at(ints, cell) == EMPTY
        candidates[action] = empty and not fills_eye(ints, cell) and may_play(ints, longs, cell)
        if candidates[action]:
            write_features(ints, longs, cell, last, told)
            for k in range(6):
                features[action, k] = told[k]


class FastPolicy:
    """The policy as it plays.

    Args:
        weights: of every feature, [FEATURES]; that of feature 0 is 0.

    Raises:
        ValueError: another number of weights, or one that is not finite.
    """

    def __init__(self, weights: np.ndarray):
        self.weights = np.asarray(weights, np.float64)
        if self.weights.shape != (FEATURES,) or not np.isfinite(self.weights).all() or self.weights[0] != 0:
            raise ValueError(f"weights must be {FEATURES} finite numbers, 0 the first, got {self.weights.shape}")
        self.factors = np.exp(self.weights)

    def probabilities(self, state: GoState) -> np.ndarray:
        """Of every action, float64 [points + 1]."""
        features, candidates = features_of(state)
        scores = np.where(candidates, self.factors[features].prod(1), 0.0)
        total = scores.sum()
        return np.append(scores / total, 0.0) if total else np.append(scores, 1.0)

    def move(self, state: GoState, rng: np.random.Generator) -> int:
        """A move drawn from the probabilities: how the policy plays by itself."""
        return int(self.moves(state, 1, rng)[0])

    def moves(self, state: GoState, n: int, rng: np.random.Generator) -> np.ndarray:
        """n moves from one position, each drawn anew; int [n]."""
        ints, longs = np.repeat(state.ints[None], n, 0), np.repeat(state.longs[None], n, 0)
        play_on(ints, longs, self.factors, _seed(rng), 1, np.empty(n, np.int64))
        return ints[:, LAST]

    def results(self, states: Sequence[GoState], komi: float, rng: np.random.Generator) -> np.ndarray:
        """1, 0 or -1 of the player to move, after a playout from each of n states; float64 [n]."""
        ints, longs, _ = stacked(states)
        signs, margins = 1.0 - 2.0 * ints[:, TO_PLAY], np.empty(len(states), np.int64)
        play_on(ints, longs, self.factors, _seed(rng), MAX_CAP, margins)
        return signs * np.sign(margins - komi)

    def save(self, folder: str | Path) -> None:
        """Write rollout.safetensors, and rollout.json that says what it is."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"weights": self.weights}, folder / "rollout.safetensors")
        write_json(folder / "rollout.json", {"features": FEATURES, "kinds": list(KINDS)})

    @classmethod
    def load(cls, folder: str | Path) -> FastPolicy:
        """The policy that `save` wrote.

        Raises:
            ValueError: no rollout policy is there, or one with other features.
        """
        file = Path(folder) / "rollout.json"
        if not file.is_file():
            raise ValueError(f"{str(folder)!r} is no folder of a rollout policy: rollout.json is missing")
        if read_json(file) != {"features": FEATURES, "kinds": list(KINDS)}:
            raise ValueError(f"the rollout policy in {str(folder)!r} has other features than these: {', '.join(KINDS)}")
        return cls(load_file(Path(folder) / "rollout.safetensors")["weights"])


def features_of(state: GoState) -> tuple[np.ndarray, np.ndarray]:
    """Features int16 [points, 6], and which points are candidates, bool [points]."""
    points = state.rows * state.cols
    features, candidates = np.empty((points, 6), np.int16), np.empty(points, np.bool_)
    fill_features(state.ints, state.longs, features, candidates)
    return features, candidates


def _seed(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 2**64, 1, np.uint64)
