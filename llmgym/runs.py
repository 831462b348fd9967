"""`RunFolder`: everything that one training run leaves behind, complete at every moment."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

from llmgym.evaluation import Completion, Score
from llmgym.files import write_json, write_text
from llmgym.plots import learning_curve

Scores = Mapping[str, Mapping[str, Score]]  # "before" / "after" -> decoding -> score


class RunFolder:
    """A new folder for one run.

    Files: `config.json`, `metrics.jsonl` (a line an update), TensorBoard events, `evaluation.json`, `samples.md`,
    `learning_curve.png`, and `policy/`, which is the agent's to write. A file is replaced in one step and a line is
    flushed when it is written, so that a run that ends early is complete up to its last step.

    Args:
        path: where; it must not exist yet, or be empty.

    Raises:
        ValueError: something is there already.
    """

    def __init__(self, path: str | Path):
        self.path = check_free(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.records: list[dict[str, Any]] = []
        self._metrics = (self.path / "metrics.jsonl").open("a", encoding="utf-8")
        self._events: Any = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def policy(self) -> Path:
        """Where the trained policy belongs."""
        return self.path / "policy"

    def write_config(self, config: Mapping[str, Any]) -> None:
        """`config.json`: the settings, and the versions they ran under."""
        write_json(self.path / "config.json", finite(config) | {"versions": versions()})

    def log(self, metrics: Mapping[str, float]) -> None:
        """One update: a line of `metrics.jsonl` and TensorBoard scalars against the tokens sampled so far."""
        record = {"update": len(self.records) + 1, **metrics}
        self.records.append(record)
        self._metrics.write(json.dumps(finite(record)) + "\n")
        self._metrics.flush()
        events = self._writer()
        for name, value in record.items():
            events.add_scalar(name, value, global_step=int(record.get("sampled_tokens", record["update"])))
        events.flush()

    def write_evaluation(self, scores: Scores) -> None:
        """`evaluation.json`: the held-out scores so far."""
        table = {when: {how: score.as_dict() for how, score in row.items()} for when, row in scores.items()}
        write_json(self.path / "evaluation.json", finite(table))

    def write_scores(self, scores: Mapping[str, Mapping[str, float]]) -> None:
        """`evaluation.json`: numbers measured "before" and "after", on held-out rows."""
        write_json(self.path / "evaluation.json", finite(scores))

    def write_samples(self, before: Sequence[Completion], after: Sequence[Completion] | None = None) -> None:
        """`samples.md`: the same prompts answered before and after training, side by side."""
        write_text(self.path / "samples.md", samples_table(before, after))

    def draw(self, title: str = "", scores: Scores | None = None) -> None:
        """`learning_curve.png` of the updates so far (none, no picture), with the held-out accuracies beside them."""
        if not self.records:
            return
        accuracies = {when: row["greedy"] for when, row in (scores or {}).items() if "greedy" in row}
        marks = {when: (score.accuracy, *score.interval) for when, score in accuracies.items()}
        learning_curve(self.records, self.path / "learning_curve.png", title=title, held_out=marks)

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()
        if self._events is not None:
            self._events.close()

    def _writer(self) -> Any:
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter  # a second of imports: at the first update only

            self._events = SummaryWriter(str(self.path))
        return self._events


class MetricsFile:
    """A line of JSON an update, flushed as it is written.

    Args:
        path: the file; an older one is gone on with.
        timesteps: where training stands: lines about what came later (a run that was stopped after its last
            checkpoint) are dropped.
    """

    def __init__(self, path: str | Path, timesteps: int = 0):
        path = Path(path)
        kept = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        write_text(path, "".join(line + "\n" for line in kept if _timesteps(line) <= timesteps))
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, metrics: Mapping[str, float]) -> None:
        """One update."""
        self._file.write(json.dumps(finite(metrics)) + "\n")
        self._file.flush()


def _timesteps(line: str) -> float:
    """Where training stood when a line was written; infinity for one that was cut short."""
    try:
        return float(json.loads(line)["timesteps"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def check_free(path: str | Path) -> Path:
    """The path, if nothing is there that a run could overwrite.

    Raises:
        ValueError: it is a file, or a folder with something in it.
    """
    path = Path(path)
    if path.is_dir() and not any(path.iterdir()):
        return path
    if path.exists():
        kind = "is a folder with files in it" if path.is_dir() else "is a file"
        raise ValueError(f"the run folder {str(path)!r} {kind}: name a new or an empty folder")
    return path


def default_path(name: str, root: str | Path = "runs") -> Path:
    """`runs/NAME-YYYYmmdd-HHMMSS`, with a number behind it where that is taken."""
    stem = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    path, tries = Path(root) / stem, 1
    while path.exists():
        tries += 1
        path = Path(root) / f"{stem}-{tries}"
    return path


def samples_table(before: Sequence[Completion], after: Sequence[Completion] | None = None) -> str:
    """Completions as a Markdown table, a row a prompt; ✓ and ✗ are the task's judgement."""
    lines = ["# Greedy completions of held-out problems", ""]
    lines += ["| prompt | gold answer | before training | after training |", "|---|---|---|---|"]
    for i, old in enumerate(before):
        new = _cell(after[i]) if after is not None else "(not sampled: the run ended early)"
        lines.append(f"| {_code(old.problem.prompt)} | {_code(old.problem.answer)} | {_cell(old)} | {new} |")
    return "\n".join(lines) + "\n"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("llmgym", "torch", "transformers", "gymnasium", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # imported from a checkout that is not installed
            found[package] = "unknown"
    return found


def finite(value: Any) -> Any:
    """`value` with None in place of NaN and infinities, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(completion: Completion) -> str:
    mark = "✓" if completion.is_success else "✗"
    end = "" if completion.finish_reason == "eos" else f" ({completion.finish_reason})"
    return f"{mark} {_code(completion.text)}{end}"


def _code(text: str) -> str:
    """Text as inline code that survives a table: no line breaks, no bare `|`, a fence longer than any inside."""
    text = text.replace("\r", "").replace("\n", "⏎").replace("|", "\\|")
    fence = "`"
    while fence in text:
        fence += "`"
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}" if text.strip() else "(nothing)"
