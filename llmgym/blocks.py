"""Blocks of tokens in the making, row by row: what every policy that writes text needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmgym.text import TextMDP, TextState


class BlockWriter:
    """Blocks in the making: which rows still take tokens, and what each has so far."""

    def __init__(self, mdp: TextMDP, observation: dict[str, np.ndarray], active: Any, states: Any):
        self.mdp, n = mdp, len(observation["input_ids"])
        self.text = observation["input_ids"].copy()
        self.lengths = observation["attention_mask"].sum(1, dtype=np.int64)
        self.left = mdp.max_new_tokens - observation["n_tokens"][:, 0]
        self.tokens, self.logp = np.zeros((n, mdp.block_size), np.int64), np.zeros((n, mdp.block_size))
        self.rows = np.arange(n) if active is None else np.flatnonzero(active)
        self.size = 0
        self.states: dict[int, TextState] = {}
        if mdp.needs_state:
            self.states = {
                r: states[r] if states is not None else self._state(observation, r) for r in self.rows.tolist()
            }

    def masks(self) -> Tensor | None:
        """Allowed next tokens of the rows at work, bool [n, V]; None allows all."""
        constraints = self.mdp.constraints
        if not constraints:
            return None
        if constraints.function is None:
            n_tokens = self.mdp.max_new_tokens - self.left[self.rows] + self.size
            return torch.as_tensor(constraints.static_rows(n_tokens))
        masks = [self.mdp.token_mask(self.states[r], self.tokens[r, : self.size].tolist()) for r in self.rows.tolist()]
        return torch.as_tensor(np.stack(masks))  # type: ignore[arg-type]

    def add(self, tokens: np.ndarray, logp: np.ndarray) -> None:
        """Append one token to each row at work; rows whose block or episode is over leave."""
        rows = self.rows
        self.tokens[rows, self.size], self.logp[rows, self.size] = tokens, logp
        self.size += 1
        going = (tokens != self.mdp.eos_id) & (self.size < self.left[rows])
        if self.size == self.mdp.block_size:
            going[:] = False
        if self.mdp.stop is not None:
            going &= [not self.mdp.stop(self.states[r], self.tokens[r, : self.size].tolist()) for r in rows.tolist()]
        self.text[rows[going], self.lengths[rows[going]]] = tokens[going]
        self.lengths[rows[going]] += 1
        self.rows = rows[going]

    def _state(self, observation: dict[str, np.ndarray], row: int) -> TextState:
        return self.mdp.state_of({key: value[row] for key, value in observation.items()})
