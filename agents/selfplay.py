"""Games that a search plays against itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from llmgym.mdp import MDP
from llmgym.search import Result, Search, SearchOptions
from llmgym.search.proposals import Evaluate

Look = Callable[[list[Any]], tuple[np.ndarray, np.ndarray]]  # states -> observations [n, …] and masks bool [n, K]


@dataclass(frozen=True)
class Positions:
    """What a network learns from: n states that a search has looked at.

    Attributes:
        observations: as the policy encodes them, [n, …].
        masks: legal actions, bool [n, K].
        policies: the search's, float32 [n, K].
        returns: of the player to move, float32 [n].
    """

    observations: np.ndarray
    masks: np.ndarray
    policies: np.ndarray
    returns: np.ndarray

    def __len__(self) -> int:
        return len(self.returns)


class _Moment(NamedTuple):
    observation: np.ndarray
    mask: np.ndarray
    policy: np.ndarray
    reward: float


class SelfPlay:
    """Games side by side, in one search; where one ends the next begins.

    Args:
        mdp: the rules.
        evaluate: of the search.
        options: of the search.
        look: what is kept of states.
        games: how many at once.
        opening_moves: moves of a game that are drawn from the search's policy instead of the best; Gumbel draws
            its own.
        rng: of all of this.
    """

    def __init__(
        self,
        mdp: MDP,
        evaluate: Evaluate,
        options: SearchOptions,
        look: Look,
        games: int,
        opening_moves: int,
        rng: np.random.Generator,
    ):
        self.mdp, self.look, self.rng = mdp, look, rng
        self.search = Search[Any](mdp, evaluate, options)
        self.opening_moves = 0 if options.rule == "gumbel" else opening_moves
        self.states = [mdp.initial(rng) for _ in range(games)]
        self.moments: list[list[_Moment]] = [[] for _ in range(games)]

    def play(self, moves: int) -> list[Positions]:
        """So many moves in every game; returns the games that have ended."""
        ended = list[Positions]()
        for _ in range(moves):
            self._move()
            for row, state in enumerate(self.states):
                if self.mdp.terminal(state):
                    ended.append(positions(self.moments[row], self.search.options.discount))
                    self.states[row], self.moments[row] = self.mdp.initial(self.rng), []
        return ended

    def _move(self) -> None:
        observations, masks = self.look(self.states)
        self.search.start(self.states, self.rng)
        for row, result in enumerate(self.search.run()):
            self._act(row, result, observations[row], masks[row])

    def _act(self, row: int, result: Result, observation: np.ndarray, mask: np.ndarray) -> None:
        policy = np.zeros(len(mask), np.float32)
        policy[list(result.actions)] = result.policy
        before, opening = self.states[row], len(self.moments[row]) < self.opening_moves
        action = draw_action(result, self.rng) if opening else result.action
        self.states[row] = self.mdp.transition(before, action)
        reward = self.mdp.reward(before, action, self.states[row])
        self.moments[row].append(_Moment(observation, mask, policy, reward))


def positions(moments: Sequence[_Moment], discount: float) -> Positions:
    """Those of a finished game: G_t = r_t + discount G_{t+1}, of the player to move."""
    returns, worth = np.empty(len(moments), np.float32), 0.0
    for t in range(len(moments) - 1, -1, -1):
        returns[t] = worth = moments[t].reward + discount * worth
    observations, masks, policies = (np.stack([moment[i] for moment in moments]) for i in range(3))
    return Positions(observations, masks, policies, returns)


def draw_action(result: Result, rng: np.random.Generator) -> Any:
    """An action drawn from the search's policy."""
    return result.actions[int(rng.choice(len(result.policy), p=result.policy))]
