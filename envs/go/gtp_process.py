"""A Go engine as a process that is asked over the Go Text Protocol, and trusted in nothing."""

from __future__ import annotations

import os
import selectors
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Self

MAX_ANSWER = 1 << 20  # bytes; what goes on for longer is no answer
PATIENCE = 2.0  # seconds in which an engine may quit by itself


class EngineError(RuntimeError):
    """An engine did not do what it was asked to do."""


class EngineFailed(EngineError):
    """An engine has crashed, did not answer in time, or does not speak the protocol; its process is gone."""


class EngineRefused(EngineError):
    """An engine answered `? …`; it can be asked again."""


class GTPProcess:
    """An engine that answers one command after the other; it needs a POSIX system.

    Args:
        command: how it is started, as a line of a shell (without its expansions) or a list of words.
        timeout: seconds in which each answer must be there.

    Raises:
        ValueError: an argument out of range.
        EngineFailed: the program cannot be started.
    """

    def __init__(self, command: str | Sequence[str], timeout: float = 60.0):
        self.command, self.timeout = split_command(command), check_timeout(timeout)
        self._received = {"out": b"", "err": b""}
        self._error: EngineFailed | None = None
        try:
            # A session of its own: Ctrl-C is ours to handle, and the processes that a script starts end with it.
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                self.command, bufsize=0, stdin=-1, stdout=-1, stderr=-1, start_new_session=True
            )
        except OSError as error:
            self._process = None
            raise EngineFailed(f"{self} cannot be started: {error.strerror}") from None
        self._selector = selectors.DefaultSelector()
        for name in ("out", "err"):
            self._selector.register(getattr(self._process, f"std{name}"), selectors.EVENT_READ, name)

    def __str__(self) -> str:
        return f"the engine {Path(self.command[0]).name!r}"

    @cached_property
    def name(self) -> str:
        """How the engine calls itself; else the name of its program."""
        try:
            return self.ask("name")
        except EngineError:
            return Path(self.command[0]).name

    def ask(self, line: str) -> str:
        """Send one command without an id and wait for the answer, which comes without its `=`.

        Raises:
            EngineRefused: the answer is `? …`.
            EngineFailed: no answer came, now or earlier.
        """
        if "\n" in line or not line.strip():
            raise ValueError(f"a command of GTP is one line, got {line!r}")
        process = self._alive(line)
        try:
            process.stdin.write(f"{line}\n".encode())  # type: ignore[union-attr]
        except BrokenPipeError:
            raise self._fail(f"{self} has crashed before {line!r}{self._last_words(process)}") from None
        try:
            status, text = self._answer(process, line)
        except KeyboardInterrupt:  # the answer that is still to come would be taken for that of the next command
            self._fail(f"{self} was interrupted at {line!r}")
            raise
        if status == "?":
            raise EngineRefused(f"{self} refused {line!r}: {text or 'no reason given'}")
        return text

    def close(self) -> None:
        """End the process: by `quit`, or by force if that does not help. Closing twice is safe."""
        process = self._process
        if process is None:
            return
        with suppress(OSError, subprocess.TimeoutExpired):
            process.stdin.write(b"quit\n")  # type: ignore[union-attr]
            process.stdin.close()  # type: ignore[union-attr]
            process.wait(PATIENCE)
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_process", None) is not None:
            self._end()

    def _alive(self, line: str) -> subprocess.Popen[bytes]:
        if self._error is not None:
            raise self._error
        if self._process is None:
            raise EngineFailed(f"{self} was closed and cannot be asked {line!r}")
        return self._process

    def _answer(self, process: subprocess.Popen[bytes], line: str) -> tuple[str, str]:
        """Read up to the blank line that ends an answer: its `=` or `?`, and its text."""
        deadline = time.monotonic() + self.timeout
        while b"\n\n" not in (received := self._received["out"].replace(b"\r", b"").lstrip()):
            if (received and received[:1] not in b"=?") or len(received) > MAX_ANSWER:
                break
            if not self._receive(process, line, deadline):
                raise self._fail(f"{self} has crashed at {line!r}{self._last_words(process)}")
        answer, _, self._received["out"] = received.partition(b"\n\n")
        text = answer.decode(errors="replace")
        if text[:1] not in ("=", "?") or len(answer) > MAX_ANSWER:
            raise self._fail(f"{self} answered {line!r} with what is no GTP: {text[:60]!r}")
        return text[0], text[1:].strip()

    def _receive(self, process: subprocess.Popen[bytes], line: str, deadline: float) -> bool:
        """Take in what has arrived; False at the end of the standard output."""
        ready = self._selector.select(max(0.0, deadline - time.monotonic()))
        if not ready:
            raise self._fail(f"{self} did not answer {line!r} within {self.timeout:g} seconds")
        for key, _ in ready:
            chunk = os.read(key.fd, 1 << 16)
            if key.data == "out":
                self._received["out"] += chunk
            else:
                self._received["err"] = (self._received["err"] + chunk)[-1000:]  # only its last words are of use
            if not chunk:
                self._selector.unregister(key.fileobj)
                if key.data == "out":
                    return False
        return True

    def _last_words(self, process: subprocess.Popen[bytes]) -> str:
        """How a process ended, as far as one can tell."""
        try:
            status = f" (exit status {process.wait(PATIENCE)}"
        except subprocess.TimeoutExpired:
            return ""
        os.set_blocking(process.stderr.fileno(), False)  # type: ignore[union-attr]
        rest = process.stderr.read(1000) or b""  # type: ignore[union-attr]
        lines = (self._received["err"] + rest).decode(errors="replace").strip().splitlines()
        return f"{status}: {lines[-1]})" if lines else f"{status})"

    def _fail(self, message: str) -> EngineFailed:
        self._error = EngineFailed(message)
        self._end()
        return self._error

    def _end(self) -> None:
        """No process and no open file is left."""
        process, self._process = self._process, None
        assert process is not None
        with suppress(ProcessLookupError, PermissionError):  # all of it may have gone already
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._selector.close()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()  # type: ignore[union-attr]


def split_command(command: str | Sequence[str]) -> list[str]:
    """The words of a command line, else a `ValueError` that says so."""
    try:
        words = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
    except ValueError as error:
        raise ValueError(f"the command line of an engine cannot be split: {error}, got {command!r}") from None
    if not words:
        raise ValueError(f"the command line of an engine must name a program, got {command!r}")
    # Debian keeps GNU Go where root's PATH does not lead.
    return [shutil.which(words[0]) or shutil.which(words[0], path="/usr/games") or words[0], *words[1:]]


def check_timeout(timeout: float) -> float:
    """A positive number of seconds, else a `ValueError` that says so."""
    if isinstance(timeout, bool) or not 0 < timeout < 1e6:
        raise ValueError(f"timeout must be a positive number of seconds, got {timeout!r}")
    return float(timeout)
