"""Every generator of reasoning-gym as a task (extra `tasks`): `make_task("reasoning_gym", dataset="maze")`."""

from __future__ import annotations

import ast
import dataclasses
import math
import random
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import numpy as np

from llmgym.tasks.base import Problem, Split, Task, draw, extract_answer, well_formed

SIZE = 1_000_000  # items of a data set; item i is made from seed + i when it is asked for
SIZES = {
    "acre": 5_000,
    "composite": 5_000,
    "word_ladder": 20_000,
}  # all made at once, or limited by the library
MAX_CHARS = 10_000  # of an answer; the longest gold answers have 5,500
MAX_FORMULA = 1_000  # characters of an answer that is a formula
MAX_POWER = 50.0  # exponents of such an answer, nested ones multiplied
_GLOBALS = threading.Lock()

# What costs for ever in float-like parsers (1e999999999), or equals everything (NaN).
_POISON = re.compile(r"(?<![a-z])(?:nan|inf|infinity)(?![a-ik-z])|[\d.]e[-+]?[\d_]{4,}", re.IGNORECASE)
# Scorers that give the answer to eval() or to sympy, which calls eval().
_EVALUATED = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})
_NUMERIC = frozenset({"countdown", "puzzle24"})
_SYMBOLIC = frozenset({"intermediate_integration", "polynomial_multiplication", "simple_integration"})
_SUM = re.compile(r"(?!.*\*\s*\*)[-+*/().0-9\s]{1,200}", re.DOTALL)
_FUNCTIONS = re.compile(r"a?(?:sin|cos|tan)h?|sec|csc|cot|exp|log|ln|sqrt|Abs|erfi?")
# What an answer must fulfil besides where reasoning-gym 0.1.25 gives full marks for nothing: any non-empty
# text is a right answer of game_of_life_halting, and 6*4*1*1 of puzzle24 whatever the numbers are.
_STRICTER: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "game_of_life_halting": lambda answer, entry: answer == entry["answer"],
    "puzzle24": lambda answer, entry: (
        sorted(re.findall(r"[0-9]+", answer)) == sorted(map(str, entry["metadata"]["numbers"]))
    ),
}


class ReasoningGym(Task):
    """A reasoning-gym data set: its questions, and its own `score_answer` as the term `correct`, in [0, 1].

    A problem is item i of the data set, i uniform on [0, size); its split is the hash of its question. Many
    data sets give marks for part of an answer; only 1.0 is a success. `problem.data["entry"]` is the item, with
    its metadata; `problem.answer` is empty where there is no gold answer (boxnet, graph_color,
    propositional_logic, rubiks_cube, rush_hour: any solution counts).

    Answers that could run code, never end or are right by being NaN score 0 before the library sees them: three
    families of its scorers give the model's text to `eval`. An exception that only the answer explains scores 0
    too; if the scorer also fails on the gold answer, the exception propagates. What sympy spends on the
    formula of an integral has no bound (seconds are common). The items of isomorphic_strings,
    knight_swap, polynomial_multiplication, ransom_note and word_ladder depend on PYTHONHASHSEED.

    Args:
        dataset: name of the data set.
        weights: weights of the terms `correct` and `format` in the reward; None means 1 and 0.
        chat_template: whether the prompt goes through the tokenizer's chat template.
        system: system message of the chat template.
        **config: fields of the data set's own config, checked against it; `seed` is 0 and `size` 1,000,000 (5,000
            for acre and composite, 20,000 for word_ladder) unless given.

    Raises:
        ValueError: reasoning-gym is not installed, or the name or a field of the config is unusable.
    """

    def __init__(
        self,
        dataset: str = "chain_sum",
        *,
        weights: Mapping[str, float] | None = None,
        chat_template: bool = False,
        system: str | None = None,
        **config: Any,
    ):
        self.configure(weights, chat_template, system)
        self.name = f"reasoning_gym/{dataset}"
        self.dataset = make_dataset(dataset, {"seed": 0, "size": SIZES.get(str(dataset), SIZE), **config})

    def problem(self, rng: np.random.Generator, split: Split = "train") -> Problem:
        """One item; the same generator state gives the same item."""
        return draw(lambda: self._make(int(rng.integers(len(self.dataset)))), split)

    def _make(self, index: int) -> Problem:
        with _global_randomness(index):
            entry = self.dataset[index]
        return Problem(entry["question"], entry["answer"] or "", {"entry": entry})

    def score(self, problem: Problem, text: str) -> dict[str, float]:
        """`correct`: the data set's own score; `format`: the completion is well formed."""
        entry = problem.data["entry"]
        correct = self._score_answer(extract_answer(text), entry)
        return {"correct": correct, "format": float(well_formed(text))}

    def _score_answer(self, answer: str, entry: Mapping[str, Any]) -> float:
        gold = entry["answer"] or ""
        if answer != gold and not acceptable(answer, entry):
            return 0.0
        copy = {**entry, "metadata": dict(entry["metadata"])}  # some scorers write into it
        try:
            value = float(self.dataset.score_answer(answer, copy))
        except Exception:
            self.dataset.score_answer(gold, copy)  # fails too if it was not the answer's fault
            return 0.0
        return value if math.isfinite(value) else 0.0


def acceptable(answer: str, entry: Mapping[str, Any]) -> bool:
    """Whether the data set's scorer may see `answer`: it is harmless, and right in what the scorer overlooks."""
    name = entry["metadata"].get("source_dataset")
    if len(answer) > MAX_CHARS or (_POISON.search(answer) and not _POISON.search(entry["answer"] or "")):
        return False
    if name in _EVALUATED and not is_literal(answer):
        return False
    if name in _NUMERIC and not _SUM.fullmatch(answer):
        return False
    if name in _SYMBOLIC and not is_formula(answer):
        return False
    return name not in _STRICTER or _STRICTER[name](answer, entry)


def is_literal(text: str) -> bool:
    """Whether `eval(text)` gives a literal such as a list of numbers, or is a syntax error."""
    try:
        ast.literal_eval(ast.parse(text.strip(), mode="eval"))
    except SyntaxError:
        return True
    except (ValueError, TypeError, RecursionError, MemoryError):
        return False  # eval() may get further than the parser of syntax trees
    return True


def is_formula(text: str) -> bool:
    """Whether `text` is made of numbers, names, + - * / **, parentheses and common functions, its powers small."""
    if len(text) > MAX_FORMULA:
        return False
    try:
        _magnitude(ast.parse(text, mode="eval").body, MAX_POWER)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        return False
    return True


def _magnitude(node: Any, limit: float) -> float:
    """A bound, at least 1, on the size of a formula whose names are 1.

    Nested exponents multiply to `limit` at most; within an exponent (limit 0) there are no powers, and division
    is by whole numbers only.

    Raises:
        ValueError: the formula is not harmless.
    """
    match node:
        case ast.Constant(value=int() | float() as number) if abs(number) <= 1e30:
            return max(1.0, abs(float(number)))
        case ast.Name(id=name) if "_" not in name:
            return 1.0
        case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=a):
            return _magnitude(a, limit)
        case ast.BinOp(left=a, op=ast.Add() | ast.Sub(), right=b):
            return _magnitude(a, limit) + _magnitude(b, limit)
        case ast.BinOp(left=a, op=ast.Div(), right=ast.Constant(value=int() as n)):
            return max(1.0, _magnitude(a, limit) / max(1, n))
        case ast.BinOp(left=a, op=ast.Mult() | ast.Div() as op, right=b) if limit or isinstance(op, ast.Mult):
            return _magnitude(a, limit) * _magnitude(b, limit)
        case ast.BinOp(left=a, op=ast.Pow(), right=b) if (power := _magnitude(b, 0.0)) <= limit:
            return _magnitude(a, limit / power) ** power
        case ast.Call(func=ast.Name(id=name), args=[a], keywords=[]) if _FUNCTIONS.fullmatch(name):
            return _magnitude(a, limit)
    raise ValueError(f"{type(node).__name__} is not allowed")


@contextmanager
def _global_randomness(seed: int) -> Iterator[None]:
    """Some generators draw from the global `random` or seed `np.random`: here both are ours, then the caller's."""
    with _GLOBALS:
        states = random.getstate(), np.random.get_state()
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def make_dataset(name: str, config: dict[str, Any]) -> Any:
    """The reasoning-gym data set `name`, its config checked."""
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError:
        raise ValueError('reasoning_gym tasks need the package: pip install -e ".[tasks]"') from None
    if name not in DATASETS:
        close = get_close_matches(str(name), DATASETS, n=5, cutoff=0.4) or sorted(DATASETS)
        raise ValueError(f"unknown reasoning-gym data set {name!r}: choose one such as {', '.join(close)}")
    fields = [field.name for field in dataclasses.fields(DATASETS[name][1])]
    for key in config:
        if key not in fields:
            raise ValueError(f"{name} has no option {key!r}: it has {', '.join(fields)}")
    if name == "composite":
        config = {**config, "datasets": _specs(config.get("datasets"))}
    try:
        return create_dataset(name, **config)
    except (AssertionError, ValueError, TypeError) as error:
        raise ValueError(f"{name} cannot be made with {config}: {error}") from error


def _specs(datasets: Any) -> Any:
    """The parts of a composite from mappings such as {"name": "maze", "weight": 2, "config": {}}."""
    from reasoning_gym.composite import DatasetSpec

    if not isinstance(datasets, list | tuple) or not datasets:
        raise ValueError(f'composite needs datasets=[{{"name": "maze"}}, ...], got {datasets!r}')
    specs = []
    for part in datasets:
        try:
            specs.append(DatasetSpec(**{"weight": 1.0, "config": {}, **part}) if isinstance(part, Mapping) else part)
        except TypeError:
            raise ValueError(f"a part of composite has the keys name, weight and config, got {part!r}") from None
    return specs
