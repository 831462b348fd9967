"""Preferences: two completions of one prompt, which of them is better, and the files they are kept in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmgym.completions import check_completion, encode
from llmgym.files import write_text
from llmgym.pairs import LABELS, Label, Pair, Preference, check_label, check_problem
from llmgym.rows import check_mapping, missing_key, naming, read_rows, short
from llmgym.tasks.base import Problem

if TYPE_CHECKING:
    from llmgym.text import TextMDP

__all__ = [
    "LABELS",
    "Label",
    "Pair",
    "Preference",
    "check_preferences",
    "encode",
    "pair_line",
    "read_labels",
    "read_pairs",
    "read_preferences",
    "write_pairs",
    "write_preferences",
]

Source = str | Path | Iterable[Any]  # a file of JSON lines, a `datasets.Dataset`, or any iterable of mappings


def read_preferences(source: Source, mdp: TextMDP | None = None) -> list[Preference]:
    """The preferences of a file or of rows, in their order; skipped pairs are left out.

    Two kinds of rows are read. TRL's: `prompt, chosen, rejected`, and optionally `chosen_finished,
    rejected_finished`. Labelled pairs: `prompt, first, second, label`, and optionally `first_finished,
    second_finished`. Both may have `answer` and `data` (an object); all other keys are added to `data`.

    Args:
        source: a file of JSON lines, a `datasets.Dataset`, or any iterable of mappings or of `Preference`s.
        mdp: the rules that every row must fit, see `check_preferences`; None leaves that unchecked.

    Raises:
        ValueError: a row is unusable or does not fit (the sentence names it), or none holds a preference.
    """
    preferences = []
    for where, row in read_rows(source):
        preference = row if isinstance(row, Preference) else _read_preference(where, row)
        if preference is not None:
            preferences.append(preference)
            if mdp is not None:
                _check_fits(where, preference, mdp)
    if not preferences:
        name = f"{source} holds" if isinstance(source, str | Path) else "the rows hold"
        raise ValueError(f"{name} no preference: at least one is needed")
    return preferences


def read_labels(source: Source) -> Iterator[tuple[str, Pair, Label]]:
    """Every row that `read_preferences` reads, skipped ones too: where it stands, the pair and its label.

    In rows with TRL's names the chosen text comes first.

    Raises:
        ValueError: a row is unusable (the sentence names it).
    """
    for where, row in read_rows(source):
        if _is_trl(row):
            better = _build(Preference, where, row, "chosen", "rejected")
            flags = better.chosen_finished, better.rejected_finished
            yield where, Pair(better.problem, better.chosen, better.rejected, *flags), "first"
        else:
            yield where, *_read_label(where, row)


def read_pairs(source: Source) -> list[Pair]:
    """Pairs to be labelled: rows `prompt, first, second`, with the optional keys of `read_preferences`.

    A `label` is not looked at, so that labelled pairs can be labelled again.

    Raises:
        ValueError: a row is unusable (the sentence names it).
    """
    rows = read_rows(source)
    return [row if isinstance(row, Pair) else _build(Pair, where, row, "first", "second") for where, row in rows]


def write_preferences(path: str | Path, preferences: Iterable[Preference]) -> None:
    """Replace the file `path` by preferences as JSON lines with TRL's names, in one step.

    Raises:
        ValueError: the `data` of a preference cannot be written as JSON.
    """
    names = ("chosen", "rejected", "chosen_finished", "rejected_finished")
    lines = [
        _line(f"row {index}", row.problem, {name: getattr(row, name) for name in names})
        for index, row in enumerate(preferences)
    ]
    write_text(path, "".join(lines))


def write_pairs(path: str | Path, pairs: Iterable[Pair]) -> None:
    """Replace the file `path` by pairs as JSON lines, in one step.

    Raises:
        ValueError: the `data` of a pair cannot be written as JSON.
    """
    write_text(path, "".join([pair_line(f"row {index}", pair) for index, pair in enumerate(pairs)]))


def pair_line(where: str, pair: Pair, label: Label | None = None) -> str:
    """A pair, and its label if it has one, as a line of a file; `where` is for the error.

    Raises:
        ValueError: the `data` of its problem cannot be written as JSON.
    """
    names = ("first", "second", "first_finished", "second_finished")
    columns = {name: getattr(pair, name) for name in names}
    return _line(where, pair.problem, columns if label is None else columns | {"label": label})


def check_preferences(preferences: Sequence[Preference], mdp: TextMDP) -> None:
    """Refuse preferences that do not fit an environment.

    Raises:
        ValueError: a prompt is longer than `max_prompt_tokens`, a completion with its EOS is longer than
            `max_new_tokens`, or holds a token that is forbidden there. The sentence names the row, counted from 0.
    """
    for index, preference in enumerate(preferences):
        _check_fits(f"row {index}", preference, mdp)


def _is_trl(row: Any) -> bool:
    named = isinstance(row, Mapping) and ("chosen" in row or "rejected" in row)
    return named and row.get("first") is None  # a dataset of both kinds has the columns of both in every row


def _read_preference(where: str, row: Any) -> Preference | None:
    if _is_trl(row):
        return _build(Preference, where, row, "chosen", "rejected")
    pair, label = _read_label(where, row)
    return pair.preference(label)


def _read_label(where: str, row: Any) -> tuple[Pair, Label]:
    check_mapping(where, row)
    if "first" not in row:
        kinds = "neither 'chosen' and 'rejected' nor 'first', 'second' and 'label'"
        raise ValueError(f"{where} has {kinds}: it has {', '.join(map(repr, row)) or 'no key'}")
    pair = _build(Pair, where, row, "first", "second")
    if "label" not in row:
        raise missing_key(where, row, "label")
    with naming(where):
        return pair, check_label(row["label"])


def _build(kind: Any, where: str, row: Any, one: str, two: str) -> Any:
    """A `Pair` or a `Preference` from a row whose texts are called `one` and `two`."""
    check_mapping(where, row)
    for key in ("prompt", one, two):
        if key not in row:
            raise missing_key(where, row, key)
    # A column that only some rows have is None in the others, once a dataset has read them.
    given = {key: value for key, value in row.items() if value is not None}
    first_finished, second_finished = (given.pop(f"{name}_finished", True) for name in (one, two))
    answer, data = given.pop("answer", ""), given.pop("data", {})
    others = {key: value for key, value in given.items() if key not in ("prompt", one, two, "label")}
    with naming(where):
        check_problem(row["prompt"], answer, data)
        data = {**others, **data}
        if kind is Pair:
            return Pair(Problem(row["prompt"], answer, data), row[one], row[two], first_finished, second_finished)
        return Preference(row["prompt"], row[one], row[two], first_finished, second_finished, answer, data)


def _line(where: str, problem: Problem, columns: Mapping[str, Any]) -> str:
    """One line of JSON; the prompt comes first, then `columns`, then answer and data if there are any."""
    row: dict[str, Any] = {"prompt": problem.prompt, **columns}
    row |= {"answer": problem.answer} if problem.answer else {}
    row |= {"data": dict(problem.data)} if problem.data else {}
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        line.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{where}: the data of {short(problem.prompt)} cannot be written as JSON: {error}") from None
    return line


def _check_fits(where: str, preference: Preference, mdp: TextMDP) -> None:
    problem = preference.problem
    check_completion(f"{where}: chosen", mdp, problem, preference.chosen, preference.chosen_finished)
    check_completion(f"{where}: rejected", mdp, problem, preference.rejected, preference.rejected_finished)
