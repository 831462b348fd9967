"""Rows of your own data: a file of JSON lines or a sequence of mappings, each row with its place for error messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Row = tuple[str, Any]  # where it stands ("line 3 of data.jsonl"), and the row


def read_rows(source: str | Path | Iterable[Any]) -> Iterator[Row]:
    """The rows of a file of JSON lines, or of an iterable such as a `datasets.Dataset` ("row 3", counted from 0).

    Raises:
        ValueError: the source cannot be read, or is one mapping (such as a `DatasetDict`) instead of many.
    """
    if isinstance(source, str | Path):
        yield from read_lines(Path(source))
    elif isinstance(source, Mapping) or not isinstance(source, Iterable):
        kind, keys = type(source).__name__, f" of {short(list(source))}" if isinstance(source, Mapping) else ""
        raise ValueError(f"rows must come from a file or an iterable of mappings, got a {kind}{keys}")
    else:
        yield from ((f"row {index}", row) for index, row in enumerate(source))


def read_lines(path: Path) -> Iterator[Row]:
    """The objects of a file with one JSON object a line (UTF-8; blank lines are skipped), each with its place.

    Raises:
        ValueError: the file is missing, empty or unreadable, or a line is not valid JSON.
    """
    try:
        lines = path.read_text("utf-8-sig").split("\n")  # splitlines would also cut at U+2028, legal in JSON
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read {path}: byte {error.start} is not UTF-8") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    if not any(line.strip() for line in lines):
        raise ValueError(f"{path} is empty: at least one line with a JSON object is needed")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"line {number} of {path}", _parse(line, f"line {number} of {path}")


def check_mapping(where: str, row: Any) -> Mapping[str, Any]:
    """`row`, if it has keys."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} must be an object with keys, got {short(row)}")
    return row


def check_text(name: str, value: Any, may_be_empty: bool = False) -> str:
    """`value`, if it is a string of valid Unicode, with more than white space in it unless it may be empty."""
    if not isinstance(value, str) or not (value.strip() or may_be_empty):
        raise ValueError(f"{name} must be a {'' if may_be_empty else 'non-empty '}string, got {short(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half a character, "\ud83d"
        raise ValueError(f"{name} must be valid Unicode, got the lone surrogate in {short(value)}") from None
    return value


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Put where it stands in front of what is said about a row: "line 3 of data.jsonl: …"."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error.__cause__


def missing_key(where: str, row: Mapping[str, Any], key: str) -> ValueError:
    """The sentence about a row without `key`."""
    return ValueError(f"{where} has no key {key!r}: it has {', '.join(map(repr, row)) or 'none'}")


def short(value: Any) -> str:
    """A value as an error message shows it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _parse(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        reason = f"{error.msg}, column {error.colno}"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets too deep
        reason = str(error)
    raise ValueError(f"{where} is not valid JSON ({reason}): {short(line)}")
