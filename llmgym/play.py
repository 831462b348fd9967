"""Fragments of play: any Gymnasium environment, stepped by a policy, action by action."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array

from llmgym.batch import Fragments


class Player:
    """Plays on through a vector environment; each `collect` begins where the last one ended.

    All three autoreset modes: in "NextStep" the step that resets a row is a place that does not count; in "SameStep"
    the last observation is read from `info["final_obs"]`; in "Disabled" ended rows are reset at once.

    Action masks are those of the states acted in: `info["action_mask"]`, or `action_masks()` of the vector environment
    or of its sub-environments.

    Args:
        venv: a vector environment.
        policy: has `encode`, `act` and `logp`, as `NetPolicy` does.
        n_steps: steps of each row in a fragment; ignored with `whole_episodes`.
        whole_episodes: `collect` resets all rows and plays until the first episode of each has ended; what a row does
            after that does not count.
        seed: of the first reset; None goes on with the generators of the environment.

    Raises:
        ValueError: n_steps below 1; at the first reset, action masks that do not fit the policy's actions.
    """

    def __init__(
        self, venv: VectorEnv, policy: Any, n_steps: int, *, whole_episodes: bool = False, seed: int | None = None
    ):
        if n_steps < 1:
            raise ValueError(f"n_steps must be at least 1, got {n_steps}")
        self.venv, self.policy, self.n_steps, self.whole_episodes = venv, policy, n_steps, whole_episodes
        self.mode = AutoresetMode(venv.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
        self._seed = seed
        self._state: Any = None  # encoded observations of the rows, [B, …]
        self._masks: np.ndarray | None = None
        self._mask_of: Callable[[dict[str, Any]], Any] | None = None
        self._counts = np.ones(venv.num_envs, bool)  # rows whose next step counts
        self._resets = np.zeros(venv.num_envs, bool)  # rows whose next step only resets them
        self._returns, self._lengths = np.zeros(venv.num_envs), np.zeros(venv.num_envs, np.int64)

    def collect(self) -> Fragments:
        """The next n_steps of each row, or one whole episode of each.

        Flags: `truncated` is False where the episode also terminated, so that every cut has a value to bootstrap from.

        Raises:
            NoLegalAction: a mask forbids every action of a state that is acted in.
        """
        if self._state is None or self.whole_episodes:
            self._reset()
        tape = _Tape(64 if self.whole_episodes else self.n_steps)
        while self._counts.any() if self.whole_episodes else len(tape) < self.n_steps:
            self._step(tape)
        return tape.fragments(self.policy, self._state.copy())

    def _reset(self) -> None:
        observation, info = self.venv.reset(seed=self._seed)
        if self._state is None:
            self._seed, self._mask_of = None, _find_masks(self.venv, info)
        self._state = self.policy.encode(observation)
        self._counts, self._resets = np.ones_like(self._counts), np.zeros_like(self._resets)
        self._returns[:], self._lengths[:] = 0, 0
        self._masks = self._read_masks(info)
        if self._masks is not None:
            _check_masks(self._masks, self.policy)

    def _step(self, tape: _Tape) -> None:
        counts = self._counts
        action = self.policy.act(self._state, self._masks)
        # Written before the environment moves on: it may reuse the array of its observations.
        tape.write(mask=counts, observations=self._state, actions=action.actions, outputs=action.outputs)
        if self._masks is not None:
            tape.write(action_masks=self._masks)
        observation, rewards, terminated, truncated, info = self.venv.step(action.for_env)
        rewards = np.asarray(rewards, np.float64)
        tape.write(rewards=rewards, terminated=terminated, truncated=truncated)
        np.add(self._returns, rewards, out=self._returns, where=counts)
        self._lengths += counts
        over = np.logical_or(terminated, truncated)
        if over.any():
            ended = over & counts
            self._keep_ends(tape, ended, ended & ~terminated, observation, info)
            if self.mode is AutoresetMode.DISABLED:
                observation, info = self._reset_rows(over, observation, info)
        self._state = self.policy.encode(observation)
        if self.mode is AutoresetMode.NEXT_STEP:
            self._resets = over
        self._counts = counts & ~over if self.whole_episodes else ~self._resets
        if self._mask_of is not None:
            self._masks = self._read_masks(info)
        tape.advance()

    def _keep_ends(self, tape: _Tape, ended: np.ndarray, cut: np.ndarray, observation: Any, info: Any) -> None:
        """Note episodes that have ended, and the last observation of those that a limit has cut."""
        tape.episodes += zip(self._returns[ended].tolist(), self._lengths[ended].tolist(), strict=True)
        self._returns[ended], self._lengths[ended] = 0, 0
        if (rows := np.flatnonzero(cut)).size:
            same_step = self.mode is AutoresetMode.SAME_STEP
            space = self.venv.single_observation_space
            last = _rows(info["final_obs"] if same_step else observation, rows, space)
            tape.cuts += [(row, len(tape), x) for row, x in zip(rows.tolist(), self.policy.encode(last), strict=True)]

    def _reset_rows(self, over: np.ndarray, observation: Any, info: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """What all rows see once those that are over have begun anew."""
        observation, fresh = self.venv.reset(options={"reset_mask": over})
        if "action_mask" in info:  # a reset speaks of the rows that it has reset
            mask = np.where(over[:, None], fresh["action_mask"], info["action_mask"])
            fresh = fresh | {"action_mask": mask}
        return observation, fresh

    def _read_masks(self, info: dict[str, Any]) -> np.ndarray | None:
        """Legal actions, bool [B, A]; in rows that the next step resets all of them: an ended state may have none."""
        if self._mask_of is None:
            return None
        masks = np.array(list(self._mask_of(info)), bool)
        masks[self._resets] = True
        return masks


class _Tape:
    """What happened, in arrays [N, B, …] that grow as needed."""

    def __init__(self, steps: int):
        self.steps, self.length = steps, 0
        self.columns: dict[str, np.ndarray] = {}
        self.cuts: list[tuple[int, int, np.ndarray]] = []  # row, step, encoded observation
        self.episodes: list[tuple[float, int]] = []  # return, length

    def __len__(self) -> int:
        return self.length

    def write(self, **row: np.ndarray) -> None:
        """Write some columns of the current step."""
        for name, x in row.items():
            column = self.columns.get(name)
            if column is None:
                column = self.columns[name] = np.empty((self.steps, *x.shape), x.dtype)
            elif self.length == len(column):
                column = self.columns[name] = np.concatenate([column, np.empty_like(column)])
            column[self.length] = x

    def advance(self) -> None:
        """Go on to the next step."""
        self.length += 1

    def fragments(self, policy: Any, last: np.ndarray) -> Fragments:
        """Everything as tensors [B, N, …]; `last` is what the rows see now, [B, …]."""
        columns = {name: x[: self.length] for name, x in self.columns.items()}
        read = [columns.get(name) for name in ("actions", "action_masks")]
        logp = policy.logp(_flat(columns.pop("outputs")), *(None if x is None else _flat(x) for x in read))
        columns["logp"] = logp.reshape(columns["mask"].shape)
        columns["terminated"] &= columns["mask"]
        columns["truncated"] &= columns["mask"] & ~columns["terminated"]
        parts: dict[str, Any] = {name: torch.from_numpy(x).transpose(0, 1).contiguous() for name, x in columns.items()}
        cuts = [x for _, _, x in sorted(self.cuts, key=lambda cut: cut[:2])]
        returns, lengths = zip(*self.episodes, strict=True) if self.episodes else ((), ())
        rows = torch.arange(len(last))
        return Fragments(
            **parts,
            n_tokens=torch.ones_like(parts["mask"], dtype=torch.int64),
            valid=torch.ones_like(rows, dtype=torch.bool),
            groups=rows,
            final_observations=torch.from_numpy(np.stack(cuts) if cuts else last[:0]),
            last_observations=torch.from_numpy(last),
            episode_returns=torch.tensor(returns, dtype=torch.float64),
            episode_lengths=torch.tensor(lengths, dtype=torch.int64),
        )


def _flat(x: np.ndarray) -> np.ndarray:
    """[N, B, …] -> [N · B, …]."""
    return x.reshape(-1, *x.shape[2:])


def _rows(observations: Any, rows: np.ndarray, space: Any) -> Any:
    """Some rows of what a vector environment shows: arrays, dicts of arrays, or an array of single observations."""
    if isinstance(observations, dict):
        return {key: x[rows] for key, x in observations.items()}
    if observations.dtype != object:
        return observations[rows]
    out: Any = create_empty_array(space, len(rows))
    return concatenate(space, list(observations[rows]), out)


def _find_masks(venv: VectorEnv, info: dict[str, Any]) -> Callable[[dict[str, Any]], Any] | None:
    """What gives the rows' action masks after a step with this info; None where there are none."""
    if "action_mask" in info:
        return lambda info: info["action_mask"]
    if (ask := getattr(venv, "action_masks", None)) is not None:
        return lambda info: ask()
    base: Any = venv.unwrapped
    if not hasattr(base, "call") or not hasattr(base, "env_fns"):
        return None
    # Sub-environments in processes of their own break when they are asked for what they lack: ask a copy.
    one = base.envs[0] if hasattr(base, "envs") else base.env_fns[0]()
    has = one.has_wrapper_attr("action_masks")
    if not hasattr(base, "envs"):
        one.close()
    return (lambda info: base.call("action_masks")) if has else None


def _check_masks(masks: np.ndarray, policy: Any) -> None:
    if not policy.head.takes_masks:
        raise ValueError(f"actions of {policy.action_space} take no action masks, but the environment has some")
    if masks.shape != (len(masks), policy.head.size):
        raise ValueError(f"action masks must be [{len(masks)}, {policy.head.size}], got {list(masks.shape)}")


def vectorised(env: gym.Env | VectorEnv, num_envs: int) -> VectorEnv:
    """`num_envs` rows of an environment.

    A vector environment is used as it is. A single one is rebuilt from its spec: natively if the spec knows a vector
    form (which takes no wrappers), else as a `SyncVectorEnv` of copies with the wrappers. One that has no spec, or
    wrappers that it cannot describe, is itself the only row, whatever `num_envs` says. Copies open no window
    (`render_mode="human"` stays with the environment that was given).

    Raises:
        ValueError: num_envs below 1.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}")
    if isinstance(env, VectorEnv):
        return env
    spec = env.spec
    if spec is None or spec.entry_point is None or any(w.kwargs is None for w in spec.additional_wrappers):
        return SyncVectorEnv([lambda: env], autoreset_mode=AutoresetMode.SAME_STEP)
    spec = copy.deepcopy(spec)
    if spec.kwargs.get("render_mode") == "human":
        del spec.kwargs["render_mode"]
    if spec.vector_entry_point is not None and not spec.additional_wrappers:
        return gym.make_vec(spec, num_envs, vectorization_mode="vector_entry_point")
    # "NextStep" spends a step on each reset: half of them where episodes are one step long.
    return SyncVectorEnv([lambda: gym.make(spec)] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
