"""Stage 4: the fast rollout policy, fitted to the moves of game records by maximum likelihood."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmgym.agents.alphago.descent import Descent, Tell, minibatches
from llmgym.agents.alphago.records import Moves
from llmgym.agents.config import check_above_zero, check_least
from llmgym.envs.go.fast_policy import FEATURES, FastPolicy, features_of
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.playout import playouts
from llmgym.search.losses import policy_loss


@dataclass(frozen=True)
class RolloutConfig:
    """How the fast policy is fitted to records."""

    epochs: int = 10  # times that every position is learnt from
    batch_size: int = 512  # positions in a minibatch
    learning_rate: float = 0.05  # of Adam at first; it falls to 0
    penalty: float = 1.0  # of the squares of the weights, as so many nats over all positions: rare patterns stay near 0

    def __post_init__(self):
        check_least(self, 1, "epochs", "batch_size")
        check_least(self, 0, "penalty")
        check_above_zero(self, "learning_rate")


class Choices(NamedTuple):
    """Moves that were chosen among candidates.

    Attributes:
        features: of each point, int16 [n, points, 6].
        candidates: bool [n, points].
        actions: int64 [n].
    """

    features: np.ndarray
    candidates: np.ndarray
    actions: np.ndarray


def choices(games: Sequence[Moves]) -> Choices:
    """The moves that the fast policy could have played: passes and stones in own eyes are left out."""
    found = [(*features_of(state), action) for game in games for state, action in _pairs(game)]
    found = [(features, candidates, action) for features, candidates, action in found if candidates[action]]
    if not found:
        raise ValueError("the records hold no move that the fast policy could play")
    features, candidates, actions = zip(*found, strict=True)
    return Choices(np.stack(features), np.stack(candidates), np.array(actions, np.int64))


def _pairs(game: Moves) -> list[tuple]:
    points = game.states[0].rows * game.states[0].cols
    return [(state, action) for state, action in zip(*game, strict=True) if action < points]


def fit_rollout(
    train: Choices, held_out: Choices, config: RolloutConfig, rng: np.random.Generator, tell: Tell
) -> FastPolicy:
    """Maximise the likelihood of moves less a penalty; `tell` is called after every epoch."""
    weights, n = torch.zeros(FEATURES, requires_grad=True), len(train.actions)
    steps = config.epochs * -(-n // config.batch_size)
    descent = Descent([weights], config.learning_rate, steps, max_norm=float("inf"))
    for epoch in range(1, config.epochs + 1):
        losses = []
        for rows in minibatches(n, config.batch_size, rng):
            loss = choice_loss(weights, Choices(*(array[rows] for array in train)))
            losses.append(float(loss.detach()))
            descent.step(loss + config.penalty / n * weights.square().sum())
            with torch.no_grad():
                weights[0] = 0.0  # of the feature that says nothing
        if tell({"epoch": epoch, "loss": float(np.mean(losses))} | score_rollout(weights, held_out)) is False:
            break
    return FastPolicy(weights.detach().numpy())


def choice_loss(weights: Tensor, batch: Choices) -> Tensor:
    """Cross-entropy of the moves chosen, mean, nats."""
    logits = logits_of(weights, batch)
    targets = torch.zeros_like(logits).scatter_(1, torch.from_numpy(batch.actions)[:, None], 1.0)
    return policy_loss(logits, targets, torch.from_numpy(batch.candidates))


def logits_of(weights: Tensor, batch: Choices) -> Tensor:
    """Sums of weights, [n, points]."""
    return weights[torch.from_numpy(batch.features.astype(np.int64))].sum(-1)


@torch.no_grad()
def score_rollout(weights: Tensor, data: Choices) -> dict[str, float]:
    """`held_out_loss` (nats) and `accuracy` (the likeliest candidate is the move played)."""
    logits = logits_of(weights, data).masked_fill(~torch.from_numpy(data.candidates), -torch.inf)
    actions = torch.from_numpy(data.actions)
    loss = -logits.log_softmax(1).gather(1, actions[:, None]).mean()
    return {"held_out_loss": float(loss), "accuracy": float((logits.argmax(1) == actions).float().mean())}


def speeds(fast: FastPolicy, mdp: GoMDP, seconds: float = 0.5) -> dict[str, float]:
    """Playouts a second of a core from the first position, by this policy and by uniform light moves."""
    state, rng, seed = mdp.initial(), np.random.default_rng(0), np.zeros(1, np.uint64)
    margins = np.empty(64, np.int64)
    return {
        "playouts_per_second": _rate(lambda: fast.results([state] * 64, 0.0, rng), 64, seconds),
        "light_playouts_per_second": _rate(lambda: playouts(state.ints, state.longs, seed, margins), 64, seconds),
    }


def _rate(work: Callable[[], Any], done: int, seconds: float) -> float:
    work()  # what is compiled at the first call is not counted
    began, rounds = time.thread_time(), 0  # what others do on this core is not counted either
    while (spent := time.thread_time() - began) < seconds:
        work()
        rounds += 1
    return done * rounds / spent
