"""`NetSearcher`: a trained network that searches, as a player of Go, and its name on the command line."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmgym.envs.go.following import moves_between
from llmgym.envs.go.leaf_playouts import LeafPlayouts
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.opponents import Game, Opponent
from llmgym.envs.go.rules import check_number, check_whole
from llmgym.envs.go.settings import Settings
from llmgym.envs.go.state import GoState
from llmgym.envs.go.trained import check_board, net_evaluator, policy_folder, shipped_folder, trained_with
from llmgym.search import Result, Search, SearchOptions
from llmgym.search.mixed import MixedEvaluator

RULES = ("puct", "gumbel")
_SLICE = 0.05  # seconds between two looks at the clock, about
_LOOKS = 32  # at whether the rest of a search matters, where simulations are counted


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
    early: bool = True  # whether a search (with puct) ends once what is left of it could not change the move
    reuse: bool = True  # whether the tree (with puct) is kept from move to move
    resign: float = 0.0  # chance of winning at which it resigns, by its own search; at 0 it never does
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
        if not 0 <= self.resign < 1:
            raise ValueError(f"resign must be in [0, 1), got {self.resign}")
        if self.seconds < 0:
            raise ValueError(f"seconds must be at least 0, got {self.seconds}")
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        if self.seconds and self.rule != "puct":
            raise ValueError(f"seconds need rule=puct, which can go on with a tree, got {self.rule!r}")


class NetSearcher(Opponent):
    """PUCT or Gumbel search with a network's priors and values; it plays the most visited move, or a proven win.

    What a position is worth is counted as the network has learnt it: a game's result, or its margin. The tree is kept
    between the moves of a game; a game restored in its middle goes on with a new one, and may go on otherwise.

    Args:
        settings: see there.

    Raises:
        ValueError: a folder that holds no network for Go.
    """

    remembers = True

    def __init__(self, settings: NetSettings = NetSettings()):
        self.settings = settings
        self._root: GoState | None = None
        self._search: Search[Any] | None = None
        self._playouts: LeafPlayouts | None = None
        if settings.policy:
            self.mdp = GoMDP(**trained_with(policy_folder(settings.policy)))  # tells commands the size of its board

    def check(self, mdp: GoMDP) -> None:
        """It plays on the board that its network was trained on.

        Raises:
            ValueError: another board, or none of the networks that llmgym brings is for this one; or it is to resign
                and knows margins only.
        """
        folder = self._folder(mdp)
        learnt = GoMDP(**trained_with(folder))
        check_board(folder, learnt.rules, mdp.rules)
        if self.settings.resign and learnt.reward_kind == "margin":
            raise ValueError(f"resign must be 0 for a network that has learnt margins, got {self.settings.resign}")

    def start(self, game: Game) -> None:
        """Get the network ready for a new game, which needs a new tree."""
        self.check(game.mdp)
        self._prepared(game.mdp)
        self._root = None

    def move(self, game: Game, rng: np.random.Generator) -> int | None:
        """The move that a search finds, or None to resign."""
        began, search = time.perf_counter(), self._prepared(game.mdp)
        if self._playouts is not None:
            self._playouts.seed(int(rng.integers(2**63)))
        self._follow(search, game.state, rng)
        found = self._think(search, began)
        hopeless = self.settings.resign > 0 and (1 + found.values[found.index]) / 2 <= self.settings.resign
        return None if hopeless else int(found.action)

    def _follow(self, search: Search[Any], state: GoState, rng: np.random.Generator) -> None:
        """A tree at this state: what is known of it if the last tree has it, or a new one."""
        moves, mdp = None, search.mdp
        if self.settings.reuse and self._root is not None and search.options.rule == "puct":
            moves = moves_between(mdp, self._root, state, search.forest.candidates(0))  # type: ignore[arg-type]
        self._root = state
        if moves is None:
            search.start([state], rng)
        for action in moves or ():
            search.advance([search.forest.candidates(0).index(action)])
        if search.options.rule == "gumbel":
            search.gumbels[:] = 0.0  # the best move, not a sample

    def _think(self, search: Search[Any], began: float) -> Result:
        """Simulations until all are made, or the time is spent, or the rest could not change the move."""
        s = self.settings
        if search.options.rule == "gumbel" or not (s.early or s.seconds):
            return search.run()[0]
        done, portion = 0, min(s.leaves, s.simulations)
        while True:
            result, done = search.run(portion)[0], done + portion
            spent = time.perf_counter() - began
            left = int(done / spent * (s.seconds - spent)) if s.seconds else s.simulations - done
            if left < 1 or result.exact or (s.early and result.decided(left)):
                return result
            slices = done / spent * _SLICE if s.seconds else s.simulations / _LOOKS
            portion = min(left, max(1, round(slices / s.leaves)) * s.leaves)

    def close(self) -> None:
        """Free network and tree."""
        self._search = self._playouts = self._root = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_search": None, "_playouts": None, "_root": None}

    def _prepared(self, mdp: GoMDP) -> Search[Any]:
        if self._search is None or self._search.mdp.rules != mdp.rules:  # type: ignore[attr-defined]
            self._search, self._root = self._made(mdp), None
        return self._search

    def _made(self, mdp: GoMDP) -> Search[Any]:
        s = self.settings
        network = net_evaluator(self._folder(mdp), mdp.rules, s.bfloat16, s.device)
        own: Any = network.mdp
        best = None if own.reward_kind == "margin" else 1.0
        options = SearchOptions(s.simulations, s.rule, discount=-1.0, leaves=s.leaves, best=best)
        self._playouts = LeafPlayouts(own, s.playouts) if s.mix else None
        return Search(own, MixedEvaluator(network, s.mix, playout=self._playouts), options)

    def _folder(self, mdp: GoMDP) -> Path:
        return policy_folder(self.settings.policy) if self.settings.policy else shipped_folder(mdp.rules)
