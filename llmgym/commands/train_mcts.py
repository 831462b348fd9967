"""`llmgym train mcts`: a network that learns Go by playing itself (Gumbel AlphaZero), and leaves a run folder."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import gymnasium as gym

from llmgym.agents.files import described
from llmgym.agents.mcts import MCTS, MCTSConfig
from llmgym.agents.metrics import Metrics
from llmgym.commands import report
from llmgym.commands.interrupts import CtrlC
from llmgym.commands.options import check_positive, parse, plain_warnings, prepare
from llmgym.envs.go.trained import policy_folder, trained_with
from llmgym.nets import NetPolicy
from llmgym.runs import RunFolder, check_free, default_path
from llmgym.self_play_plots import self_play_picture

PROG = "llmgym train mcts"
DEFAULT_SECONDS = 120.0


@dataclass(frozen=True)
class BoardOptions:
    """The game that is learnt, and what the network sees of it."""

    board_size: int = 5  # points a side, 1 to 25
    komi: float = 0.5  # points White is given
    ko: Literal["simple", "positional", "situational"] = "positional"  # no retaking; no position again; … same mover
    reward: Literal["result", "margin"] = "result"  # at the end: 1, 0 or -1; or points ahead, as a share of the board
    planes: tuple[str, ...] = ("stones", "liberties", "ko", "colour")  # see llmgym.envs.go.planes; also history

    def make(self) -> gym.Env:
        """The environment whose rules are played by."""
        return gym.make("llmgym/Go-v0", **asdict(self))


@dataclass(frozen=True)
class NetOptions:
    """The network: a residual tower."""

    blocks: int = 4  # of two 3x3 convolutions each
    channels: int = 32  # of each convolution
    init: str | None = None  # a run folder to take the first weights from: same net and planes, a board of any size

    def __post_init__(self):
        check_positive(blocks=self.blocks, channels=self.channels)


@dataclass(frozen=True)
class RunOptions:
    """Budget and run folder."""

    out: str | None = None  # run folder, new or empty; None makes runs/mcts-SIZExSIZE-DATE-TIME
    resume: str | None = None  # a run folder to go on from: network, optimiser, window and settings; games begin anew
    max_seconds: float | None = None  # budget in seconds; 120 when no budget is given at all
    total_timesteps: int | None = None  # budget in moves, over all games
    checkpoint_seconds: float = 120.0  # between two checkpoints, which are what --resume reads
    threads: int | None = None  # CPU threads of torch where it learns; None leaves that to torch

    def __post_init__(self):
        check_positive(max_seconds=self.max_seconds, total_timesteps=self.total_timesteps)
        check_positive(checkpoint_seconds=self.checkpoint_seconds)

    @property
    def budget(self) -> dict[str, Any]:
        """Arguments of `learn`."""
        none = self.max_seconds is None and self.total_timesteps is None
        return {
            "total_timesteps": self.total_timesteps,
            "max_seconds": DEFAULT_SECONDS if none else self.max_seconds,
        }


@dataclass(frozen=True)
class TrainOptions:
    """Train a network for Go by self-play with search, and leave a run folder.

    Ctrl-C stops after the current update: the run folder is completed, the exit code is 130. `llmgym match` plays what
    it leaves: alphazero:policy=RUN searches, RUN itself is the network alone.
    """

    agent: MCTSConfig
    board: BoardOptions = field(default_factory=BoardOptions)
    net: NetOptions = field(default_factory=NetOptions)
    run: RunOptions = field(default_factory=RunOptions)


def run(name: str, words: list[str]) -> int:
    """`llmgym train mcts WORDS…`."""
    default = TrainOptions(MCTSConfig(seed=0, verbose=1))
    options = parse(TrainOptions, words, prog=PROG, default=default)
    if options.run.resume is not None:  # its settings are the defaults of what the words do not say
        options = parse(TrainOptions, words, prog=PROG, default=_saved(options.run.resume, default))
    size = options.board.board_size
    path = check_free(options.run.out or default_path(f"mcts-{size}x{size}"))
    prepare(options.run.threads)
    agent = _agent(options)
    with RunFolder(path) as folder, plain_warnings():
        folder.write_config({"command": ["train", name, *words], "name": name, **asdict(options)})
        parameters = sum(p.numel() for p in agent.policy.parameters())
        report.say(f"mcts: {size}x{size}, {parameters:,} parameters, {agent.config.simulations} simulations a move")
        return 130 if _train(agent, folder, options) else 0


def _agent(options: TrainOptions) -> MCTS:
    """The agent that is to learn: a new one, or the one to go on from."""
    env = options.board.make()
    if options.run.resume is not None:
        return MCTS.load(policy_folder(options.run.resume), env, **asdict(options.agent))
    c, net = options.agent, options.net
    named: dict[str, Any] = {"device": c.device, "dtype": c.dtype, "seed": c.seed}
    policy = NetPolicy("ResNetPolicy", env, hidden=(net.channels,) * net.blocks, **named)
    if net.init is not None:
        policy.load_weights(policy_folder(net.init), any_size=True)
    return MCTS(policy, env, **asdict(c))


def _saved(name: str, default: TrainOptions) -> TrainOptions:
    """Settings of the agent that a run folder holds."""
    folder = policy_folder(name)
    saved = described(folder, "MCTS")
    known = {f.name for f in dataclasses.fields(MCTSConfig)}
    agent = MCTSConfig(**{key: value for key, value in saved["config"].items() if key in known})
    told = trained_with(folder)
    board = {f.name: told[f.name] for f in dataclasses.fields(BoardOptions) if f.name in told}
    board["planes"] = tuple(board.get("planes", default.board.planes))
    return replace(default, agent=agent, board=BoardOptions(**board))


def _train(agent: MCTS, folder: RunFolder, options: TrainOptions) -> bool:
    """Learn, with checkpoints; returns whether it was interrupted. The agent is saved whatever ends it."""
    with CtrlC() as ctrl_c:
        ctrl_c.patience, due = 1, time.monotonic() + options.run.checkpoint_seconds
        before = agent.num_timesteps

        def record(agent: MCTS, metrics: Metrics, games: list[Any]) -> bool:
            nonlocal due
            folder.log(metrics)
            if time.monotonic() > due:
                _keep(agent, folder)
                due = time.monotonic() + options.run.checkpoint_seconds
            return not ctrl_c.asked

        try:
            agent.learn(**options.run.budget, callback=record)
        finally:
            ctrl_c.patience = math.inf
            _keep(agent, folder)
    if folder.records:
        _conclude(folder.records[-1], agent.num_timesteps - before)
    report.say(f"run folder: {folder.path}")
    return ctrl_c.asked > 0


def _keep(agent: MCTS, folder: RunFolder) -> None:
    """Everything that is needed to go on, and the picture so far."""
    agent.save(folder.policy)
    if folder.records:
        rules = agent.mdp.rules
        title = f"Go {rules.rows}x{rules.cols}, {agent.config.simulations} simulations a move"
        self_play_picture(folder.records, folder.path / "learning_curve.png", title=title)


def _conclude(last: Metrics, moves: int) -> None:
    shown = {"games": ",.0f", "policy_loss": ".3f", "value_loss": ".3f", "strength": "+.2f"}
    cells = [format(last[name], form) if math.isfinite(last[name]) else "–" for name, form in shown.items()]
    report.plain_table("moves", [name.replace("_", " ") for name in shown], [(f"{moves:,}", cells)])
