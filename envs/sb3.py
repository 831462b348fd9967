"""Stable-baselines3 over our vector environments, and a features extractor for raw token observations.

Import from here what needs the extra `sb3`; nothing else of llmgym does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Dict
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor, nn

from llmgym.envs.lookahead import layers

try:
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise ImportError(
        "llmgym.envs.sb3 needs stable-baselines3: run pip install -e '.[sb3]' in the checkout of llmgym"
    ) from error


class SB3VecEnv(VecEnv):
    """A stable-baselines3 `VecEnv` over one of our vector environments, wrapped or not.

    `infos` is a list of dicts, one a row, with `terminal_observation`, `TimeLimit.truncated` and `episode` (return
    `r`, length `l`, seconds since construction `t`) at an episode's end, so that no `VecMonitor` is needed;
    `reset_infos` holds what the running episodes began with. Seeds given by `seed()` and options given by
    `set_options()` hold for the next `reset()`.

    Args:
        venv: a vector environment made with `autoreset_mode="SameStep"`.

    Raises:
        ValueError: another autoreset mode.
    """

    def __init__(self, venv: VectorEnv):
        if venv.metadata.get("autoreset_mode") is not AutoresetMode.SAME_STEP:
            mode = getattr(venv.metadata.get("autoreset_mode"), "value", None)
            raise ValueError(f"SB3VecEnv needs autoreset_mode='SameStep', as stable-baselines3 resets, got {mode!r}")
        self.venv = venv
        self._began = time.perf_counter()
        self._returns, self._lengths = np.zeros(venv.num_envs), np.zeros(venv.num_envs, np.int64)
        super().__init__(venv.num_envs, venv.single_observation_space, venv.single_action_space)

    def reset(self) -> Any:
        """Start an episode in every row."""
        seeds = self._seeds if any(seed is not None for seed in self._seeds) else None
        observations, infos = self.venv.reset(seed=seeds, options=_batched(self._options))  # type: ignore[arg-type]
        self._reset_seeds()
        self._reset_options()
        self._returns[:], self._lengths[:] = 0.0, 0
        self.reset_infos = [_row(infos, row) for row in range(self.num_envs)]
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> Any:
        """One action a row; rows that end start anew."""
        observations, rewards, terminated, truncated, infos = self.venv.step(self._actions)
        self._returns += rewards
        self._lengths += 1
        rows = [
            self._ended(infos, row, bool(truncated[row] and not terminated[row]))
            if terminated[row] or truncated[row]
            else _row(infos, row) | {"TimeLimit.truncated": False}
            for row in range(self.num_envs)
        ]
        return observations, np.asarray(rewards, np.float32), terminated | truncated, rows

    def close(self) -> None:
        """Close the vector environment."""
        self.venv.close()

    def render(self, mode: str | None = None) -> Any:
        """One frame a row, as the environment renders it."""
        return self.venv.render()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The attribute for each row: its entry where the environment holds one a row, else the one they share."""
        return self._by_row(self._find(attr_name), indices)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the vector environment, which is that of all rows.

        Raises:
            ValueError: `indices` names some rows only.
        """
        if len(set(self._get_indices(indices))) != self.num_envs:
            raise ValueError(f"{attr_name} is shared by all {self.num_envs} rows and cannot be set for {indices} only")
        owner = next((layer for layer in layers(self.venv) if hasattr(layer, attr_name)), self.venv)
        setattr(owner, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Call a method of the vector environment once; its result by row, as in `get_attr`."""
        return self._by_row(self._find(method_name)(*method_args, **method_kwargs), indices)

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """Whether the rows are wrapped by this class; they count as monitored, for `infos` holds `episode`."""
        wrapped = wrapper_class is Monitor or any(isinstance(layer, wrapper_class) for layer in layers(self.venv))
        return [wrapped for _ in self._get_indices(indices)]

    def _ended(self, infos: dict[str, Any], row: int, truncated: bool) -> dict[str, Any]:
        """Info of the episode that ended in `row`; what its successor began with goes to `reset_infos`."""
        seconds = round(time.perf_counter() - self._began, 6)
        episode = {"r": float(self._returns[row]), "l": int(self._lengths[row]), "t": seconds}
        self._returns[row], self._lengths[row] = 0.0, 0
        began = _row(infos, row)
        final, last = began.pop("final_info", {}), began.pop("final_obs")
        self.reset_infos[row] = began
        return final | {"terminal_observation": last, "TimeLimit.truncated": truncated, "episode": episode}

    def _find(self, name: str) -> Any:
        for layer in layers(self.venv):
            if hasattr(layer, name):
                return getattr(layer, name)
        raise AttributeError(f"{self.venv} has no attribute {name!r}")

    def _by_row(self, value: Any, indices: Any) -> list[Any]:
        split = isinstance(value, np.ndarray | list | tuple) and len(value) == self.num_envs
        return [value[i] if split else value for i in self._get_indices(indices)]  # type: ignore[index]


class TokenEmbeddingExtractor(BaseFeaturesExtractor):
    """Features of a raw token observation for "MultiInputPolicy": `[last token, mean of the text, budget spent]`.

    Token ids are embedded, not one-hot encoded; padding is masked out. So that the mean keeps the order, each token's
    embedding is multiplied by one learnt for its place, counted from the text's end.

    Args:
        observation_space: that of a text environment, with `input_ids`, `attention_mask` and `n_tokens`.
        dim: size of an embedding; there are 2 · dim + 1 features.
    """

    def __init__(self, observation_space: Dict, dim: int = 64):
        missing = {"input_ids", "attention_mask", "n_tokens"} - set(getattr(observation_space, "spaces", {}))
        if missing:
            raise ValueError(f"TokenEmbeddingExtractor needs the observation of a text environment, without {missing}")
        super().__init__(observation_space, features_dim=2 * dim + 1)
        ids, spent = observation_space["input_ids"], observation_space["n_tokens"]
        self.tokens = nn.Embedding(int(ids.high.max()) + 1, dim)  # type: ignore[attr-defined]
        self.places = nn.Embedding(ids.shape[0], dim)  # type: ignore[index]
        self.budget = float(spent.high.max())  # type: ignore[attr-defined]

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """`[B, L]` ids and mask (as floats, the way stable-baselines3 passes them) -> `[B, 2 · dim + 1]`."""
        mask = observations["attention_mask"].bool()
        length = mask.sum(-1, keepdim=True)
        place = (length - 1 - torch.arange(mask.shape[1], device=mask.device)).clamp(min=0)
        embedded = self.tokens(observations["input_ids"].long())
        placed = (embedded * self.places(place)).masked_fill(~mask[..., None], 0.0)
        last = embedded.gather(1, (length - 1)[..., None].expand(-1, -1, embedded.shape[-1]))[:, 0]
        return torch.cat([last, placed.sum(1) / length, observations["n_tokens"] / self.budget], -1)


def _row(infos: dict[str, Any], row: int) -> dict[str, Any]:
    """One row's info from Gymnasium's vector form: the entries whose mask `_key` is set."""
    found = {}
    for key, values in infos.items():
        mask = infos.get(f"_{key}")
        if mask is None or key.startswith("_") or not mask[row]:
            continue
        value = _row(values, row) if isinstance(values, dict) else values[row]
        found[key] = value.item() if isinstance(value, np.generic) else value
    return found


def _batched(options: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Options of the rows as the options of the vector environment; only `problem` differs by row."""
    keys: Iterable[str] = {key for row in options for key in row}
    unknown = set(keys) - {"problem"}
    if unknown:
        raise ValueError(f"reset options must be 'problem' only, got {sorted(unknown)}")
    return {"problem": [row.get("problem") for row in options]} if keys else None
