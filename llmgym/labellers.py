"""Labellers: who says which of two completions is better. A rule, a file, or (`llmgym.terminal`) a person."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from llmgym.answers import Answers
from llmgym.pairs import LABELS, Label, Pair, Preference
from llmgym.preferences import Source, read_labels
from llmgym.rows import naming, short
from llmgym.tasks.base import FunctionReward, Problem, Task, check_int

Answer = Label | Literal["undo", "quit"]
Ties = Literal["skip", "random"]


class Labeller(Protocol):
    """Any function of a pair. "skip" is for pairs that cannot be told apart.

    Two more answers are for people: "undo" takes the last answer back, "quit" ends the labelling. A labeller with a
    method `progress(done, total)` is told how far the labelling is, before every pair and at the end.
    """

    def __call__(self, pair: Pair, /) -> Answer:
        """Which completion is better."""


def label(
    pairs: Iterable[Pair],
    labeller: Labeller,
    path: str | Path | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[Preference]:
    """Have pairs labelled, and keep every answer in a file as it comes.

    Whatever ends the labelling (an error, Ctrl-C, "quit", a kill), the file holds every answer given so far; called
    again with the same file, it goes on with the first pair that has none. The file is one that `read_preferences`
    reads, see `llmgym.answers`.

    Args:
        pairs: what is to be labelled, in this order.
        labeller: who labels.
        path: file of JSON lines that answers are added to; None keeps them in memory only.
        progress: called with the number of answers and the number of pairs in place of the labeller's own.

    Returns:
        What has been labelled and not skipped, that which the file held before included, in the order of `pairs`.

    Raises:
        ValueError: the file is unusable; or the labeller raised it or gave no valid answer (the sentence names the
            pair, counted from 1).
    """
    pairs = list(pairs)
    if progress is None:
        progress = getattr(labeller, "progress", _keep_quiet)
    with Answers(pairs, path) as answers:
        while (index := answers.next_open()) is not None:
            progress(len(answers.labels), len(pairs))
            with naming(f"pair {index + 1} of {len(pairs)}"):
                answer = _check_answer(labeller(pairs[index]))
            if answer == "quit":
                break
            if answer == "undo":
                answers.undo()
            else:
                answers.add(index, answer)
        progress(len(answers.labels), len(pairs))
    return answers.preferences()


class RuleLabeller:
    """A synthetic labeller: the completion of higher score is better, but for noise.

        P(first is preferred) = (1 - ε) p + ε (1 - p),    p = 1 if s1 > s2, 0 if s1 < s2;
        with a temperature T: p = σ((s1 - s2) / T)

    the last being the model of Bradley and Terry 1952. A label is a function of (seed, prompt, texts) alone: it does
    not depend on which pairs were labelled before, nor on which text comes first.

    Args:
        score: a `Task` (its reward counts), or a function of (problem, text) or (problem, text, tokens) that returns
            a number or a dict of terms, which are summed.
        noise: ε, the probability that a label is flipped, in [0, 0.5).
        seed: of noise, temperature and random ties.
        ties: what happens to equal scores: "skip", or "random", where either label has probability 1/2.
        temperature: T, in units of the score; None means no sampling.
        tokenizer: for scores that look at tokens: "tiny", a path or hub id, or a tokenizer. EOS is appended to
            finished completions.

    Raises:
        ValueError: an argument is outside what is allowed. When labelling: a score failed or is no finite number.
    """

    def __init__(
        self,
        score: Task | Callable[..., Any],
        noise: float = 0.0,
        seed: int = 0,
        *,
        ties: Ties = "skip",
        temperature: float | None = None,
        tokenizer: Any = None,
    ):
        if not _is_number(noise) or not 0 <= noise < 0.5:
            raise ValueError(f"noise must be in [0, 0.5), got {noise!r}")
        if temperature is not None and not (_is_number(temperature) and 0 < temperature < math.inf):
            raise ValueError(f"temperature must be above 0 or None, got {temperature!r}")
        if ties not in get_args(Ties):
            raise ValueError(f"ties must be 'skip' or 'random', got {ties!r}")
        self.noise, self.seed, self.ties, self.temperature = noise, check_int("seed", seed, 0, 2**63), ties, temperature
        self.task, needs_tokens = _as_task(score)
        self._codec = _codec(tokenizer) if needs_tokens else None

    def __call__(self, pair: Pair) -> Label:
        """The label of a pair."""
        p = self.probability(pair)
        if p is None:
            return "skip"
        return "first" if uniform(self.seed, pair) < p else "second"

    def probability(self, pair: Pair) -> float | None:
        """P(first is preferred); None for a tie that is skipped."""
        margin = self.score(pair.problem, pair.first, pair.first_finished)
        margin -= self.score(pair.problem, pair.second, pair.second_finished)
        if margin == 0 and self.ties == "skip":
            return None
        if self.temperature is None:
            p = 0.5 + 0.5 * ((margin > 0) - (margin < 0))
        else:
            p = 0.5 + 0.5 * math.tanh(margin / self.temperature / 2)  # σ, without overflow
        return (1 - self.noise) * p + self.noise * (1 - p)

    def score(self, problem: Problem, text: str, finished: bool = True) -> float:
        """The score of one completion."""
        name = f"the score of {short(text)} after {short(problem.prompt)}"
        tokens = self._codec.encode_text(text) if self._codec else ()
        tokens += (self._codec.eos_id,) if self._codec and finished else ()
        try:
            terms = dict(self.task.terms(problem, text, tokens))
        except Exception as error:  # a user's scorer may raise anything; the sentence names the completion
            raise ValueError(f"{name} failed: {type(error).__name__}: {error}") from error
        return _finite(name, self.task.reward({term: _finite(name, value) for term, value in terms.items()}))


class FileLabeller:
    """Looks labels up in a file (or rows) of preferences or labelled pairs, whichever text comes first.

    Args:
        source: what `read_preferences` reads.

    Raises:
        ValueError: a row is unusable or contradicts another one. When labelling: the file does not hold the pair.
    """

    def __init__(self, source: Source):
        self._name = str(source) if isinstance(source, str | Path) else "the rows"
        self._better: dict[tuple[str, str, str], tuple[str, str | None]] = {}  # -> where it stands, the better text
        for where, pair, label in read_labels(source):
            text = {"first": pair.first, "second": pair.second}.get(label)
            before, known = self._better.setdefault(pair.key, (where, text))
            if known != text:
                raise ValueError(f"{where} contradicts {before}: the same two completions with another label")

    def __call__(self, pair: Pair) -> Label:
        """The label of a pair."""
        if pair.key not in self._better:
            texts = f"{short(pair.first)} and {short(pair.second)} after {short(pair.problem.prompt)}"
            raise ValueError(f"{self._name} holds no label of {texts}")
        _, text = self._better[pair.key]
        return "skip" if text is None else "first" if text == pair.first else "second"


def uniform(seed: int, pair: Pair) -> float:
    """A number in (0, 1), a function of the seed, the prompt and the two texts; 1 - u for the swapped pair."""
    digest = hashlib.blake2b(json.dumps([seed, *pair.key]).encode(), digest_size=8).digest()
    u = ((int.from_bytes(digest, "little") >> 12) + 0.5) / 2**52
    return u if pair.first < pair.second else 1 - u


def _as_task(score: Any) -> tuple[Task, bool]:
    """A task whose reward is the score, and whether it looks at tokens."""
    if isinstance(score, Task):
        return score, type(score).terms is not Task.terms
    if not callable(score):
        raise ValueError(f"score must be a Task or a function, got {short(score)}")
    parameters = inspect.signature(score).parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(needed) == 3:
        return FunctionReward(Task(), score), True
    if len(needed) == 2:
        return FunctionReward(Task(), lambda problem, text, tokens: score(problem, text)), False
    raise ValueError(f"score must be a function of (problem, text) or (problem, text, tokens), got {short(score)}")


def _codec(tokenizer: Any) -> Any:
    if tokenizer is None:
        raise ValueError("the score looks at tokens: give the labeller a tokenizer")
    from llmgym.tokenization import Codec

    return Codec(tokenizer)


def _keep_quiet(done: int, total: int) -> None:
    """The progress of a labeller that does not care."""


def _check_answer(answer: Any) -> Any:
    answers = (*LABELS, "undo", "quit")
    if not isinstance(answer, str) or answer not in answers:
        raise ValueError(f"a label must be one of {', '.join(map(repr, answers))}, got {short(answer)}")
    return answer


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(name: str, value: Any) -> float:
    """`value` as a float, if it is a finite number."""
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, got {short(value)}")
    return number
