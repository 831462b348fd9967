"""The states behind what an environment shows: a search plans from states."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from llmgym.agents.environments import spec_json
from llmgym.mdp import MDP


class Seen:
    """An environment of ours, single or vector, with rules to plan on.

    Args:
        env: has `mdp`, and `state` or (vector) `states`, on `env.unwrapped`.

    Attributes:
        mdp: the rules.

    Raises:
        ValueError: it has none, or its actions are neither tokens nor numbered from 0.
    """

    def __init__(self, env: gym.Env | VectorEnv):
        self.env = env.unwrapped
        mdp = getattr(self.env, "mdp", None)
        if not isinstance(mdp, MDP):
            raise ValueError(f"MCTS needs an environment of llmgym with rules to plan on, got {env}")
        space = mdp.action_space
        if not is_text(env) and (not isinstance(space, gym.spaces.Discrete) or space.start != 0):
            raise ValueError(f"MCTS needs actions numbered from 0 (Discrete), got {space}")
        self.mdp: Any = mdp

    def states(self, observation: Any) -> tuple[list[Any], bool]:
        """The states that an observation, or each of a batch, is of; and whether it was a single one.

        Raises:
            ValueError: it is not what the environment's state looks like.
            ResetNeeded: the environment has no state yet.
        """
        env: Any = self.env
        vector = isinstance(env, VectorEnv)
        states = list(env.states) if vector else [env.state]
        single = not vector and shapes(observation) == shapes(self.mdp.observation(states[0]))
        for row, state in enumerate(states):
            shown = observation if single else part(observation, row, len(states))
            # The last observation of a game for two may be from the other side.
            if not self.mdp.terminal(state) and not same(self.mdp.observation(state), shown):
                raise ValueError(
                    "MCTS plans from the state of the environment it was given, and this observation is not of that "
                    "state: give the agent the environment that is stepped (MCTS.load(path, env))"
                )
        return states, single

    def idle(self, n: int) -> np.ndarray:
        """Actions for rows in which nothing is to be decided: the first that is allowed, or 0; int64 [n, …]."""
        env: Any = self.env
        if is_text(env):  # where an episode is over, whatever is written is ignored
            return np.zeros((n, *self.mdp.action_space.shape), np.int64)
        return np.asarray(env.action_masks()).reshape(n, -1).argmax(1)

    def spec(self) -> str | None:
        """The environment's spec as JSON, if it has one that JSON can say."""
        spec = getattr(self.env, "spec", None)
        return None if spec is None else spec_json(spec)


def is_text(env: Any) -> bool:
    """Whether the actions of an environment are tokens."""
    return hasattr(getattr(env.unwrapped, "mdp", None), "token_mask")


def same(one: Any, other: Any) -> bool:
    """Whether two observations are equal; dicts by what the first holds."""
    if isinstance(one, dict):
        return isinstance(other, dict) and all(key in other and same(one[key], other[key]) for key in one)
    return np.array_equal(np.asarray(one), np.asarray(other))


def shapes(observation: Any) -> Any:
    """Of an observation, or of all parts of a dict."""
    if isinstance(observation, dict):
        return {key: np.shape(value) for key, value in observation.items()}
    return np.shape(observation)


def part(observation: Any, row: int, n: int) -> Any:
    """A row of a batch of n observations; None if it is no such batch."""
    if isinstance(observation, dict):
        return {key: part(value, row, n) for key, value in observation.items()}
    return observation[row] if np.ndim(observation) and len(observation) == n else None
