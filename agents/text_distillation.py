"""An update of MCTS on text: answers written by search, then gradient steps towards what the search has found."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmgym.agents.budget import Budget
from llmgym.agents.metrics import Means, Metrics
from llmgym.agents.text_play import Writer
from llmgym.mdp import ScorerFailed
from llmgym.search.evaluators import BOUNDS
from llmgym.search.text_lessons import Written, lesson_losses


class TextDistillation:
    """What an `MCTS` agent with a language model learns by: search distillation, or expert iteration.

    Args:
        agent: the agent, ready but for this.
        evaluate: of the searches that are learnt from.
    """

    def __init__(self, agent: Any, evaluate: Any):
        self.agent, self.evaluate = agent, evaluate
        self.updates = self.texts = 0
        named = (agent.mdp, evaluate, agent.options, agent.config.drawn_moves, agent.rng)
        self.writer = Writer(*named)

    def iterate(self, budget: Budget) -> tuple[Metrics, list[Written]]:
        """One update; returns its metrics, and the texts it has learnt from."""
        agent, started = self.agent, time.perf_counter()
        texts, metrics = self._judged(self._write())
        seconds = time.perf_counter() - started
        agent._set_learning_rate(budget.fraction())
        metrics |= self._learn(texts) if texts else {}
        self.updates += 1
        metrics |= {"seconds_writing": seconds, "texts_per_second": agent.config.prompts / seconds}
        return metrics | agent.policy.counters.as_dict(), texts

    def _write(self) -> list[Written]:
        """An answer to each of `prompts` problems, drawn from the split of the environment."""
        agent = self.agent
        starts = [agent.mdp.initial(agent.rng) for _ in range(agent.config.prompts)]
        texts = self.writer.write(starts)
        agent.num_timesteps += sum(len(text.lessons) for text in texts)
        self.texts += len(texts)
        return texts

    def _judged(self, texts: list[Written]) -> tuple[list[Written], Metrics]:
        """Texts to learn from, and what happened; a text that the scorer failed on is dropped and counted."""
        outcomes = self.agent.seen.mdp.outcomes([text.end for text in texts])
        kept = [(text, o) for text, o in zip(texts, outcomes, strict=True) if not isinstance(o, ScorerFailed)]
        self.agent.dropped_rows += len(texts) - len(kept)
        n = max(len(kept), 1)
        return [text for text, _ in kept], {
            "texts": float(self.texts),
            "reward": sum(outcome.reward for _, outcome in kept) / n,
            "accuracy": sum(outcome.is_success for _, outcome in kept) / n,
            "length": sum(text.end.n_tokens for text, _ in kept) / n,
            "actions": sum(len(text.lessons) for text, _ in kept) / n,
            "dropped_rows": float(self.agent.dropped_rows),
        }

    def _learn(self, texts: list[Written]) -> Metrics:
        """Passes over the texts; what is reported are the means of the last one."""
        config, totals = self.agent.config, Means()
        generator = torch.Generator().manual_seed(int(self.agent.rng.integers(2**31)))
        for _ in range(config.epochs):
            totals = Means()
            for rows in torch.randperm(len(texts), generator=generator).chunk(config.minibatches):
                self._step([texts[row] for row in rows.tolist()], totals)
        self.evaluate.refresh()
        self.agent.planner.forget()
        self.agent.evaluator.refresh()
        return totals.mean()

    def _step(self, texts: list[Written], totals: Means) -> None:
        """One gradient step."""
        agent, config = self.agent, self.agent.config
        states = sum(len(text.lessons) for text in texts)

        def loss(rows: Tensor) -> tuple[Tensor, dict[str, Any]]:
            part = [texts[row] for row in rows.tolist()]
            policy, value = lesson_losses(agent.policy, agent.mdp, part, BOUNDS[config.bound], states)
            both = policy if value is None else policy + config.value_weight * value
            shares = {"loss": both.detach(), "policy_loss": policy.detach()}
            return both, shares if value is None else shares | {"value_loss": value.detach()}

        agent.gradient_step(torch.arange(len(texts)).split(config.micro_batch_rows or len(texts)), loss, totals)

    # Files.

    def description(self) -> dict[str, Any]:
        """What JSON can say of it."""
        return {"updates": self.updates, "texts": self.texts, "dropped_rows": self.agent.dropped_rows}

    def restore(self, saved: dict[str, Any]) -> None:
        """Take over what `description` wrote."""
        self.updates, self.texts = saved["updates"], saved["texts"]
        self.agent.dropped_rows = saved["dropped_rows"]

    def save(self, folder: Path) -> None:
        """Nothing more: texts are learnt from once."""

    def load(self, folder: Path) -> None:
        """See `save`."""
