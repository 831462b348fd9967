"""Stage 1: a policy network that predicts the moves of game records. Silver et al. 2016, methods, "supervised learning
of policy networks"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmgym.agents.alphago.descent import ROWS_AT_ONCE, Descent, Tell, minibatches
from llmgym.agents.alphago.records import Moves
from llmgym.agents.config import check_above_zero, check_least
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.symmetry import Turns, turned_actions, turned_planes
from llmgym.nets import NetPolicy
from llmgym.search.evaluators import network_input
from llmgym.search.losses import policy_loss


@dataclass(frozen=True)
class PolicyConfig:
    """How a policy network is fitted to records."""

    hidden: tuple[int, ...] = (32, 32, 32)  # channels of each residual block
    planes: tuple[str, ...] = ("stones", "history", "liberties", "ko", "colour")  # of the board that it sees
    epochs: int = 10  # times that every position is learnt from, each time turned or mirrored at random
    batch_size: int = 256  # positions in a minibatch
    learning_rate: float = 2e-3  # of AdamW at first; it falls to 0
    weight_decay: float = 1e-3  # of AdamW

    def __post_init__(self):
        check_least(self, 1, "epochs", "batch_size")
        check_least(self, 0, "weight_decay")
        check_above_zero(self, "learning_rate")


class PlayedMoves(NamedTuple):
    """PlayedMoves and the moves that were played in them.

    Attributes:
        planes: int8 [n, C, rows, cols].
        masks: legal actions, bool [n, K].
        actions: int64 [n].
    """

    planes: np.ndarray
    masks: np.ndarray
    actions: np.ndarray


def positions(mdp: GoMDP, games: Sequence[Moves]) -> PlayedMoves:
    """What the network sees of games, and should say."""
    seen = [mdp.views(game.states) for game in games]
    planes, masks = (np.concatenate([one[i] for one in seen]) for i in range(2))
    return PlayedMoves(planes, masks, np.concatenate([game.actions for game in games]).astype(np.int64))


def fit_policy(
    policy: NetPolicy,
    train: PlayedMoves,
    held_out: PlayedMoves,
    config: PolicyConfig,
    rng: np.random.Generator,
    tell: Tell,
) -> None:
    """Minimise the cross-entropy of moves; `tell` is called after every epoch with what is held out."""
    steps = config.epochs * math.ceil(len(train.actions) / config.batch_size)
    descent = Descent(policy.parameters(), config.learning_rate, steps, config.weight_decay)
    rows, cols = train.planes.shape[2:]
    turns = Turns(rows, cols, rng)
    for epoch in range(1, config.epochs + 1):
        losses = [
            descent.step(move_loss(policy, turned(rows_of(train, rows), turns.draw(len(rows)))))
            for rows in minibatches(len(train.actions), config.batch_size, rng)
        ]
        if tell({"epoch": epoch, "loss": float(np.mean(losses))} | score_policy(policy, held_out)) is False:
            return


def rows_of(data: PlayedMoves, rows: np.ndarray) -> PlayedMoves:
    """Some positions."""
    return PlayedMoves(*(array[rows] for array in data))


def turned(data: PlayedMoves, which: np.ndarray) -> PlayedMoves:
    """PlayedMoves under a symmetry each; what was played at action p[i] is played at action i of the image."""
    actions = (which == data.actions[:, None]).argmax(1)
    return PlayedMoves(turned_planes(data.planes, which), turned_actions(data.masks, which), actions)


def move_loss(policy: NetPolicy, batch: PlayedMoves) -> Tensor:
    """Cross-entropy of the moves played, mean, nats."""
    outputs, masks, actions = outputs_of(policy, batch)
    targets = torch.zeros_like(outputs).scatter_(1, actions[:, None], 1.0)
    return policy_loss(outputs, targets, masks)


def outputs_of(policy: NetPolicy, batch: PlayedMoves) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of the actor, masks and actions, on the policy's device."""
    policy.counters.forward_passes += 1
    outputs = policy.net.outputs(network_input(policy, policy.encode(batch.planes), policy.dtype))
    return outputs, torch.from_numpy(batch.masks).to(policy.device), torch.from_numpy(batch.actions).to(policy.device)


@torch.no_grad()
def score_policy(policy: NetPolicy, data: PlayedMoves) -> dict[str, float]:
    """How well moves are predicted: `held_out_loss` (nats) and `accuracy` (the first choice is the move played)."""
    loss, right = 0.0, 0
    for rows in np.array_split(np.arange(len(data.actions)), math.ceil(len(data.actions) / ROWS_AT_ONCE)):
        outputs, masks, actions = outputs_of(policy, rows_of(data, rows))
        logp = outputs.masked_fill(~masks, -torch.inf).log_softmax(1)
        loss -= float(logp.gather(1, actions[:, None]).sum())
        right += int((logp.argmax(1) == actions).sum())
    return {"held_out_loss": loss / len(data.actions), "accuracy": right / len(data.actions)}


def score_uniform(masks: np.ndarray) -> dict[str, float]:
    """What a uniform choice among what masks allow is expected to score."""
    allowed = masks.sum(1)
    return {"held_out_loss": float(np.log(allowed).mean()), "accuracy": float((1 / allowed).mean())}
