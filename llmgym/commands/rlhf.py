"""`llmgym rlhf`: a policy from preferences, in four stages and any number of rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from llmgym.agents.ppo import PPOConfig
from llmgym.agents.reward_trainer import RewardTrainerConfig
from llmgym.agents.rlhf import RLHF, RLHFConfig, Unfinished
from llmgym.agents.sft import SFTConfig
from llmgym.commands import report
from llmgym.commands.options import EnvOptions, check_positive, parse, plain_warnings, policy_folder, prepare
from llmgym.evaluation import mdp_of
from llmgym.labellers import FileLabeller, Labeller, RuleLabeller
from llmgym.preference_plots import rounds_picture
from llmgym.runs import default_path
from llmgym.terminal import TerminalLabeller

PROG = "llmgym rlhf"
Flat = tyro.conf.arg(name="")


@dataclass(frozen=True)
class RunOptions:
    """Model, demonstrations, who compares, and the folder."""

    model: str = "tiny"  # what training starts from: tiny (the embedded model), a folder, a run folder or a hub id
    out: str | None = None  # folder, new or of a run to go on with; None makes runs/rlhf-TASK-DATE-TIME
    demonstrations: str | None = None  # JSON lines with prompt and completion, for supervised fine-tuning at the start
    by: Literal["rule", "person", "file"] = "rule"  # rule: the task's reward; person: at this terminal; file: labels
    noise: float = 0.0  # by rule: probability that a label is flipped, in [0, 0.5)
    labels: str | None = None  # by file: JSON lines of preferences
    threads: int | None = None  # CPU threads of torch; None leaves that to torch

    def __post_init__(self):
        check_positive(threads=self.threads)
        if (self.by == "file") != (self.labels is not None):
            raise ValueError(f"--by file and --labels FILE go together, got --by {self.by} and labels {self.labels}")
        if self.noise and self.by != "rule":
            raise ValueError(f"noise is an option of --by rule only, got --by {self.by}")


@dataclass(frozen=True)
class RLHFOptions:
    """Train a policy from preferences: SFT, comparisons, reward model, PPO, and again.

    Whatever ended the command (Ctrl-C, q at the terminal, a kill), the same command with the same --out goes on: every
    stage resumes where its last answer or checkpoint was.
    """

    run: Annotated[RunOptions, Flat] = field(default_factory=RunOptions)
    rlhf: Annotated[RLHFConfig, Flat] = field(default_factory=RLHFConfig)
    env: Annotated[EnvOptions, Flat] = field(default_factory=EnvOptions)
    sft: SFTConfig = field(default_factory=SFTConfig)
    reward: RewardTrainerConfig = field(default_factory=lambda: RewardTrainerConfig(epochs=3))
    ppo: PPOConfig = field(default_factory=PPOConfig)


def run(words: list[str]) -> int:
    """`llmgym rlhf WORDS…`."""
    options = parse(RLHFOptions, words, prog=PROG, default=RLHFOptions(), prefixes=True)
    prepare(options.run.threads)
    given = replace(options.run, model=policy_folder(options.run.model))
    env = options.env.make(given.model)
    folder = Path(given.out or default_path(f"rlhf-{options.env.task}"))
    rlhf = RLHF(
        given.model,
        mdp_of(env),
        _labeller(given, env, options.rlhf.seed),
        folder,
        demonstrations=given.demonstrations,
        config=options.rlhf,
        **{name: _changed(getattr(options, name)) for name in ("sft", "reward", "ppo")},
        say=report.say,
        progress_bar=True,
    )
    report.say(f"folder: {folder}")
    try:
        with plain_warnings():
            rows = rlhf.run()
    except Unfinished as quit:
        report.say(f"{quit}: {PROG} --out {folder} and the same settings go on")
        return 0
    _print(rows)
    rounds_picture(rows, folder / "rounds.png", title=f"RLHF, {options.env.env} environment, {options.env.task}")
    report.say(f"folder: {folder}; the policy is in {folder / f'round-{options.rlhf.rounds:02d}' / 'policy'}")
    return 0


def _labeller(options: RunOptions, env: Any, seed: int) -> Labeller:
    if options.by == "person":
        return TerminalLabeller(seed)
    if options.by == "file":
        return FileLabeller(str(options.labels))
    mdp = mdp_of(env)
    return RuleLabeller(mdp.task, options.noise, seed, tokenizer=mdp.codec.tokenizer)


def _changed(config: Any) -> dict[str, Any]:
    """The settings that are not the defaults: what is None there still suits the policy, and seeds come from RLHF."""
    default = asdict(type(config)())
    return {name: value for name, value in asdict(config).items() if value != default[name]}


def _print(rows: Sequence[dict[str, Any]]) -> None:
    """A row a policy: true and learned reward, KL, and how good the reward model is on preferences it has not seen."""
    columns = ("true reward", "accuracy", "learned", "KL, nats", "tokens", "judge")
    report.plain_table("policy", columns, [(row["name"], _cells(row)) for row in rows])
    report.say("learned: the round's reward model; judge: its accuracy on preferences it was not fitted to; ± 1 s.e.")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    judge = row.get("reward_model", {}).get("accuracy")
    return (
        report.with_error(row["true"], row["true_error"]),
        report.with_error(row["accuracy"], row["accuracy_error"], percent=True),
        report.with_error(_number(row["proxy"]), _number(row["proxy_error"])),
        report.with_error(_number(row["kl"]), _number(row["kl_error"])),
        f"{row['length']:.1f}",
        "–" if judge is None else f"{100 * judge:.0f} %",
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value
