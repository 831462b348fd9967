"""`llmgym train sft`, `dpo` and `reward-model`: learn from a file of rows, and leave a run folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import numpy as np
import tyro

from llmgym.agents.dpo import DPO
from llmgym.agents.offline import Offline, OfflineConfig
from llmgym.agents.reward_trainer import RewardTrainer
from llmgym.agents.sft import SFT
from llmgym.commands import report
from llmgym.commands.interrupts import CtrlC
from llmgym.commands.options import EnvOptions, parse, plain_warnings, policy_folder, prepare
from llmgym.demonstrations import read_demonstrations
from llmgym.evaluation import mdp_of
from llmgym.preference_plots import offline_curve
from llmgym.preferences import read_preferences
from llmgym.runs import RunFolder, check_free, default_path

LEARNERS: Mapping[str, type[Offline]] = {"sft": SFT, "dpo": DPO, "reward-model": RewardTrainer}
READERS: dict[str, Callable[..., list[Any]]] = {
    "sft": read_demonstrations,
    "dpo": read_preferences,
    "reward-model": read_preferences,
}
C = TypeVar("C", bound=OfflineConfig)


@dataclass(frozen=True)
class DataOptions:
    """Data, model and run folder."""

    # JSON lines: prompt and completion (sft), or prompt, chosen and rejected, or what llmgym label writes.
    data: Annotated[str, tyro.conf.arg(metavar="FILE")]
    held_out: float = 0.1  # share of the rows that is not learnt from but measured on, before and after; 0: none
    model: str = "tiny"  # what is trained: tiny (the embedded model), a folder, a run folder or a hub id
    out: str | None = None  # run folder, new or empty; None makes runs/LEARNER-TASK-DATE-TIME
    threads: int | None = None  # CPU threads of torch; None leaves that to torch

    def __post_init__(self):
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must be in [0, 1), got {self.held_out}")


@dataclass(frozen=True)
class OfflineOptions(Generic[C]):
    """Learn from a file of rows and leave a run folder.

    Ctrl-C stops after the current step: the run folder is completed, the exit code is 130.
    """

    run: DataOptions
    learner: C
    env: EnvOptions = field(default_factory=EnvOptions)


def run(name: str, words: list[str]) -> int:
    """`llmgym train NAME WORDS…`."""
    cls = LEARNERS[name]
    config = cls.config_class
    default = OfflineOptions(DataOptions(tyro.MISSING), config(seed=0, verbose=1))
    options = parse(OfflineOptions[config], words, prog=f"llmgym train {name}", default=default)  # type: ignore[valid-type]
    path = check_free(options.run.out or default_path(f"{name}-{options.env.task}"))
    prepare(options.run.threads)
    given = replace(options.run, model=policy_folder(options.run.model), out=str(path))
    env = options.env.make(given.model)
    learnt, held_out = _split(READERS[name](given.data, mdp_of(env)), given, options.learner.seed or 0)
    learner = cls(given.model, env, learnt, **asdict(options.learner))
    with RunFolder(path) as folder, plain_warnings():
        folder.write_config({"command": ["train", name, *words], "name": name, **asdict(replace(options, run=given))})
        report.say(f"{name}: {given.model}, {len(learnt):,} rows of {given.data}, {len(held_out):,} held out")
        return 130 if _train(learner, folder, held_out) else 0


def _train(learner: Offline, folder: RunFolder, held_out: list[Any]) -> bool:
    """Measure, learn, measure; returns whether it was interrupted. The policy is saved whatever ends it."""
    scores = {"before": learner.evaluate(held_out)} if held_out else {}
    with CtrlC() as ctrl_c:
        ctrl_c.patience = 1

        def record(learner: Offline, metrics: dict[str, float], rows: list[Any]) -> bool:
            folder.log(metrics)
            return not ctrl_c.asked

        try:
            learner.learn(callback=record)
        finally:
            ctrl_c.patience = math.inf
            learner.save(folder.policy)
            offline_curve(folder.records, folder.path / "learning_curve.png", title=f"{type(learner).__name__}")
        if held_out:
            scores["after"] = learner.evaluate(held_out)
            folder.write_scores(scores)
            columns = [name for name in scores["after"] if not name.endswith(("pairs", "_low", "_high"))]
            rows = [(when, [f"{row[c]:.3f}" for c in columns]) for when, row in scores.items()]
            report.plain_table("held-out rows", columns, rows)
    report.say(f"run folder: {folder.path}")
    return ctrl_c.asked > 0


def _split(rows: list[Any], options: DataOptions, seed: int) -> tuple[list[Any], list[Any]]:
    """Rows to learn from and rows to measure on, by the seed."""
    order = np.random.default_rng(seed).permutation(len(rows))
    cut = math.ceil(options.held_out * len(rows)) if options.held_out else 0
    if cut == len(rows):
        raise ValueError(
            f"{Path(options.data).name} has {len(rows)} rows: with held_out={options.held_out} none is left"
        )
    return [rows[i] for i in sorted(order[cut:])], [rows[i] for i in sorted(order[:cut])]
