"""An update of MCTS: self-play, then gradient steps towards what the search has found, now and then a match."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmgym.agents.budget import Budget
from llmgym.agents.metrics import Means, Metrics
from llmgym.agents.resignation import Resignation
from llmgym.agents.selfplay import Finished, GameOptions, Positions, SelfPlay
from llmgym.agents.strength import strength
from llmgym.agents.window import Window
from llmgym.agents.workers import Workers
from llmgym.search import Search
from llmgym.search.evaluators import BOUNDS, network_input
from llmgym.search.losses import policy_loss, return_loss


class Distillation:
    """What an `MCTS` agent with a network learns by, and from.

    Args:
        agent: the agent.
    """

    def __init__(self, agent: Any):
        self.agent, self.window = agent, Window(agent.config.window)
        self.updates = self.games = 0
        self.owed = 0.0  # positions that are still to be learnt from
        self.strength = float("nan")
        self.resignation = Resignation()
        self._play: Workers | None = None
        self._turns = board_turns(agent) if agent.config.symmetries else None

    @property
    def play(self) -> Workers:
        """The games under way."""
        if self._play is None:
            agent, c = self.agent, self.agent.config
            how = GameOptions(c.opening_moves, c.random_moves, c.best or 1.0, c.to_the_end if c.resign else 1.0)
            seeds = agent.rng.integers(2**63, size=c.workers)
            shares = [c.games // c.workers + (i < c.games % c.workers) for i in range(c.workers)]
            look, mdp = agent.evaluator.look, agent.mdp
            self._play = Workers(
                [
                    SelfPlay(mdp, self._planning(int(seed)), look, n, how, np.random.default_rng(seed))
                    for n, seed in zip(shares, seeds, strict=True)
                ]
            )
        return self._play

    def _planning(self, seed: int) -> Any:
        """Who moves in self-play: the agent's own search, or a teacher; `seed` is of playouts."""
        agent = self.agent
        if not agent.config.teacher:
            return Search[Any](agent.mdp, agent.guide(seed), agent.options)
        from llmgym.agents.teacher import SearchSettings, Teacher  # compiled: loaded when it is needed

        return Teacher(agent.mdp, SearchSettings.parse(agent.config.teacher))

    def iterate(self, budget: Budget) -> tuple[Metrics, list[Finished]]:
        """One update; returns its metrics, and the games that have ended."""
        agent, started = self.agent, time.perf_counter()
        games = self.play.play(agent.config.moves, self.resignation.threshold)
        seconds = time.perf_counter() - started
        agent.num_timesteps += agent.config.games * agent.config.moves
        metrics = self._take(games) | {"seconds_playing": seconds, "games_per_second": len(games) / seconds}
        agent._set_learning_rate(budget.fraction())
        metrics |= self._learn()
        self.updates += 1
        if agent.config.match_every and self.updates % agent.config.match_every == 0:
            self.strength = self._match()
        return metrics | {"strength": self.strength} | agent.policy.counters.as_dict(), games

    def _take(self, games: list[Finished]) -> Metrics:
        """Put finished games into the window."""
        learnt = [game.positions for game in games]
        for game in games:
            self.window.add(game.targets(self.agent.config.value_mix))
        self.resignation.add(game.low for game in games if np.isfinite(game.low))
        self.games += len(games)
        self.owed += self.agent.config.replay * sum(map(len, learnt))
        return {
            "games": float(self.games),
            "window": float(len(self.window)),
            "length": mean([len(positions) for positions in learnt]),
            "first_return": mean([positions.returns[0] for positions in learnt]),
            "resigned": mean([game.resigned for game in games]),
            "threshold": self.resignation.threshold,
        }

    def _learn(self) -> Metrics:
        """The gradient steps that are owed."""
        totals, size = Means(), self.agent.config.batch_size
        while self.owed >= size:
            self.owed -= size
            self._step(self._drawn(size), totals)
        self.agent.evaluator.refresh()
        self.agent.planner.forget()
        return {name: float("nan") for name in ("loss", "policy_loss", "value_loss", "grad_norm")} | totals.mean()

    def _drawn(self, size: int) -> Positions:
        """A minibatch; of Go, each position under a symmetry of its own."""
        batch = self.window.sample(size, self.agent.rng)
        if self._turns is None:
            return batch
        from llmgym.envs.go.symmetry import turned_actions, turned_planes

        which = self._turns.draw(size)
        planes = batch.observations.reshape(size, *self.agent.mdp.observation_space.shape)
        turned = turned_planes(planes, which).reshape(batch.observations.shape)
        return Positions(
            turned, turned_actions(batch.masks, which), turned_actions(batch.policies, which), batch.returns
        )

    def _step(self, batch: Positions, totals: Means) -> None:
        policy, c, n = self.agent.policy, self.agent.config, len(batch)
        x = network_input(policy, batch.observations, policy.dtype)
        targets, masks, returns = (
            torch.from_numpy(array).to(policy.device) for array in (batch.policies, batch.masks, batch.returns)
        )

        def loss(rows: Tensor) -> tuple[Tensor, dict[str, Any]]:
            outputs, values = policy.net(x[rows])
            policy.counters.forward_passes += 1
            ours = policy_loss(outputs, targets[rows], masks[rows], denominator=n)
            errors = return_loss(BOUNDS[c.bound](values), returns[rows], denominator=n)
            both = ours + c.value_weight * errors
            return both, {"loss": both.detach(), "policy_loss": ours.detach(), "value_loss": errors.detach()}

        parts = torch.arange(n, device=policy.device).split(c.micro_batch_rows or n)
        self.agent.gradient_step(parts, loss, totals)

    def _match(self) -> float:
        agent, c = self.agent, self.agent.config
        seed = 0 if c.seed is None else c.seed  # the same opponent every time
        rng = np.random.default_rng(seed)
        return strength(agent.mdp, agent.guide(seed), agent.options, c.opponent, c.match_games, rng)

    # Files.

    def description(self) -> dict[str, Any]:
        """What JSON can say of it."""
        numbers = {name: getattr(self, name) for name in ("updates", "games", "owed")}
        return numbers | {"lows": self.resignation.lows()}

    def restore(self, saved: dict[str, Any]) -> None:
        """Take over what `description` wrote."""
        for name in ("updates", "games", "owed"):
            setattr(self, name, saved[name])
        self.resignation.add(saved["lows"])

    def save(self, folder: Path) -> None:
        """Write the window."""
        self.window.save(folder / "window.safetensors")

    def load(self, folder: Path) -> None:
        """Read the window."""
        self.window.load(folder / "window.safetensors")


def mean(numbers: list[Any]) -> float:
    """NaN of none."""
    return float(np.mean(numbers)) if numbers else float("nan")


def board_turns(agent: Any) -> Any:
    """Draws symmetries under which the game stays the same, by the agent's generator; None where it is not Go."""
    from llmgym.envs.go.mdp import GoMDP  # compiled rules are loaded when they are needed

    if not isinstance(agent.mdp, GoMDP):
        return None
    from llmgym.envs.go.symmetry import Turns

    return Turns(agent.mdp.rules.rows, agent.mdp.rules.cols, agent.rng)
