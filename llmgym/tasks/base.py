"""What a task is: problems with gold answers, and the scorer that lives beside them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

Split = Literal["train", "test"]
SPLITS = ("train", "test")

WELL_FORMED = re.compile(r"(<think>(?:(?!</?think>|</?answer>).)*</think>)?<answer>[^<>]*</answer>", re.DOTALL)
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclass(frozen=True)
class Problem:
    """One prompt with its gold answer.

    Attributes:
        prompt: what the model reads, without any chat template.
        answer: the gold answer; every scorer and every user reward sees it.
        data: whatever else the scorer needs (numbers, test cases); not part of equality or hash.
    """

    prompt: str
    answer: str = ""
    data: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False, repr=False)

    def __reduce__(self):
        # A mapping proxy cannot be pickled; problems travel inside environment states.
        return (Problem, (self.prompt, self.answer, dict(self.data)))


class Task:
    """A distribution over problems and a rule-based scorer.

    A subclass defines `problem` and `score`; the rest has defaults that fit most tasks.

    Attributes:
        name: shown in metrics and error messages.
        weights: weight of each named term of `score` in the reward; a term without a weight counts 0.
        failing_reward: reward of an episode that ended with an illegal (masked) action.
        chat_template: whether the prompt goes through the tokenizer's chat template.
        system: system message of the chat template, or None.
    """

    name: str = "task"
    weights: Mapping[str, float] = MappingProxyType({"correct": 1.0, "format": 0.0})
    failing_reward: float = 0.0
    chat_template: bool = False
    system: str | None = None

    def problem(self, rng: np.random.Generator, split: Split = "train") -> Problem:
        """Draw one problem of `split`; the same generator state gives the same problem."""
        raise NotImplementedError

    def score(self, problem: Problem, text: str) -> dict[str, float]:
        """Named, unweighted terms of a finished completion `text`, e.g. `{"correct": 1.0, "format": 1.0}`."""
        raise NotImplementedError

    def terms(self, problem: Problem, text: str, tokens: tuple[int, ...]) -> dict[str, float]:
        """What the environment asks for: `score`, for tasks that care about token ids given those too."""
        return self.score(problem, text)

    def reward(self, terms: Mapping[str, float]) -> float:
        """Σ weight · term."""
        return float(sum(self.weights.get(name, 0.0) * value for name, value in terms.items()))

    def is_success(self, terms: Mapping[str, float]) -> bool:
        """Whether the completion counts as solved: `correct` (or the reward, without such a term) reaches 1."""
        return bool(terms.get("correct", self.reward(terms)) >= 1.0)

    def reply(self, problem: Problem, text: str) -> str | None:
        """Text the task inserts after an EOS (state, but not the policy's choice); None ends the episode."""
        return None


class FunctionReward(Task):
    """A task whose score is a user's plain function `reward(problem, text, tokens) -> float | dict`."""

    def __init__(self, task: Task, function: Callable[[Problem, str, tuple[int, ...]], float | dict[str, float]]):
        self.task, self.function = task, function
        self.name, self.failing_reward = task.name, task.failing_reward
        self.chat_template, self.system = task.chat_template, task.system
        self.problem, self.reply = task.problem, task.reply  # type: ignore[method-assign]

    def terms(self, problem: Problem, text: str, tokens: tuple[int, ...]) -> dict[str, float]:
        """The function's value as terms; a bare number becomes the term `reward`."""
        value = self.function(problem, text, tokens)
        return dict(value) if isinstance(value, Mapping) else {"reward": value}

    def reward(self, terms: Mapping[str, float]) -> float:
        """Sum of the terms: weights are the function's own business."""
        return float(sum(terms.values()))


def split_of(prompt: str) -> Split:
    """The split a prompt belongs to: a stable hash sends one in ten to the test split.

    Membership depends on the prompt alone, so that a held-out problem cannot occur in training, whatever
    the seed or the task's options.
    """
    digest = hashlib.blake2b(prompt.encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "little") % 10 == 0 else "train"


def draw(make: Callable[[], Problem], split: str, tries: int = 10_000) -> Problem:
    """Draw from `make` until a problem of `split` comes (one in ten is a test problem).

    Raises:
        ValueError: `split` is unknown, or no such problem came in `tries` draws.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(map(repr, SPLITS))}, got {split!r}")
    for _ in range(tries):
        problem = make()
        if split_of(problem.prompt) == split:
            return problem
    raise ValueError(f"no problem of the {split!r} split in {tries} draws: the task has too few distinct prompts")


def well_formed(text: str) -> bool:
    """Whether `text` is an optional `<think>…</think>` followed by one `<answer>…</answer>` and nothing else."""
    return WELL_FORMED.fullmatch(text.strip()) is not None


def extract_answer(text: str) -> str:
    """The content of the last `<answer>` tag; without one, what follows `</think>`, stripped."""
    found = ANSWER.findall(text)
    return (found[-1] if found else text.rsplit("</think>", 1)[-1]).strip()
