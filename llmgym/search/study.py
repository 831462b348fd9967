"""Success against forward tokens: search at three levels, with several values, beside ways of decoding.

Every method reads the model through one tree of texts (`TextReader`), so that a prefix is paid once whatever asks for
it, and has one setting that is doubled: simulations, samples, width of the beam.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmgym.evaluation import draw_problems, wilson
from llmgym.policy import LMPolicy
from llmgym.search.decoding import (
    Answer,
    beam_search,
    best_by_logp,
    best_by_reward,
    draw,
    found,
    greedy,
    majority,
)
from llmgym.search.gold import GoldValue, NoiseValue, countdown_solutions
from llmgym.search.options import SearchOptions
from llmgym.search.search import Search
from llmgym.search.text import TextEvaluator, TextReader, Value
from llmgym.search.text_values import HeadValue, Mixed, RolloutValue, fit_head
from llmgym.text import TextMDP, TextState

ENDS = ("\n", " ", "</think>", "</answer>")  # of a line: the embedded model parts its steps by spaces
LEVELS: dict[str, dict[str, int]] = {"token": {"block_size": 1}, "block": {"block_size": 4}, "line": {"block_size": 16}}
VALUES = ("rollouts", "learned", "mixed", "exact", "noise")
DECODINGS = ("greedy", "samples", "best log-prob", "majority", "beam", "beam, by reward")


@dataclass(frozen=True)
class Method:
    """A way of answering.

    Attributes:
        name: a decoding, or the search's rule.
        level: "token", "block" or "line"; "" of a decoding.
        value: of the search.
    """

    name: str
    level: str = ""
    value: str = ""

    @property
    def judged(self) -> bool:
        """Whether the task tells it which finished text is right."""
        return bool(self.level) or self.name in ("samples", "beam, by reward")

    def __str__(self) -> str:
        return f"{self.name}, {self.level}, {self.value}" if self.level else self.name


@dataclass(frozen=True)
class Point:
    """What a method achieved with one setting and seed: successes of so many problems, forward tokens a problem."""

    method: Method
    seed: int
    setting: int
    tokens: float
    successes: int
    problems: int


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        task, task_options: the problems; options as a JSON object.
        model: of the policy.
        problems: of each seed, from the test split.
        budget: forward tokens a problem beyond which a setting is not doubled.
        most: largest setting.
        k: candidates of a state.
        fit: training problems that the learned value is fitted to.
        max_new_tokens: budget of a text.
    """

    task: str = "arithmetic"
    task_options: str = "{}"
    model: str = "tiny"
    problems: int = 40
    budget: int = 256
    most: int = 256
    k: int = 4
    fit: int = 100
    max_new_tokens: int = 40

    def mdp(self, level: str = "token") -> TextMDP:
        """The rules at a level."""
        options = {"task_options": json.loads(self.task_options), "tokenizer": self.model}
        mdp = TextMDP(self.task, max_new_tokens=self.max_new_tokens, **options, **LEVELS[level])  # type: ignore[arg-type]
        if level == "line":
            mdp.stop = LineEnd(mdp.codec)
        return mdp


class LineEnd:
    """The stop rule of a line: its last token ends with one of `ENDS`."""

    def __init__(self, codec: Any):
        decode = codec.tokenizer.decode
        self.tokens = {t for t in range(codec.vocab_size) if decode([t], skip_special_tokens=False).endswith(ENDS)}

    def __call__(self, state: TextState, tokens: Sequence[int]) -> bool:
        return tokens[-1] in self.tokens


def methods(values: Iterable[str] = VALUES, levels: Iterable[str] = tuple(LEVELS)) -> list[Method]:
    """All decodings; PUCT with every value and UCT with rollouts, at every level."""
    searches = [Method("PUCT", level, value) for level in levels for value in values]
    return [Method(name) for name in DECODINGS] + searches + [Method("UCT", level, "rollouts") for level in levels]


def run(plan: Plan, chosen: Sequence[Method], seed: int, report: Callable[[Method], None] | None = None) -> list[Point]:
    """Points of some methods on the problems of one seed; each method has a tree of its own.

    Args:
        plan: what is measured.
        chosen: the methods.
        seed: of problems, sampling and values.
        report: called before each method.
    """
    policy = LMPolicy(plan.model, plan.mdp(), value_head=True, seed=seed, device="cpu")
    starts = [plan.mdp().start(p) for p in draw_problems(plan.mdp(), plan.fit, split="train", seed=seed)]
    fit_head(TextReader(policy, seed=seed), starts, n=4)
    states = [plan.mdp().start(p) for p in draw_problems(plan.mdp(), plan.problems, seed=seed)]
    points = []
    for method in chosen:
        if report is not None:
            report(method)
        reader = TextReader(policy, plan.mdp(method.level or "token"), seed=seed)
        before = policy.counters.forward_tokens
        for setting, answers in _answers(method, plan, reader, states, seed):
            tokens = (policy.counters.forward_tokens - before) / len(states)
            points.append(Point(method, seed, setting, tokens, sum(a.is_success for a in answers), len(states)))
            if tokens > plan.budget:
                break
    return points


def _answers(
    method: Method, plan: Plan, reader: TextReader, states: list[TextState], seed: int
) -> Iterator[tuple[int, list[Answer]]]:
    """Answers by setting, each built upon those before it: tokens already paid are not paid again."""
    settings = [2**i for i in range(plan.most.bit_length())]
    if method.level:
        yield from _searched(method, plan, reader, states, settings, seed)
    elif method.name == "greedy":
        yield 1, greedy(reader, states)
    elif method.name.startswith("beam"):
        for width in settings:
            pick = best_by_logp if method.name == "beam" else best_by_reward
            yield width, pick(beam_search(reader, states, width))
    else:
        yield from _sampled(method, reader, states, settings)


def _sampled(
    method: Method, reader: TextReader, states: list[TextState], settings: list[int]
) -> Iterator[tuple[int, list[Answer]]]:
    groups: list[list[Answer]] = [[] for _ in states]
    pick = {"samples": best_by_reward, "best log-prob": best_by_logp}.get(
        method.name, lambda g: majority(reader.mdp, g)
    )
    for n in settings:
        more = draw(reader, states, n - len(groups[0]))
        groups = [group + new for group, new in zip(groups, more, strict=True)]
        yield n, pick(groups)


def _searched(
    method: Method, plan: Plan, reader: TextReader, states: list[TextState], settings: list[int], seed: int
) -> Iterator[tuple[int, list[Answer]]]:
    value, rollouts = _value(method.value, reader, seed)
    options = SearchOptions(rule=method.name.lower(), best=1.0)
    search: Search[TextState] = Search(reader.mdp, TextEvaluator(reader, plan.k, value), options)
    done = 0
    search.start(states)
    for simulations in settings:
        search.run(simulations - done)
        done = simulations
        yield simulations, found(search, reader, rollouts)


def _value(name: str, reader: TextReader, seed: int) -> tuple[Value, RolloutValue | None]:
    """A value by name, and the rollouts in it."""
    rollouts = RolloutValue(reader)
    if name == "rollouts":
        return rollouts, rollouts
    if name == "mixed":
        return Mixed({rollouts: 0.5, HeadValue(reader): 0.5}), rollouts
    solutions = countdown_solutions if reader.mdp.task.name == "countdown" else None
    others: dict[str, Callable[[], Value]] = {
        "learned": lambda: HeadValue(reader),
        "exact": lambda: GoldValue(reader.mdp, solutions),
        "noise": lambda: NoiseValue(seed),
    }
    return others[name](), None


def at_budget(points: Iterable[Point], method: Method, budget: float) -> tuple[float, tuple[float, float]] | None:
    """Success of a method's largest setting within so many forward tokens a problem, and its 95 % interval.

    Every seed has problems of its own; the interval is Wilson's over all of them. None where a seed has no such point.
    """
    best: dict[int, Point | None] = {}
    for point in points:
        if point.method == method:
            held = best.setdefault(point.seed, None)
            if point.tokens <= budget and (held is None or point.setting > held.setting):
                best[point.seed] = point
    kept = [point for point in best.values() if point is not None]
    if not kept or len(kept) < len(best):
        return None
    right, total = sum(p.successes for p in kept), sum(p.problems for p in kept)
    return right / total, wilson(right, total)


def curve(points: Iterable[Point], method: Method) -> np.ndarray:
    """Mean forward tokens, success, and the ends of its interval, by setting that every seed has; float64 [S, 4]."""
    mine = [point for point in points if point.method == method]
    seeds, rows = {p.seed for p in mine}, []
    for setting in sorted({p.setting for p in mine}):
        here = [p for p in mine if p.setting == setting]
        if len(here) == len(seeds):
            right, total = sum(p.successes for p in here), sum(p.problems for p in here)
            rows.append((np.mean([p.tokens for p in here]), right / total, *wilson(right, total)))
    return np.array(rows, np.float64).reshape(-1, 4)
