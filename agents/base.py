"""What every language-model agent shares: the four verbs, the collection of groups and the gradient step."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from llmgym.agents.budget import Budget
from llmgym.agents.config import AgentConfig
from llmgym.agents.environments import lockstep, saved_env, spec_json
from llmgym.agents.metrics import Means, Metrics, describe, measure, postfix
from llmgym.agents.optimizer import load_optimizer, save_optimizer
from llmgym.batch import Batch, by_length, sum_by_action
from llmgym.files import atomic_folder, read_json, write_json
from llmgym.policy import Evaluation, LMPolicy
from llmgym.rollout import rollout

Callback = Callable[["Agent", Metrics, Batch], bool | None]
A = TypeVar("A", bound="Agent")


@dataclass(frozen=True)
class Part:
    """Rows of a batch with what belongs to them; all but `batch` are [b, n]."""

    batch: Batch
    advantages: Tensor
    old_logp: Tensor | None  # None: the first step on fresh data, where it equals the current log-prob
    ref_logp: Tensor | None  # per token, [b, t]


class Agent:
    """A policy, an environment and a rule that updates the one from the other.

    Args:
        policy: an `LMPolicy`, or what it takes as a model: "tiny", a folder, a hub id, a model object.
        env: a text environment at any granularity, single or vector. The agent steps a vector form of its own over
            the same MDP, with prompts x samples rows.
        **config: fields of the agent's config class; an unknown name raises TypeError.
    """

    config_class: ClassVar[type[AgentConfig]]

    def __init__(self, policy: Any, env: gym.Env | VectorEnv, **config: Any):
        self.config = self.config_class(**config)
        self.env = env
        self.venv = lockstep(env, self.config.prompts * self.config.samples)
        self.mdp = self.venv.mdp
        if isinstance(policy, LMPolicy):
            self.config = _with_settings_of(policy, self.config, config)
        self.policy = policy if isinstance(policy, LMPolicy) else self._make_policy(policy)
        if self._needs_values() and self.policy.value_head is None:
            raise ValueError("baseline='value' needs a policy with a value head: LMPolicy(..., value_head=True)")
        if self.policy.top_k or self.policy.top_p < 1:
            raise ValueError(
                f"training needs top_k=0 and top_p=1 (the support of the behaviour policy must not move), "
                f"got top_k={self.policy.top_k}, top_p={self.policy.top_p}"
            )
        self.rng = np.random.default_rng(self.config.seed)
        if self.config.seed is not None:
            self.policy.seed(self.config.seed)
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), lr=self.config.learning_rate, weight_decay=0.0, fused=True
        )
        self.num_timesteps = 0
        self.dropped_rows = 0

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
            total_tokens: tokens sampled.
            max_seconds: wall clock; no step is begun that the last one's duration says would end later.
            callback: called as `callback(agent, metrics, batch)` after every update; False ends training.
            progress_bar: shows one; by default when `verbose` is 1.
        """
        budget = Budget(self, total_timesteps, total_tokens, max_seconds)
        show = self.config.verbose > 0 if progress_bar is None else progress_bar
        with tqdm(total=1.0, bar_format=_BAR, disable=not show) as bar:
            while not budget.spent():
                started = time.perf_counter()
                sampled = self.policy.counters.sampled_tokens
                batch = self.collect()
                collected = time.perf_counter()
                self._set_learning_rate(budget.fraction())
                metrics = self.update(batch)
                seconds = time.perf_counter() - started
                sampled = self.policy.counters.sampled_tokens - sampled
                metrics |= {"seconds": seconds, "seconds_sampling": collected - started}
                metrics |= {"tokens_per_second": sampled / seconds, "timesteps": self.num_timesteps}
                metrics |= self.policy.counters.as_dict()
                bar.set_postfix_str(postfix(metrics), refresh=False)
                bar.update(budget.fraction() - bar.n)
                if callback is not None and callback(self, metrics, batch) is False:
                    break
        return self

    def predict(
        self,
        observation: dict[str, np.ndarray],
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[Any, Any]:
        """Action of one observation or of a batch of them, and `state` unchanged (the policy has none)."""
        single = observation["input_ids"].ndim == 1
        if single:
            observation = {key: value[None] for key, value in observation.items()}
        actions = self.policy.act(observation, deterministic=deterministic).for_env
        return (actions[0] if single else actions), state

    def save(self, path: str | Path) -> None:
        """Write a Hugging Face folder (model, tokenizer) with the agent's state beside; replaced in one step."""
        with atomic_folder(path) as folder:
            self.policy.save(folder)
            save_optimizer(self.optimizer, folder / "optimizer.safetensors")
            save_file({"generator": self.policy.generator.get_state()}, folder / "sampling.safetensors")
            self._save_more(folder)
            write_json(folder / "agent.json", self._description())

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
        folder = Path(path)
        if not (folder / "agent.json").is_file():
            raise ValueError(f"{str(path)!r} is no folder that an agent saved: agent.json is missing")
        saved = read_json(folder / "agent.json")
        if saved["agent"] != cls.__name__:
            raise ValueError(f"{str(path)!r} holds a {saved['agent']}, load it with {saved['agent']}.load")
        agent = cls(str(folder), env or saved_env(saved, path), **(saved["config"] | config))
        agent.policy.load_value_head(folder)
        load_optimizer(agent.optimizer, folder / "optimizer.safetensors")
        agent._load_more(folder)
        agent._restore(saved, load_file(folder / "sampling.safetensors")["generator"])
        return agent

    # What an update is made of.

    def collect(self) -> Batch:
        """`samples` completions of each of `prompts` problems drawn from the task's training split."""
        problems = [self.mdp.task.problem(self.rng, self.mdp.split) for _ in range(self.config.prompts)]  # type: ignore[arg-type]
        rows = [p for p in problems for _ in range(self.config.samples)]
        groups = np.repeat(np.arange(self.config.prompts), self.config.samples).tolist()
        batch = rollout(self.venv, self.policy, rows, groups=groups, seed=int(self.rng.integers(2**31)))
        self.num_timesteps += int(batch.mask.sum())
        return batch

    def update(self, batch: Batch) -> Metrics:
        """Learn from one batch; rows whose scorer failed are dropped and counted."""
        self.dropped_rows += int((~batch.valid).sum())
        batch = batch.select(batch.valid).to(self.policy.device)
        metrics = describe(batch) | {"dropped_rows": float(self.dropped_rows)}
        if not len(batch):
            warnings.warn("every row of the batch was dropped: its scorer failed", RuntimeWarning, stacklevel=2)
            return metrics
        if metrics["truncated"] == 1.0:
            warn_once(self, "every completion ran into max_new_tokens: none ended by itself")
        advantages = self.advantages(batch, metrics)
        return metrics | self._optimize(batch, advantages)

    def advantages(self, batch: Batch, metrics: Metrics) -> Tensor:
        """[B, N] advantages of a batch; may add to `metrics`."""
        raise NotImplementedError

    def loss(self, part: Part, evaluation: Evaluation, old_logp: Tensor, denominator: Tensor) -> tuple[Tensor, Metrics]:
        """Loss of some rows, as a share of the whole minibatch given by `denominator`, and metrics to average."""
        raise NotImplementedError

    def denominator(self, batch: Batch) -> Tensor:
        """What the losses of all micro-batches of a minibatch are divided by."""
        raise NotImplementedError

    def reference_logp(self, batch: Batch) -> Tensor | None:
        """Reference log-prob of every token [B, T]; None without a reference."""
        return None

    def _set_learning_rate(self, spent: float) -> None:
        """`spent`: share of the budget that is behind us, in [0, 1]."""
        share = 1.0 - spent if self.config.schedule == "linear" else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * share

    def _optimize(self, batch: Batch, advantages: Tensor) -> Metrics:
        config, totals = self.config, Means()
        ref_logp = self.reference_logp(batch)
        # One step on fresh data needs no scoring pass: there the log-prob before the step is the current one.
        single = config.epochs == config.minibatches == 1
        old_logp = None if single else self._old_logp(batch)
        generator = torch.Generator().manual_seed(int(self.rng.integers(2**31)))
        for _ in range(config.epochs):
            order = (
                torch.randperm(len(batch), generator=generator) if config.minibatches > 1 else torch.arange(len(batch))
            )
            for rows in order.chunk(config.minibatches):
                self._step(batch, rows, advantages, old_logp, ref_logp, totals)
        return totals.mean()

    def _step(self, batch, rows, advantages, old_logp, ref_logp, totals: Means) -> None:
        """One optimiser step over `rows`, summed over micro-batches."""
        self.optimizer.zero_grad(set_to_none=True)
        denominator = self.denominator(batch.select(rows))
        for micro in by_length(batch.lengths, rows, self.config.micro_batch_rows):
            part = _part(batch, micro, advantages, old_logp, ref_logp)
            evaluation = self.policy.evaluate(part.batch, ref_logp=part.ref_logp, kl=getattr(self.config, "kl", "k3"))
            before = evaluation.logp.detach() if part.old_logp is None else part.old_logp
            loss, metrics = self.loss(part, evaluation, before, denominator)
            loss.backward()
            totals.add(len(micro), metrics | measure(part.batch, evaluation, before))
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm or torch.inf)
        totals.add(len(rows), {"grad_norm": float(norm)})
        self.optimizer.step()

    def _old_logp(self, batch: Batch) -> Tensor:
        tokens = self.policy.token_logp(batch, self.config.micro_batch_rows)
        return sum_by_action(tokens, batch.action_index, batch.mask.shape[1])

    def _make_policy(self, model: Any) -> LMPolicy:
        c = self.config
        return LMPolicy(
            model,
            self.mdp,
            temperature=c.temperature,
            value_head=self._needs_values(),
            device=c.device,
            dtype=c.dtype,
            seed=c.seed,
        )

    def _needs_values(self) -> bool:
        return False

    def _description(self) -> dict[str, Any]:
        spec = getattr(self.env, "spec", None)
        return {
            "agent": type(self).__name__,
            "config": dataclasses.asdict(self.config),
            "env": None if spec is None else spec_json(spec),
            "num_timesteps": self.num_timesteps,
            "dropped_rows": self.dropped_rows,
            "counters": self.policy.counters.as_dict(),
            "rng": self.rng.bit_generator.state,
        }

    def _restore(self, saved: dict[str, Any], generator: Tensor) -> None:
        """Take over what `_description` wrote: training goes on as if it had not stopped."""
        self.num_timesteps, self.dropped_rows = saved["num_timesteps"], saved["dropped_rows"]
        vars(self.policy.counters).update(saved["counters"])
        self.rng.bit_generator.state = saved["rng"]
        if generator.shape == self.policy.generator.get_state().shape:  # CPU and CUDA generators differ
            self.policy.generator.set_state(generator)

    def _save_more(self, folder: Path) -> None:
        """Hook: files beyond policy and optimiser."""

    def _load_more(self, folder: Path) -> None:
        """Hook: the counterpart of `_save_more`."""


_BAR = "{percentage:3.0f}%|{bar:20}| {elapsed} {postfix}"


def _part(batch: Batch, rows: Tensor, advantages: Tensor, old_logp: Tensor | None, ref_logp: Tensor | None) -> Part:
    part = batch.select(rows)
    n, t = part.mask.shape[1], part.tokens.shape[1]
    at = rows.to(advantages.device)
    old = None if old_logp is None else old_logp[at, :n]
    return Part(part, advantages[at, :n], old, None if ref_logp is None else ref_logp[at, :t])


def warn_once(agent: Agent, sentence: str) -> None:
    """Warn of something the first time an agent meets it."""
    said = agent.__dict__.setdefault("_said", set())
    if sentence not in said:
        said.add(sentence)
        warnings.warn(sentence, RuntimeWarning, stacklevel=3)


def _with_settings_of(policy: LMPolicy, config: Any, given: dict[str, Any]) -> Any:
    """`config` with what a ready policy brings along; asking for something else is refused, not ignored."""
    own = {"temperature": policy.temperature, "dtype": str(policy.dtype).removeprefix("torch.")}
    for name, value in (own | {"device": str(policy.device)}).items():
        if name in given and given[name] not in (value, "auto", str(value).split(":")[0]):
            raise ValueError(f"{name} is a setting of the policy that was given, {value!r}: got {given[name]!r}")
    return dataclasses.replace(config, **own)
