"""Policies without a model, the floor under every score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmgym.blocks import BlockWriter
from llmgym.counters import Counters
from llmgym.evaluation import mdp_of
from llmgym.policy import Action
from llmgym.text import TextState


class RandomPolicy:
    """Uniform over the legal tokens.

    Args:
        env: a text environment, single or vector, or a `TextMDP`, for its rules.
        seed: of the choices.
    """

    def __init__(self, env: Any, seed: int | None = None):
        self.mdp, self.counters, self.rng = mdp_of(env), Counters(), np.random.default_rng(seed)

    def act(
        self,
        observation: dict[str, np.ndarray],
        active: np.ndarray | None = None,
        *,
        states: Sequence[TextState] | None = None,
        deterministic: bool = False,
    ) -> Action:
        """A random block for every active row, as `LMPolicy.act`; `deterministic` changes nothing."""
        block = BlockWriter(self.mdp, observation, active, states)
        while block.rows.size:
            masks = block.masks()
            legal = np.ones((len(block.rows), self.mdp.codec.vocab_size), bool) if masks is None else masks.numpy()
            tokens = np.where(legal, self.rng.random(legal.shape), -1.0).argmax(1)
            self.counters.sampled_tokens += len(tokens)
            block.add(tokens, -np.log(legal.sum(1)))
        return Action(block.tokens, block.logp)
