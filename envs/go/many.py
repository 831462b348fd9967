"""Many positions at once: a call from Python costs more than a move, and a search asks for the moves of many trees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmgym.compiled import kernel
from llmgym.envs.go.board import keep_board, move
from llmgym.envs.go.rows import refresh
from llmgym.envs.go.state import GoState


@kernel
def step_all(ints, longs, boards, actions):
    """`board.step` in every row: int16 [n, …], int64 [n, …], uint8 [n, depth, points], int64 [n]."""
    for i in range(ints.shape[0]):
        move(ints[i], longs[i], actions[i])
        if boards.shape[1] > 0:
            keep_board(ints[i], boards[i])


def stacked(states: Sequence[GoState]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arrays of n states of one game's rules, copied into rows."""
    n, boards = len(states), states[0].boards
    ints = np.concatenate([state.ints for state in states]).reshape(n, -1)
    longs = np.concatenate([state.longs for state in states]).reshape(n, -1)
    return ints, longs, np.concatenate([state.boards for state in states]).reshape(n, *boards.shape)


def transitions(states: Sequence[GoState], actions: Sequence[int]) -> list[GoState]:
    """The next positions."""
    ints, longs, boards = stacked(states)
    step_all(ints, longs, boards, np.array(actions, np.int64))
    return [GoState(*row) for row in zip(ints, longs, boards, strict=True)]


def views(states: Sequence[GoState], flags: np.ndarray, planes: np.ndarray, masks: np.ndarray) -> None:
    """Fill planes int8 [n, C, points] and masks bool [n, points + 1]."""
    n = len(states)
    refresh(0, n, *stacked(states), flags, np.ones(n, np.bool_), masks, planes)
