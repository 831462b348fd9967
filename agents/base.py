"""What every agent that acts shares: the four verbs, and the road from a batch to gradient steps."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from torch import Tensor

from llmgym.agents.budget import Budget
from llmgym.agents.collect import Episodes, Play
from llmgym.agents.config import AgentConfig
from llmgym.agents.files import load_agent, save_agent
from llmgym.agents.learner import Learner
from llmgym.agents.metrics import Metrics, describe, describe_play
from llmgym.agents.part import Credit, Part
from llmgym.agents.passes import measures, needs_entropy, optimize
from llmgym.agents.policies import is_net, make_policy
from llmgym.agents.reference import AdaptersOff, Reference, kl_of_actions, make_reference
from llmgym.batch import Batch, Evaluation, Fragments, Scored, TextBatch
from llmgym.losses import adapt_beta, masked_sum
from llmgym.policy import LMPolicy

Callback = Callable[["Agent", Metrics, Batch], bool | None]
A = TypeVar("A", bound="Agent")


class Agent(Learner):
    """A policy, an environment and a rule that updates the one from the other.

    Args:
        policy: an `LMPolicy`, or what it takes as a model: "tiny", a folder, a hub id, a model object. On other
            environments than text "MlpPolicy", "CnnPolicy" or a `NetPolicy`, where the agent knows such policies.
        env: an environment, single or vector. On text the agent steps a vector form of its own over the same MDP,
            with prompts x samples rows; elsewhere a single environment is rebuilt as a vector one from its spec.
        reference: model of the KL term, on text; by default the policy's model as it is now, frozen (with LoRA, the
            base model). Without `beta` there is none.
        **config: fields of the agent's config class; an unknown name raises TypeError.
    """

    config_class: ClassVar[type[AgentConfig]] = AgentConfig
    config: AgentConfig
    plays_any_environment: ClassVar[bool] = False

    def __init__(self, policy: Any, env: gym.Env | VectorEnv, *, reference: Any = None, **config: Any):
        text = not is_net(policy)
        self.config = self.config_class(**config)
        self.env = env
        self.collector = self._collector(env, text)
        self.venv = self.collector.venv
        self.config = self.config.resolved(text, self.venv.num_envs)
        self.mdp = getattr(self.collector, "mdp", None)
        policy, self.config = make_policy(policy, self.mdp or self.venv, self.config, config, self._needs_values())
        self._prepare(policy)
        if self.config.seed is not None:
            self.policy.seed(self.config.seed)
        self.dropped_rows = 0
        self.beta = self.config.beta or 0.0
        self.reference = self._reference(reference) if self.beta > 0 else None
        self.episodes: deque[tuple[float, float]] = deque(maxlen=100)  # return and length of the last ones, in play

    # The four verbs.

    def learn(
        self: A,
        total_timesteps: int | None = None,
        *,
        total_tokens: int | None = None,
        max_seconds: float | None = None,
        callback: Callback | None = None,
        progress_bar: bool | None = None,
    ) -> A:
        """Train until a budget is spent; at least one is needed.

        Args:
            total_timesteps: actions taken, over all rows.
            total_tokens: tokens sampled, on text.
            max_seconds: wall clock; no step is begun that the last one's duration says would end later.
            callback: called as `callback(agent, metrics, batch)` after every update; False ends training.
            progress_bar: shows one; by default when `verbose` is 1.
        """
        if total_tokens is not None and self.mdp is None:
            raise ValueError(f"total_tokens is a budget on text, this environment has none: got {total_tokens}")
        self._loop(Budget(self, total_timesteps, total_tokens, max_seconds), self._iterate, callback, progress_bar)
        return self

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[Any, Any]:
        """Action of one observation or of a batch of them, and `state` unchanged (the policy has none).

        Args:
            observation: as the environment, single or vector, gives it.
            state: handed through, as stable-baselines3's `evaluate_policy` expects.
            episode_start: not needed.
            deterministic: the most probable action instead of a sampled one.
            action_masks: legal actions where the environment has masks, bool; on text it is asked by itself.
        """
        return self.policy.predict(observation, deterministic=deterministic, action_masks=action_masks), state

    def save(self, path: str | Path) -> None:
        """Write the policy (a Hugging Face folder, on text) with the agent's state beside; replaced in one step."""
        save_agent(self, path)

    @classmethod
    def load(cls: type[A], path: str | Path, env: gym.Env | VectorEnv | None = None, **config: Any) -> A:
        """The agent that `save` wrote; `env` by default is rebuilt from its saved spec.

        Args:
            path: the folder.
            env: where to act and learn on.
            **config: replaces saved settings, such as `device`.

        Raises:
            ValueError: no such folder, another agent's folder, or no environment to be had.
        """
        return load_agent(cls, path, env, config)

    # What an update is made of.

    def collect(self) -> Any:
        """The next batch: a `TextBatch` of episodes, or `Fragments` of play."""
        batch = self.collector.collect(self.policy, self.rng)
        self.num_timesteps += int(batch.mask.sum())
        return batch

    def update(self, batch: Any) -> Metrics:
        """Learn from one batch; rows whose scorer failed are dropped and counted."""
        if isinstance(batch, TextBatch):
            self.dropped_rows += int((~batch.valid).sum())
            batch = batch.select(batch.valid)
        metrics = self._describe(batch)
        if not len(batch):
            warnings.warn("every row of the batch was dropped: its scorer failed", RuntimeWarning, stacklevel=2)
            return metrics
        batch = batch.to(self.policy.device)
        scored = self._score(batch) if self._needs_score() else None
        batch = self._penalised(batch, scored, metrics)
        credit = self.credit(batch, scored, metrics)
        metrics |= optimize(self, self._part(batch, credit, scored))
        self._adapt_beta(batch, metrics)
        return metrics

    def advantages(self, batch: Batch, metrics: Metrics) -> Tensor:
        """[B, N] advantages of a batch; may add to `metrics`."""
        raise NotImplementedError

    def credit(self, batch: Any, scored: Scored | None, metrics: Metrics) -> Credit:
        """Advantages, and returns where values are learnt from them; without values, `advantages` alone."""
        return Credit(self.advantages(batch, metrics))

    def loss(
        self, part: Part, evaluation: Evaluation, old_logp: Tensor, denominator: Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
        """Loss of some rows, as a share of the whole minibatch given by `denominator`, and metrics.

        A metric whose name ends with "loss" is a share likewise, any other a mean over the actions of these rows.
        """
        raise NotImplementedError

    def denominator(self, batch: Batch) -> Tensor:
        """What the losses of all micro-batches of a minibatch are divided by, as the config's `normalize` says.

        Actions; or rows; or, for "constant", rows times the most actions that a row can have.
        """
        normalize = getattr(self.config, "normalize", "actions")
        if normalize == "actions":
            return batch.mask.sum()
        rows = batch.mask.any(1).sum()
        most = 1 if self.mdp is None else -(-self.mdp.max_new_tokens // self.mdp.block_size)
        return rows * most if normalize == "constant" else rows

    def reference_logp(self, batch: Batch) -> Tensor | None:
        """Log-prob of every token under the reference where the loss needs it, [B, T]; else None."""
        if self.reference is None or self.config.kl_in == "reward" or self.config.kl == "exact":
            return None
        assert isinstance(batch, TextBatch)
        return self.reference.token_logp(batch, self.config.micro_batch_rows)

    @property
    def kl_options(self) -> dict[str, Any]:
        """How `policy.evaluate` forms the KL of the loss."""
        exact = self.reference is not None and self.config.kl == "exact" and self.config.kl_in == "loss"
        return {"kl": self.config.kl, "reference": self.reference if exact else None}

    def _iterate(self, budget: Budget) -> tuple[Metrics, Any]:
        counters = self.policy.counters
        sampled, steps, started = counters.sampled_tokens, self.num_timesteps, time.perf_counter()
        batch = self.collect()
        collected = time.perf_counter()
        self._set_learning_rate(budget.fraction())
        metrics = self.update(batch)
        seconds = time.perf_counter() - started
        metrics["seconds_sampling"] = collected - started
        if isinstance(batch, TextBatch):
            metrics["tokens_per_second"] = (counters.sampled_tokens - sampled) / seconds
        else:
            metrics["steps_per_second"] = (self.num_timesteps - steps) / seconds
        return metrics | counters.as_dict(), batch

    def _describe(self, batch: Any) -> Metrics:
        if isinstance(batch, Fragments):
            self.episodes.extend(zip(batch.episode_returns.tolist(), batch.episode_lengths.tolist(), strict=True))
            return describe_play(batch, self.episodes)
        metrics = describe(batch) | {"dropped_rows": float(self.dropped_rows)}
        if metrics["truncated"] == 1.0:
            self.warn_once("every completion ran into max_new_tokens: none ended by itself")
        return metrics

    def _score(self, batch: Any) -> Scored:
        """What the policy says before the first step; a step on all rows at once begins with these very passes."""
        c = self.config
        if not isinstance(batch, TextBatch):
            return self.policy.score(batch, c.micro_batch_rows)
        keep = c.minibatches == 1 and c.micro_batch_rows == 0 and (self.reference is None or c.kl_in == "reward")
        return self.policy.score(batch, c.micro_batch_rows, keep=keep, entropy=needs_entropy(c, measures(c, 0)))

    def _penalised(self, batch: Any, scored: Scored | None, metrics: Metrics) -> Any:
        """The batch with β KL taken off the rewards, where the config puts it there."""
        c = self.config
        if self.reference is None or c.kl_in == "loss":
            return batch
        assert scored is not None
        kl = kl_of_actions(self.policy, self.reference, batch, c.kl, scored, c.micro_batch_rows)
        tokens = masked_sum(batch.n_tokens, batch.mask).clamp(min=1)
        metrics["kl"] = float(masked_sum(kl, batch.mask) / tokens)
        metrics["penalised_reward"] = metrics["reward"] - self.beta * float(masked_sum(kl, batch.mask)) / len(batch)
        return replace(batch, rewards=batch.rewards - self.beta * kl)

    def _part(self, batch: Any, credit: Credit, scored: Scored | None) -> Part:
        """Everything an update needs, by rows that minibatches may be made of."""
        # One step on fresh data needs no old log-prob: there it is the current one.
        single = self.config.epochs == self.config.minibatches == 1
        old_logp = None if single or scored is None else scored.logp
        named = {"advantages": credit.advantages, "returns": credit.returns, "old_logp": old_logp}
        named["old_values"] = None if scored is None else scored.values
        if isinstance(batch, Fragments):
            flat = {name: None if x is None else batch.each(x) for name, x in named.items()}
            return Part(batch.steps(), **flat)  # type: ignore[arg-type]
        kept = () if scored is None else scored.evaluations
        return Part(batch, **named, ref_logp=self.reference_logp(batch), evaluations=kept)  # type: ignore[arg-type]

    def _adapt_beta(self, batch: Any, metrics: Metrics) -> None:
        c = self.config
        if c.kl_target is None or "kl" not in metrics:
            return
        metrics["beta"] = self.beta
        episode_kl = metrics["kl"] * metrics["length"]
        self.beta = adapt_beta(
            self.beta, episode_kl, c.kl_target, horizon=c.kl_horizon, n=min(len(batch), c.kl_horizon)
        )

    def _collector(self, env: Any, text: bool) -> Episodes | Play:
        if text:
            return Episodes(env, self.config)
        if not self.plays_any_environment:
            raise ValueError(f"{type(self).__name__} acts on text environments, with a language model as its policy")
        if self.config.beta:
            raise ValueError(f"beta must be 0 without a language model, got {self.config.beta}")
        return self._play(env)

    def _play(self, env: Any) -> Play:
        raise NotImplementedError

    def _reference(self, given: Any) -> Reference:
        """The frozen reference; the policy's own model in its place would make every KL 0."""
        if given is not None and getattr(given, "model", given) is self.policy.model:
            self.warn_once("the reference is the policy's own model: its KL would always be 0, a frozen copy is used")
            given = None
        return make_reference(self.policy, given)

    def _needs_values(self) -> Any:
        """False, or which value head the policy needs."""
        return False

    def _needs_score(self) -> bool:
        """Whether the policy must be asked before the first step."""
        single = self.config.epochs == self.config.minibatches == 1
        return not single or (self.reference is not None and self.config.kl_in == "reward")

    # Files: what `save` writes beside the policy, and its way back.

    def _description(self) -> dict[str, Any]:
        return {
            "config": dataclasses.asdict(self.config),
            "num_timesteps": self.num_timesteps,
            "dropped_rows": self.dropped_rows,
            "beta": self.beta,
            "counters": self.policy.counters.as_dict(),
            "rng": self.rng.bit_generator.state,
        }

    def _restore(self, saved: dict[str, Any]) -> None:
        """Take over what `_description` wrote: training goes on as if it had not stopped."""
        self.num_timesteps, self.dropped_rows = saved["num_timesteps"], saved["dropped_rows"]
        self.beta = saved.get("beta", self.beta)
        vars(self.policy.counters).update(saved["counters"])
        self.rng.bit_generator.state = saved["rng"]

    def _save_more(self, folder: Path) -> None:
        """Files beyond policy and optimiser: the reference."""
        if isinstance(self.reference, LMPolicy):
            self.reference.model.save_pretrained(folder / "reference", safe_serialization=True)

    def _load_more(self, folder: Path) -> None:
        """The counterpart of `_save_more`; adapters that are switched off need no file."""
        if self.reference is not None and not isinstance(self.reference, AdaptersOff):
            self.reference = make_reference(self.policy, str(folder / "reference"))
