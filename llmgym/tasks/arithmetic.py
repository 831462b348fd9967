"""Sums, differences and products of whole numbers: `147+268=`, the default task."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from llmgym.tasks.base import Problem, Split, Task, check_int, draw, extract_answer, well_formed

MAX_DIGITS = 18  # operands fit in 64 bits
MAX_CHARS = 1_000  # of a number; int() of longer strings is slow, and refused by Python from 4,300 digits
_UNSIGNED = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
_NUMBER = re.compile(rf"[-+]?{_UNSIGNED}")
_IN_PROSE = re.compile(rf"(?:(?<![0-9)])-)?(?<![0-9]){_UNSIGNED}")  # the minus of 3-2 is no sign


def read_number(text: str) -> int | Fraction | None:
    """The exact value of `415`, `-3`, `+0.50` or `1,234`; None for anything else."""
    text = text.strip().replace("\N{MINUS SIGN}", "-")
    if len(text) > MAX_CHARS or not _NUMBER.fullmatch(text):
        return None
    text = text.replace(",", "")
    return Fraction(text) if "." in text else int(text)


def last_number(text: str) -> int | Fraction | None:
    """The value of the last number in prose: 415 of `so 147+268 is 415.`"""
    found = _IN_PROSE.findall(text.replace("\N{MINUS SIGN}", "-"))
    return read_number(found[-1].rstrip(".")) if found else None


def same_number(text: str, answer: str) -> bool:
    """Whether a completion has the value of `answer`: inside its tags, or in its last number without tags."""
    given = extract_answer(text)
    number = read_number(given)
    if number is None and "<answer>" not in text:
        number = last_number(given)
    return number is not None and number == read_number(answer)


class Arithmetic(Task):
    """Two operands and an operator, `147+268=`; the answer is a whole number, `415`.

    Operands are uniform on the whole numbers of `min_digits` to `digits` digits, operators on `operators`.
    Numbers are compared as numbers (`0415` and `415.0` are right).

    Args:
        digits: digits of the largest operand, in [1, 18].
        operators: any of `+`, `-`, `*`; differences may be negative.
        min_digits: digits of the smallest operand; None means `digits` (three digits: 100 to 999).
        weights: weights of the terms `correct` and `format` in the reward; None means 1 and 0.
        chat_template: whether the prompt goes through the tokenizer's chat template.
        system: system message of the chat template.
    """

    name = "arithmetic"

    def __init__(
        self,
        digits: int = 3,
        operators: str = "+",
        min_digits: int | None = None,
        *,
        weights: Mapping[str, float] | None = None,
        chat_template: bool = False,
        system: str | None = None,
    ):
        self.configure(weights, chat_template, system)
        self.digits = check_int("digits", digits, 1, MAX_DIGITS)
        self.min_digits = check_int("min_digits", digits if min_digits is None else min_digits, 1, digits)
        self.operators = check_operators(operators, "+-*")
        self._low = 10 ** (self.min_digits - 1) if self.min_digits > 1 else 0
        self._high = 10**self.digits

    def problem(self, rng: np.random.Generator, split: Split = "train") -> Problem:
        """`a+b=` with its value."""
        return draw(lambda: self._make(rng), split)

    def _make(self, rng: np.random.Generator) -> Problem:
        a, b = int(rng.integers(self._low, self._high)), int(rng.integers(self._low, self._high))
        operator = self.operators
        if len(operator) > 1:  # drawing is most of the time this function takes
            operator = operator[int(rng.integers(len(operator)))]
        value = a + b if operator == "+" else a - b if operator == "-" else a * b
        return Problem(f"{a}{operator}{b}=", str(value))

    def score(self, problem: Problem, text: str) -> dict[str, float]:
        """`correct`: the answer has the gold value; `format`: the completion is well formed."""
        correct = extract_answer(text) == problem.answer or same_number(text, problem.answer)
        return {"correct": float(correct), "format": float(well_formed(text))}


def check_operators(operators: str, allowed: str) -> str:
    """`operators` if it is a non-empty string of distinct characters of `allowed`."""
    known = isinstance(operators, str) and operators and set(operators) <= set(allowed)
    if not known or len(set(operators)) < len(operators):
        raise ValueError(f"operators must be one or more of {' '.join(allowed)}, each once, got {operators!r}")
    return operators
