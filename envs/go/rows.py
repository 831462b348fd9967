"""Kernels on many games: on rows start to stop, and the same on all n rows, in parts that threads share."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from llmgym.compiled import inlined, kernel, shared
from llmgym.envs.go.area import margin, write_area
from llmgym.envs.go.board import keep_board, move
from llmgym.envs.go.cells import at
from llmgym.envs.go.layout import COLS, ENDED_BY_ILLEGAL, ENDING, LOST, ROWS, TAKEN, TO_PLAY
from llmgym.envs.go.legality import write_mask
from llmgym.envs.go.planes import write_planes
from llmgym.envs.go.playout import pick, write_light_mask


class Kernels(NamedTuple):
    """A kernel, and the one that calls it on parts of the rows."""

    alone: Any  # (start, stop, *arguments)
    in_parts: Any  # (parts, n, *arguments)


@inlined
def _result(ints, komi):
    """Black's points ahead, and the reward of who moved last, in a finished game."""
    area = np.empty(at(ints, ROWS) * at(ints, COLS), np.uint8)
    write_area(ints, area)
    score = margin(area) - komi
    if at(ints, ENDING) == ENDED_BY_ILLEGAL:
        return score, -1.0
    sign = 1.0 if at(ints, TO_PLAY) == 1 else -1.0  # Black has moved last if White is to play
    return score, sign * np.sign(score)


@kernel
def refresh(start, stop, ints, longs, boards, flags, live, masks, planes):
    for i in range(start, stop):
        if live[i]:
            write_mask(ints[i], longs[i], masks[i])
            if planes.shape[1] > 0:
                write_planes(ints[i], longs[i], boards[i], flags, planes[i])


@shared
def _refresh_in_parts(parts, n, *arguments):
    for part in prange(parts):
        refresh(part * n // parts, (part + 1) * n // parts, *arguments)


REFRESH = Kernels(refresh, _refresh_in_parts)


@kernel
def step(start, stop, ints, longs, boards, flags, live, komi, actions, masks, planes, rewards, scores, captured):
    for i in range(start, stop):
        rewards[i] = captured[i] = 0
        row, past = ints[i], longs[i]
        if not live[i] or at(row, ENDING) > 0:
            continue
        move(row, past, actions[i])
        captured[i] = at(row, TAKEN) - at(row, LOST)
        if at(row, ENDING) > 0:
            scores[i], rewards[i] = _result(row, komi)
        write_mask(row, past, masks[i])
        # Views cost as much as half a mask: none are made of what is not asked for.
        if boards.shape[1] > 0:
            keep_board(row, boards[i])
        if planes.shape[1] > 0:
            write_planes(row, past, boards[i], flags, planes[i])


@shared
def _step_in_parts(parts, n, *arguments):
    for part in prange(parts):
        step(part * n // parts, (part + 1) * n // parts, *arguments)


STEP = Kernels(step, _step_in_parts)


@kernel
def sample(start, stop, masks, draws, actions):
    for i in range(start, stop):
        actions[i] = pick(masks[i], draws[i] >> np.uint64(32))


@shared
def _sample_in_parts(parts, n, *arguments):
    for part in prange(parts):
        sample(part * n // parts, (part + 1) * n // parts, *arguments)


SAMPLE = Kernels(sample, _sample_in_parts)


@kernel
def light(start, stop, ints, longs, draws, actions):
    mask = np.empty(np.int64(ints[0, ROWS]) * ints[0, COLS] + 1, np.bool_)
    for i in range(start, stop):
        write_light_mask(ints[i], longs[i], mask)
        actions[i] = pick(mask, draws[i] >> np.uint64(32))


@shared
def _light_in_parts(parts, n, *arguments):
    for part in prange(parts):
        light(part * n // parts, (part + 1) * n // parts, *arguments)


LIGHT = Kernels(light, _light_in_parts)
