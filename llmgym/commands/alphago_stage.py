"""What the stages of `llmgym alphago` have in common: options, a progress bar, Ctrl-C, and what a folder keeps."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llmgym.commands.interrupts import CtrlC
from llmgym.commands.options import check_positive, prepare
from llmgym.files import write_json
from llmgym.runs import check_free, default_path, finite, versions


@dataclass(frozen=True)
class StageOptions:
    """Where a stage runs and what it leaves."""

    out: str | None = None  # folder for the network, results.json and a picture, new or empty; None: alphago/STAGE-DATE
    seed: int = 0  # of everything that is drawn
    threads: int = 1  # CPU threads of torch
    device: str = "cpu"  # of networks: cpu, cuda, …

    def __post_init__(self):
        check_positive(threads=self.threads)
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")

    def begin(self, stage: str) -> Path:
        """Set the threads; the folder, if nothing is there.

        Raises:
            ValueError: something is there already.
        """
        prepare(self.threads)
        return check_free(self.out or default_path(stage, "alphago"))


class Watch:
    """A progress bar on stderr with the metrics that matter; keeps all of them, and hears Ctrl-C.

    Called with the metrics of a step; False asks the stage to stop there, and what it has learnt is kept.

    Args:
        label: of the bar.
        total: steps.
        shown: metrics in the bar, and how they are written.
    """

    def __init__(self, label: str, total: int, shown: Mapping[str, str]):
        self.label, self.total, self.shown = label, total, shown
        self.records: list[dict[str, Any]] = []
        self.ctrl_c = CtrlC()
        self.ctrl_c.patience = 1

    def __enter__(self) -> Watch:
        layout = "{desc}: {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} {elapsed}{postfix}"
        self.bar = tqdm(total=self.total, desc=self.label, bar_format=layout, file=sys.stderr)
        self.ctrl_c.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.ctrl_c.__exit__(*error)
        self.bar.close()

    @property
    def stopped(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self.ctrl_c.asked > 0

    def __call__(self, metrics: Mapping[str, Any]) -> bool:
        self.records.append(dict(metrics))
        known = {name: form for name, form in self.shown.items() if name in metrics}
        told = [f"{name.replace('_', ' ')} {metrics[name]:{form}}" for name, form in known.items()]
        self.bar.set_postfix_str("  ".join(told), refresh=False)
        self.bar.update()
        return not self.stopped

    def moved(self, n: int) -> None:
        """So many more steps that have no metrics."""
        self.bar.update(n)
        if self.stopped:
            raise KeyboardInterrupt


def write_results(
    folder: Path, stage: str, options: Any, results: Mapping[str, Any], curve: Sequence[Any] = ()
) -> None:
    """`results.json`: settings, versions, what was measured, and the metrics of every step."""
    told = {"stage": stage, "options": asdict(options), "results": results, "curve": list(curve)}
    write_json(folder / "results.json", finite(told | {"versions": versions()}))


def percent(share: float) -> str:
    """A share in a table."""
    return f"{100 * share:.1f} %"


def interval(low_high: Sequence[float]) -> str:
    """An interval of shares in a table."""
    return f"{100 * low_high[0]:.1f}–{100 * low_high[1]:.1f} %"
