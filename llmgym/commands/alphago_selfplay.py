"""`llmgym alphago reinforce` and `llmgym alphago value`: what is learnt from games of the policy network itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tyro
from safetensors.torch import save_file

from llmgym.agents.alphago.nets import load_net, save_net
from llmgym.agents.alphago.reinforce import PoolConfig, Reinforce, copied
from llmgym.agents.alphago.value import Outcomes, ValueConfig, ValueGames, all_values, error, fit_value, split
from llmgym.commands import report
from llmgym.commands.alphago_plots import reinforce_picture, value_picture
from llmgym.commands.alphago_stage import StageOptions, Watch, interval, percent, write_results
from llmgym.commands.options import parse
from llmgym.envs.go.mdp import GoMDP
from llmgym.files import atomic_folder
from llmgym.nets import NetPolicy


@dataclass(frozen=True)
class ReinforceOptions:
    """Stage 2: REINFORCE of a policy network in games against a pool of its earlier selves.

    The return is the result of the game, z; the baseline the mean result of the other games with that colour, or the
    value of a network.
    """

    policy: str  # folder of the policy network to begin with
    baseline: str | None = None  # folder of a value network, in place of the mean result
    komi: float | None = None  # points White is given; None: as the policy was trained with
    config: PoolConfig = field(default_factory=PoolConfig)
    stage: StageOptions = field(default_factory=StageOptions)


@dataclass(frozen=True)
class ValueOptions:
    """Stage 3: fit a value network to the results of games of a policy network, one position a game.

    The position follows a uniform legal move at a random time. The network begins as the policy network.
    """

    policy: str  # folder of the policy network that plays on from there to the end: its value is what is learnt
    opening: str | None = None  # folder of one that plays up to the random move; None: the same
    held_out: float = 0.1  # share of the positions, each a game of its own, that only measures
    komi: float | None = None  # points White is given; None: as the policy was trained with
    config: ValueConfig = field(default_factory=ValueConfig)
    stage: StageOptions = field(default_factory=StageOptions)


def run_reinforce(words: list[str]) -> int:
    """`llmgym alphago reinforce WORDS…`."""
    default = ReinforceOptions(tyro.MISSING)
    options = parse(ReinforceOptions, words, prog="llmgym alphago reinforce", default=default)
    out, c = options.stage.begin("reinforce"), options.config
    policy, mdp, rules = _policy(options.policy, options.komi, options.stage)
    first = copied(policy, mdp, options.stage.seed + 1)
    stage = Reinforce(mdp, policy, first, c, np.random.default_rng(options.stage.seed), _baseline(options, mdp))
    with Watch("reinforce", c.updates, {"result": "+.2f", "score": ".1%"}) as watch:
        stage.learn(watch)
    last = stage.match(5 * c.match_games)
    results = {"updates": len(watch.records), "against_the_first": last}
    with atomic_folder(out) as folder:
        save_net(policy, folder, "reinforce", rules)
        (folder / "pool").mkdir()
        for number, weights in enumerate(stage.pool):
            save_file(weights, folder / "pool" / f"update-{number * c.snapshot_every:04}.safetensors")
        write_results(folder, "reinforce", options, results, watch.records)
        reinforce_picture(watch.records, last, folder / "reinforce.png")
    told = f"{percent(last['score'])} ({interval(last['interval'])}) of {last['games']} games"
    report.say(f"against the network it began as: {told}, both colours, moves drawn")
    report.say(f"policy network: {out}")
    return 130 if watch.stopped else 0


def run_value(words: list[str]) -> int:
    """`llmgym alphago value WORDS…`."""
    options = parse(ValueOptions, words, prog="llmgym alphago value", default=ValueOptions(tyro.MISSING))
    out, c, rng = options.stage.begin("value"), options.config, np.random.default_rng(options.stage.seed)
    policy, mdp, rules = _policy(options.policy, options.komi, options.stage)
    opening = policy if options.opening is None else _same_planes(options.opening, mdp, options.stage)
    with Watch("games", c.games, {}) as watch:
        data = ValueGames(mdp, policy, opening, rng).play(c, watch.moved)
    train, unseen = split(data, options.held_out, rng)
    net = copied(policy, mdp, options.stage.seed)
    with Watch("value", c.epochs, {"loss": ".3f", "held_out_loss": ".3f"}) as watch:
        fit_value(net, train, unseen, c, rng, watch)
    rows = {"value network": _scored(net, unseen), "constant": _constant(train, unseen)}
    results = {"positions": len(data.results), "held_out": len(unseen.results), "rows": rows}
    with atomic_folder(out) as folder:
        save_net(net, folder, "value", rules)
        write_results(folder, "value", options, results, watch.records)
        value_picture(watch.records, rows["constant"]["mse"], folder / "value.png")
    report.say(f"{len(data.results)} positions of {c.games} games; of {len(unseen.results)} that were held out:")
    cells = [(name, [f"{row['mse']:.3f}", percent(row["right"])]) for name, row in rows.items()]
    report.plain_table("", ("mean squared error", "winner right"), cells)
    report.say(f"value network: {out}")
    return 130 if watch.stopped else 0


def _policy(folder: str, komi: float | None, stage: StageOptions) -> tuple[NetPolicy, GoMDP, dict[str, Any]]:
    policy, rules = load_net(folder, stage.device)
    rules |= {} if komi is None else {"komi": komi}
    policy.seed(stage.seed)
    return policy, GoMDP(**rules), rules


def _same_planes(folder: str, mdp: GoMDP, stage: StageOptions) -> NetPolicy:
    net, rules = load_net(folder, stage.device)
    own = GoMDP(**rules)
    if own.rules.board_size != mdp.rules.board_size or own.planes != mdp.planes:
        raise ValueError(f"the network in {folder!r} must see the same board and planes as the policy: {mdp.planes}")
    net.seed(stage.seed + 1)
    return net


def _baseline(options: ReinforceOptions, mdp: GoMDP) -> Any:
    if options.baseline is None:
        return None
    net = _same_planes(options.baseline, mdp, options.stage)
    return lambda planes: all_values(net, planes).astype(np.float64)


def _scored(net: NetPolicy, data: Outcomes) -> dict[str, float]:
    values = all_values(net, data.planes)
    return {"mse": error(net, data), "right": float((np.sign(values) == data.results).mean())}


def _constant(train: Outcomes, data: Outcomes) -> dict[str, float]:
    """The mean result of what is learnt from, and always its sign."""
    mean = float(train.results.mean())
    right = float((np.sign(mean) == data.results).mean())
    return {"mse": float(np.mean((data.results - mean) ** 2)), "right": right}
