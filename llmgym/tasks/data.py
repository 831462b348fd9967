"""Tasks from your own prompts and answers: a file of JSON lines, or a Hugging Face dataset."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmgym.rows import Row, check_mapping, check_text, missing_key, read_lines, short
from llmgym.tasks.arithmetic import read_number
from llmgym.tasks.base import SPLITS, Problem, Split, Task, check_weights, extract_answer, well_formed

Scorer = Callable[[Problem, str], float | Mapping[str, float]]


def normalise(text: str) -> str:
    """Case, width, runs of white space and a full stop at the end do not count (Unicode NFKC, case folded)."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).removesuffix(".").rstrip()


def exact_match(problem: Problem, text: str) -> dict[str, float]:
    """The default scorer: the answer equals the gold one once both are normalised, or as a number (3 = 3.0)."""
    given, gold = normalise(extract_answer(text)), normalise(problem.answer)
    number = None if given == gold else read_number(given)
    correct = given == gold or (number is not None and number == read_number(gold))
    return {"correct": float(correct), "format": float(well_formed(text))}


def split_by_hash(prompt: str, test_fraction: float) -> Split:
    """The split of a prompt by its hash; with `test_fraction` 0.1 it is `split_of(prompt)`.

    Splits are nested: a larger fraction moves prompts to the test split and none back.
    """
    digest = hashlib.blake2b(prompt.encode(), digest_size=8).digest()
    tens, digit = divmod(int.from_bytes(digest, "little"), 10)
    position = (digit + tens / (2**64 // 10 + 1)) / 10  # in [0, 1), by the digit that split_of looks at first
    return "test" if position < test_fraction else "train"


class DataTask(Task):
    """Problems from rows, drawn uniformly within a split; made by `from_jsonl` and `from_dataset`.

    The split is a hash of the prompt, so that rows with the same prompt stay on one side.

    Args:
        name: of the task.
        rows: pairs of where a row stands (for error messages) and the row, a mapping.
        prompt: key of the prompts, non-empty strings.
        answer: key of the gold answers, strings (non-empty with the default scorer), or None with a scorer that
            needs none. All other keys of a row land in `problem.data`.
        scorer: your function of (problem, text); it returns a number, which is the term `correct`, or a dict of
            named terms. None means `exact_match`.
        test_fraction: share of the distinct prompts that is held out, in [0, 1], by a hash of the prompt.
        weights: weight of each term in the reward; None means `correct` 1 and `format` 0 with the default scorer,
            and the sum of your own scorer's terms.
        chat_template: whether prompts go through the tokenizer's chat template.
        system: system message of the chat template.

    Attributes:
        problems: split -> its problems, in the order of the rows.

    Raises:
        ValueError: an option or a row is unusable.
    """

    def __init__(
        self,
        name: str,
        rows: Iterable[Row],
        prompt: str = "prompt",
        answer: str | None = "answer",
        *,
        scorer: Scorer | None = None,
        test_fraction: float = 0.1,
        weights: Mapping[str, float] | None = None,
        chat_template: bool = False,
        system: str | None = None,
    ):
        check_options(prompt, answer, scorer, test_fraction)
        if scorer is not None and weights is not None:
            weights = self.weights = check_weights(weights, None)
        self.configure(weights, chat_template, system)
        self.name, self.scorer = name, scorer or exact_match
        self._sum_terms = scorer is not None and weights is None
        self.problems: dict[str, list[Problem]] = {split: [] for split in SPLITS}
        for where, row in rows:
            problem = read_problem(where, row, prompt, answer, may_be_empty=scorer is not None)
            self.problems[split_by_hash(problem.prompt, test_fraction)].append(problem)
        if not any(self.problems.values()):
            raise ValueError(f"{name} holds no rows: at least one is needed")

    def problem(self, rng: np.random.Generator, split: Split = "train") -> Problem:
        """One row of `split`, each equally likely."""
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(map(repr, SPLITS))}, got {split!r}")
        rows = self.problems[split]
        if not rows:
            other = sum(map(len, self.problems.values()))
            raise ValueError(
                f"the {split!r} split of {self.name} is empty: the hash of the prompts put all {other} rows "
                "into the other split (more rows or another test_fraction change that)"
            )
        return rows[int(rng.integers(len(rows)))]

    def score(self, problem: Problem, text: str) -> dict[str, float]:
        """The scorer's terms; a bare number is the term `correct`."""
        value = self.scorer(problem, text)
        terms = value if isinstance(value, Mapping) else {"correct": value}
        return {term: float(number) for term, number in terms.items()}

    def reward(self, terms: Mapping[str, float]) -> float:
        """Σ weight · term; the terms of your own scorer are summed if no weights were given."""
        return float(sum(terms.values())) if self._sum_terms else super().reward(terms)


def check_options(prompt: Any, answer: Any, scorer: Any, test_fraction: Any) -> None:
    """Sentences about options that cannot be meant."""
    if not isinstance(prompt, str) or not prompt:
        raise ValueError(f"prompt must name the key of the prompts, got {prompt!r}")
    if answer is not None and (not isinstance(answer, str) or not answer):
        raise ValueError(f"answer must name the key of the gold answers or be None, got {answer!r}")
    if scorer is not None and not callable(scorer):
        raise ValueError(f"scorer must be a function of (problem, text), got {scorer!r}")
    if answer is None and scorer is None:
        raise ValueError("answer=None needs a scorer of your own: the default one compares with gold answers")
    number = isinstance(test_fraction, int | float) and not isinstance(test_fraction, bool)
    if not number or not 0 <= test_fraction <= 1:
        raise ValueError(f"test_fraction must be in [0, 1], got {test_fraction!r}")


def read_problem(where: str, row: Any, prompt: str, answer: str | None, may_be_empty: bool) -> Problem:
    """The problem of one row; columns besides prompt and answer become `data`."""
    check_mapping(where, row)
    question = _text(where, row, prompt)
    gold = "" if answer is None else _text(where, row, answer, may_be_empty)
    data = {key: value for key, value in row.items() if key not in (prompt, answer)}
    return Problem(question, gold, data)


def _text(where: str, row: Mapping[str, Any], key: str, may_be_empty: bool = False) -> str:
    """The string at `key`."""
    if key not in row:
        raise missing_key(where, row, key)
    return check_text(f"{key!r} in {where}", row[key], may_be_empty)


def from_jsonl(path: str | Path, prompt: str = "prompt", answer: str | None = "answer", **options: Any) -> DataTask:
    """A task from a file with one JSON object a line (UTF-8; blank lines are skipped).

    Args:
        path: the file.
        prompt: key of the prompts.
        answer: key of the gold answers, or None.
        **options: scorer, test_fraction, weights, chat_template, system: see `DataTask`.

    Raises:
        ValueError: the file is missing, empty or unreadable, or a line (given by its number) is unusable.
    """
    return DataTask(Path(path).stem, read_lines(Path(path)), prompt, answer, **options)


def from_dataset(
    dataset: Any,
    prompt: str = "prompt",
    answer: str | None = "answer",
    *,
    subset: str | None = None,
    source_split: str = "train",
    **options: Any,
) -> DataTask:
    """A task from a Hugging Face dataset (extra `tasks`).

    Args:
        dataset: a `datasets.Dataset` or `DatasetDict`, a hub id, or a folder (of `save_to_disk`, or of data files).
        prompt: column of the prompts.
        answer: column of the gold answers, or None.
        subset: configuration of a hub dataset, such as "main".
        source_split: which of the dataset's own splits is read; `test_fraction` then divides what was read.
        **options: scorer, test_fraction, weights, chat_template, system: see `DataTask`.

    Raises:
        ValueError: the dataset cannot be loaded, or a row (numbered from 0) is unusable.
    """
    table = _load(dataset, subset, source_split)
    name = str(dataset) if isinstance(dataset, str | Path) else table.info.dataset_name or "dataset"
    rows = ((f"row {index} of {name}", row) for index, row in enumerate(table))
    return DataTask(name, rows, prompt, answer, **options)


def _load(dataset: Any, subset: str | None, source_split: str) -> Any:
    """The `datasets.Dataset` meant by an object, a hub id or a folder."""
    try:
        import datasets
    except ImportError:
        raise ValueError('from_dataset needs the package datasets: pip install -e ".[tasks]"') from None
    if isinstance(dataset, str | Path):
        dataset = _load_by_name(datasets, str(dataset), subset)
    if isinstance(dataset, datasets.DatasetDict):
        if source_split not in dataset:
            raise ValueError(f"source_split must be one of {', '.join(map(repr, dataset))}, got {source_split!r}")
        dataset = dataset[source_split]
    if not isinstance(dataset, datasets.Dataset):
        raise ValueError(f"dataset must be a datasets.Dataset, a hub id or a folder, got {short(dataset)}")
    return dataset


def _load_by_name(datasets: Any, name: str, subset: str | None) -> Any:
    path = Path(name)
    if path.is_file():
        raise ValueError(
            f"dataset must be a datasets.Dataset, a hub id or a folder, got the file {name} (try from_jsonl)"
        )
    saved = any((path / file).exists() for file in ("dataset_dict.json", "state.json"))  # by save_to_disk
    try:
        return datasets.load_from_disk(name) if saved else datasets.load_dataset(name, subset)
    except Exception as error:  # the library, its file readers and the network each have their own kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"cannot load the dataset {name!r}: {reason}") from error
