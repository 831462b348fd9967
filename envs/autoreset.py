"""What every vector environment of ours is told in the same words: autoreset mode, limits, seeds, rows to reset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode


def parse_autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    """The enum from itself, its value ("NextStep") or its name in any case ("next_step")."""
    if isinstance(mode, AutoresetMode):
        return mode
    for member in AutoresetMode:
        if str(mode).replace("_", "").lower() == member.value.lower():
            return member
    raise ValueError(f"autoreset_mode must be one of {[m.value for m in AutoresetMode]}, got {mode!r}")


def step_limit(steps: int | None) -> int | None:
    """The most steps of an episode, or None for no outer limit."""
    if steps is None or steps == -1:  # gym.make's spelling of "no limit"
        return None
    if steps < 1:
        raise ValueError(f"max_episode_steps must be at least 1, or None, got {steps}")
    return steps


def reset_mask(mask: Any, num_envs: int) -> np.ndarray:
    """`options["reset_mask"]` as bool [N]; None means every row."""
    mask = np.ones(num_envs, bool) if mask is None else np.asarray(mask)
    if mask.shape != (num_envs,) or mask.dtype != bool or not mask.any():
        raise ValueError(f"options['reset_mask'] must be bool [{num_envs}] with at least one True, got {mask!r}")
    return mask


def seed_list(seed: int | Sequence[int | None] | None, num_envs: int) -> list[int | None]:
    """One seed a row: row i of the whole number s gets s + i; None leaves a row its generator."""
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, int | np.integer):
        return [int(seed) + i for i in range(num_envs)]
    if len(seed) != num_envs:
        raise ValueError(f"a list of seeds must have one a row: {num_envs}, got {len(seed)}")
    return list(seed)
