"""`llmgym alphago policy` and `llmgym alphago rollout`: what is learnt from game records."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from llmgym.agents.alphago.nets import save_net
from llmgym.agents.alphago.policy import PolicyConfig, fit_policy, positions, score_policy, score_uniform
from llmgym.agents.alphago.records import Moves, Records, load_records
from llmgym.agents.alphago.rollout import RolloutConfig, choices, fit_rollout, speeds
from llmgym.commands import report
from llmgym.commands.alphago_plots import curve_picture
from llmgym.commands.alphago_stage import StageOptions, Watch, percent, write_results
from llmgym.commands.options import parse
from llmgym.envs.go.fast_policy import FastPolicy
from llmgym.envs.go.mdp import GoMDP
from llmgym.files import atomic_folder
from llmgym.nets import NetPolicy

SHOWN = {"loss": ".3f", "held_out_loss": ".3f", "accuracy": ".1%"}
COLUMNS = ("moves", "top-1 accuracy", "cross-entropy, nats")


@dataclass(frozen=True)
class RecordOptions:
    """Which games are learnt from."""

    skip: int = 0  # moves at the beginning of each game not learnt from, such as those of `match --opening-moves`
    held_out: float = 0.1  # share of the games, at least one, that only measures

    def __post_init__(self):
        if self.skip < 0:
            raise ValueError(f"skip must be at least 0, got {self.skip}")


@dataclass(frozen=True)
class PolicyOptions:
    """Stage 1: fit a policy network to the moves of game records.

    The folder it leaves is a player: `llmgym match DIR light`.
    """

    records: Annotated[tuple[str, ...], tyro.conf.Positional]  # SGF files, or folders of them such as `match` leaves
    games: RecordOptions = field(default_factory=RecordOptions)
    config: PolicyConfig = field(default_factory=PolicyConfig)
    stage: StageOptions = field(default_factory=StageOptions)


@dataclass(frozen=True)
class RolloutOptions:
    """Stage 4: fit the fast rollout policy to the moves of game records.

    The folder it leaves is a player: `llmgym match DIR light`.
    """

    records: Annotated[tuple[str, ...], tyro.conf.Positional]  # SGF files, or folders of them such as `match` leaves
    games: RecordOptions = field(default_factory=RecordOptions)
    config: RolloutConfig = field(default_factory=RolloutConfig)
    stage: StageOptions = field(default_factory=StageOptions)


def run_policy(words: list[str]) -> int:
    """`llmgym alphago policy WORDS…`."""
    options = parse(PolicyOptions, words, prog="llmgym alphago policy", default=PolicyOptions(tyro.MISSING))
    out, rng = options.stage.begin("policy"), np.random.default_rng(options.stage.seed)
    records, (train, held_out) = _games(options, rng)
    rules, config = records.rules | {"planes": list(options.config.planes)}, options.config
    mdp = GoMDP(**rules)
    named = {"hidden": config.hidden, "device": options.stage.device, "seed": options.stage.seed}
    policy = NetPolicy("ResNetPolicy", mdp, **named)  # type: ignore[arg-type]
    data, unseen = positions(mdp, train), positions(mdp, held_out)
    with Watch("policy", config.epochs, SHOWN) as watch:
        fit_policy(policy, data, unseen, config, rng, watch)
    rows = {"policy network": score_policy(policy, unseen), "uniform over legal moves": score_uniform(unseen.masks)}
    results = {"moves": len(data.actions), "held_out_moves": len(unseen.actions), "rows": rows}
    with atomic_folder(out) as folder:
        save_net(policy, folder, "policy", rules)
        _keep(folder, "policy", options, results, watch)
    return _told(out, results, watch, "policy network")


def run_rollout(words: list[str]) -> int:
    """`llmgym alphago rollout WORDS…`."""
    options = parse(RolloutOptions, words, prog="llmgym alphago rollout", default=RolloutOptions(tyro.MISSING))
    out, rng = options.stage.begin("rollout"), np.random.default_rng(options.stage.seed)
    records, (train, held_out) = _games(options, rng)
    data, unseen = choices(train), choices(held_out)
    with Watch("rollout policy", options.config.epochs, SHOWN) as watch:
        fast = fit_rollout(data, unseen, options.config, rng, watch)
    rows = {"rollout policy": watch.records[-1], "uniform over candidates": score_uniform(unseen.candidates)}
    results: dict[str, Any] = {"moves": len(data.actions), "held_out_moves": len(unseen.actions), "rows": rows}
    results |= {"features": _learnt(fast)} | speeds(fast, GoMDP(**records.rules))
    with atomic_folder(out) as folder:
        fast.save(folder)
        _keep(folder, "rollout", options, results, watch)
    code = _told(out, results, watch, "rollout policy")
    rates = results["playouts_per_second"], results["light_playouts_per_second"]
    report.say(f"playouts a second on one core: {rates[0]:,.0f}, uniform light ones {rates[1]:,.0f}")
    return code


def _games(options: Any, rng: np.random.Generator) -> tuple[Records, tuple[list[Moves], list[Moves]]]:
    if not options.records:
        raise ValueError("records are missing: name SGF files or folders of them")
    records = load_records(options.records, options.games.skip)
    train, held_out = records.split(options.games.held_out, rng)
    left = f", {records.left_out} left out (void, repeated, too short or against the rules)" if records.left_out else ""
    report.say(f"{len(train)} games to learn from, {len(held_out)} held out{left}")
    return records, (train, held_out)


def _learnt(fast: FastPolicy) -> int:
    """Features that records say something about."""
    return int((np.abs(fast.weights) > 1e-3).sum())


def _keep(folder: Path, stage: str, options: Any, results: dict[str, Any], watch: Watch) -> None:
    write_results(folder, stage, options, results, watch.records)
    _, uniform = results["rows"].values()
    curve_picture(watch.records, folder / f"{stage}.png", f"alphago {stage}", uniform)


def _told(out: Path, results: dict[str, Any], watch: Watch, name: str) -> int:
    rows, moves = [], str(results["held_out_moves"])
    for row, score in results["rows"].items():
        rows.append((row, [moves, percent(score["accuracy"]), f"{score['held_out_loss']:.3f}"]))
    report.say("moves of games that were held out:")
    report.plain_table("", COLUMNS, rows)
    report.say(f"{name}: {out}")
    return 130 if watch.stopped else 0
