"""Wrappers of single text environments that are given a language model: `env.unwrapped` holds none.

They may be stacked in any order; with the same model object they share one forward pass a step. Every prediction is
made from the state that `env.unwrapped` has now, so a restored state needs no word to the wrappers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.utils import RecordConstructorArgs

from llmgym.decoder import Prediction
from llmgym.envs.lookahead import (
    Shortlist,
    allowed_logp,
    check_shortlist,
    float32,
    layers,
    lookahead_of,
    shortlist,
    text_mdp,
)
from llmgym.text import TextState

LOWEST_LOGP = -20.0  # an observation is finite: log-probs (nats) are cut off here


class _ModelWrapper(gym.Wrapper, RecordConstructorArgs):
    """A wrapper that knows what a model makes of the current text."""

    def __init__(self, env: gym.Env, model: Any, **arguments: Any):
        # Recorded, so that `env.spec` can rebuild the stack.
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, model=model, **arguments)
        super().__init__(env)
        self.mdp = text_mdp(env)
        self.lookahead = lookahead_of(env, model, 1, self.mdp)

    @property
    def state(self) -> TextState:
        """The state of the environment beneath."""
        return self.unwrapped.state  # type: ignore[attr-defined]

    def predict(self, tokens: Sequence[int]) -> Prediction:
        """Logits [1, V] and hidden state [1, D] after `tokens`."""
        return self.lookahead(np.array([tokens], np.int64), np.array([len(tokens)]))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """As the environment's; an episode is then computed alike whatever came before it."""
        self.lookahead.clear()
        return super().reset(seed=seed, options=options)


class TopKActions(_ModelWrapper):
    """The action is an index into the model's k most probable next tokens, most probable first: `Discrete(k)`.

    Action 0 is greedy decoding. Only tokens that the environment allows are ranked. When fewer than k are allowed,
    `action_masks()` is False for the places left over, and choosing one is choosing a forbidden token: the episode
    ends with the task's failing reward and `info["illegal"]`.

    While the episode runs `info` holds `candidates` (token ids, int64 [k]) and `candidate_logp` (their log-probs in
    nats, normalised over the allowed tokens, [k]).

    Args:
        env: a text environment with blocks of one token.
        model: a causal language model, or a name for `load_model`.
        k: actions, in [1, V].
        min_prob: a place whose token is less probable than this holds the most probable token once more, so that
            no action is an implausible one. 0 leaves the list alone.
    """

    def __init__(self, env: gym.Env, model: Any, k: int = 16, min_prob: float = 0.0):
        check_shortlist(text_mdp(env), k, min_prob)
        super().__init__(env, model, k=k, min_prob=min_prob)
        self.k, self.min_prob = int(k), float(min_prob)
        self.action_space = Discrete(self.k)

    @property
    def shortlist(self) -> Shortlist:
        """The current candidates, arrays [1, k]; at the end of an episode nothing is forbidden."""
        state = self.state
        mask = None if self.mdp.terminal(state) else self.mdp.token_mask(state)
        logits = self.predict(state.tokens).logits
        return shortlist(logits, None if mask is None else mask[None], self.k, self.min_prob)

    def action_masks(self) -> np.ndarray:
        """Which places hold an allowed token, bool [k] (the name sb3-contrib's MaskablePPO looks for)."""
        return self.shortlist.legal[0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """As the environment's, with the candidates in `info`."""
        observation, info = super().reset(seed=seed, options=options)
        return observation, self._with_candidates(info)

    def step(self, action: Any):
        """Play the candidate with index `action`."""
        if not 0 <= action < self.k:
            raise ValueError(f"an action must be in [0, {self.k}), got {action}")
        token = int(self.shortlist.tokens[0, int(action)])
        observation, reward, terminated, truncated, info = self.env.step(token)
        return observation, reward, terminated, truncated, self._with_candidates(info, terminated or truncated)

    def _with_candidates(self, info: dict[str, Any], over: bool = False) -> dict[str, Any]:
        tokens, logp, legal = (array[0] for array in self.shortlist)
        if "action_mask" in info:
            info = info | {"action_mask": legal}
        return info if over else info | {"candidates": tokens, "candidate_logp": logp}


class HiddenStateObservation(_ModelWrapper):
    """The observation is the model's last hidden state after the current text: `Box` float32 [D].

    Args:
        env: a text environment.
        model: a causal language model, or a name for `load_model`.
        candidate_logp: appends the log-probs (nats, not below -20) of the short-list of the `TopKActions` beneath:
            float32 [D + k]; zeros once the episode is over, for no action follows.
    """

    def __init__(self, env: gym.Env, model: Any, candidate_logp: bool = False):
        super().__init__(env, model, candidate_logp=candidate_logp)
        self._list = shortlist_layer(env, TopKActions) if candidate_logp else None
        self.observation_space = hidden_space(self.lookahead.model, self._list)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """As the environment's, seen through the model."""
        _, info = super().reset(seed=seed, options=options)
        return self._observation(over=False), info

    def step(self, action: Any):
        """As the environment's, seen through the model."""
        _, reward, terminated, truncated, info = self.env.step(action)
        return self._observation(terminated or truncated), reward, terminated, truncated, info

    def _observation(self, over: bool) -> np.ndarray:
        hidden = float32(self.predict(self.state.tokens).hidden)[0]  # type: ignore[arg-type]
        if self._list is None:
            return hidden
        logp = np.zeros(self._list.k) if over else self._list.shortlist.logp[0]
        return np.concatenate([hidden, finite(logp)])


class ReferenceLogProb(_ModelWrapper):
    """Adds `info["ref_logp"]`: log-prob (nats, temperature 1) of the executed action under the model, after a step.

    It is the sum over the tokens of the action that entered the text, each normalised over what the environment
    allowed there: tokens after EOS, the budget or the end of the block do not count, nor does a forbidden token or
    what the task inserts. The environment can report this much; the KL penalty needs the policy's log-prob too,
    and is the trainer's.

    Args:
        env: a text environment, blocks of any size.
        model: the reference, or a name for `load_model`.
    """

    def __init__(self, env: gym.Env, model: Any):
        super().__init__(env, model)

    def step(self, action: Any):
        """As the environment's, with `info["ref_logp"]`."""
        before = self.state
        first = self.predict(before.tokens).logits  # at hand already when a wrapper beneath has asked
        observation, reward, terminated, truncated, info = self.env.step(action)
        block = executed(self.state.tokens[len(before.tokens) :], self.mdp.eos_id)
        total = 0.0
        for j, token in enumerate(block):
            logits = first if j == 0 else self.predict(before.tokens + block[:j]).logits
            mask = self.mdp.token_mask(before, block[:j])
            total += float(allowed_logp(logits, None if mask is None else mask[None])[0, token])
        return observation, reward, terminated, truncated, info | {"ref_logp": total}


def executed(added: Sequence[int], eos_id: int) -> tuple[int, ...]:
    """The policy's part of the tokens that a step added: a task's reply can only follow an EOS."""
    added = tuple(added)
    return added[: added.index(eos_id) + 1] if eos_id in added else added


def shortlist_layer(env: Any, kind: type) -> Any:
    """The short-list wrapper of class `kind` beneath.

    Raises:
        ValueError: there is none.
    """
    for layer in layers(env):
        if isinstance(layer, kind):
            return layer
    raise ValueError(f"candidate_logp=True needs a {kind.__name__} beneath, got {env}")


def hidden_space(model: Any, shortlist_wrapper: Any) -> Box:
    """Space of a last hidden state, and of the log-probs of a short-list when there is one."""
    k = 0 if shortlist_wrapper is None else shortlist_wrapper.k
    # Finite, since the checkers warn of infinite bounds; what a model's states cannot exceed is not known.
    high = np.full(model.config.hidden_size, np.finfo(np.float32).max, np.float32)
    low = np.concatenate([-high, np.full(k, LOWEST_LOGP, np.float32)])
    return Box(low, np.concatenate([high, np.zeros(k, np.float32)]), dtype=np.float32)


def finite(logp: np.ndarray) -> np.ndarray:
    """Log-probs as part of an observation: float32, not below `LOWEST_LOGP`."""
    return np.clip(logp, LOWEST_LOGP, 0.0).astype(np.float32)
