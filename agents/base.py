"""What every language-model agent shares: the four verbs, the collection of groups and the gradient step."""

from __future__ import annotations

import copy
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
from gymnasium.vector import AutoresetMode, VectorEnv
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from llmgym.agents.config import AgentConfig
from llmgym.agents.optimizer import load_optimizer, save_optimizer
from llmgym.batch import Batch, by_length, sum_by_action
from llmgym.envs.vector import VectorTextEnv
from llmgym.files import atomic_folder, read_json, write_json
from llmgym.losses import MAX_LOG_RATIO, masked_mean, masked_sum
from llmgym.policy import Evaluation, LMPolicy
from llmgym.rollout import rollout

Metrics = dict[str, float]
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
        self.venv = _vector(env, self.config.prompts * self.config.samples)
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
        budget = _Budget(self, total_timesteps, total_tokens, max_seconds)
        show = self.config.verbose > 0 if progress_bar is None else progress_bar
        with tqdm(total=1.0, bar_format=_BAR, disable=not show) as bar:
            while not budget.spent():
                started = time.perf_counter()
                sampled = self.policy.counters.sampled_tokens
                batch = self.collect()
                collected = time.perf_counter()
                metrics = self.update(batch)
                seconds = time.perf_counter() - started
                sampled = self.policy.counters.sampled_tokens - sampled
                metrics |= {"seconds": seconds, "seconds_sampling": collected - started}
                metrics |= {"tokens_per_second": sampled / seconds, "timesteps": self.num_timesteps}
                metrics |= self.policy.counters.as_dict()
                bar.set_postfix_str(_postfix(metrics), refresh=False)
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
        agent = cls(str(folder), env or _saved_env(saved, path), **(saved["config"] | config))
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
        metrics = _describe(batch) | {"dropped_rows": float(self.dropped_rows)}
        if not len(batch):
            warnings.warn("every row of the batch was dropped: its scorer failed", RuntimeWarning, stacklevel=2)
            return metrics
        if metrics["truncated"] == 1.0:
            _warn_once(self, "every completion ran into max_new_tokens: none ended by itself")
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

    def _optimize(self, batch: Batch, advantages: Tensor) -> Metrics:
        config, totals = self.config, _Means()
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

    def _step(self, batch, rows, advantages, old_logp, ref_logp, totals: _Means) -> None:
        """One optimiser step over `rows`, summed over micro-batches."""
        self.optimizer.zero_grad(set_to_none=True)
        denominator = self.denominator(batch.select(rows))
        for micro in by_length(batch.lengths, rows, self.config.micro_batch_rows):
            part = _part(batch, micro, advantages, old_logp, ref_logp)
            evaluation = self.policy.evaluate(part.batch, ref_logp=part.ref_logp, kl=getattr(self.config, "kl", "k3"))
            before = evaluation.logp.detach() if part.old_logp is None else part.old_logp
            loss, metrics = self.loss(part, evaluation, before, denominator)
            loss.backward()
            totals.add(len(micro), metrics | _measure(part.batch, evaluation, before))
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
            "env": None if spec is None else _spec_json(spec),
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


class _Budget:
    """When to stop: the first of the given limits."""

    def __init__(self, agent: Agent, timesteps: int | None, tokens: int | None, seconds: float | None):
        if timesteps is None and tokens is None and seconds is None:
            raise ValueError("learn() needs a budget: total_timesteps, total_tokens or max_seconds")
        for name, value in (("total_timesteps", timesteps), ("total_tokens", tokens), ("max_seconds", seconds)):
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        self.agent, self.limits = agent, (timesteps, tokens, seconds)
        self.start, self.last_step = self._now(), 0.0

    def _now(self) -> tuple[float, float, float]:
        return self.agent.num_timesteps, self.agent.policy.counters.sampled_tokens, time.perf_counter()

    def fraction(self) -> float:
        """Share of the budget that is spent, in [0, 1]."""
        used = [(n - s) / limit for n, s, limit in zip(self._now(), self.start, self.limits, strict=True) if limit]
        return min(max(used), 1.0)

    def spent(self) -> bool:
        """Whether to stop; time is also up when the next step would end late."""
        now = time.perf_counter() - self.start[2]
        step, self.last_step = now - self.last_step, now
        late = self.limits[2] is not None and now + step > self.limits[2]
        return self.fraction() >= 1.0 or late


class _Means:
    """Weighted means of metrics."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.weights: dict[str, float] = {}

    def add(self, weight: float, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + weight * float(value)
            self.weights[name] = self.weights.get(name, 0.0) + weight

    def mean(self) -> Metrics:
        return {name: total / self.weights[name] for name, total in self.sums.items()}


def _part(batch: Batch, rows: Tensor, advantages: Tensor, old_logp: Tensor | None, ref_logp: Tensor | None) -> Part:
    part = batch.select(rows)
    n, t = part.mask.shape[1], part.tokens.shape[1]
    at = rows.to(advantages.device)
    old = None if old_logp is None else old_logp[at, :n]
    return Part(part, advantages[at, :n], old, None if ref_logp is None else ref_logp[at, :t])


def _describe(batch: Batch) -> Metrics:
    """What happened, before learning from it; 0 everywhere for no rows."""
    ends = [info.get("finish_reason") for info in batch.infos]
    rows = max(len(batch), 1)
    metrics = {
        "reward": float(batch.returns.sum()) / rows,
        "accuracy": sum(bool(info.get("is_success")) for info in batch.infos) / rows,
        "length": float(masked_sum(batch.n_tokens, batch.mask)) / rows,
        "actions": float(batch.mask.sum()) / rows,
        "truncated": ends.count("length") / rows,
        "illegal": ends.count("illegal") / rows,
    }
    terms = [info["reward_terms"] for info in batch.infos if info.get("reward_terms")]
    for name in terms[0] if terms else ():
        metrics[f"reward_terms/{name}"] = sum(t.get(name, 0.0) for t in terms) / len(terms)
    return metrics


def _measure(batch: Batch, evaluation: Evaluation, old_logp: Tensor) -> Metrics:
    """How far policy, behaviour and reference are apart, per token."""
    mask = batch.mask
    tokens = masked_sum(batch.n_tokens, mask).clamp(min=1)
    ratio = (evaluation.logp.detach() - old_logp).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    metrics = {
        "behaviour_gap": float(masked_sum((old_logp - batch.logp).abs(), mask) / tokens),
        "ratio": float(masked_mean(ratio, mask)),
    }
    if evaluation.entropy is not None:
        metrics["entropy"] = float(masked_sum(evaluation.entropy.detach(), mask) / tokens)
    if evaluation.kl is not None:
        metrics["kl"] = float(masked_sum(evaluation.kl.detach(), mask) / tokens)
    return metrics


def _postfix(metrics: Metrics) -> str:
    shown = [f"reward {metrics['reward']:.3f}", f"accuracy {metrics['accuracy']:.1%}"]
    shown += [f"{name} {metrics[name]:.3f}" for name in ("kl", "entropy") if name in metrics]
    return "  ".join([*shown, f"length {metrics['length']:.1f}", f"{metrics['tokens_per_second']:,.0f} tok/s"])


def _warn_once(agent: Agent, sentence: str) -> None:
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


def _vector(env: gym.Env | VectorEnv, rows: int) -> VectorTextEnv:
    """A lockstep vector form over the MDP of `env`."""
    mdp = getattr(env.unwrapped, "mdp", None)
    if mdp is None or not hasattr(mdp, "token_mask"):
        raise ValueError(f"env must be a text environment of llmgym, got {env}")
    limit = getattr(env.unwrapped, "max_episode_steps", None)  # of a vector form; of a single one, its wrapper's
    limit = limit or getattr(getattr(env, "spec", None), "max_episode_steps", None)
    return VectorTextEnv(mdp, rows, autoreset_mode=AutoresetMode.DISABLED, max_episode_steps=limit)


def _spec_json(spec: Any) -> str | None:
    """The single form of an environment's spec; None if it holds what JSON cannot."""
    single = copy.copy(spec)
    single.kwargs = {name: value for name, value in spec.kwargs.items() if name not in _OF_VECTORS}
    single.max_episode_steps = spec.kwargs.get("max_episode_steps", spec.max_episode_steps)
    try:
        return single.to_json()
    except (ValueError, TypeError):  # a callable or an object among the arguments: load() then needs an environment
        return None


def _saved_env(saved: dict[str, Any], path: str | Path) -> gym.Env:
    if saved["env"] is None:
        raise ValueError(f"{str(path)!r} does not describe its environment (objects among its arguments): pass env=")
    return gym.make(gym.envs.registration.EnvSpec.from_json(saved["env"]))


_OF_VECTORS = ("num_envs", "vectorization_mode", "autoreset_mode", "max_episode_steps")
