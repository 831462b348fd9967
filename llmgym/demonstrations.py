"""Demonstrations: a prompt with the completion that is to be learnt, and the files they are kept in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmgym.completions import check_completion
from llmgym.files import write_text
from llmgym.pairs import check_problem
from llmgym.rows import check_mapping, check_text, missing_key, naming, read_rows, short
from llmgym.tasks.base import Problem

if TYPE_CHECKING:
    from llmgym.text import TextMDP

Source = str | Path | Iterable[Any]  # a file of JSON lines, a `datasets.Dataset`, or any iterable of mappings


@dataclass(frozen=True)
class Demonstration:
    """A prompt and a completion to learn. The completion is text without special tokens.

    Attributes:
        prompt: what the model reads, without any chat template.
        completion: what it is to write: not empty.
        finished: whether EOS follows the completion, and is learnt; False where the text was cut.
        answer: the problem's gold answer, if it has one.
        data: whatever else the problem holds; not part of equality or hash.

    Raises:
        ValueError: a field is not what it should be.
    """

    prompt: str
    completion: str
    finished: bool = True
    answer: str = ""
    data: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False, repr=False)

    def __post_init__(self):
        check_problem(self.prompt, self.answer, self.data)
        check_text("completion", self.completion)
        if not isinstance(self.finished, bool):
            raise ValueError(f"finished must be true or false, got {short(self.finished)}")

    @property
    def problem(self) -> Problem:
        """What was asked, as environments and scorers take it."""
        return Problem(self.prompt, self.answer, self.data)


def read_demonstrations(source: Source, mdp: TextMDP | None = None) -> list[Demonstration]:
    """The demonstrations of a file or of rows, in their order.

    Rows have TRL's names, `prompt` and `completion`, and optionally `finished`, `answer` and `data` (an object); all
    other keys are added to `data`.

    Args:
        source: a file of JSON lines, a `datasets.Dataset`, or any iterable of mappings or of `Demonstration`s.
        mdp: the rules that every row must fit, see `check_demonstrations`; None leaves that unchecked.

    Raises:
        ValueError: a row is unusable or does not fit (the sentence names it), or there is none.
    """
    demonstrations = []
    for where, row in read_rows(source):
        demonstration = row if isinstance(row, Demonstration) else _build(where, row)
        demonstrations.append(demonstration)
        if mdp is not None:
            _check_fits(where, demonstration, mdp)
    if not demonstrations:
        raise ValueError("the rows hold no demonstration: at least one is needed")
    return demonstrations


def write_demonstrations(path: str | Path, demonstrations: Iterable[Demonstration]) -> None:
    """Replace the file `path` by demonstrations as JSON lines with TRL's names, in one step.

    Raises:
        ValueError: the `data` of a demonstration cannot be written as JSON.
    """
    write_text(path, "".join([_line(f"row {index}", row) for index, row in enumerate(demonstrations)]))


def check_demonstrations(demonstrations: Sequence[Demonstration], mdp: TextMDP) -> None:
    """Refuse demonstrations that do not fit an environment.

    Raises:
        ValueError: a prompt is longer than `max_prompt_tokens`, a completion with its EOS is longer than
            `max_new_tokens`, or holds a token that is forbidden there. The sentence names the row, counted from 0.
    """
    for index, demonstration in enumerate(demonstrations):
        _check_fits(f"row {index}", demonstration, mdp)


def _build(where: str, row: Any) -> Demonstration:
    check_mapping(where, row)
    for key in ("prompt", "completion"):
        if key not in row:
            raise missing_key(where, row, key)
    # A column that only some rows have is None in the others, once a dataset has read them.
    given = {key: value for key, value in row.items() if value is not None}
    named = {key: given.pop(key) for key in ("finished", "answer", "data") if key in given}
    others = {key: value for key, value in given.items() if key not in ("prompt", "completion")}
    with naming(where):
        check_problem(row["prompt"], named.get("answer", ""), named.get("data", {}))
        named["data"] = {**others, **named.get("data", {})}
        return Demonstration(row["prompt"], row["completion"], **named)


def _line(where: str, row: Demonstration) -> str:
    columns: dict[str, Any] = {"prompt": row.prompt, "completion": row.completion, "finished": row.finished}
    columns |= {"answer": row.answer} if row.answer else {}
    columns |= {"data": dict(row.data)} if row.data else {}
    try:
        line = json.dumps(columns, ensure_ascii=False, allow_nan=False) + "\n"
        line.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{where}: the data of {short(row.prompt)} cannot be written as JSON: {error}") from None
    return line


def _check_fits(where: str, row: Demonstration, mdp: TextMDP) -> None:
    check_completion(f"{where}: completion", mdp, row.problem, row.completion, row.finished)
