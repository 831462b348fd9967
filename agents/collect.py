"""Where an agent's batches come from: episodes of text in lockstep, or fragments of play in any other environment."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmgym.agents.config import AgentConfig
from llmgym.agents.environments import lockstep
from llmgym.batch import Fragments, TextBatch
from llmgym.play import Player, vectorised
from llmgym.rollout import rollout


class Episodes:
    """`samples` completions of each of `prompts` problems, drawn from the task's training split."""

    def __init__(self, env: Any, config: AgentConfig):
        self.prompts, self.samples = config.prompts, config.samples
        self.venv = lockstep(env, config.prompts * config.samples)
        self.mdp = self.venv.mdp

    def collect(self, policy: Any, rng: np.random.Generator) -> TextBatch:
        """One episode in every row."""
        problems = [self.mdp.task.problem(rng, self.mdp.split) for _ in range(self.prompts)]  # type: ignore[arg-type]
        rows = [p for p in problems for _ in range(self.samples)]
        groups = np.repeat(np.arange(self.prompts), self.samples).tolist()
        return rollout(self.venv, policy, rows, groups=groups, seed=int(rng.integers(2**31)))


class Play:
    """The next `n_steps` actions of each of `num_envs` rows; with `whole_episodes` one whole episode of each."""

    def __init__(self, env: Any, num_envs: int, n_steps: int, whole_episodes: bool):
        self.venv = vectorised(env, num_envs)
        self.n_steps, self.whole_episodes = n_steps, whole_episodes
        self._player: Player | None = None

    def collect(self, policy: Any, rng: np.random.Generator) -> Fragments:
        """Play on from where the last batch ended."""
        if self._player is None:
            seed = int(rng.integers(2**31))
            self._player = Player(self.venv, policy, self.n_steps, whole_episodes=self.whole_episodes, seed=seed)
        return self._player.collect()
