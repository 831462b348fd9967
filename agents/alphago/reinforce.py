"""Stage 2: REINFORCE against a pool of earlier selves. Silver et al. 2016, methods, "reinforcement learning of policy
networks"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from llmgym.agents.alphago.descent import ROWS_AT_ONCE, Descent, Tell
from llmgym.agents.alphago.games import draw_moves, duel, new_batch, outcomes
from llmgym.agents.alphago.policy import PlayedMoves, outputs_of, rows_of
from llmgym.agents.config import check_above_zero, check_least
from llmgym.envs.go.mdp import GoMDP
from llmgym.losses import reinforce_loss
from llmgym.nets import NetPolicy
from llmgym.returns import group_advantages

Weights = dict[str, torch.Tensor]
Baseline = Callable[[np.ndarray], np.ndarray]  # planes [n, …] -> values of the player to move [n]


@dataclass(frozen=True)
class PoolConfig:
    """How a policy network learns from games against earlier selves."""

    updates: int = 60  # gradient steps
    games: int = 64  # of an update, with each colour half of them; all against one opponent, drawn from the pool
    snapshot_every: int = 10  # updates, after which the network joins the pool
    learning_rate: float = 3e-4  # of Adam at first; it falls to 0
    match_every: int = 10  # updates between two matches against the network it began as
    match_games: int = 200  # of such a match; the last one has five times as many

    def __post_init__(self):
        check_least(self, 1, "updates", "snapshot_every", "match_every")
        check_least(self, 4, "games", "match_games")
        check_above_zero(self, "learning_rate")


class Played(NamedTuple):
    """What a learner saw and did in games that are over.

    Attributes:
        positions: where it moved, [n].
        games: the game of each position, int64 [n].
        results: 1, 0 or -1 of each game, float64 [G].
        black: in which games it had Black, bool [G].
    """

    positions: PlayedMoves
    games: np.ndarray
    results: np.ndarray
    black: np.ndarray


def play(mdp: GoMDP, learner: NetPolicy, opponent: NetPolicy, games: int) -> Played:
    """Games side by side; the learner has Black in every other one."""
    batch, black = new_batch(mdp, games), np.arange(games) % 2 == 0
    seen: list[tuple[np.ndarray, ...]] = []
    while not (over := batch.terminated).all():
        actions, turn = np.zeros(games, np.int64), (batch.to_play == 0) == black
        mine = turn & ~over
        draw_moves(learner, batch, mine, actions)
        draw_moves(opponent, batch, ~turn & ~over, actions)
        seen.append((batch.planes[mine], batch.masks[mine], actions[mine], np.flatnonzero(mine)))
        batch.step(actions)
    planes, masks, moves, rows = (np.concatenate([one[i] for one in seen]) for i in range(4))
    return Played(PlayedMoves(planes, masks, moves), rows, outcomes(batch, np.where(black, 0, 1)), black)


def advantages(played: Played, baseline: Baseline | None) -> np.ndarray:
    """z less a baseline, float64 [n]: a value network's, or the mean result of the other games with that colour."""
    if baseline is not None:
        return played.results[played.games] - baseline(played.positions.planes)
    results, colours = torch.from_numpy(played.results), torch.from_numpy(played.black.astype(int))
    return group_advantages(results, colours, normalize="none", baseline="leave_one_out").numpy()[played.games]


def accumulate(policy: NetPolicy, played: Played, advantages: np.ndarray) -> float:
    """Add the gradient of -1/G Σ_games Σ_t log π(a_t|s_t) A_t; returns that sum."""
    total, games = 0.0, len(played.results)
    for rows in np.array_split(np.arange(len(advantages)), -(-len(advantages) // ROWS_AT_ONCE)):
        outputs, masks, actions = outputs_of(policy, rows_of(played.positions, rows))
        logp = outputs.masked_fill(~masks, -torch.inf).log_softmax(1).gather(1, actions[:, None])[None, :, 0]
        worth = torch.from_numpy(advantages[rows]).to(logp)[None]
        loss = reinforce_loss(logp, worth, torch.ones_like(logp, dtype=torch.bool), denominator=games)
        loss.backward()
        total += float(loss.detach())
    return total


class Reinforce:
    """The learner and its pool.

    Args:
        mdp: the rules, with the planes that the policy sees.
        policy: begins the pool, and learns.
        first: the same network, which stays as it is.
        config: settings.
        rng: of opponents drawn from the pool.
        baseline: of returns; None: the mean result of the other games of that colour.
    """

    def __init__(
        self,
        mdp: GoMDP,
        policy: NetPolicy,
        first: NetPolicy,
        config: PoolConfig,
        rng: np.random.Generator,
        baseline: Baseline | None = None,
    ):
        self.mdp, self.policy, self.first, self.config = mdp, policy, first, config
        self.rng, self.baseline = rng, baseline
        self.opponent = copied(policy, mdp, int(rng.integers(2**31)))
        self.pool: list[Weights] = [weights_of(policy)]

    def learn(self, tell: Tell) -> None:
        """All updates; `tell` is called after each."""
        c = self.config
        descent = Descent([*self.policy.net.parameters()], c.learning_rate, c.updates)
        for update in range(1, c.updates + 1):
            metrics = self.update(descent)
            if update % c.snapshot_every == 0:
                self.pool.append(weights_of(self.policy))
            if update % c.match_every == 0 and update < c.updates:
                metrics |= self.match(c.match_games)
            if tell({"update": update} | metrics) is False:
                return

    def update(self, descent: Descent) -> dict[str, float]:
        """Games against one of the pool, and one step."""
        self.opponent.net.load_state_dict(self.pool[int(self.rng.integers(len(self.pool)))])
        played = play(self.mdp, self.policy, self.opponent, self.config.games)
        accumulate(self.policy, played, advantages(played, self.baseline))
        descent.apply()
        length = len(played.games) / self.config.games
        return {"result": float(played.results.mean()), "own_moves": length, "pool": float(len(self.pool))}

    def match(self, games: int) -> dict[str, Any]:
        """How the learner scores against the network it began as, moves drawn."""
        return duel(self.mdp, self.policy, self.first, games)


def weights_of(policy: NetPolicy) -> Weights:
    """A copy."""
    return {name: x.detach().clone() for name, x in policy.net.state_dict().items()}


def copied(policy: NetPolicy, mdp: GoMDP, seed: int) -> NetPolicy:
    """The same network, with a generator of its own."""
    named = {"hidden": policy.hidden, "activation": policy.activation, "value_head": policy.value_head is not None}
    copy = NetPolicy(policy.kind, mdp, **named, device=str(policy.device), seed=seed)  # type: ignore[arg-type]
    copy.net.load_state_dict(policy.net.state_dict())
    return copy
