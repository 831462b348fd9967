"""What a command says: progress bars and tables."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

if TYPE_CHECKING:  # both load torch, which not every command needs
    from llmgym.evaluation import Score
    from llmgym.runs import Scores


def say(text: str) -> None:
    """One line on stdout; never wrapped, so that paths stay whole."""
    print(text, flush=True)


@contextmanager
def bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr over `total` completions; gives the function that moves it."""
    layout = "{desc}: {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} {elapsed}"
    with tqdm(total=total, desc=label, bar_format=layout, file=sys.stderr) as shown:
        yield lambda n: shown.update(n) and None


def before_and_after(scores: Scores) -> None:
    """A row a decoding and a time: accuracy with its interval, format and length."""
    table = _table("decoding", "training", "accuracy", "95 % interval", "well-formed", "mean tokens")
    for how in scores.get("before", {}):
        for when, row in scores.items():
            score = row[how]
            table.add_row(how, when, _accuracy(score.accuracy), _interval(score.interval), *_form(score))
        table.add_section()
    _print(table)
    _say_failures(score for row in scores.values() for score in row.values())


def one_policy(rates: Mapping[str, tuple[float, tuple[float, float]]], score: Score) -> None:
    """A row a way of counting successes, all from one set of completions."""
    table = _table("decoding", "accuracy", "95 % interval", "well-formed", "mean tokens")
    for name, (value, interval) in rates.items():
        table.add_row(name, _accuracy(value), _interval(interval), *_form(score))
    _print(table)
    _say_failures([score])


def plain_table(first: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> None:
    """A row a name, its cells beside it."""
    table = _table(first, *columns)
    for name, cells in rows:
        table.add_row(name, *cells)
    _print(table)


def with_error(value: float, error: float, percent: bool = False) -> str:
    """A mean with its standard error; a dash for what was not measured."""
    if value != value:
        return "–"
    return f"{100 * value:.1f} ± {100 * error:.1f} %" if percent else f"{value:.2f} ± {error:.2f}"


def _say_failures(scores: Iterable[Score]) -> None:
    failures = sum(score.scorer_failures for score in scores)
    if failures:
        say(f"the scorer failed on {failures} completions, which are left out")


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 or column == "training" else "right", no_wrap=True)
    return table


def _print(table: Table) -> None:
    console = Console(highlight=False)
    console.width = max(console.width, 90)  # cells are never cut off
    console.print(table)


def _accuracy(value: float) -> str:
    return f"{100 * value:.1f} %" if value == value else "–"


def _interval(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f} %"


def _form(score: Score) -> tuple[str, str]:
    return _accuracy(score.well_formed), f"{score.mean_tokens:.1f}"
