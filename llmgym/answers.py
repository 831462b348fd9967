"""`Answers`: the labels given so far, in a file that loses none of them whatever happens."""

from __future__ import annotations

import json
import os
import warnings
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from llmgym.pairs import Label, Pair, Preference
from llmgym.preferences import pair_line, read_labels
from llmgym.rows import short

try:
    import fcntl
except ImportError:  # Windows: nothing keeps a second process away there
    fcntl = None  # type: ignore[assignment]

SWAPPED: dict[Label, Label] = {"first": "second", "second": "first", "skip": "skip"}
_START = b'{"prompt": "'  # of every line that is written here


class Answers:
    """Labels of `pairs`, one JSON line each in a file that only grows: every line is on the disk before the next.

    What the file holds already counts, if need be with the two texts swapped. Lines about other pairs stay as they
    are. A last line that was cut short when a process died is dropped with a warning. No second process is let in.

    Args:
        pairs: what is to be labelled; a pair that occurs twice has two answers.
        path: the file, new or to go on with; None keeps the labels in memory only.

    Attributes:
        labels: index of a pair -> its label.

    Raises:
        ValueError: the file cannot be opened, is in use, or a line of it is unusable; or
            the `data` of a pair cannot be written as JSON.
    """

    def __init__(self, pairs: Sequence[Pair], path: str | Path | None = None):
        self.pairs, self.labels = pairs, dict[int, Label]()
        self._order: list[int | None] = []  # line -> index of its pair; None: the pair is none of ours
        self._from = 0  # no pair before this one is open
        self._file = None
        _check_pairs(pairs, written=path is not None)
        if path is not None:
            self._file = _open(Path(path))
            try:
                self._load(Path(path))
            except BaseException:
                self._file.close()
                raise

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def next_open(self) -> int | None:
        """Index of the first pair without an answer."""
        while self._from in self.labels:
            self._from += 1
        return self._from if self._from < len(self.pairs) else None

    def add(self, index: int, label: Label) -> None:
        """Keep an answer; it is on the disk when this returns."""
        if self._file is not None:
            _write(self._file, pair_line(f"pair {index + 1}", self.pairs[index], label))
        self._order.append(index)
        self.labels[index] = label

    def undo(self) -> None:
        """Take the last line of the file back, unless there is none or it is about another pair."""
        index = self._order[-1] if self._order else None
        if index is None:
            return
        if self._file is not None:
            lines = Path(self._file.name).read_bytes().rstrip()
            os.truncate(self._file.fileno(), lines.rfind(b"\n") + 1)
            os.fsync(self._file.fileno())
        self._order.pop()
        del self.labels[index]
        self._from = min(self._from, index)

    def preferences(self) -> list[Preference]:
        """What has been labelled and not skipped, in the order of the pairs."""
        found = [self.pairs[index].preference(label) for index, label in sorted(self.labels.items())]
        return [preference for preference in found if preference is not None]

    def _load(self, path: Path) -> None:
        _drop_cut_line(path)
        content = path.read_bytes()
        if not content.strip():
            return
        waiting: defaultdict[tuple[str, str, str], deque[int]] = defaultdict(deque)
        for index, pair in enumerate(self.pairs):
            waiting[pair.key].append(index)
        for _, pair, label in read_labels(path):
            ours = waiting[pair.key].popleft() if waiting.get(pair.key) else None
            self._order.append(ours)
            if ours is not None:
                self.labels[ours] = label if pair.first == self.pairs[ours].first else SWAPPED[label]
        if self._file is not None and not content.endswith(b"\n"):
            _write(self._file, "\n")


def _check_pairs(pairs: Sequence[Pair], written: bool) -> None:
    for number, pair in enumerate(pairs, start=1):
        if not isinstance(pair, Pair):
            raise ValueError(f"pair {number} must be a Pair, got {short(pair)}")
        if written:
            pair_line(f"pair {number}", pair)  # better refused now than once it has been answered


def _open(path: Path) -> IO[bytes]:
    """The file, to be added to, and locked."""
    try:
        file = path.open("ab")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(f"{path} is in use: another process adds answers to it") from None
    except OSError:  # a file system without locks
        pass
    return file


def _write(file: IO[bytes], line: str) -> None:
    """Add a line; it is on the disk when this returns."""
    file.write(line.encode())
    file.flush()
    os.fsync(file.fileno())


def _drop_cut_line(path: Path) -> None:
    """Drop the last line if it is one of ours that was cut short."""
    content = path.read_bytes()
    start = content.rfind(b"\n") + 1
    last = content[start:]
    try:
        json.loads(last)
    except ValueError:
        if last and (last.startswith(_START) or _START.startswith(last)):
            os.truncate(path, start)
            warnings.warn(f"the last line of {path} was cut short and is dropped: {last[:60]!r}", stacklevel=5)
