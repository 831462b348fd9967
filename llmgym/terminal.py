"""`TerminalLabeller`: a person at the terminal, two completions side by side, one key to choose."""

from __future__ import annotations

import os
import re
import select
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from rich import box
from rich.align import Align
from rich.console import Console, Group
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from llmgym.labellers import Answer, uniform
from llmgym.pairs import Pair
from llmgym.tasks.base import check_int

try:
    import termios
    import tty
except ImportError:  # Windows: an answer is a line there
    termios = None  # type: ignore[assignment]

KEYS = {"1": "left", "2": "right", "s": "skip", "u": "undo", "q": "quit"}
CHOICES = KEYS | {key.upper(): word for key, word in KEYS.items()} | {word: word for word in KEYS.values()}
CHOICES |= {"\x1b[D": "left", "\x1bOD": "left", "\x1b[C": "right", "\x1bOC": "right"}  # arrow keys
CHOICES |= {"": "quit", "\x04": "quit"}  # the end of the input, and Ctrl-D
UNFINISHED = "(cut off here: it ran out of its budget)"
JOINERS = "\u200c\u200d"  # invisible, but Persian and many emoji are spelt with them
_SPACES = re.compile(r"(?<! ) +$", re.MULTILINE)  # linear in the length, whatever the text


class TerminalLabeller:
    """Shows the prompt and both completions and asks for a key: 1 or ←, 2 or →, s skip, u undo, q save and quit.

    Which completion is on the left depends on the seed and on the pair, so that the place says nothing about the
    completion. A key needs no Enter where the input is a terminal; elsewhere an answer is a line. Keys pressed before
    a pair is shown do not count. The end of the input is "quit". Texts cannot steer the terminal: markup is shown as
    it stands, control characters as escapes.

    Args:
        seed: of left and right.
        stdin: where answers come from; None means standard input.
        console: where pairs are shown; None means standard output.
    """

    def __init__(self, seed: int = 0, *, stdin: TextIO | None = None, console: Console | None = None):
        self.seed = check_int("seed", seed, 0, 2**63)
        self.stdin = sys.stdin if stdin is None else stdin
        self.console = Console(highlight=False) if console is None else console
        self._done, self._title, self._choice = 0, "", ""

    def progress(self, done: int, total: int) -> None:
        """How far the labelling is; the next pair is shown under it."""
        if self._choice == "undo":
            self.console.print("nothing to undo" if done == self._done else "the last answer is taken back")
        self._done, self._title = done, f"pair {done + 1} of {total}"

    def __call__(self, pair: Pair) -> Answer:
        """The answer of the person."""
        first_left = uniform(self.seed, pair) < 0.5
        self._show(pair, first_left)
        self._choice = self._ask()
        if self._choice in ("left", "right"):
            return "first" if (self._choice == "left") == first_left else "second"
        return self._choice  # type: ignore[return-value]

    def _show(self, pair: Pair, first_left: bool) -> None:
        shown = comparison(pair, first_left, self._title)
        height = len(self.console.render_lines(shown))
        tall = self.console.is_terminal and height >= self.console.height
        self.console.print(comparison(pair, first_left, self._title, footer=True) if tall else shown)
        if tall:
            self.console.print(f" ↑ {height} lines: the pair begins above this screen", style="yellow")

    def _ask(self) -> str:
        keys = "   ".join(f"[bold]{key}[/] {meaning}" for key, meaning in KEYS.items())
        with single_keys(self.stdin) as read:
            self.console.print(f" {keys}   [bold]?[/] ", end="")
            while (choice := CHOICES.get(read())) is None:
                self.console.print("? ", end="")
        self.console.print(choice, style="bold green")
        return choice


def comparison(pair: Pair, first_left: bool = True, title: str = "", footer: bool = False) -> Group:
    """A pair to be printed: title, prompt, and the completions side by side under the keys that choose them.

    With `footer` the keys stand below them too.
    """
    columns = [_cell(pair.first, pair.first_finished), _cell(pair.second, pair.second_finished)]
    table = Table(box=box.ROUNDED, expand=True, show_footer=footer)
    for key in ("1", "2"):
        name = Align.center(Text(key, style="bold"))
        table.add_column(name, name, ratio=1, overflow="fold")
    table.add_row(*(columns if first_left else columns[::-1]))
    return Group(Rule(title), Padding(visible(pair.problem.prompt), (0, 2)), table)


def visible(text: str) -> Text:
    """Text as it may be printed: control characters as escapes, spaces at the end of a line as dots."""
    shown = Text(overflow="fold", tab_size=4)
    for character in _SPACES.sub(lambda spaces: "·" * len(spaces[0]), text):
        hidden = unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") and character not in f"\n\t{JOINERS}"
        shown.append(ascii(character)[1:-1] if hidden else character, style="red" if hidden else "")
    return shown


@contextmanager
def single_keys(stream: TextIO) -> Iterator[Callable[[], str]]:
    """Gives the function that reads an answer: a key where `stream` is a terminal, else a line; "" at the end.

    A terminal is as it was afterwards. What was typed on it before does not count.
    """
    if termios is None or not stream.isatty():
        yield lambda: _line(stream)
        return
    fd = stream.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd, termios.TCSAFLUSH)
        yield lambda: _key(fd)
    finally:
        with suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _key(fd: int) -> str:
    """The next key, as the characters it sends."""
    try:
        while not select.select([fd], [], [], 0.2)[0]:
            if termios.tcgetattr(fd)[3] & termios.ICANON:  # after Ctrl-Z: the shell has set the terminal to lines
                tty.setcbreak(fd, termios.TCSANOW)
        key = os.read(fd, 1)
        while key.startswith(b"\x1b") and select.select([fd], [], [], 0.02)[0]:  # an arrow key sends three at once
            key += os.read(fd, 1)
    except (OSError, termios.error):  # the terminal is gone
        return ""
    return key.decode(errors="replace")


def _line(stream: TextIO) -> str:
    line = stream.readline()
    return line.strip() or "an empty line" if line else ""


def _cell(text: str, finished: bool) -> Group:
    end = [] if finished else [Text(UNFINISHED, style="italic dim")]
    return Group(visible(text), *end)
