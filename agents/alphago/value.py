"""Stage 3: a value network on one position a game. Silver et al. 2016, methods, "regression of value networks"."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmgym.agents.alphago.descent import ROWS_AT_ONCE, Descent, Tell, minibatches
from llmgym.agents.alphago.games import draw_moves, new_batch
from llmgym.agents.config import check_above_zero, check_least
from llmgym.envs.go.batch import GoBatch
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.symmetry import Turns, turned_planes
from llmgym.nets import NetPolicy
from llmgym.search.evaluators import network_input
from llmgym.search.losses import return_loss


@dataclass(frozen=True)
class ValueConfig:
    """How positions are made, and how a value network is fitted to them."""

    games: int = 8000  # of self-play; each gives one position
    latest: int | None = None  # last move that may be the random one, after which the position is taken; None: points
    rows: int = 256  # games played side by side
    epochs: int = 8  # times that every position is learnt from, each time turned or mirrored at random
    batch_size: int = 256  # positions in a minibatch
    learning_rate: float = 1e-3  # of AdamW at first; it falls to 0
    weight_decay: float = 1e-2  # of AdamW

    def __post_init__(self):
        check_least(self, 1, "latest", "rows", "epochs", "batch_size")
        check_least(self, 2, "games")
        check_least(self, 0, "weight_decay")
        check_above_zero(self, "learning_rate")


class Outcomes(NamedTuple):
    """Positions, one a game, and how the games ended.

    Attributes:
        planes: int8 [n, C, rows, cols].
        results: 1, 0 or -1 of the player to move, float32 [n].
    """

    planes: np.ndarray
    results: np.ndarray


class ValueGames:
    """Games that give one position each.

    A game is played by the first policy up to move U - 1, U uniform in 1 … latest; move U is a uniform legal one; then
    the policy whose value is wanted plays to the end. The position after move U is kept, with the result. Games that
    are over by then give none. Every game that was begun is finished: long ones count as short ones do.

    Args:
        mdp: the rules, with the planes that the policies see.
        policy: whose value is wanted.
        opening: plays the first moves.
        rng: of the random moves and their times.
    """

    def __init__(self, mdp: GoMDP, policy: NetPolicy, opening: NetPolicy, rng: np.random.Generator):
        self.mdp, self.policy, self.opening, self.rng = mdp, policy, opening, rng

    def play(self, config: ValueConfig, moved: Callable[[int], None]) -> Outcomes:
        """All games; `moved` is told how many more have ended."""
        latest = config.latest or self.mdp.rules.points
        rows, left = min(config.rows, config.games), config.games - min(config.rows, config.games)
        batch, times = new_batch(self.mdp, rows), self.rng.integers(1, latest + 1, rows)
        live, kept, movers = np.ones(rows, bool), batch.planes.copy(), np.full(rows, -1)
        planes, results = list[np.ndarray](), list[np.ndarray]()
        while live.any():
            self._step(batch, times, live)
            reached = live & (batch.n_moves == times) & ~batch.terminated
            kept[reached], movers[reached] = batch.planes[reached], batch.to_play[reached]
            ended = live & batch.terminated
            told = ended & (movers >= 0)
            planes.append(kept[told])
            results.append(np.sign(batch.scores[told]) * (1 - 2 * movers[told]))
            again = ended & (np.cumsum(ended) <= left)
            left -= int(again.sum())
            live &= ~ended | again
            movers[ended], times[again] = -1, self.rng.integers(1, latest + 1, int(again.sum()))
            batch.reset(again)
            moved(int(ended.sum()))
        return Outcomes(np.concatenate(planes), np.concatenate(results).astype(np.float32))

    def _step(self, batch: GoBatch, times: np.ndarray, live: np.ndarray) -> None:
        """A move in every game."""
        number, actions = batch.n_moves + 1, batch.sample(self.rng)
        draw_moves(self.opening, batch, live & (number < times), actions)
        draw_moves(self.policy, batch, live & (number > times), actions)
        batch.step(actions, live)


def split(data: Outcomes, share: float, rng: np.random.Generator) -> tuple[Outcomes, Outcomes]:
    """Positions to learn from, and a share that is held out; each is a game of its own."""
    n = len(data.results)
    held, order = max(1, round(share * n)), rng.permutation(n)
    if not 0 < share < 1 or held >= n:
        raise ValueError(f"held_out must be a share in (0, 1) that leaves positions, got {share} of {n}")
    return Outcomes(*(x[order[held:]] for x in data)), Outcomes(*(x[order[:held]] for x in data))


def fit_value(
    net: NetPolicy, train: Outcomes, held_out: Outcomes, config: ValueConfig, rng: np.random.Generator, tell: Tell
) -> None:
    """Minimise the squared error of tanh of the critic; `tell` is called after every epoch with what is held out."""
    n = len(train.results)
    descent = Descent(
        net.parameters(), config.learning_rate, config.epochs * math.ceil(n / config.batch_size), config.weight_decay
    )
    rows, cols = train.planes.shape[2:]
    turns = Turns(rows, cols, rng)
    for epoch in range(1, config.epochs + 1):
        losses = []
        for rows in minibatches(n, config.batch_size, rng):
            planes = turned_planes(train.planes[rows], turns.draw(len(rows)))
            losses.append(descent.step(return_loss(values_of(net, planes), _tensor(net, train.results[rows]))))
        if tell({"epoch": epoch, "loss": float(np.mean(losses)), "held_out_loss": error(net, held_out)}) is False:
            return


def values_of(net: NetPolicy, planes: np.ndarray) -> Tensor:
    """Values in (-1, 1) of the player to move, [n]."""
    net.counters.forward_passes += 1
    return torch.tanh(net.net(network_input(net, net.encode(planes), net.dtype))[1])


@torch.no_grad()
def all_values(net: NetPolicy, planes: np.ndarray) -> np.ndarray:
    """The same of many positions, float32 [n]."""
    parts = np.array_split(planes, max(1, math.ceil(len(planes) / ROWS_AT_ONCE)))
    return torch.cat([values_of(net, part) for part in parts]).cpu().numpy()


def error(net: NetPolicy, data: Outcomes) -> float:
    """Mean squared error."""
    return float(np.mean((all_values(net, data.planes) - data.results) ** 2))


def _tensor(net: NetPolicy, x: np.ndarray) -> Tensor:
    return torch.from_numpy(x).to(net.device, net.dtype)
