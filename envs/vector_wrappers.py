"""Vector twins of the wrappers that are given a language model: one batched forward pass a step for all rows.

Row by row they equal the single wrappers, in every autoreset mode. What a step says of an episode that it ended
and began anew (same-step mode) stands in `final_obs` and `final_info`, as Gymnasium has it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Discrete
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from llmgym.decoder import Prediction
from llmgym.envs.lookahead import (
    Shortlist,
    Texts,
    allowed_logp,
    check_shortlist,
    float32,
    layers,
    lookahead_of,
    shortlist,
    text_mdp,
)
from llmgym.envs.vector import VectorTextEnv
from llmgym.envs.wrappers import executed, finite, hidden_space, shortlist_layer


class _VectorModelWrapper(VectorWrapper):
    """A vector wrapper that knows what a model makes of the current texts."""

    def __init__(self, env: VectorEnv, model: Any):
        super().__init__(env)
        if not isinstance(env.unwrapped, VectorTextEnv):
            raise ValueError(f"vector wrappers need the native form that gym.make_vec gives, got {env.unwrapped}")
        self.base: VectorTextEnv = env.unwrapped
        self.mdp = self.base.mdp
        self.lookahead = lookahead_of(env, model, env.num_envs, self.mdp)

    @property
    def over(self) -> np.ndarray:
        """Rows whose episode has ended and not begun anew, bool [N]."""
        return self.base._terminated | self.base._truncated

    def predict(self, infos: dict[str, Any] | None = None) -> Prediction:
        """Logits [N, V] and hidden states [N, D] after the current texts; `infos` of the step that led here."""
        if not self.base.lengths.all():
            raise ResetNeeded("the environment has no state yet: call reset() first")
        finals = raw_finals(infos or {})
        return self.lookahead(self.base.tokens, self.base.lengths, active=~self.over, finals=finals)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None):
        """As the environment's; when all rows are reset, what follows is computed alike whatever came before."""
        if (options or {}).get("reset_mask") is None:
            self.lookahead.clear()
        return super().reset(seed=seed, options=options)


class VectorTopKActions(_VectorModelWrapper):
    """`TopKActions` for all rows: indices into each row's short-list, [N].

    `infos["candidates"]` and `infos["candidate_logp"]` are [N, k]; rows whose episode is over have none.

    Args:
        env: a vector text environment with blocks of one token.
        model: a causal language model, or a name for `load_model`.
        k: actions, in [1, V].
        min_prob: as in `TopKActions`.
    """

    def __init__(self, env: VectorEnv, model: Any, k: int = 16, min_prob: float = 0.0):
        check_shortlist(text_mdp(env), k, min_prob)
        super().__init__(env, model)
        self.k, self.min_prob = int(k), float(min_prob)
        self.single_action_space = Discrete(self.k)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    @property
    def shortlist(self) -> Shortlist:
        """The current candidates, arrays [N, k]; in rows that are over nothing is forbidden."""
        return self._shortlist()

    def action_masks(self) -> np.ndarray:
        """Which places hold an allowed token, bool [N, k]."""
        return self.shortlist.legal

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None):
        """As the environment's, with the candidates in `infos`."""
        observations, infos = super().reset(seed=seed, options=options)
        told = (options or {}).get("reset_mask")
        return observations, self._with_candidates(infos, np.ones(self.num_envs, bool) if told is None else told)

    def step(self, actions: Any):
        """Play each row's candidate."""
        index = np.asarray(actions)
        used = index[~self.over] if index.shape == (self.num_envs,) else np.array([-1])  # rows that are over ignore it
        if used.size and (used.min() < 0 or used.max() >= self.k):
            raise ValueError(f"actions must be {self.num_envs} integers in [0, {self.k}), got {actions}")
        index = np.where(self.over, 0, index)
        tokens = self.shortlist.tokens[np.arange(self.num_envs), index]
        observations, rewards, terminated, truncated, infos = self.env.step(tokens)
        return observations, rewards, terminated, truncated, self._with_candidates(infos, ~self.over)

    def _shortlist(self, infos: dict[str, Any] | None = None) -> Shortlist:
        return shortlist(self.predict(infos).logits, self._masks(), self.k, self.min_prob)

    def _masks(self) -> np.ndarray | None:
        if not self.mdp.constraints:
            return None
        masks = np.ones((self.num_envs, self.mdp.codec.vocab_size), bool)
        for row in np.flatnonzero(~self.over).tolist():
            masks[row] = self.mdp.token_mask(self.base.state(row))
        return masks

    def _with_candidates(self, infos: dict[str, Any], told: np.ndarray) -> dict[str, Any]:
        tokens, logp, legal = self._shortlist(infos)
        infos = infos | _entry("candidates", tokens, told) | _entry("candidate_logp", logp, told)
        if "action_mask" in infos:
            infos["action_mask"] = _only(legal, infos["_action_mask"])
        if "action_mask" in infos.get("final_info", {}):  # nothing is forbidden once the episode is over
            ended = np.broadcast_to(infos["_final_info"][:, None], legal.shape)
            infos["final_info"] = infos["final_info"] | {"action_mask": ended.copy()}
        return infos


class VectorHiddenStateObservation(_VectorModelWrapper):
    """`HiddenStateObservation` for all rows: float32 [N, D], and a row's `final_obs` in same-step mode.

    Args:
        env: a vector text environment.
        model: a causal language model, or a name for `load_model`.
        candidate_logp: appends the log-probs of the short-list of the `VectorTopKActions` beneath: [N, D + k].
    """

    def __init__(self, env: VectorEnv, model: Any, candidate_logp: bool = False):
        super().__init__(env, model)
        self.lookahead.keep_finals = True
        self._list = shortlist_layer(env, VectorTopKActions) if candidate_logp else None
        self.single_observation_space = hidden_space(self.lookahead.model, self._list)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None):
        """As the environment's, seen through the model."""
        _, infos = super().reset(seed=seed, options=options)
        return self._observations(infos), infos

    def step(self, actions: Any):
        """As the environment's, seen through the model."""
        _, rewards, terminated, truncated, infos = self.env.step(actions)
        observations = self._observations(infos)
        return observations, rewards, terminated, truncated, self._with_finals(infos)

    def _observations(self, infos: dict[str, Any]) -> np.ndarray:
        hidden = float32(self.predict(infos).hidden)  # type: ignore[arg-type]
        if self._list is None:
            return hidden
        logp = np.where(self.over[:, None], 0.0, self._list.shortlist.logp)
        return np.concatenate([hidden, finite(logp)], -1)

    def _with_finals(self, infos: dict[str, Any]) -> dict[str, Any]:
        raw = raw_finals(infos)
        if raw is None:
            return infos
        hidden = float32(self.lookahead.final_hidden)  # type: ignore[arg-type]
        extra = np.zeros(0 if self._list is None else self._list.k, np.float32)
        finals = np.full(self.num_envs, None, object)
        for row, state in zip(Texts.of(raw).rows, hidden, strict=True):
            finals[row] = np.concatenate([state, extra])
        return infos | {"final_obs": finals}


class VectorReferenceLogProb(_VectorModelWrapper):
    """`ReferenceLogProb` for all rows: `infos["ref_logp"]` [N], for the rows that acted.

    In same-step mode a row that ended has its value in `infos["final_info"]["ref_logp"]`. Wrap it before
    `VectorHiddenStateObservation`: there, what an episode ended with is no text any more.

    Args:
        env: a vector text environment, blocks of any size.
        model: the reference, or a name for `load_model`.
    """

    def __init__(self, env: VectorEnv, model: Any):
        if any(isinstance(layer, VectorHiddenStateObservation) for layer in layers(env)):
            raise ValueError("VectorReferenceLogProb must be wrapped before VectorHiddenStateObservation, not after it")
        super().__init__(env, model)

    def step(self, actions: Any):
        """As the environment's, with `ref_logp`."""
        acted, start = ~self.over, self.base.lengths.copy()
        first = self.predict().logits
        states = self.base.states if self.mdp.constraints else None
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        texts, ends = self._written(infos)
        start = np.where(acted, start, ends)
        blocks = [
            executed(texts[row, start[row] : ends[row]].tolist(), self.mdp.eos_id) for row in range(self.num_envs)
        ]
        total = self._score(first, texts, start, blocks, states)
        return observations, rewards, terminated, truncated, self._with_logp(infos, total, acted)

    def _written(self, infos: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """The texts [N, L] that the actions led to and their lengths [N], before any same-step reset."""
        texts, ends = self.base.tokens.copy(), self.base.lengths.copy()
        if (raw := raw_finals(infos)) is not None:
            rows, tokens, lengths = Texts.of(raw)
            texts[rows], ends[rows] = tokens, lengths
        return texts, ends

    def _score(self, first: Any, texts: np.ndarray, start: np.ndarray, blocks: list, states: Any) -> np.ndarray:
        """Σ log-prob of each row's block, one position at a time for all rows; float64 [N]."""
        counts, total = np.array([len(block) for block in blocks]), np.zeros(self.num_envs)
        for j in range(counts.max()):
            rows = np.flatnonzero(counts > j)
            lengths = start + np.minimum(j, np.maximum(counts - 1, 0))
            logits = first if j == 0 else self.lookahead(texts, lengths, active=counts > j).logits
            masks = None
            if states is not None:
                masks = np.stack([self.mdp.constraints.mask(states[row], blocks[row][:j]) for row in rows])
            logp = allowed_logp(logits[rows.tolist()], masks)
            tokens = [blocks[row][j] for row in rows]
            total[rows] += logp[np.arange(len(rows)), tokens].cpu().numpy()
        return total

    def _with_logp(self, infos: dict[str, Any], total: np.ndarray, acted: np.ndarray) -> dict[str, Any]:
        ended = infos.get("_final_info", np.zeros(self.num_envs, bool))
        if ended.any():
            infos = infos | {"final_info": infos["final_info"] | _entry("ref_logp", total, ended)}
        return infos | _entry("ref_logp", total, acted & ~ended)


def raw_finals(infos: dict[str, Any]) -> np.ndarray | None:
    """`infos["final_obs"]` if its rows are text observations, object [N]; else None."""
    finals = infos.get("final_obs")
    return finals if finals is not None and any(isinstance(x, dict) for x in finals) else None


def _entry(name: str, values: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
    """An info of some rows as Gymnasium writes it: zeros in other rows, a mask beside it, nothing for no row."""
    return {name: _only(values, rows), f"_{name}": rows.copy()} if rows.any() else {}


def _only(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.where(rows.reshape(-1, *[1] * (values.ndim - 1)), values, np.zeros_like(values))
