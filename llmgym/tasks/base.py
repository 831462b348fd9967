"""What a task is: problems with gold answers, and the scorer that lives beside them."""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

Split = Literal["train", "test"]
SPLITS = ("train", "test")

_NO_TAG = r"[^<]*(?:<(?!/?think>|/?answer>)[^<]*)*"  # linear in the length; a < that opens no tag is text
WELL_FORMED = re.compile(rf"(?:<think>{_NO_TAG}</think>)?<answer>{_NO_TAG}</answer>")


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

    def configure(
        self, weights: Mapping[str, float] | None = None, chat_template: bool = False, system: str | None = None
    ) -> None:
        """Check and set the options that every task has; `weights` takes the place of the default weights."""
        if weights is not None:
            self.weights = check_weights(weights, self.weights)
        if not isinstance(chat_template, bool):
            raise ValueError(f"chat_template must be True or False, got {chat_template!r}")
        if system is not None and not (isinstance(system, str) and chat_template):
            raise ValueError(f"system must be a string, beside chat_template=True, or None, got {system!r}")
        self.chat_template, self.system = chat_template, system

    def problem(self, rng: np.random.Generator, split: Split = "train") -> Problem:
        """Draw one problem of `split`; the same generator state gives the same problem."""
        raise NotImplementedError

    def score(self, problem: Problem, text: str) -> dict[str, float]:
        """Named, unweighted terms of a finished completion `text`, e.g. `{"correct": 1.0, "format": 1.0}`."""
        raise NotImplementedError

    def terms(self, problem: Problem, text: str, tokens: tuple[int, ...]) -> dict[str, float]:
        """What the environment asks for: `score`, for tasks that care about token ids given those too."""
        return self.score(problem, text)

    def terms_many(
        self, problems: Sequence[Problem], texts: Sequence[str], tokens: Sequence[tuple[int, ...]]
    ) -> Sequence[Any] | None:
        """`terms` of many completions in one call, for scorers that are faster so; None: they are asked one by one.

        In place of a row's terms may stand the exception that this row alone raised.
        """
        return None

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
    """A task whose score is a user's plain function `reward(problem, text, tokens) -> float | dict`.

    A function that has a method `many(problems, texts, tokens)` is asked for all rows that end together in one call
    of it; it returns a value a row.
    """

    def __init__(self, task: Task, function: Callable[[Problem, str, tuple[int, ...]], float | dict[str, float]]):
        self.task, self.function = task, function
        self.name, self.failing_reward = task.name, task.failing_reward
        self.chat_template, self.system = task.chat_template, task.system
        self.problem, self.reply = task.problem, task.reply  # type: ignore[method-assign]

    def terms(self, problem: Problem, text: str, tokens: tuple[int, ...]) -> dict[str, float]:
        """The function's value as terms; a bare number becomes the term `reward`."""
        return _as_terms(self.function(problem, text, tokens))

    def terms_many(
        self, problems: Sequence[Problem], texts: Sequence[str], tokens: Sequence[tuple[int, ...]]
    ) -> Sequence[Any] | None:
        """What the function's `many` gives, as terms; None without one."""
        many = getattr(self.function, "many", None)
        return None if many is None else [_as_terms(value) for value in many(problems, texts, tokens)]

    def reward(self, terms: Mapping[str, float]) -> float:
        """Sum of the terms: weights are the function's own business."""
        return float(sum(terms.values()))


def terms_of_many(
    task: Task, problems: Sequence[Problem], texts: Sequence[str], tokens: Sequence[tuple[int, ...]]
) -> list[Any]:
    """What the task says of each completion, or the exception that this row raised; in one call where the task can.

    Where that call fails every row is asked by itself, with a warning: one bad row must not cost the others.
    """
    try:
        found = task.terms_many(problems, texts, tokens)
        if found is not None and len(found) != len(texts):
            raise ValueError(f"{len(found)} values for {len(texts)} completions")
    except Exception as error:
        sentence = f"{len(texts)} completions are scored one by one: {type(error).__name__}: {error}"
        warnings.warn(sentence, RuntimeWarning, stacklevel=2)
        found = None
    rows = zip(problems, texts, tokens, strict=True)
    return list(found) if found is not None else [_terms_or_error(task, *row) for row in rows]


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
    """The content of the last complete `<answer>` tag; without one, what follows `</think>`; stripped.

    Reasoning that never ends holds no answer: after an unclosed `<think>` the answer is empty.
    """
    start = text.rfind("<answer>", 0, max(text.rfind("</answer>"), 0))  # linear, whatever the text
    if start >= 0:
        return text[start + len("<answer>") : text.index("</answer>", start)].strip()
    return text.rsplit("</think>", 1)[-1].split("<think>", 1)[0].strip()


def _terms_or_error(task: Task, *row: Any) -> Any:
    try:
        return task.terms(*row)
    except Exception as error:  # a user's scorer may raise anything; what becomes of it is the caller's business
        return error


def _as_terms(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {"reward": value}


def check_int(name: str, value: Any, low: int, high: int) -> int:
    """`value` as an int in [low, high], or a sentence that says so."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise ValueError(f"{name} must be an integer in [{low}, {high}], got {value!r}")
    return int(value)


def check_weights(weights: Any, terms: Iterable[str] | None) -> dict[str, float]:
    """`weights` as finite floats whose names are among `terms` (None: any name)."""
    if not isinstance(weights, Mapping):
        raise ValueError(f"weights must map names of terms to numbers, got {weights!r}")
    known = None if terms is None else sorted(terms)
    for name, value in weights.items():
        if known is not None and name not in known:
            raise ValueError(f"weights name the unknown term {name!r}: the terms are {', '.join(known)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"the weight of {name!r} must be a finite number, got {value!r}")
    return {name: float(value) for name, value in weights.items()}
