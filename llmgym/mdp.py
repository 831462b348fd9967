"""The one abstraction: pure rules on frozen, hashable states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import gymnasium as gym
import numpy as np

from llmgym.store import Store

State = TypeVar("State")
Action = TypeVar("Action")


class ScorerFailed(RuntimeError):
    """The scorer could not judge a finished episode: its row carries no reward and is not trained on."""


class NoLegalAction(RuntimeError):
    """A mask forbids every action of a state that is not terminal."""


class MDP(Generic[State, Action]):
    """A Markov decision process as functions of a frozen, hashable state.

    The names are those of Gymnasium's `FuncEnv`. Nothing here remembers an episode: a search plans by calling
    `transition` on states of its own, and an environment is a shell that holds one state.

    Attributes:
        observation_space: space of `observation(state)`.
        action_space: space of actions.
    """

    observation_space: gym.Space
    action_space: gym.Space

    def initial(self, rng: np.random.Generator, options: dict[str, Any] | None = None) -> State:
        """Draw a first state; all randomness comes from `rng`."""
        raise NotImplementedError

    def transition(self, state: State, action: Action) -> State:
        """The next state. Pure: the same arguments give an equal state."""
        raise NotImplementedError

    def reward(self, state: State, action: Action, next_state: State) -> float:
        """Reward of the step, from the view of the player who moved.

        Raises:
            ScorerFailed: the reward could not be determined.
        """
        raise NotImplementedError

    def terminal(self, state: State) -> bool:
        """Whether the episode is over."""
        raise NotImplementedError

    def observation(self, state: State) -> Any:
        """What the player to move sees, an element of `observation_space`."""
        raise NotImplementedError

    def mask(self, state: State) -> np.ndarray:
        """Legal actions, bool, True counts; flat and concatenated over positions for a MultiDiscrete space."""
        raise NotImplementedError

    def store(self) -> Store[State]:
        """Where a search keeps states and steps many of them; compiled rules have one of their own."""
        return Store(self)

    def views(self, states: Sequence[State]) -> tuple[Any, np.ndarray]:
        """`observation` and `mask` of many states: n observations, and bool [n, K]."""
        return [self.observation(state) for state in states], np.stack([self.mask(state) for state in states])

    def player(self, state: State) -> int:
        """Who moves: 0 unless two play."""
        return 0

    def info(self, state: State) -> dict[str, Any]:
        """What `reset` and `step` report beside the observation: plain Python values and numpy arrays."""
        return {}

    def render(self, state: State, mode: str) -> str | np.ndarray | None:
        """The state as text ("ansi"), on the terminal ("human") or as an image."""
        raise NotImplementedError
