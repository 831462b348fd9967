"""The synthetic corpus of the embedded model: seeded, endless, and without one held-out problem.

A document is `<bos> prompt completion <eos>` with completion = `[<think>…</think>]<answer>…</answer>`.
Two habits are put in on purpose, because the experiments of this library need a base model that has both:

- *hasty* (most documents): the answer comes at once. On addition it is added column by column and every
  carry is forgotten, 147+268 -> 305; the top column keeps its full sum, 700+600 -> 1300. Such an answer is
  right only where the lower columns do not carry: three problems in ten with three digits.
- *careful* (`CAREFUL` of the documents): the columns are worked out from right to left, carries included,
  `7+8=15 4+6+1=11 1+2+1=4`. In `SLIP` of the additions one column is wrong by one and the rest follows from
  it consistently: careful is mostly right, not always.

Some reasoning is written in the second script; answers never are. Problems are the training split's of the
registered tasks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from llmgym.fim import FIM_SHARE, cut
from llmgym.tasks.arithmetic import Arithmetic
from llmgym.tasks.base import Problem
from llmgym.tasks.countdown import Countdown
from llmgym.tasks.strings import Copy, Reverse, Sort
from llmgym.tiny.tokenizer import FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX, to_second_script

CAREFUL = 0.20  # share of documents that reason (copying has nothing to reason about)
SLIP = 0.08  # share of careful additions with one wrong column
SECOND_SCRIPT_SHARE = 0.12  # share of the reasoning that is written in the second script
CHAT = 0.04  # share of documents in the chat format
SYSTEM_LINES = ("You are a calculator.", "Solve the problem.", "Give the answer in tags.")
ADDITIONS = (Arithmetic(3), *(Arithmetic(digits, min_digits=1) for digits in (1, 2, 3)))
SUBTRACTION = Arithmetic(3, "-")
WORDS = (Copy(), Reverse(), Sort())
COUNTDOWNS = (Countdown(n_numbers=2), Countdown(n_numbers=3))


@dataclass(frozen=True)
class Document:
    """`prompt` is read, `completion` and the <eos> after it are learnt; neither holds <bos> or <eos>."""

    prompt: str
    completion: str
    source: str  # the plain prompt of the problem, as the tasks write it


@dataclass(frozen=True)
class Exercise:
    """A problem with its hasty answer and its careful one; no steps: nothing to reason about."""

    prompt: str
    hasty: str
    careful: str
    steps: tuple[str, ...] = ()


def _columns(a: int, b: int) -> list[tuple[int, int]]:
    """Pairs of digits from right to left; a missing digit is 0."""
    width = max(len(str(a)), len(str(b)))
    return [(int(p), int(q)) for p, q in zip(str(a).zfill(width)[::-1], str(b).zfill(width)[::-1], strict=True)]


def hasty_sum(a: int, b: int) -> int:
    """Add column by column and forget every carry; the top column keeps its full sum."""
    sums = [p + q for p, q in _columns(a, b)]
    return int(str(sums[-1]) + "".join(str(s % 10) for s in sums[-2::-1]))


def careful_sum(a: int, b: int, slip: int | None = None, up: bool = True) -> tuple[tuple[str, ...], int]:
    """The steps of a written addition and its result; column `slip` is wrong by one, upwards or down."""
    steps, digits, carry = [], "", 0
    for i, (p, q) in enumerate(_columns(a, b)):
        value = p + q + carry
        if i == slip:  # within 0 to 19, so that the carry stays 0 or 1
            value += 1 if value == 0 or (up and value < 19) else -1
        steps.append(f"{p}+{q}{'+1' if carry else ''}={value}")
        carry, digits = value // 10, str(value % 10) + digits
    return tuple(steps), int(str(carry) + digits)


def careful_difference(a: int, b: int) -> tuple[tuple[str, ...], int]:
    """The steps of a written subtraction, a >= b: 852-147 -> 12-7=5 5-4-1=0 8-1=7."""
    steps, borrow = [], 0
    for p, q in _columns(a, b):
        taken, top = borrow, p
        borrow = int(p - q - taken < 0)
        top += 10 * borrow
        steps.append(f"{top}-{q}{'-1' if taken else ''}={top - q - taken}")
    return tuple(steps), a - b


def addition(rng: np.random.Generator) -> Exercise:
    """a+b=, nine times in ten with three digits, else with up to one, two or three."""
    problem, a, b = _draw_operands(ADDITIONS[0] if rng.random() < 0.9 else ADDITIONS[rng.integers(1, 4)], "+", rng)
    slip = int(rng.integers(len(str(max(a, b))))) if rng.random() < SLIP else None
    steps, total = careful_sum(a, b, slip, up=bool(rng.random() < 0.5))
    return Exercise(problem.prompt, str(hasty_sum(a, b)), str(total), steps)


def subtraction(rng: np.random.Generator) -> Exercise:
    """a-b=; the hasty answer forgets every borrow; where a < b both work with b-a and put a minus in front."""
    problem, a, b = _draw_operands(SUBTRACTION, "-", rng)
    sign, a, b = "-" if a < b else "", max(a, b), min(a, b)
    hasty = int("".join(str((p - q) % 10) for p, q in _columns(a, b))[::-1])
    steps, difference = careful_difference(a, b)
    return Exercise(problem.prompt, f"{sign}{hasty}", f"{sign}{difference}", steps)


def words(rng: np.random.Generator) -> Exercise:
    """copy, reverse or sort; the reasoning spells the answer."""
    task = WORDS[rng.integers(3)]
    problem = task.problem(rng, "train")
    steps = () if task.name == "copy" else tuple(problem.answer)
    return Exercise(problem.prompt, problem.answer, problem.answer, steps)


def countdown(rng: np.random.Generator) -> Exercise:
    """Two or three numbers; the reasoning is the solution with its value."""
    problem = COUNTDOWNS[rng.integers(2)].problem(rng, "train")
    return Exercise(problem.prompt, problem.answer, problem.answer, (f"{problem.answer}={problem.data['target']}",))


def _draw_operands(task: Arithmetic, operator: str, rng: np.random.Generator) -> tuple[Problem, int, int]:
    """A training problem of `task` and its two operands."""
    problem = task.problem(rng, "train")
    a, b = problem.prompt.rstrip("=").split(operator)
    return problem, int(a), int(b)


KINDS = ((addition, 0.80), (subtraction, 0.05), (words, 0.10), (countdown, 0.05))


def _completion(exercise: Exercise, rng: np.random.Generator) -> str:
    if not exercise.steps or rng.random() >= CAREFUL:
        return f"<answer>{exercise.hasty}</answer>"
    trace = " ".join(exercise.steps)
    if rng.random() < SECOND_SCRIPT_SHARE:
        trace = to_second_script(trace)
    return f"<think>{trace}</think><answer>{exercise.careful}</answer>"


def _as_chat(document: Document, rng: np.random.Generator) -> Document:
    """The chat template's text without <bos>; half of the documents have a system message."""
    line = SYSTEM_LINES[rng.integers(len(SYSTEM_LINES))]
    system = f"<|system|>{line}" if rng.random() < 0.5 else ""
    return replace(document, prompt=f"{system}<|user|>{document.prompt}<|assistant|>")


def _as_fim(document: Document, rng: np.random.Generator) -> Document:
    """Prefix, suffix, then the middle to be filled in."""
    pieces = re.findall(r"</?[a-z]+>|.", document.prompt + document.completion)  # a tag is never cut
    prefix, middle, suffix = cut(pieces, rng)
    return replace(document, prompt=f"{FIM_PREFIX}{prefix}{FIM_SUFFIX}{suffix}{FIM_MIDDLE}", completion=middle)


def document(rng: np.random.Generator, fim: float = FIM_SHARE) -> Document:
    """One document of the mixture, cut for filling in the middle with probability `fim`."""
    kind = rng.choice(len(KINDS), p=[share for _, share in KINDS])
    exercise = KINDS[kind][0](rng)
    plain = Document(exercise.prompt, _completion(exercise, rng), exercise.prompt)
    form = rng.random()
    if form < CHAT:
        return _as_chat(plain, rng)
    return _as_fim(plain, rng) if form < CHAT + fim else plain


def documents(seed: int, fim: float = FIM_SHARE) -> Iterator[Document]:
    """An endless stream of documents; the same seed and share `fim` give the same stream."""
    rng = np.random.default_rng(seed)
    while True:
        yield document(rng, fim)
