"""`llmgym gtp`: a player of ours as an engine that speaks the Go Text Protocol on standard input and output."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from llmgym.commands.options import check_positive, parse
from llmgym.commands.players import RulesOptions, make_player
from llmgym.envs.go.gtp_engine import GTPEngine

PROG = "llmgym gtp"
Player = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PLAYER")]


@dataclass(frozen=True)
class EngineOptions:
    """How the engine chooses."""

    seed: int | None = None  # of its randomness; None takes fresh entropy
    timeout: float = 60.0  # seconds in which a player that is a GTP engine itself must have answered

    def __post_init__(self):
        check_positive(timeout=self.timeout)
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")


@dataclass(frozen=True)
class GTPOptions:
    """Answer GTP commands on standard input until quit.

    boardsize and komi change the rules given here. No game that people play is cut short: without max_moves the cap is
    ten times the points of the board.
    """

    player: Player = "light"  # random, light, mcts, alphazero, alphago, an agent's folder, or another GTP engine
    engine: EngineOptions = field(default_factory=EngineOptions)
    rules: RulesOptions = field(default_factory=RulesOptions)


def run(words: list[str]) -> int:
    """`llmgym gtp WORDS…`."""
    options = parse(GTPOptions, words, prog=PROG, default=GTPOptions())
    player = make_player(options.player, options.engine.timeout)
    try:
        rules = options.rules.make(player)
        engine = GTPEngine(player, rules, name=f"llmgym {options.player}", seed=options.engine.seed)
        _serve(engine)
    finally:
        player.close()
    return 0


def _serve(engine: GTPEngine) -> None:
    """On this process's streams."""
    for stream in (sys.stdin, sys.stdout):
        if hasattr(stream, "reconfigure"):  # a carriage return is no end of a line in GTP
            stream.reconfigure(encoding="utf-8", errors="replace", newline="\n")
    try:
        engine.serve(sys.stdin, sys.stdout)
    except BrokenPipeError:  # whoever asked has gone; Python would complain again when it flushes at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
