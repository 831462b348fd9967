"""`llmgym label`: pairs of completions become preferences; a person, a rule or a file says which is better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

import tyro

from llmgym.answers import Answers
from llmgym.commands import report
from llmgym.commands.options import json_object, parse, plain_warnings
from llmgym.labellers import FileLabeller, Labeller, RuleLabeller, label
from llmgym.preferences import LABELS, Pair, read_pairs
from llmgym.tasks import make_task
from llmgym.terminal import TerminalLabeller

PROG = "llmgym label"
OPTIONS_OF = {"rule": ("task", "task_options", "noise", "ties", "temperature"), "file": ("labels",)}
NEEDED = {"rule": "task", "file": "labels"}


@dataclass(frozen=True)
class LabellerOptions:
    """Who says which completion is better."""

    by: Literal["person", "rule", "file"] = "person"  # person: at this terminal; rule: a task's reward; file: labels
    seed: int = 0  # of left and right (person), or of noise, temperature and random ties (rule)
    task: str | None = None  # rule: name of the registered task whose reward is the score
    task_options: str = "{}"  # rule: options of the task as a JSON object
    noise: float = 0.0  # rule: probability that a label is flipped, in [0, 0.5)
    ties: Literal["skip", "random"] = "skip"  # rule: skip equal scores, or label them at random
    temperature: float | None = None  # rule: P(first) = sigmoid((score of first - score of second) / temperature)
    labels: str | None = None  # file: JSON lines of preferences or of labelled pairs

    def __post_init__(self):
        for by, names in OPTIONS_OF.items():
            given = [f.name for f in fields(self) if f.name in names and getattr(self, f.name) != f.default]
            if given and by != self.by:
                raise ValueError(f"{given[0]} is an option of --by {by} only, got --by {self.by}")
        if self.by in NEEDED and not getattr(self, NEEDED[self.by]):
            raise ValueError(f"--by {self.by} needs --{NEEDED[self.by]}")

    def make(self) -> Labeller:
        """The labeller.

        Raises:
            ValueError: an option that cannot be meant.
        """
        if self.by == "person":
            return TerminalLabeller(self.seed)
        if self.by == "file":
            return FileLabeller(str(self.labels))
        task = make_task(str(self.task), **json_object(self.task_options))
        return RuleLabeller(task, self.noise, self.seed, ties=self.ties, temperature=self.temperature)


@dataclass(frozen=True)
class LabelOptions:
    """Label pairs of completions.

    Every answer is saved before the next pair is shown. Whatever ended the command, the same command goes on with the
    first pair that has no answer.
    """

    pairs: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PAIRS.jsonl")]  # keys prompt, first, second
    out: Annotated[str, tyro.conf.arg(metavar="FILE")]  # answers are added to it; those in it are not asked again
    labeller: LabellerOptions = field(default_factory=LabellerOptions)


def run(words: list[str]) -> int:
    """`llmgym label WORDS…`."""
    options = parse(LabelOptions, words, prog=PROG, default=LabelOptions(tyro.MISSING, tyro.MISSING))
    pairs, labeller, code = read_pairs(options.pairs), options.labeller.make(), 0
    try:
        with plain_warnings(), _progress(options.labeller.by) as progress:
            label(pairs, labeller, options.out, progress=progress)
    except KeyboardInterrupt:
        report.say("")
        code = 130
    _conclude(pairs, options.out)
    return code


@contextmanager
def _progress(by: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar, from the first pair on; a person is told by the labeller itself."""
    if by == "person":
        yield None
        return
    shown, moved = 0, None
    with ExitStack() as stack:

        def move(done: int, total: int) -> None:
            nonlocal shown, moved
            moved = moved or stack.enter_context(report.bar(by, total))
            moved(done - shown)
            shown = done

        yield move


def _conclude(pairs: Sequence[Pair], path: str) -> None:
    with Answers(pairs, path) as answers:
        counts = Counter(answers.labels.values())
    counted = ", ".join(f"{counts[name]:,} {name}" for name in LABELS)  # type: ignore[index]
    report.say(f"{counts.total():,} of {len(pairs):,} pairs have an answer: {counted}")
    report.say(f"answers: {path}" + ("" if counts.total() == len(pairs) else " (the same command goes on)"))
