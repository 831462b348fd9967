"""What may stand in place of a task's score: a plain function, or a model that was trained on preferences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmgym.rows import short
from llmgym.tasks.base import FunctionReward, Problem, Task, terms_of_many

if TYPE_CHECKING:
    from llmgym.text import TextMDP

TERM = "reward_model"  # the learned reward among the terms
_OPTIONS = ("model", "weight", "rules")


class ModelReward(Task):
    """A learned reward in place of a task's own, whose terms and judgement stay beside it.

        reward = weight · r(x, y) + rules · (the task's reward)

    The terms are the task's own and `reward_model`, which is r; success is what the task says it is. What is optimised
    and what is meant are then both in `info`: over-optimisation is their parting (Gao et al. 2023).

    Args:
        task: where problems and the true score come from. One that defines no score has no terms of its own.
        model: a `llmgym.reward_model.RewardModel`; it is not copied, training it further changes the reward.
        weight: of the learned reward, finite.
        rules: weight of the task's reward, finite.

    Raises:
        ValueError: a weight is no finite number.
    """

    def __init__(self, task: Task, model: Any, *, weight: float = 1.0, rules: float = 0.0):
        self.task, self.model = task, model
        self.weight, self.rules = _check_weight("weight", weight), _check_weight("rules", rules)
        self.name, self.failing_reward = task.name, task.failing_reward
        self.chat_template, self.system = task.chat_template, task.system
        self.problem, self.reply = task.problem, task.reply  # type: ignore[method-assign]
        self._scored = type(task).score is not Task.score or type(task).terms is not Task.terms

    def terms(self, problem: Problem, text: str, tokens: tuple[int, ...]) -> dict[str, float]:
        """The task's terms and the learned reward of one completion."""
        terms = self.terms_many([problem], [text], [tokens])[0]
        if isinstance(terms, Exception):
            raise terms
        return terms

    def terms_many(
        self, problems: Sequence[Problem], texts: Sequence[str], tokens: Sequence[tuple[int, ...]]
    ) -> Sequence[Any]:
        """The same of many completions, in a forward pass for all of them."""
        own = terms_of_many(self.task, problems, texts, tokens) if self._scored else [{} for _ in texts]
        learned = self.model.score_tokens(problems, tokens).tolist()
        return [t if isinstance(t, Exception) else {**t, TERM: r} for t, r in zip(own, learned, strict=True)]

    def reward(self, terms: Mapping[str, float]) -> float:
        """weight · r + rules · (the task's reward)."""
        return self.weight * terms[TERM] + self.rules * self.task.reward(_own(terms))

    def is_success(self, terms: Mapping[str, float]) -> bool:
        """The task's judgement, whatever the learned reward says."""
        return self.task.is_success(_own(terms))


def with_reward(mdp: TextMDP, reward: Any) -> Task:
    """The task of `mdp` with another reward.

    Args:
        mdp: rules of a text environment.
        reward: a function `(problem, text, tokens) -> float | dict`, see `FunctionReward`; or a `RewardModel`, the
            folder of one, or a mapping with either as `model` and the `weight` and `rules` of `ModelReward`.

    Raises:
        ValueError: none of these, a folder without a reward model, or one that does not fit the environment.
    """
    if callable(reward):
        return FunctionReward(mdp.task, reward)
    options = dict(reward) if isinstance(reward, Mapping) else {"model": reward}
    if "model" not in options or not set(options) <= set(_OPTIONS):
        raise ValueError(f"reward as a mapping must have the key model, and may have weight and rules: got {options}")
    return ModelReward(mdp.task, _model(mdp, options.pop("model")), **options)


def _model(mdp: TextMDP, model: Any) -> Any:
    if isinstance(model, str | Path):
        from llmgym.reward_model import RewardModel  # torch: only where a folder is named

        return RewardModel.load(model, mdp)
    if not hasattr(model, "score_tokens"):
        raise ValueError(f"reward must be a function, a reward model or the folder of one, got {short(model)}")
    model.check_fits(mdp)
    return model


def _own(terms: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in terms.items() if name != TERM}


def _check_weight(name: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise ValueError(f"{name} of the reward must be a finite number, got {value!r}")
    return float(value)
