"""`SearchOpponent`: a player that searches with playouts, and its name on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.net_impressions import NetImpressions
from llmgym.envs.go.opponents import Game, Opponent
from llmgym.envs.go.rollout_search import CANDIDATES, RolloutSearch
from llmgym.envs.go.rules import check_number, check_whole
from llmgym.envs.go.settings import Settings
from llmgym.envs.go.trained import check_board, net_evaluator, policy_folder, shipped_folder, trained_with
from llmgym.search import SearchOptions

RULES = ("rave", "uct", "puct")


@dataclass(frozen=True)
class SearchSettings(Settings):
    """How a `SearchOpponent` searches; on the command line `mcts:simulations=5000,threads=2`.

    Raises:
        ValueError: a setting out of range.
    """

    simulations: int = 1000  # of a move, all threads together
    seconds: float = 0.0  # of a move; above 0 it takes the place of simulations, and games do not repeat
    early: bool = True  # whether a search ends once what is left of it could not change the move
    playouts: str = "heavy"  # heavy (atari, 3x3 patterns, vital points, self-atari only where it kills) or light
    rule: str = "rave"  # rave, uct or puct
    threads: int = 1  # each with a tree of its own
    c_uct: float = 0.0  # weight of the bonus for few visits; 0 leaves exploring to rave, which the others cannot
    rave: float = 3000.0  # visits at which a mean weighs as much as the all-moves-as-first one
    prior: float = 1.0  # weight of what moves look like before they are tried (only with rave)
    network: str = ""  # whose idea of moves counts too (only with rave): a folder, or shipped: what llmgym brings
    network_weight: float = 300.0  # simulations that a move of which the network is sure counts as
    network_after: int = 50  # visits until a position is shown to the network
    bfloat16: bool = False  # the network in half the bits, for processors that have it
    device: str = "auto"  # of the network
    candidates: str = "sensible"  # sensible (no own eye is filled) or all (which small boards need to be solved)
    reuse: bool = True  # whether the tree is kept from move to move
    resign: float = 0.0  # chance of winning at which it resigns, by its own search; at 0 it never does

    def __post_init__(self):
        check_whole("simulations", self.simulations, 1, 2**31 - 1)
        check_whole("threads", self.threads, 1, 1024)
        for name, choices in (("playouts", ("light", "heavy")), ("rule", RULES), ("candidates", CANDIDATES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        check_whole("network_after", self.network_after, 1, 2**31 - 1)
        if self.network and self.rule != "rave":
            raise ValueError(f"a network needs rule=rave, which takes its impressions, got {self.rule!r}")
        for name in ("seconds", "c_uct", "rave", "prior", "network_weight"):
            check_number(name, getattr(self, name))
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.resign < 1:
            raise ValueError(f"resign must be in [0, 1), got {self.resign}")


class SearchOpponent(Opponent):
    """UCT or RAVE with compiled playouts; it plays the most visited move, or one that is proven to win.

    Its playouts are drawn by the generator that `move` is given. The tree is kept between the moves of a game, which
    is no more than speed where nothing else is asked for: a game restored in its middle goes on with a new tree, and
    may go on otherwise; with `reuse=False` it does not.
    """

    remembers = True

    def __init__(self, settings: SearchSettings = SearchSettings()):
        self.settings = settings
        self._search: RolloutSearch | None = None

    def check(self, mdp: GoMDP) -> None:
        """With a network it plays on the board that this was trained on.

        Raises:
            ValueError: another board, or none of the networks that llmgym brings is for this one.
        """
        if self.settings.network:
            folder = network_folder(self.settings, mdp)
            check_board(folder, GoMDP(**trained_with(folder)).rules, mdp.rules)

    def start(self, game: Game) -> None:
        """A new game needs a new tree."""
        self._prepared(game.mdp).forget()

    def move(self, game: Game, rng: np.random.Generator) -> int | None:
        """The move that a search finds, or None to resign."""
        search, settings = self._prepared(game.mdp), self.settings
        search.seed(int(rng.integers(2**63)))
        found = search.run(game.state, seconds=settings.seconds or None, early=settings.early)
        hopeless = settings.resign > 0 and (1 + found.values[found.index]) / 2 <= settings.resign
        return None if hopeless else found.action

    def close(self) -> None:
        """Free the tree and its threads."""
        if self._search is not None:
            self._search.close()
        self._search = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_search": None}  # a copy grows trees of its own

    def _prepared(self, mdp: GoMDP) -> RolloutSearch:
        if self._search is not None and self._search.mdp.rules != mdp.rules:
            self.close()
        if self._search is None:
            self._search = make_search(mdp, self.settings)
        elif not self.settings.reuse:
            self._search.forget()
        return self._search


def make_search(mdp: GoMDP, settings: SearchSettings) -> RolloutSearch:
    """The search that these settings describe."""
    options = SearchOptions(
        simulations=settings.simulations,
        rule=settings.rule,
        c_uct=settings.c_uct,
        rave_equivalence=max(settings.rave, 1e-9),
        best=1.0,
    )
    network = None
    if settings.network:
        evaluate = net_evaluator(network_folder(settings, mdp), mdp.rules, settings.bfloat16, settings.device)
        network = NetImpressions(evaluate, settings.network_weight, settings.network_after)
    return RolloutSearch(
        mdp,
        options,
        playouts=settings.playouts,
        candidates=settings.candidates,
        prior=settings.prior,
        network=network,
        threads=settings.threads,
    )


def network_folder(settings: SearchSettings, mdp: GoMDP) -> Path:
    """Where the network is that these settings name, for this board."""
    return shipped_folder(mdp.rules) if settings.network == "shipped" else policy_folder(settings.network)
