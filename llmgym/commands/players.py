"""How the players of `llmgym gtp` and `llmgym match` are named, and the rules that both commands take."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from llmgym.envs.go.gtp_process import split_command
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.opponents import AgentOpponent, FunctionOpponent, Game, GTPOpponent, Opponent, search_named
from llmgym.envs.go.rules import GoRules
from llmgym.envs.go.trained import check_board, policy_folder, trained_with

Ko = Literal["simple", "positional", "situational"]
CHOICES = "random, light, mcts, alphazero, alphago, a folder that an agent saved, or the command line of a GTP engine"


@dataclass(frozen=True)
class RulesOptions:
    """The rules of the game; scoring is by area, with all stones alive."""

    board_size: int | None = None  # points a side, 1 to 25; None: of the board that a policy was trained on, else 9
    komi: float = 7.5  # points White is given
    ko: Ko = "positional"  # simple: no retaking; positional: no position again; situational: … with the same mover
    suicide: bool = False  # whether a move may take its own stones
    max_moves: int | None = (
        None  # moves after which the board is scored as it stands; None: 3 times its points, gtp: 10
    )

    def make(self, *players: Opponent) -> GoRules:
        """The rules of a game between these players.

        Raises:
            ValueError: an option out of range, or a player that cannot play by them.
        """
        trained = [player.mdp.rules.board_size for player in players if hasattr(player, "mdp")]
        size = (trained or [9])[0] if self.board_size is None else self.board_size
        return GoRules(size, self.komi, self.ko, self.suicide, self.max_moves)


class PolicyPlayer(AgentOpponent):
    """A policy that an agent of ours saved: it samples from its distribution, masked, and sees the planes it knows.

    Raises:
        ValueError: the folder holds no policy for Go.
    """

    def __init__(self, folder: Path):
        from llmgym.nets import NetPolicy  # loads torch

        self.folder, self.mdp = folder, GoMDP(**trained_with(folder))
        super().__init__(NetPolicy.load(folder, self.mdp))

    def check(self, mdp: GoMDP) -> None:
        """It plays on the board that it was trained on."""
        check_board(self.folder, self.mdp.rules, mdp.rules)

    def start(self, game: Game) -> None:
        """Nothing to prepare."""
        self.check(game.mdp)

    def move(self, game: Game, rng: np.random.Generator) -> int:
        """A sample, drawn by `rng`."""
        self.agent.seed(int(rng.integers(2**63)))
        return super().move(game._replace(mdp=self.mdp), rng)


def make_player(name: str, timeout: float = 60.0) -> Opponent:
    """The player that a word of the command line names.

    Raises:
        ValueError: it names none.
    """
    if name == "random":
        return FunctionOpponent(lambda mdp, state, rng: mdp.random_move(state, rng))
    if name == "light":
        return FunctionOpponent(lambda mdp, state, rng: mdp.light_move(state, rng))
    if (search := search_named(name)) is not None:
        return search
    if name.partition(":")[0] == "alphago":
        from llmgym.agents.alphago.player import alphago_named  # loads torch

        return alphago_named(name)
    if (Path(name) / "rollout.json").is_file():
        return _rollout_player(name)
    if name.strip() and Path(name).is_dir():
        return PolicyPlayer(policy_folder(name))
    if not name.strip() or shutil.which(split_command(name)[0]) is None:
        raise ValueError(f"unknown player {name!r}: choose {CHOICES}")
    return GTPOpponent(name, timeout)


def _rollout_player(folder: str) -> Opponent:
    """The fast policy that `llmgym alphago rollout` saved."""
    from llmgym.envs.go.fast_policy import FastPolicy  # its kernels are loaded when they are used

    fast = FastPolicy.load(folder)
    return FunctionOpponent(lambda mdp, state, rng: fast.move(state, rng))


def short_names(a: str, b: str) -> tuple[str, str]:
    """How two players are called in a table: by their programs, or more fully where that tells them apart."""
    if _short(a) != _short(b):
        return _short(a), _short(b)
    return (a, b) if a != b else (f"{_short(a)} (A)", f"{_short(b)} (B)")


def _short(name: str) -> str:
    if name.partition(":")[0] in ("mcts", "alphazero", "alphago"):
        return name.partition(":")[0]
    return name if Path(name).exists() or not name.strip() else Path(split_command(name)[0]).name
