"""Games that a search plays against itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from llmgym.mdp import MDP
from llmgym.search import Result, SearchOptions

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


@dataclass(frozen=True)
class Finished:
    """A game of self-play that is over.

    Attributes:
        positions: all those in which a player had to move.
        values: what the search said of them, [n].
        resigned: whether it was given up.
        low: the lowest value that a player saw who did not lose it; NaN where it might have been given up.
    """

    positions: Positions
    values: np.ndarray
    resigned: bool
    low: float

    def targets(self, share: float) -> Positions:
        """What is learnt from: returns in which the search's own values have this share, less noisy and less true."""
        mixed = (1 - share) * self.positions.returns + share * self.values
        return replace(self.positions, returns=mixed.astype(np.float32))


class Planning(Protocol):
    """A `Search`, or what can stand in for it: a `Teacher`."""

    options: SearchOptions

    def start(self, states: list[Any], rng: np.random.Generator) -> None:
        """These states are to be searched next."""

    def run(self) -> list[Result]:
        """What is found at each."""


class _Moment(NamedTuple):
    observation: np.ndarray
    mask: np.ndarray
    policy: np.ndarray
    reward: float
    value: float


class _Game:
    """A game under way."""

    def __init__(self, state: Any, to_the_end: bool):
        self.state, self.to_the_end = state, to_the_end
        self.moments: list[_Moment] = []
        self.resigned = False


@dataclass(frozen=True)
class GameOptions:
    """How games of self-play go.

    Attributes:
        opening_moves: moves drawn from the search's policy instead of the best; Gumbel draws its own.
        random_moves: most moves that a game begins with before the search plays, uniform over legal ones; how many
            is uniform too.
        best: the highest return, the lowest is -best; whoever resigns gets that.
        to_the_end: share of games in which nobody resigns.
    """

    opening_moves: int = 0
    random_moves: int = 0
    best: float = 1.0
    to_the_end: float = 1.0


class SelfPlay:
    """Games side by side, in one search; where one ends the next begins.

    Args:
        mdp: the rules.
        search: who moves for both sides.
        look: what is kept of states.
        games: how many at once.
        how: they go.
        rng: of all of this.
    """

    def __init__(
        self,
        mdp: MDP,
        search: Planning,
        look: Look,
        games: int,
        how: GameOptions,
        rng: np.random.Generator,
    ):
        self.mdp, self.search, self.look, self.how, self.rng = mdp, search, look, how, rng
        self.games = [self._begin() for _ in range(games)]

    def play(self, moves: int, give_up: float = -np.inf) -> list[Finished]:
        """So many moves in every game; returns the games that have ended.

        Args:
            moves: of each game.
            give_up: below this value of its position a player resigns.
        """
        ended = list[Finished]()
        for _ in range(moves):
            self._move(give_up)
            for row, game in enumerate(self.games):
                if game.resigned or self.mdp.terminal(game.state):
                    ended.append(finished(game, self.search.options.discount))
                    self.games[row] = self._begin()
        return ended

    def _begin(self) -> _Game:
        state = self.mdp.initial(self.rng)
        for _ in range(self.rng.integers(self.how.random_moves + 1)):
            after = self.mdp.transition(state, int(self.rng.choice(np.flatnonzero(self.mdp.mask(state)))))
            if self.mdp.terminal(after):
                break
            state = after
        return _Game(state, self.rng.random() < self.how.to_the_end)

    def _move(self, give_up: float) -> None:
        states = [game.state for game in self.games]
        observations, masks = self.look(states)
        self.search.start(states, self.rng)
        for game, result, observation, mask in zip(self.games, self.search.run(), observations, masks, strict=True):
            self._act(game, result, observation, mask, give_up)

    def _act(self, game: _Game, result: Result, observation: np.ndarray, mask: np.ndarray, give_up: float) -> None:
        policy = np.zeros(len(mask), np.float32)
        policy[list(result.actions)] = result.policy
        game.resigned = result.value < give_up and not game.to_the_end
        reward = -self.how.best if game.resigned else self._step(game, result)
        game.moments.append(_Moment(observation, mask, policy, reward, result.value))

    def _step(self, game: _Game, result: Result) -> float:
        """Play on; returns the reward."""
        gumbel, before = self.search.options.rule == "gumbel", game.state
        opening = not gumbel and len(game.moments) < self.how.opening_moves
        action = draw_action(result, self.rng) if opening else result.action
        game.state = self.mdp.transition(before, action)
        return self.mdp.reward(before, action, game.state)


def finished(game: _Game, discount: float) -> Finished:
    """What is left of a game that is over."""
    learnt = positions(game.moments, discount)
    values = np.array([moment.value for moment in game.moments])
    low = float(values[learnt.returns >= 0].min(initial=np.inf)) if game.to_the_end else np.nan
    return Finished(learnt, values, game.resigned, low)


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
