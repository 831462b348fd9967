"""Copy, reverse and sort a word of random letters: `sort dbca=` -> `abcd`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llmgym.tasks.base import Problem, Split, Task, check_int, draw, extract_answer, well_formed

MAX_LENGTH = 1_000


class WordTask(Task):
    """A word of letters a to z, its length uniform in [min_length, max_length], and what to make of it.

    Args:
        min_length: fewest letters, at least 1.
        max_length: most letters, at most 1,000.
        weights: weights of the terms `correct` and `format` in the reward; None means 1 and 0.
        chat_template: whether the prompt goes through the tokenizer's chat template.
        system: system message of the chat template.
    """

    def __init__(
        self,
        min_length: int = 3,
        max_length: int = 8,
        *,
        weights: Mapping[str, float] | None = None,
        chat_template: bool = False,
        system: str | None = None,
    ):
        self.configure(weights, chat_template, system)
        self.max_length = check_int("max_length", max_length, 1, MAX_LENGTH)
        self.min_length = check_int("min_length", min_length, 1, self.max_length)

    def answer(self, word: str) -> str:
        """What the task makes of `word`."""
        raise NotImplementedError

    def problem(self, rng: np.random.Generator, split: Split = "train") -> Problem:
        """`NAME word=` with its answer."""
        return draw(lambda: self._make(rng), split)

    def _make(self, rng: np.random.Generator) -> Problem:
        length = rng.integers(self.min_length, self.max_length + 1)
        word = rng.integers(ord("a"), ord("z") + 1, size=length, dtype=np.uint8).tobytes().decode()
        return Problem(f"{self.name} {word}=", self.answer(word))

    def score(self, problem: Problem, text: str) -> dict[str, float]:
        """`correct`: exactly the gold answer; `format`: the completion is well formed."""
        correct = extract_answer(text) == problem.answer
        return {"correct": float(correct), "format": float(well_formed(text))}


class Copy(WordTask):
    """`copy dbca=` -> `dbca`; the arguments are those of `WordTask`."""

    name = "copy"

    def answer(self, word: str) -> str:
        """The word itself."""
        return word


class Reverse(WordTask):
    """`reverse dbca=` -> `acbd`; the arguments are those of `WordTask`."""

    name = "reverse"

    def answer(self, word: str) -> str:
        """The word backwards."""
        return word[::-1]


class Sort(WordTask):
    """`sort dbca=` -> `abcd`; the arguments are those of `WordTask`."""

    name = "sort"

    def answer(self, word: str) -> str:
        """The letters in alphabetical order."""
        return "".join(sorted(word))
