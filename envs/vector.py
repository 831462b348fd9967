"""The native vector form of the text environments: one array a quantity, N rows stepped together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from llmgym.env import check_render_mode
from llmgym.envs.autoreset import parse_autoreset_mode, reset_mask, seed_list, step_limit
from llmgym.mdp import ScorerFailed
from llmgym.tasks import Problem
from llmgym.text import EOS, ILLEGAL, LENGTH, TextMDP, TextState

REASONS = (None, EOS, LENGTH, ILLEGAL)  # codes of `_finish`
_EOS, _LENGTH, _ILLEGAL = 1, 2, 3


class VectorTextEnv(VectorEnv):
    """N text episodes side by side; row i of `reset(seed=s)` equals a single environment reset with s + i.

    Args:
        mdp: the rules, shared by all rows.
        num_envs: N.
        autoreset_mode: an `AutoresetMode` or its string. "NextStep" (Gymnasium's default), "SameStep", or
            "Disabled": then a finished row ignores its action (reward 0, flags stay) until
            `reset(options={"reset_mask": bool [N]})`, which lets an agent run a batch in lockstep.
        mask_in_info: adds `info["action_mask"]`.
        max_episode_steps: truncates an episode after so many steps, as Gymnasium's `TimeLimit` does; None (or
            `gym.make`'s -1) for no outer limit.

    `reset(options={"problem": [p_0, …, p_N-1]})` plays given problems (None draws one; a single `Problem` goes to
    every row).
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's own type)
        "render_modes": ["ansi", "human"],
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        mdp: TextMDP,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        mask_in_info: bool = False,
        max_episode_steps: int | None = None,
    ):
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        check_render_mode(render_mode, self.metadata["render_modes"])
        self.mdp, self.num_envs, self.render_mode = mdp, num_envs, render_mode
        self.autoreset_mode = parse_autoreset_mode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.mask_in_info, self.max_episode_steps = mask_in_info, step_limit(max_episode_steps)
        self.single_observation_space, self.single_action_space = mdp.observation_space, mdp.action_space
        self.observation_space = batch_space(mdp.observation_space, num_envs)
        self.action_space = batch_space(mdp.action_space, num_envs)
        self._rngs: list[np.random.Generator | None] = [None] * num_envs
        self._problems: list[Problem] = [Problem("")] * num_envs
        self._allocate()

    # Arrays a batch-wise reader (a policy, a rollout) needs; read-only by convention.

    @property
    def tokens(self) -> np.ndarray:
        """Token ids of every row, int64 [N, L], right-padded."""
        return self._ids

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every row, prompt included; int64 [N]."""
        return self._length

    @property
    def prompt_lengths(self) -> np.ndarray:
        """Prompt tokens of every row; int64 [N]."""
        return self._n_prompt

    @property
    def chosen(self) -> np.ndarray:
        """Which tokens the policy chose; bool [N, L]."""
        return self._chosen

    @property
    def states(self) -> list[TextState]:
        """The MDP state of every row."""
        return [self.state(i) for i in range(self.num_envs)]

    def state(self, row: int) -> TextState:
        """The MDP state of one row."""
        n = int(self._length[row])
        return TextState(
            problem=self._problems[row],
            tokens=tuple(self._ids[row, :n].tolist()),
            n_prompt=int(self._n_prompt[row]),
            chosen=tuple(self._chosen[row, :n].tolist()),
            key=int(self._key[row]),
            finish_reason=REASONS[self._finish[row]],
        )

    def reset(self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None):
        """Start an episode in every row, or in the rows of `options["reset_mask"]`."""
        options = options or {}
        rows = np.flatnonzero(reset_mask(options.get("reset_mask"), self.num_envs))
        problems = _problem_list(options.get("problem"), self.num_envs)
        for row, row_seed in enumerate(seed_list(seed, self.num_envs)):
            if row_seed is not None and row in rows:
                self._rngs[row] = seeding.np_random(row_seed)[0]
        infos: dict[str, Any] = {}
        for row in rows.tolist():
            infos = self._start(row, problems[row], infos)
        self._show()
        return self._observation(), self._with_mask(infos, rows)

    def step(self, actions: np.ndarray):
        """One action a row: int [N], or int [N, block_size]."""
        self._check_started()
        over = self._terminated | self._truncated
        actions = self._checked(actions, ~over)
        infos: dict[str, Any] = {}
        rewards = np.zeros(self.num_envs)
        if over.any() and self.autoreset_mode is AutoresetMode.NEXT_STEP:
            for row in np.flatnonzero(over).tolist():
                infos = self._start(row, None, infos)
        self._write(actions, np.flatnonzero(~over))
        self._steps[~over] += 1
        infos = self._judge(np.flatnonzero(~over & (self._finish > 0)), rewards, infos)
        if self.max_episode_steps is not None:
            self._truncated |= ~over & (self._steps >= self.max_episode_steps)
        # Copies: a same-step reset below clears the flags of the rows it starts anew.
        terminated, truncated = self._terminated.copy(), self._truncated.copy()
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            infos = self._restart(np.flatnonzero(terminated | truncated), infos)
        self._show()
        infos = self._with_mask(infos, np.arange(self.num_envs))
        return self._observation(), rewards, terminated, truncated, infos

    def action_masks(self) -> np.ndarray:
        """Legal actions of every row, bool [N, block_size · V]."""
        self._check_started()
        if not self.mdp.constraints:
            return np.ones((self.num_envs, self.mdp.block_size * self.mdp.codec.vocab_size), bool)
        return np.stack([self.mdp.mask(state) for state in self.states])

    def get_state(self) -> dict[str, Any]:
        """An opaque, picklable snapshot of all rows."""
        self._check_started()
        rngs = [None if rng is None else rng.bit_generator.state for rng in self._rngs]
        arrays = {name: getattr(self, f"_{name}").copy() for name in _ARRAYS}
        return {"arrays": arrays, "problems": list(self._problems), "rngs": rngs}

    def set_state(self, snapshot: dict[str, Any]) -> None:
        """Continue from `get_state()`, of this or of another environment with the same arguments."""
        for name, array in snapshot["arrays"].items():
            setattr(self, f"_{name}", array.copy())
        self._problems = list(snapshot["problems"])
        for row, state in enumerate(snapshot["rngs"]):
            if state is not None:
                self._rng(row).bit_generator.state = state

    def render(self):
        """One frame a row, as the single environment renders it."""
        if self.render_mode is None:
            return None
        self._check_started()
        return tuple(self.mdp.render(state, self.render_mode) for state in self.states)

    def _allocate(self) -> None:
        n, width = self.num_envs, self.mdp.length
        self._ids = np.full((n, width), self.mdp.codec.pad_id, np.int64)
        self._attention = np.zeros((n, width), np.int8)
        self._chosen = np.zeros((n, width), bool)
        self._length, self._n_prompt = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self._key, self._steps = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self._finish = np.zeros(n, np.int8)
        self._terminated, self._truncated = np.zeros(n, bool), np.zeros(n, bool)

    def _check_started(self) -> None:
        # A prompt has at least one token: a row without one has never been reset.
        if not self._n_prompt.all():
            raise ResetNeeded("the environment has no state yet: call reset() or set_state() on every row first")

    def _rng(self, row: int) -> np.random.Generator:
        if self._rngs[row] is None:
            self._rngs[row] = seeding.np_random()[0]
        return self._rngs[row]  # type: ignore[return-value]

    def _start(self, row: int, problem: Problem | None, infos: dict[str, Any]) -> dict[str, Any]:
        state = self.mdp.initial(self._rng(row), {"problem": problem})
        n = state.n_prompt
        self._problems[row], self._key[row] = state.problem, state.key or 0
        self._ids[row], self._ids[row, :n] = self.mdp.codec.pad_id, state.tokens
        self._attention[row], self._attention[row, :n] = 0, 1
        self._chosen[row] = False
        self._length[row] = self._n_prompt[row] = n
        self._finish[row] = self._steps[row] = 0
        self._terminated[row] = self._truncated[row] = False
        return self._add_info(infos, self.mdp.info(state), row)

    def _write(self, actions: np.ndarray, rows: np.ndarray) -> None:
        """Append each row's block, one position at a time for all rows that still take tokens."""
        mdp = self.mdp
        before = self._length.copy()
        bases = {r: self.state(r) for r in rows} if mdp.needs_state else {}
        for j in range(mdp.block_size):
            if mdp.constraints:
                legal = self._legal(rows, actions[rows, j], bases, before)
                self._finish[rows[~legal]] = _ILLEGAL
                rows = rows[legal]
            if not rows.size:
                return
            tokens = actions[rows, j]
            self._append(rows, tokens)
            self._mark_ends(rows, tokens)
            rows = rows[(self._finish[rows] == 0) & (tokens != mdp.eos_id)]
            if mdp.stop is not None:
                stopped = [mdp.stop(bases[r], self._since(before, r)) for r in rows]
                rows = rows[~np.array(stopped, bool)]

    def _legal(self, rows: np.ndarray, tokens: np.ndarray, bases: dict, before: np.ndarray) -> np.ndarray:
        if self.mdp.constraints.function is None:
            return self.mdp.constraints.static_allows(self._length[rows] - self._n_prompt[rows], tokens)
        masks = [self.mdp.constraints.mask(bases[r], self._since(before, r)) for r in rows]
        return np.array([mask[token] for mask, token in zip(masks, tokens, strict=True)], bool)

    def _append(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        at = self._length[rows]
        self._ids[rows, at] = tokens
        self._attention[rows, at] = 1
        self._chosen[rows, at] = True
        self._length[rows] = at + 1

    def _mark_ends(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        spent = self._length[rows] - self._n_prompt[rows] >= self.mdp.max_new_tokens
        self._finish[rows[spent]] = _LENGTH
        for row in rows[tokens == self.mdp.eos_id]:
            self._after_eos(row)

    def _after_eos(self, row: int) -> None:
        """EOS ends the episode, unless the task replies; the MDP decides."""
        n, state = int(self._length[row]), self.mdp.after_eos(self.state(row))
        added = len(state.tokens) - n
        self._ids[row, n : n + added] = state.tokens[n:]
        self._attention[row, n : n + added] = 1
        self._length[row] = n + added
        self._finish[row] = REASONS.index(state.finish_reason)

    def _since(self, before: np.ndarray, row: int) -> list[int]:
        return self._ids[row, before[row] : self._length[row]].tolist()

    def _judge(self, rows: np.ndarray, rewards: np.ndarray, infos: dict[str, Any]) -> dict[str, Any]:
        """Score the rows that have just ended and report them."""
        states, failure = [self.state(row) for row in rows], dict[str, Any]()
        for row, state, judged in zip(rows, states, self.mdp.outcomes(states), strict=True):
            if isinstance(judged, ScorerFailed):
                self._truncated[row], failure = True, {"scorer_failed": str(judged)}
            else:
                rewards[row], self._terminated[row], failure = judged.reward, True, {}
            infos = self._add_info(infos, self.mdp.info(state, judged) | failure, row)
        return infos

    def _restart(self, rows: np.ndarray, infos: dict[str, Any]) -> dict[str, Any]:
        """Same-step autoreset: what the episode ended with moves to `final_obs` and `final_info`."""
        if not rows.size:
            return infos
        final, observation = infos, self._observation()
        for row in rows if self.mask_in_info else ():
            final = self._add_info(final, {"action_mask": self.mdp.mask(self.state(row))}, row)
        infos = {"final_info": final, "_final_info": np.isin(np.arange(self.num_envs), rows)}
        for row in rows:
            infos = self._add_info(infos, {"final_obs": {k: v[row] for k, v in observation.items()}}, row)
            infos = self._start(row, None, infos)
        return infos

    def _checked(self, actions: Any, live: np.ndarray) -> np.ndarray:
        actions, shape = np.asarray(actions), self.action_space.shape
        if actions.shape != shape or actions.dtype.kind not in "iu":
            raise ValueError(f"actions must be integers of shape {shape}, got {actions.dtype} of shape {actions.shape}")
        actions = actions.reshape(self.num_envs, self.mdp.block_size)
        used, vocab = actions[live], self.mdp.codec.vocab_size
        if used.size and (used.min() < 0 or used.max() >= vocab):
            raise ValueError(f"token ids must lie in [0, {vocab}), got {used.min()} to {used.max()}")
        return actions

    def _observation(self) -> dict[str, np.ndarray]:
        n_tokens = (self._length - self._n_prompt)[:, None]
        return {"attention_mask": self._attention.copy(), "input_ids": self._ids.copy(), "n_tokens": n_tokens}

    def _with_mask(self, infos: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
        if self.mask_in_info:
            told = np.isin(np.arange(self.num_envs), rows)
            infos |= {"action_mask": self.action_masks() & told[:, None], "_action_mask": told}
        return infos

    def _show(self) -> None:
        if self.render_mode == "human":
            self.render()


_ARRAYS = ("ids", "attention", "chosen", "length", "n_prompt", "key", "steps", "finish", "terminated", "truncated")


def _problem_list(problems: Any, num_envs: int) -> list[Problem | None]:
    if problems is None or isinstance(problems, Problem):
        return [problems] * num_envs
    if isinstance(problems, str) or not isinstance(problems, Sequence):
        raise ValueError(f"options['problem'] must be a Problem or a list of {num_envs} of them, got {problems!r}")
    if len(problems) != num_envs:
        raise ValueError(f"options['problem'] must hold {num_envs} problems, one a row, got {len(problems)}")
    return list(problems)
