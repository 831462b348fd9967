"""`MDPEnv`: the Gymnasium shell around any one-player MDP."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from llmgym.mdp import MDP, ScorerFailed


class MDPEnv(gym.Env):
    """`reset` and `step` over an `MDP`; the only thing it remembers is one state.

    Attributes:
        mdp: the rules; a search plans on them, starting from `state`.
    """

    def __init__(self, mdp: MDP, render_mode: str | None = None, mask_in_info: bool = False):
        check_render_mode(render_mode, self.metadata.get("render_modes", []))
        self.mdp, self.render_mode, self.mask_in_info = mdp, render_mode, mask_in_info
        self.observation_space, self.action_space = mdp.observation_space, mdp.action_space
        self._state: Any = None
        self._over = False

    @property
    def state(self) -> Any:
        """The current state of `mdp`.

        Raises:
            ResetNeeded: before the first `reset` or `set_state`.
        """
        if self._state is None:
            raise ResetNeeded("the environment has no state yet: call reset() or set_state() first")
        return self._state

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode; `options` go to `mdp.initial`."""
        super().reset(seed=seed)
        self._state, self._over = self.mdp.initial(self.np_random, options), False
        self._show()
        return self.mdp.observation(self._state), self._info()

    def step(self, action: Any):
        """One action. A reward that cannot be determined gives 0.0, `truncated` and `info["scorer_failed"]`.

        Raises:
            ResetNeeded: the episode has ended, or none has begun.
        """
        if self._over:
            raise ResetNeeded("the episode has ended: call reset() before the next step()")
        state, truncated, failure = self.state, False, {}
        next_state = self.mdp.transition(state, action)
        try:
            reward = self.mdp.reward(state, action, next_state)
        except ScorerFailed as error:
            reward, truncated, failure = 0.0, True, {"scorer_failed": str(error)}
        terminated = self.mdp.terminal(next_state) and not truncated
        self._state, self._over = next_state, terminated or truncated
        self._show()
        return self.mdp.observation(next_state), reward, terminated, truncated, self._info() | failure

    def action_masks(self) -> np.ndarray:
        """Legal actions in the current state, bool (the name sb3-contrib's MaskablePPO looks for)."""
        return self.mdp.mask(self.state)

    def get_state(self) -> dict[str, Any]:
        """An opaque, picklable snapshot: the state of the MDP and of the random generator."""
        return {"state": self.state, "over": self._over, "rng": self.np_random.bit_generator.state}

    def set_state(self, snapshot: dict[str, Any]) -> None:
        """Continue from `get_state()`, of this or of another environment with the same arguments.

        A wrapper that counts for itself, such as Gymnasium's `TimeLimit`, still needs a `reset()` of its own.
        """
        self._state, self._over = snapshot["state"], snapshot["over"]
        self.np_random.bit_generator.state = snapshot["rng"]

    def render(self):
        """The current state in `render_mode`; None without one."""
        return None if self.render_mode is None else self.mdp.render(self.state, self.render_mode)

    def _show(self) -> None:
        if self.render_mode == "human":
            self.render()

    def _info(self) -> dict[str, Any]:
        info = self.mdp.info(self._state)
        return info | {"action_mask": self.mdp.mask(self._state)} if self.mask_in_info else info


def check_render_mode(mode: str | None, modes: list[str]) -> None:
    """None or one of `modes`, else a `ValueError` that says so."""
    if mode is not None and mode not in modes:
        raise ValueError(f"render_mode must be None or one of {modes}, got {mode!r}")
