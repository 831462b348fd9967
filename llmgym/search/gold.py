"""Values that no policy can know: one from the solutions of a problem, and one that knows nothing, for comparison."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache

import numpy as np

from llmgym.tasks import Problem
from llmgym.tasks.countdown import evaluate, read_puzzle
from llmgym.text import TextMDP, TextState

OPEN, CLOSE = "<answer>", "</answer>"


class GoldValue:
    """1 while the answer that is being written can still become a right one, else 0.

    That is the optimal value among texts with one answer, its spelling among those of `solutions`. Before the tag
    `<answer>` every text is worth 1: whatever has been thought, a right answer may follow.

    Args:
        mdp: the rules.
        solutions: problem -> right answers, as text; the gold answer alone by default.
    """

    def __init__(self, mdp: TextMDP, solutions: Callable[[Problem], Iterable[str]] | None = None):
        self.mdp = mdp
        self.solutions = cache(solutions or (lambda problem: (problem.answer,)))

    def __call__(self, states: Sequence[TextState]) -> np.ndarray:
        """n states -> float64 [n]."""
        return np.array([self._value(state) for state in states], np.float64)

    def _value(self, state: TextState) -> float:
        _, tag, answer = self.mdp.text(state).partition(OPEN)
        return float(
            not tag or any((solution + CLOSE).startswith(answer) for solution in self.solutions(state.problem))
        )


class NoiseValue:
    """A number in [0, 1) that has nothing to do with the state, but is always the same for it: the weakest value.

    Args:
        seed: of the numbers.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed

    def __call__(self, states: Sequence[TextState]) -> np.ndarray:
        """n states -> float64 [n]."""
        return np.array([np.random.default_rng((self.seed, *state.tokens)).random() for state in states])


def countdown_solutions(problem: Problem) -> tuple[str, ...]:
    """Every expression over at most three of the numbers that reaches the target, without needless parentheses."""
    numbers, target = read_puzzle(problem)
    found = dict.fromkeys(text for n in (2, 3) for part in itertools.permutations(numbers, n) for text in _spelt(part))
    return tuple(text for text in found if evaluate(text, numbers) == target)


def _spelt(numbers: tuple[int, ...]) -> Iterator[str]:
    """Expressions with the numbers in this order."""
    if len(numbers) == 2:
        yield from (f"{numbers[0]}{op}{numbers[1]}" for op in "+-*/")
        return
    a, b, c = numbers
    for first, second in itertools.product("+-*/", repeat=2):
        yield f"{a}{first}{b}{second}{c}"
        if second in "*/" and first in "+-":
            yield f"({a}{first}{b}){second}{c}"
        if first != "+" and (first in "*/" or second in "+-"):
            yield f"{a}{first}({b}{second}{c})"
