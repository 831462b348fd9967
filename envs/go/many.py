"""Many positions at once: a call from Python costs more than a move, and a search asks for the moves of many trees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmgym.compiled import inlined, kernel
from llmgym.envs.go.area import margin, write_area
from llmgym.envs.go.board import keep_board, move
from llmgym.envs.go.cells import at
from llmgym.envs.go.layout import ENDED_BY_ILLEGAL, ENDING, LOST, TAKEN, TO_PLAY
from llmgym.envs.go.legality import write_mask
from llmgym.envs.go.planes import write_planes
from llmgym.envs.go.state import GoState
from llmgym.store import Store

if TYPE_CHECKING:
    from llmgym.envs.go.mdp import GoMDP

_FIRST_ROWS = 64


class GoRows(Sequence):
    """Positions in rows of memory that others own: read them before the store that gave them changes.

    Args:
        arrays: int16 [N, …], int64 [N, …], uint8 [N, depth, points].
        numbers: which rows, int64 [n].
    """

    def __init__(self, arrays: tuple[np.ndarray, ...], numbers: np.ndarray):
        self.arrays, self.numbers = arrays, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: Any) -> Any:
        """One position, as a copy; or a slice of them."""
        if isinstance(i, slice):
            return GoRows(self.arrays, self.numbers[i])
        ints, longs, boards = self.arrays
        row = self.numbers[i]
        return GoState(ints[row].copy(), longs[row].copy(), boards[row].copy())


class GoStore(Store[GoState]):
    """Positions in rows, stepped in one compiled call."""

    mdp: GoMDP

    def __init__(self, mdp: GoMDP):
        self.mdp, self._n = mdp, 0
        self._arrays: tuple[np.ndarray, ...] = ()

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, number: int) -> GoState:
        return GoRows(self._arrays, np.array([number]))[0]

    def clear(self) -> None:
        self._n = 0

    def add(self, states: Sequence[GoState]) -> None:
        if len(states):
            self._append(stacked(states))

    def step(self, numbers: np.ndarray, actions: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        first, n = self._n, len(numbers)
        self._reserve(n)
        rewards, terminals = np.empty(n), np.empty(n, np.bool_)
        rules = float(self.mdp.rules.komi), self.mdp.reward_kind == "margin", self.mdp.capture_reward
        play_all(*self._arrays, numbers, first, np.asarray(actions, np.int64), *rules, rewards, terminals)
        self._n += n
        return rewards, terminals

    def rows(self, numbers: np.ndarray) -> GoRows:
        return GoRows(self._arrays, numbers)

    def keep(self, numbers: np.ndarray) -> None:
        kept = [array[numbers] for array in self._arrays]
        self._n = 0
        self._append(kept)

    def _append(self, arrays: Sequence[np.ndarray]) -> None:
        if not self._arrays:
            self._arrays = tuple(np.empty((_FIRST_ROWS, *array.shape[1:]), array.dtype) for array in arrays)
        first, n = self._n, len(arrays[0])
        self._reserve(n)
        for own, array in zip(self._arrays, arrays, strict=True):
            own[first : first + n] = array
        self._n += n

    def _reserve(self, n: int) -> None:
        if self._n + n > len(self._arrays[0]):
            self._arrays = tuple(_doubled(array, self._n, self._n + n) for array in self._arrays)


def _doubled(array: np.ndarray, used: int, wanted: int) -> np.ndarray:
    """The used rows in an array of at least as many as are wanted."""
    wide = np.empty((max(wanted, 2 * len(array)), *array.shape[1:]), array.dtype)
    wide[:used] = array[:used]
    return wide


def stacked(states: Sequence[GoState]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arrays of n states of one game's rules, copied into rows."""
    if isinstance(states, GoRows):
        ints, longs, boards = (array[states.numbers] for array in states.arrays)
        return ints, longs, boards
    n, boards = len(states), states[0].boards
    ints = np.concatenate([state.ints for state in states]).reshape(n, -1)
    longs = np.concatenate([state.longs for state in states]).reshape(n, -1)
    return ints, longs, np.concatenate([state.boards for state in states]).reshape(n, *boards.shape)


def views(states: Sequence[GoState], flags: np.ndarray, planes: np.ndarray, masks: np.ndarray) -> None:
    """Fill planes int8 [n, C, points] and masks bool [n, points + 1]."""
    rows = states if isinstance(states, GoRows) else GoRows(stacked(states), np.arange(len(states)))
    look_all(*rows.arrays, rows.numbers, flags, planes, masks)


@kernel
def play_all(ints, longs, boards, numbers, first, actions, komi, margins, capture_reward, rewards, terminals):
    """The positions after actions in the rows from `first` on, with rewards and ends: see `GoMDP.reward`."""
    area = np.empty(boards.shape[2], np.uint8)
    for i in range(numbers.shape[0]):
        old, new = numbers[i], first + i
        ints[new], longs[new], boards[new] = ints[old], longs[old], boards[old]
        row = ints[new]
        move(row, longs[new], actions[i])
        if boards.shape[1] > 0:
            keep_board(row, boards[new])
        terminals[i] = at(row, ENDING) > 0
        rewards[i] = capture_reward * (at(row, TAKEN) - at(row, LOST))
        if terminals[i]:
            rewards[i] += outcome(row, komi, margins, area)


@inlined
def outcome(ints, komi, margins, area):
    """Of a finished game, for who has moved last."""
    if at(ints, ENDING) == ENDED_BY_ILLEGAL:
        return -1.0
    write_area(ints, area)
    score = margin(area) - komi
    score = score / area.shape[0] if margins else np.sign(score)
    return score if at(ints, TO_PLAY) == 1 else -score  # Black has moved last if White is to play


@kernel
def look_all(ints, longs, boards, numbers, flags, planes, masks):
    """Masks and planes of the positions in some rows."""
    for i in range(numbers.shape[0]):
        row = numbers[i]
        write_mask(ints[row], longs[row], masks[i])
        write_planes(ints[row], longs[row], boards[row], flags, planes[i])
