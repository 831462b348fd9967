"""What learning from data shares: rows in a seeded order, optimiser steps on them, budgets, files."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from llmgym.agents.budget import Budget
from llmgym.agents.config import LearnerConfig, check_least
from llmgym.agents.files import load_agent, save_agent
from llmgym.agents.learner import Learner
from llmgym.agents.metrics import Means, Metrics
from llmgym.agents.policies import is_net, make_policy
from llmgym.batch import TextBatch, by_length
from llmgym.evaluation import mdp_of
from llmgym.texts import Text, batch_of, fingerprint

Source = str | Path | Iterable[Any]  # a file of JSON lines, a `datasets.Dataset`, or any iterable of rows
Callback = Callable[["Offline", Metrics, list], bool | None]
O = TypeVar("O", bound="Offline")  # noqa: E741
_SHOWN = {"loss": ".4f", "accuracy": ".1%", "margin": ".3f", "tokens_per_second": ",.0f"}


@dataclass(frozen=True)
class OfflineConfig(LearnerConfig):
    """Settings of everything that learns from rows of data."""

    batch_size: int = 32  # rows an optimiser step; the last step of a pass takes what is left
    epochs: int = 1  # passes over the rows, where learn() is given no budget

    def __post_init__(self):
        super().__post_init__()
        check_least(self, 1, "batch_size", "epochs")


class Offline(Learner):
    """A policy (or reward model), the rules of a text environment, and rows of data to learn from.

    A subclass says what a row is (`_read`), which texts it holds (`_texts_of`) and what is minimised (`loss`); where
    its policy is no `LMPolicy`, also how that is made (`_make_policy`) and what `predict` gives.

    Every pass goes through the rows in an order of its own, drawn from the seed. A saved folder holds the place in the
    running pass too, so that training that was stopped, saved and loaded goes on bit for bit as if it had not been.

    Args:
        policy: an `LMPolicy` of temperature 1, or what it takes as a model: "tiny", a folder, a hub id, a model object.
        env: a text environment, single or vector, for its rules (tokenizer, chat template, lengths, masks); or a
            `TextMDP`. It is never stepped.
        data: the rows; None: nothing can be learnt, only predicted.
        **config: fields of the config class; an unknown name raises TypeError.

    Attributes:
        data: the rows, as read.
        num_timesteps: rows learnt from.
        num_tokens: tokens learnt from: those of completions, EOS included.

    Raises:
        ValueError: a row is unusable or does not fit the environment (the sentence names it), or a bad setting.
    """

    config_class: ClassVar[type[OfflineConfig]] = OfflineConfig
    config: OfflineConfig
    data_name: ClassVar[str] = "data"  # what users call the rows

    def __init__(self, policy: Any, env: gym.Env | VectorEnv | Any, data: Source | None = None, **config: Any):
        self.config = self.config_class(**config)
        self.env, self.mdp = env, mdp_of(env)
        self._prepare(self._make_policy(policy, config))
        self.num_tokens, self.passes, self.position = 0, 0, 0  # position: rows of the running pass that are done
        self.pass_seed = int(self.rng.integers(2**31))
        self.data: list[Any] = []
        self.texts: list[tuple[Text, ...]] = []
        self.fingerprint: str | None = None
        if data is not None:
            self._take(data)

    # The four verbs.

    def learn(
        self: O,
        total_timesteps: int | None = None,
        *,
        epochs: float | None = None,
        total_tokens: int | None = None,
        max_seconds: float | None = None,
        callback: Callback | None = None,
        progress_bar: bool | None = None,
    ) -> O:
        """Train until the first of the given budgets is spent; without one, to the end of `config.epochs` passes.

        Without a budget, what earlier calls did of these passes counts: a run that was stopped is finished, with its
        learning-rate schedule. A run that was finished is followed by as many passes again.

        Args:
            total_timesteps: rows.
            epochs: the same in passes over the rows.
            total_tokens: tokens of completions, EOS included.
            max_seconds: wall clock; no step is begun that the last one's duration says would end late.
            callback: called as `callback(agent, metrics, rows)` after every optimiser step; False ends training.
            progress_bar: shows one; by default when `verbose` is 1.
        """
        if not self.data:
            name = type(self).__name__
            raise ValueError(f"there is nothing to learn from: pass {self.data_name}= to {name} or to {name}.load")
        if epochs is not None and not epochs > 0:
            raise ValueError(f"epochs must be above 0, got {epochs}")
        limits = [total_timesteps, None if epochs is None else epochs * len(self.data)]
        rows, behind = min((x for x in limits if x is not None), default=None), 0
        if rows is total_tokens is max_seconds is None:
            rows = self.config.epochs * len(self.data)
            behind = self.passes % self.config.epochs * len(self.data) + self.position
        budget = _RowBudget(self, rows, total_tokens, max_seconds, behind)
        self._loop(budget, self._iterate, callback, progress_bar)
        return self

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[Any, Any]:
        """The policy's action, as `Agent.predict`."""
        return self.policy.predict(observation, deterministic=deterministic, action_masks=action_masks), state

    def save(self, path: str | Path) -> None:
        """Write the policy (a Hugging Face folder) with the state of training beside; the data are not written."""
        save_agent(self, path)

    @classmethod
    def load(cls: type[O], path: str | Path, env: Any = None, data: Source | None = None, **config: Any) -> O:
        """What `save` wrote.

        Args:
            path: the folder.
            env: for its rules; by default rebuilt from its saved spec.
            data: rows to go on with; with the same ones the running pass goes on, other ones begin a new pass. None:
                the policy predicts, but cannot learn.
            **config: replaces saved settings, such as `device`.

        Raises:
            ValueError: no such folder, another agent's folder, no environment to be had, or an unusable row.
        """
        agent = load_agent(cls, path, env, config)
        if data is not None:
            agent._take(data)
        return agent

    # What a subclass defines.

    def evaluate(self, data: Source, /) -> dict[str, float]:
        """How well rows that are not learnt from are predicted.

        Raises:
            ValueError: a row is unusable or does not fit the environment.
        """
        raise NotImplementedError

    def loss(self, batch: TextBatch, rows: Tensor, denominator: float) -> tuple[Tensor, dict[str, Any]]:
        """Share of the loss, and shares of metrics, of some rows.

        Both add up to those of the whole batch: they are sums divided by `denominator` (or, for a metric, by another
        number of the whole batch).

        Args:
            batch: the texts of the rows: the first text of each of the b rows, then the second of each, and so on.
            rows: where these rows stand in `data`, int64 [b], on the CPU.
            denominator: of the whole batch.
        """
        raise NotImplementedError

    def denominator(self, batch: TextBatch, rows: Tensor) -> float:
        """What the loss of a whole batch is divided by: its number of rows."""
        return len(rows)

    def _read(self, source: Source) -> list[Any]:
        """The rows of a source, all of them checked."""
        raise NotImplementedError

    def _texts_of(self, row: Any) -> tuple[Text, ...]:
        """The texts that a row holds: as many for every row."""
        raise NotImplementedError

    def _make_policy(self, policy: Any, given: dict[str, Any]) -> Any:
        """The policy object; sets in `config` what a ready policy brings along. `given`: settings that were named."""
        if is_net(policy):
            raise ValueError(f"{type(self).__name__} learns from text: its policy must be a language model")
        made, self.config = make_policy(policy, self.mdp, self.config, given, False)
        if made.temperature != 1.0:
            name = type(self).__name__
            raise ValueError(f"{name} needs a policy of temperature 1, got one of temperature {made.temperature}")
        return made

    def _take(self, source: Source) -> None:
        """Read, check and encode the rows; the running pass goes on if they are those it went through."""
        self.data = self._read(source)
        self.texts = [self._texts_of(row) for row in self.data]
        found = fingerprint(text for texts in self.texts for text in texts)
        if found != self.fingerprint:
            self.fingerprint, self.passes, self.position = found, 0, 0
        self._order = self._shuffled()

    # What an update is made of.

    def update(self, rows: Sequence[int]) -> Metrics:
        """One optimiser step on some rows, given by their place in `data`."""
        places = torch.as_tensor(rows)
        batch = self._batch(places)
        denominator, totals = self.denominator(batch, places), Means()

        def loss(micro: Tensor) -> tuple[Tensor, dict[str, Any]]:
            part = batch.select(self._with_all_texts(micro, batch, places)).to(self.policy.device)
            return self.loss(part, places[micro], denominator)

        self.gradient_step(self._parts(batch, len(places)), loss, totals)
        self.num_timesteps += len(places)
        self.num_tokens += int(batch.n_tokens.sum())
        return totals.mean()

    def _batch(self, places: Tensor) -> TextBatch:
        """The texts of some rows, as `loss` takes them."""
        return self._stacked([self.texts[i] for i in places.tolist()])

    def _stacked(self, texts: Sequence[tuple[Text, ...]]) -> TextBatch:
        """The first text of each row, then the second of each, and so on."""
        return batch_of([text for column in zip(*texts, strict=True) for text in column], self.mdp)

    @property
    def _rows_at_once(self) -> int:
        """Most rows that are scored without a gradient at once: no more than training takes."""
        return self.config.micro_batch_rows or self.config.batch_size

    def _parts(self, batch: TextBatch, n_rows: int) -> list[Tensor]:
        """Micro-batches of rows: those whose longest texts are similar, together."""
        longest = batch.lengths.view(-1, n_rows).amax(0)
        return by_length(longest, torch.arange(n_rows), self.config.micro_batch_rows)

    def _with_all_texts(self, micro: Tensor, batch: TextBatch, places: Tensor) -> Tensor:
        """Where the texts of some rows stand in the batch."""
        firsts = torch.arange(0, len(batch), len(places))
        return (firsts[:, None] + micro).flatten()

    def _iterate(self, budget: Budget) -> tuple[Metrics, list[Any]]:
        started, tokens, counters = time.perf_counter(), self.num_tokens, self.policy.counters
        rows = self._order[self.position : self.position + self.config.batch_size].tolist()
        self._set_learning_rate(budget.fraction())
        metrics = self.update(rows)
        self._advance(len(rows))
        metrics["epoch"] = self.passes + self.position / len(self.data)
        metrics["tokens_per_second"] = (self.num_tokens - tokens) / (time.perf_counter() - started)
        return metrics | counters.as_dict(), [self.data[i] for i in rows]

    def _advance(self, rows: int) -> None:
        """So many rows of the running pass are done; after the last one a new pass begins."""
        self.position += rows
        if self.position == len(self.data):
            self.passes, self.position = self.passes + 1, 0
            self.pass_seed = int(self.rng.integers(2**31))
            self._order = self._shuffled()

    def _shuffled(self) -> np.ndarray:
        return np.random.default_rng(self.pass_seed).permutation(len(self.data))

    def _postfix(self, metrics: Metrics) -> str:
        shown = [f"{name} {metrics[name]:{form}}" for name, form in _SHOWN.items() if name in metrics]
        return "  ".join(shown).replace("tokens_per_second ", "") + " tok/s"

    # Files: what `save` writes beside the policy, and its way back.

    def _description(self) -> dict[str, Any]:
        names = ("num_timesteps", "num_tokens", "passes", "position", "pass_seed", "fingerprint")
        state = {name: getattr(self, name) for name in names}
        settings = {"config": dataclasses.asdict(self.config), "counters": self.policy.counters.as_dict()}
        return settings | {"data": state, "rng": self.rng.bit_generator.state}

    def _restore(self, saved: dict[str, Any]) -> None:
        """Take over what `_description` wrote."""
        for name, value in saved["data"].items():
            setattr(self, name, value)
        vars(self.policy.counters).update(saved["counters"])
        self.rng.bit_generator.state = saved["rng"]

    def _save_more(self, folder: Path) -> None:
        """Files beyond policy and optimiser: none."""

    def _load_more(self, folder: Path) -> None:
        """The counterpart of `_save_more`."""


class _RowBudget(Budget):
    """A budget of rows, tokens of completions and seconds."""

    def __init__(self, agent: Offline, rows: Any, tokens: int | None, seconds: float | None, behind: int):
        super().__init__(agent, rows, tokens, seconds)
        rows_done, tokens_done, now = self._now()
        self.start = (rows_done - behind, tokens_done, now)  # `behind`: rows of this budget that are done already

    def _now(self) -> tuple[float, float, float]:
        return self.agent.num_timesteps, self.agent.num_tokens, time.perf_counter()
