"""`rollout(env, policy)`: one episode in every row of a vector text environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from llmgym.batch import TextBatch
from llmgym.tasks import Problem
from llmgym.text import TextMDP, TextState


def rollout(
    env: Any,
    policy: Any,
    problems: Sequence[Problem | None] | None = None,
    *,
    deterministic: bool = False,
    groups: Sequence[int] | None = None,
    seed: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> TextBatch:
    """Play one episode in every row, all rows in lockstep, through `reset` and `step`.

    Args:
        env: a vector text environment with autoreset "Disabled".
        policy: has `act(observation, active, states=…, deterministic=…)`.
        problems: one a row; None draws them.
        deterministic: greedy instead of sampled tokens.
        groups: which rows share a problem, one int a row; by default every row is a group of its own.
        seed: row i is reset with seed + i; None goes on with the generators of the environment.
        progress: called with the number of rows that have just finished.

    Raises:
        ValueError: the environment resets finished rows by itself.
    """
    mode = env.unwrapped.autoreset_mode
    if mode is not AutoresetMode.DISABLED:  # a row that starts anew would overwrite what is to be recorded
        raise ValueError(f"rollout() needs an environment with autoreset_mode 'Disabled', got {mode.value!r}")
    options = {"problem": list(problems)} if problems is not None else None
    observation, _ = env.reset(seed=seed, options=options)
    text = env.unwrapped
    recorder = _Recorder(env.num_envs, text.mdp)
    active = np.ones(env.num_envs, bool)
    while active.any():
        states = text.states if text.mdp.needs_state else None
        action = policy.act(observation, active, states=states, deterministic=deterministic)
        before = text.lengths.copy()
        observation, rewards, terminated, truncated, info = env.step(action.for_env)
        recorder.add(active, before, action.logp, rewards, text)
        ended = active & (terminated | truncated)
        recorder.finish(ended, info, truncated & ~terminated)
        active = active & ~ended
        if progress is not None and ended.any():
            progress(int(ended.sum()))
    return recorder.batch(text, groups)


class _Recorder:
    """Collects columns of actions and the tokens each of them wrote."""

    def __init__(self, rows: int, mdp: TextMDP):
        self.rows, self.mdp = rows, mdp
        self.rewards: list[np.ndarray] = []
        self.masks: list[np.ndarray] = []
        self.token_logp = np.zeros((rows, mdp.length))
        self.action_index = np.full((rows, mdp.length), -1)
        self.infos: list[dict[str, Any]] = [{} for _ in range(rows)]
        self.cut = np.zeros(rows, bool)

    def add(self, active: np.ndarray, before: np.ndarray, logp: np.ndarray, rewards: np.ndarray, text: Any) -> None:
        """One step. The environment decides how many of a block's tokens count: those flagged as chosen."""
        for j in range(self.mdp.block_size):
            at = np.minimum(before + j, self.mdp.length - 1)
            rows = np.flatnonzero(active & (before + j < text.lengths) & text.chosen[np.arange(self.rows), at])
            self.token_logp[rows, at[rows]] = logp[rows, j]
            self.action_index[rows, at[rows]] = len(self.masks)
        self.rewards.append(np.where(active, rewards, 0.0))
        self.masks.append(active.copy())

    def finish(self, ended: np.ndarray, info: dict[str, Any], cut: np.ndarray) -> None:
        """Keep the final info of rows that have ended, and which of them a limit has cut."""
        self.cut |= ended & cut
        for row in np.flatnonzero(ended).tolist():
            self.infos[row] = _row_info(info, row)

    def batch(self, text: Any, groups: Sequence[int] | None) -> TextBatch:
        """Everything as tensors, padding trimmed."""
        n, t = len(self.masks), int(text.lengths.max())
        index = self.action_index[:, :t]
        rows = np.arange(self.rows)[:, None]
        by_action = np.zeros((2, self.rows, n + 1))  # a last column takes what belongs to no action
        np.add.at(by_action[0], (rows, index), self.token_logp[:, :t])
        np.add.at(by_action[1], (rows, index), 1)
        return TextBatch(
            mask=torch.as_tensor(np.stack(self.masks, 1)),
            rewards=torch.as_tensor(np.stack(self.rewards, 1)),
            logp=torch.as_tensor(by_action[0][:, :n].copy()),
            n_tokens=torch.as_tensor(by_action[1][:, :n], dtype=torch.int64),
            tokens=torch.as_tensor(text.tokens[:, :t].copy()),
            lengths=torch.as_tensor(text.lengths.copy()),
            action_index=torch.as_tensor(index.copy()),
            cut=torch.as_tensor(self.cut),
            valid=torch.tensor(["scorer_failed" not in info for info in self.infos]),
            groups=torch.arange(self.rows) if groups is None else torch.as_tensor(groups),
            token_mask=_token_masks(self.mdp, text.states, index) if self.mdp.constraints else None,
            infos=self.infos,
        )


def _row_info(info: dict[str, Any], row: int) -> dict[str, Any]:
    """One row of a vector info as plain Python values, nested dicts included."""
    out = {}
    for key, value in info.items():
        if not key.startswith("_") and info.get(f"_{key}", np.zeros(row + 1, bool))[row]:
            own = _row_info(value, row) if isinstance(value, dict) else value[row]
            out[key] = own.item() if isinstance(own, np.generic) else own
    return out


def _token_masks(mdp: TextMDP, states: list[TextState], action_index: np.ndarray) -> torch.Tensor:
    """What each chosen token was chosen from, bool [B, T, V]: `evaluate` must normalise over the same."""
    masks = np.ones((*action_index.shape, mdp.codec.vocab_size), bool)
    for row, state in enumerate(states):
        chosen = np.flatnonzero(action_index[row] >= 0)
        if mdp.constraints.function is None:
            masks[row, chosen] = mdp.constraints.static_rows(chosen - state.n_prompt)
            continue
        for action in range(action_index[row].max() + 1):
            places = np.flatnonzero(action_index[row] == action)
            for j, place in enumerate(places):
                masks[row, place] = _mask_at(mdp, state, int(places[0]), j)
    return torch.as_tensor(masks)


def _mask_at(mdp: TextMDP, state: TextState, start: int, j: int) -> np.ndarray | None:
    """The mask of token j of the block that begins at `start`."""
    prefix = TextState(state.problem, state.tokens[:start], state.n_prompt, state.chosen[:start], state.key)
    return mdp.token_mask(prefix, state.tokens[start : start + j])
