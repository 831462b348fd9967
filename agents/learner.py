"""What everything that learns shares: an optimiser, the gradient step over micro-batches, the learning loop, files."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from llmgym.agents.budget import Budget
from llmgym.agents.config import LearnerConfig
from llmgym.agents.metrics import Means, Metrics, postfix

Loss = Callable[[Tensor], tuple[Tensor, dict[str, Any]]]  # rows -> their shares of the loss and of each metric
Step = Callable[[Budget], tuple[Metrics, Any]]  # metrics of one update, and what it learnt from
_BAR = "{percentage:3.0f}%|{bar:20}| {elapsed} {postfix}"


class Learner:
    """A policy (or reward model), its optimiser and its random generator.

    A subclass calls `_prepare` when it has its policy, and defines `_update`.
    """

    config_class: ClassVar[type[LearnerConfig]] = LearnerConfig
    config: LearnerConfig
    policy: Any
    num_timesteps: int = 0

    def _prepare(self, policy: Any) -> None:
        self.policy = policy
        self.rng = np.random.default_rng(self.config.seed)
        self.parameters = policy.parameters()
        if not self.parameters:
            raise ValueError("the policy has no parameter that can be trained: all of them are frozen")
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.config.learning_rate, weight_decay=0.0, fused=True, eps=1e-8
        )
        self.num_timesteps = 0

    def _loop(
        self, budget: Budget, step: Callable[[Budget], tuple[Metrics, Any]], callback: Any, show: bool | None
    ) -> None:
        """Call `step` until the budget is spent or the callback says False; the bar shows what matters."""
        show = self.config.verbose > 0 if show is None else show
        with tqdm(total=1.0, bar_format=_BAR, disable=not show) as bar:
            while not budget.spent():
                started = time.perf_counter()
                metrics, data = step(budget)
                metrics |= {"seconds": time.perf_counter() - started, "timesteps": self.num_timesteps}
                bar.set_postfix_str(self._postfix(metrics), refresh=False)
                bar.update(budget.fraction() - bar.n)
                if callback is not None and callback(self, metrics, data) is False:
                    break

    def _postfix(self, metrics: Metrics) -> str:
        return postfix(metrics)

    def _set_learning_rate(self, spent: float) -> None:
        """`spent`: share of the budget that is behind us, in [0, 1]."""
        share = 1.0 - spent if self.config.schedule == "linear" else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * share

    def gradient_step(self, parts: Iterable[Tensor], loss: Loss, totals: Means, limit: float = np.inf) -> bool:
        """One optimiser step on the summed losses of some rows; False, and no step, where `approx_kl` > `limit`."""
        self.optimizer.zero_grad(set_to_none=True)
        summed, count = dict[str, Any](), 0
        for rows in parts:
            value, shares = loss(rows)
            value.backward()
            summed = {name: summed.get(name, 0.0) + share for name, share in shares.items()}
            count += len(rows)
        totals.add(count, summed)
        if summed.get("approx_kl", 0.0) > limit:
            return False
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm or torch.inf)
        totals.add(count, {"grad_norm": norm})
        self.optimizer.step()
        return True

    def warn_once(self, sentence: str) -> None:
        """Warn of something the first time it is met."""
        said = self.__dict__.setdefault("_said", set())
        if sentence not in said:
            said.add(sentence)
            warnings.warn(sentence, RuntimeWarning, stacklevel=3)
