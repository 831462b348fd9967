"""Countdown: reach a number with given numbers, `countdown 3 7 25 -> 46=`."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from llmgym.tasks.arithmetic import check_operators
from llmgym.tasks.base import Problem, Split, Task, check_int, draw, extract_answer, well_formed

MAX_CHARS = 200  # of an answer: ten times what six numbers need
_LEGAL = re.compile(rf"[-+*/() 0-9]{{1,{MAX_CHARS}}}")
_PROMPT = re.compile(r"countdown ((?:[0-9]+ )+)-> ([0-9]+)=")
_VALUE = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
_TRIES = 1_000
Term = tuple[int, str, int]  # value, expression, precedence of its outermost operator (3: a number)


def evaluate(expression: str, numbers: Sequence[int]) -> Fraction | None:
    """The exact value of an expression that uses each of `numbers` at most once, or None if it is not one.

    Allowed are `+ - * /` between two operands, parentheses, spaces and the given numbers; `/` is exact
    division (7/2*4 is 14). There are no signs, powers or other numbers, and an expression has at most 200
    characters, so that hostile text costs no more than an honest answer.
    """
    if not _LEGAL.fullmatch(expression):
        return None
    try:
        return _evaluate(ast.parse(expression.strip(), mode="eval").body, list(numbers))
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _evaluate(node: Any, left: list[int]) -> Fraction:
    """Value of a syntax tree; the numbers it uses are taken out of `left`."""
    match node:
        case ast.BinOp(left=a, op=op, right=b) if type(op) in _VALUE:
            return _VALUE[type(op)](_evaluate(a, left), _evaluate(b, left))
        case ast.Constant(value=int() as number):
            left.remove(number)  # ValueError: not given, or used already
            return Fraction(number)
    raise ValueError(f"{type(node).__name__} is not allowed")


def read_puzzle(problem: Problem) -> tuple[tuple[int, ...], int]:
    """The given numbers and the target, from the prompt."""
    found = _PROMPT.fullmatch(problem.prompt)
    if found is None:
        raise ValueError(f"a countdown prompt reads like 'countdown 3 7 25 -> 46=', got {problem.prompt!r}")
    return tuple(int(n) for n in found[1].split()), int(found[2])


class Countdown(Task):
    """Reach the target with the given numbers: `countdown 3 7 25 -> 46=`, answer `25+3*7`.

    Every problem is made from a random expression over all its numbers, so it has a solution; the gold answer
    is that one. Intermediate values are whole numbers in [1, max_target]; the target is none of the numbers.
    The scorer takes any expression over + - * / and parentheses that uses each given number at most once and
    has the target as its exact value, whichever `operators` made the problem.

    Args:
        n_numbers: how many numbers are given, in [2, 6].
        max_number: largest given number; the numbers are uniform on [1, max_number], repeats allowed.
        operators: operators of the expressions that make problems, any of `+ - * /`.
        max_target: largest target.
        weights: weights of the terms `correct` and `format` in the reward; None means 1 and 0.
        chat_template: whether the prompt goes through the tokenizer's chat template.
        system: system message of the chat template.
    """

    name = "countdown"

    def __init__(
        self,
        n_numbers: int = 3,
        max_number: int = 25,
        operators: str = "+-*",
        max_target: int = 999,
        *,
        weights: Mapping[str, float] | None = None,
        chat_template: bool = False,
        system: str | None = None,
    ):
        self.configure(weights, chat_template, system)
        self.n_numbers = check_int("n_numbers", n_numbers, 2, 6)
        self.max_number = check_int("max_number", max_number, 2, 10_000)
        self.operators = check_operators(operators, "+-*/")
        self.max_target = check_int("max_target", max_target, 1, 1_000_000)

    def problem(self, rng: np.random.Generator, split: Split = "train") -> Problem:
        """`countdown n n n -> target=` with one solution; `data` holds `numbers` and `target`."""
        return draw(lambda: self._make(rng), split)

    def _make(self, rng: np.random.Generator) -> Problem:
        for _ in range(_TRIES):
            numbers = tuple(rng.integers(1, self.max_number + 1, size=self.n_numbers).tolist())
            solved = self._combine(rng, [(n, str(n), 3) for n in numbers])
            if solved and solved[0] not in numbers:
                data = {"numbers": numbers, "target": solved[0]}
                return Problem(f"countdown {' '.join(map(str, numbers))} -> {solved[0]}=", solved[1], data)
        raise ValueError(
            f"no countdown problem found in {_TRIES} draws with n_numbers={self.n_numbers}, "
            f"max_number={self.max_number}, operators={self.operators!r}, max_target={self.max_target}"
        )

    def _combine(self, rng: np.random.Generator, terms: list[Term]) -> Term | None:
        """Join two random terms by a random operator until one is left; None at a dead end."""
        while len(terms) > 1:
            pair = [terms.pop(int(rng.integers(len(terms)))) for _ in range(2)]
            a, b = sorted(pair, reverse=True)  # the larger first, so that a difference is positive
            values = {op: _whole(a[0], op, b[0]) for op in self.operators}
            legal = [op for op, value in values.items() if 1 <= value <= self.max_target]
            if not legal:
                return None
            op = legal[int(rng.integers(len(legal)))]
            terms.append(_join(a, op, b, values[op]))
        return terms[0]

    def score(self, problem: Problem, text: str) -> dict[str, float]:
        """`correct`: an expression over the given numbers that reaches the target; `format`: well formed."""
        numbers, target = read_puzzle(problem)
        correct = evaluate(extract_answer(text), numbers) == target
        return {"correct": float(correct), "format": float(well_formed(text))}


def _whole(a: int, op: str, b: int) -> int:
    """a op b for positive whole numbers; 0 for a quotient that is none."""
    if op == "/":
        return a // b if a % b == 0 else 0
    return a + b if op == "+" else a - b if op == "-" else a * b


def _join(a: Term, op: str, b: Term, value: int) -> Term:
    """The term `a op b`, with parentheses where they are needed."""
    rank = _PRECEDENCE[op]
    left = f"({a[1]})" if a[2] < rank else a[1]
    right = f"({b[1]})" if b[2] < rank or (b[2] == rank and op in "-/") else b[1]
    return value, f"{left}{op}{right}", rank
