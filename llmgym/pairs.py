"""The types of preference data: two completions still to be compared, and two of which one is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from llmgym.rows import check_text, short
from llmgym.tasks.base import Problem

Label = Literal["first", "second", "skip"]
LABELS: tuple[str, ...] = get_args(Label)


@dataclass(frozen=True)
class Pair:
    """Two completions of one problem, still to be compared. Completions are texts without special tokens.

    Attributes:
        problem: what was asked.
        first, second: the two texts: not empty, not equal.
        first_finished, second_finished: whether EOS follows the text; False where it ran out of its budget.

    Raises:
        ValueError: a field is not what it should be, or the texts are equal.
    """

    problem: Problem
    first: str
    second: str
    first_finished: bool = True
    second_finished: bool = True

    def __post_init__(self):
        if not isinstance(self.problem, Problem):
            raise ValueError(f"problem must be a Problem, got {short(self.problem)}")
        check_problem(self.problem.prompt, self.problem.answer, self.problem.data)
        _check_texts({"first": self.first, "second": self.second})
        _check_flags({"first_finished": self.first_finished, "second_finished": self.second_finished})

    @property
    def key(self) -> tuple[str, str, str]:
        """What the pair is known by: the prompt and the two texts, in either order."""
        return self.problem.prompt, *sorted((self.first, self.second))  # type: ignore[return-value]

    def preference(self, label: Label) -> Preference | None:
        """What `label` makes of the pair: None for "skip".

        Raises:
            ValueError: there is no such label.
        """
        if check_label(label) == "skip":
            return None
        better, worse = (self.first, self.first_finished), (self.second, self.second_finished)
        if label == "second":
            better, worse = worse, better
        problem = self.problem
        return Preference(problem.prompt, better[0], worse[0], better[1], worse[1], problem.answer, problem.data)


@dataclass(frozen=True)
class Preference:
    """Two completions of one prompt, the better one first. Completions are texts without special tokens.

    Attributes:
        prompt: what the model reads, without any chat template.
        chosen, rejected: the two texts: not empty, not equal.
        chosen_finished, rejected_finished: whether EOS follows the text; False where it ran out of its budget.
        answer: the problem's gold answer, if it has one.
        data: whatever else the problem holds; not part of equality or hash.

    Raises:
        ValueError: a field is not what it should be, or the texts are equal.
    """

    prompt: str
    chosen: str
    rejected: str
    chosen_finished: bool = True
    rejected_finished: bool = True
    answer: str = ""
    data: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False, repr=False)

    def __post_init__(self):
        check_problem(self.prompt, self.answer, self.data)
        _check_texts({"chosen": self.chosen, "rejected": self.rejected})
        _check_flags({"chosen_finished": self.chosen_finished, "rejected_finished": self.rejected_finished})

    @property
    def problem(self) -> Problem:
        """What was asked, as environments and scorers take it."""
        return Problem(self.prompt, self.answer, self.data)


def check_label(label: Any) -> Label:
    """`label`, if it is one."""
    if not isinstance(label, str) or label not in LABELS:
        raise ValueError(f"label must be one of {', '.join(map(repr, LABELS))}, got {short(label)}")
    return label  # type: ignore[return-value]


def check_problem(prompt: Any, answer: Any, data: Any) -> None:
    """Refuse fields that no `Problem` of text can have."""
    check_text("prompt", prompt)
    check_text("answer", answer, may_be_empty=True)
    if not isinstance(data, Mapping):
        raise ValueError(f"data must be an object with keys, got {short(data)}")


def _check_texts(texts: Mapping[str, Any]) -> None:
    for name, text in texts.items():
        check_text(name, text)
    if len(set(texts.values())) == 1:
        raise ValueError(f"{' and '.join(texts)} are the same text, {short(next(iter(texts.values())))}")


def _check_flags(flags: Mapping[str, Any]) -> None:
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {short(value)}")
