"""From the environment a user gives to the rows an agent steps, and to disk and back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, VectorEnv

from llmgym.envs.vector import VectorTextEnv
from llmgym.text import TextMDP

_OF_VECTORS = ("num_envs", "vectorization_mode", "autoreset_mode", "max_episode_steps")


def lockstep(env: gym.Env | VectorEnv | TextMDP, rows: int) -> VectorTextEnv:
    """A lockstep vector form over the MDP of `env`, or over a `TextMDP`."""
    if isinstance(env, TextMDP):
        return VectorTextEnv(env, rows, autoreset_mode=AutoresetMode.DISABLED)
    mdp = getattr(env.unwrapped, "mdp", None)
    if mdp is None or not hasattr(mdp, "token_mask"):
        raise ValueError(f"env must be a text environment of llmgym, got {env}")
    limit = getattr(env.unwrapped, "max_episode_steps", None)  # of a vector form; of a single one, its wrapper's
    limit = limit or getattr(getattr(env, "spec", None), "max_episode_steps", None)
    return VectorTextEnv(mdp, rows, autoreset_mode=AutoresetMode.DISABLED, max_episode_steps=limit)


def spec_json(spec: Any) -> str | None:
    """The single form of an environment's spec; None if it holds what JSON cannot."""
    single = copy.copy(spec)
    single.kwargs = {name: value for name, value in spec.kwargs.items() if name not in _OF_VECTORS}
    single.max_episode_steps = spec.kwargs.get("max_episode_steps", spec.max_episode_steps)
    try:
        return single.to_json()
    except (ValueError, TypeError):  # a callable or an object among the arguments: load() then needs an environment
        return None


def saved_env(saved: dict[str, Any], path: str | Path) -> gym.Env:
    """The environment that an agent was saved with.

    Raises:
        ValueError: its arguments held objects that JSON cannot describe.
    """
    if saved["env"] is None:
        raise ValueError(f"{str(path)!r} does not describe its environment (objects among its arguments): pass env=")
    return gym.make(gym.envs.registration.EnvSpec.from_json(saved["env"]))
