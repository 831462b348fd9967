"""`NetSearcher`: a trained network that searches, as a player of Go, and its name on the command line."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmgym.envs.go.leaf_playouts import LeafPlayouts
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.opponents import Game, Opponent
from llmgym.envs.go.rules import check_number, check_whole
from llmgym.envs.go.settings import Settings
from llmgym.envs.go.trained import check_board, policy_folder, trained_with
from llmgym.nets import NetPolicy
from llmgym.search import Search, SearchOptions
from llmgym.search.evaluators import NetEvaluator
from llmgym.search.mixed import MixedEvaluator

SHIPPED = Path(__file__).parent / "nets"
RULES = ("puct", "gumbel")
_SLICE = 0.05  # seconds between two looks at the clock, about


@dataclass(frozen=True)
class NetSettings(Settings):
    """How a `NetSearcher` plays; on the command line `alphazero:policy=runs/five,simulations=400`.

    Raises:
        ValueError: a setting out of range.
    """

    policy: str = ""  # folder of a network, or of the run that trained it; none: what llmgym brings for the board
    simulations: int = 200  # of a move
    seconds: float = 0.0  # of a move; above 0 it takes the place of simulations (with puct), and games do not repeat
    rule: str = "puct"  # puct or gumbel
    leaves: int = 8  # evaluated at once
    mix: float = 0.0  # λ of the value (1 - λ) v + λ z of a leaf: v of the network, z of heavy playouts
    playouts: int = 4  # of each leaf, where mix is above 0
    bfloat16: bool = False  # the network in half the bits, for processors that have it
    device: str = "auto"  # of the network

    def __post_init__(self):
        check_whole("simulations", self.simulations, 1, 2**31 - 1)
        check_whole("leaves", self.leaves, 1, 4096)
        check_whole("playouts", self.playouts, 1, 4096)
        check_number("seconds", self.seconds)
        check_number("mix", self.mix)
        if not 0 <= self.mix <= 1:
            raise ValueError(f"mix must be in [0, 1], got {self.mix}")
        if self.seconds < 0:
            raise ValueError(f"seconds must be at least 0, got {self.seconds}")
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        if self.seconds and self.rule != "puct":
            raise ValueError(f"seconds need rule=puct, which can go on with a tree, got {self.rule!r}")


class NetSearcher(Opponent):
    """PUCT or Gumbel search with a network's priors and values; it plays the most visited move, or a proven win.

    What a position is worth is counted as the network has learnt it: a game's result, or its margin.

    Args:
        settings: see there.

    Raises:
        ValueError: a folder that holds no network for Go.
    """

    def __init__(self, settings: NetSettings = NetSettings()):
        self.settings = settings
        self._search: Search[Any] | None = None
        self._playouts: LeafPlayouts | None = None
        if settings.policy:
            self.mdp = GoMDP(**trained_with(policy_folder(settings.policy)))  # tells commands the size of its board

    def check(self, mdp: GoMDP) -> None:
        """It plays on the board that its network was trained on.

        Raises:
            ValueError: another board, or none of the networks that llmgym brings is for this one.
        """
        folder = self._folder(mdp)
        check_board(folder, GoMDP(**trained_with(folder)).rules, mdp.rules)

    def start(self, game: Game) -> None:
        """Get the network ready."""
        self.check(game.mdp)
        self._prepared(game.mdp)

    def move(self, game: Game, rng: np.random.Generator) -> int:
        """The move that a search finds."""
        search, seconds = self._prepared(game.mdp), self.settings.seconds
        if self._playouts is not None:
            self._playouts.seed(int(rng.integers(2**63)))
        search.start([game.state], rng)
        if search.options.rule == "gumbel":
            search.gumbels[:] = 0.0  # the best move, not a sample
        return int((self._think(search, seconds) if seconds else search.run()[0]).action)

    def _think(self, search: Search[Any], seconds: float) -> Any:
        """Simulations until the time is spent."""
        began, portion, done = time.perf_counter(), self.settings.leaves, 0
        while True:
            result, done = search.run(portion)[0], done + portion
            left = seconds - (spent := time.perf_counter() - began)
            portion = int(done / spent * min(_SLICE, left)) // self.settings.leaves * self.settings.leaves
            if portion < 1 or result.exact:
                return result

    def close(self) -> None:
        """Free network and tree."""
        self._search = self._playouts = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_search": None, "_playouts": None}

    def _prepared(self, mdp: GoMDP) -> Search[Any]:
        if self._search is None or self._search.mdp.rules != mdp.rules:  # type: ignore[attr-defined]
            self._search = self._made(mdp)
        return self._search

    def _made(self, mdp: GoMDP) -> Search[Any]:
        s, folder, rules = self.settings, self._folder(mdp), mdp.rules
        told = {name: value for name, value in trained_with(folder).items() if name in ("reward", "planes")}
        own = GoMDP(rules.board_size, rules.komi, rules.ko, rules.suicide, rules.max_moves, rules.handicap, **told)
        policy = NetPolicy.load(folder, own, device=s.device)
        best = None if own.reward_kind == "margin" else 1.0
        options = SearchOptions(s.simulations, s.rule, discount=-1.0, leaves=s.leaves, best=best)
        network = NetEvaluator(own, policy, bfloat16=s.bfloat16)
        self._playouts = LeafPlayouts(own, s.playouts) if s.mix else None
        return Search(own, MixedEvaluator(network, s.mix, playout=self._playouts), options)

    def _folder(self, mdp: GoMDP) -> Path:
        if self.settings.policy:
            return policy_folder(self.settings.policy)
        folder = SHIPPED / f"{mdp.rules.rows}x{mdp.rules.cols}"
        if not folder.is_dir():
            known = ", ".join(sorted(path.name for path in SHIPPED.glob("*x*")))
            sides = f"{mdp.rules.rows}x{mdp.rules.cols}"
            raise ValueError(f"llmgym brings networks for {known}, none for {sides}: name one, alphazero:policy=DIR")
        return folder
