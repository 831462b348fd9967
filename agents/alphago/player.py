"""Stage 5: the search that mixes them as a player, and its name on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from llmgym.agents.alphago.nets import load_net
from llmgym.agents.config import check_least, check_unit
from llmgym.agents.planner import Planner
from llmgym.envs.go.fast_policy import FastPolicy
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.opponents import Game, Opponent
from llmgym.envs.go.state import GoState
from llmgym.nets import NetPolicy
from llmgym.search import SearchOptions
from llmgym.search.evaluators import NetEvaluator
from llmgym.search.mixed import MixedEvaluator, NetValue

LIGHT = "light"


@dataclass(frozen=True)
class AlphaGoSettings:
    """How an `AlphaGoPlayer` searches; on the command line `alphago:policy=DIR,value=DIR,rollout=DIR,mix=0.5`.

    Raises:
        ValueError: a setting out of range, or a network that the mix needs is missing.
    """

    policy: str = ""  # folder of the policy network, which gives the priors
    value: str = ""  # folder of the value network; not needed where mix is 1
    rollout: str = LIGHT  # folder of the fast policy that plays out leaves; light: uniform moves, none into own eyes
    mix: float = 0.5  # λ of the value (1 - λ) v + λ z of a leaf: v of the value network, z of one playout
    simulations: int = 200  # of a move
    leaves: int = 8  # evaluated at once, with virtual loss
    c_init: float = 1.25  # PUCT's constant: weight of the priors
    reuse: bool = True  # whether the tree is kept from move to move
    device: str = "cpu"  # of the networks: cpu, cuda, …

    def __post_init__(self):
        check_least(self, 1, "simulations", "leaves")
        check_least(self, 0, "c_init")
        check_unit(self, "mix")
        if not self.policy:
            raise ValueError("alphago needs policy=DIR, the folder of a policy network")
        if self.mix < 1 and not self.value:
            raise ValueError(f"alphago with mix={self.mix:g} needs value=DIR, the folder of a value network")

    @classmethod
    def parse(cls, name: str) -> AlphaGoSettings:
        """The settings in `alphago:option=value,…`.

        Raises:
            ValueError: an option that there is not, or a value that it cannot have.
        """
        told: dict[str, Any] = {}
        for word in name.partition(":")[2].split(","):
            option, _, value = (part.strip() for part in word.partition("="))
            if option not in _READERS:
                raise ValueError(f"alphago has no option {option!r}: choose {', '.join(_READERS)}")
            if option in told:
                raise ValueError(f"{option} of alphago is given twice in {name!r}")
            told[option] = _read(option, value)
        return cls(**told)


class AlphaGoPlayer(Opponent):
    """PUCT with a policy network's priors; a leaf is worth (1 - λ) v + λ z. It plays the most visited move, or one
    that is proven to win.

    Raises:
        ValueError: a folder that does not hold what it should, or networks of different boards.
    """

    remembers = True

    def __init__(self, settings: AlphaGoSettings):
        self.settings = settings
        self.policy, self.rules = load_net(settings.policy, settings.device)
        self.value: NetPolicy | None = None
        if settings.mix < 1:
            self.value, valued = load_net(settings.value, settings.device)
            self.rules = self.rules | {name: valued[name] for name in ("komi",) if name in valued}
            self._value_planes = valued
        self.fast = None if settings.mix == 0 or settings.rollout == LIGHT else FastPolicy.load(settings.rollout)
        self._planner: Planner | None = None

    @property
    def mdp(self) -> GoMDP:
        """The game that its networks were trained on."""
        return GoMDP(**self.rules)

    def check(self, mdp: GoMDP) -> None:
        """It plays on the board that its networks were trained on, and with the komi of its value network."""
        own, asked = self.mdp.rules, mdp.rules
        if own.board_size != asked.board_size:
            sizes = f"{own.rows}x{own.cols} and cannot play on {asked.rows}x{asked.cols}"
            raise ValueError(f"the policy in {self.settings.policy!r} was trained on {sizes}")
        if self.value is not None and own.komi != asked.komi:
            komi = f"komi {own.komi:g} and cannot judge a game with komi {asked.komi:g}"
            raise ValueError(f"the value network in {self.settings.value!r} was trained with {komi}")

    def start(self, game: Game) -> None:
        """A new game needs a new tree."""
        self.check(game.mdp)
        self._planner = None

    def move(self, game: Game, rng: np.random.Generator) -> int:
        """The move that a search finds; playouts are drawn by `rng`."""
        if self._planner is None or self._planner.search.mdp.rules != game.mdp.rules:
            self._planner = self._planned(game.mdp)
        self._playouts.rng = np.random.default_rng(int(rng.integers(2**63)))
        return int(self._planner.plan([game.state], rng, chance=False)[0].action)

    def close(self) -> None:
        """Free the tree."""
        self._planner = None

    def _planned(self, mdp: GoMDP) -> Planner:
        s, rules = self.settings, _arguments(mdp)
        own = GoMDP(**rules, planes=self.rules.get("planes", mdp.planes))
        value = None
        if self.value is not None:
            seen = GoMDP(**rules, planes=self._value_planes.get("planes", mdp.planes))
            value = NetValue(NetEvaluator(seen, self.value))
        self._playouts = Playouts(own, self.fast, np.random.default_rng())
        evaluate = MixedEvaluator(NetEvaluator(own, self.policy), s.mix, value, self._playouts)
        options = SearchOptions(s.simulations, "puct", discount=-1.0, c_init=s.c_init, leaves=s.leaves, best=1.0)
        return Planner(own, evaluate, options, s.reuse)


class Playouts:
    """Results of one playout from each state, for its player to move.

    Args:
        mdp: the rules.
        fast: who plays; None: uniform moves that fill no own eye.
        rng: of the playouts.
    """

    def __init__(self, mdp: GoMDP, fast: FastPolicy | None, rng: np.random.Generator):
        self.mdp, self.fast, self.rng = mdp, fast, rng

    def __call__(self, states: Sequence[GoState]) -> np.ndarray:
        """n states -> 1, 0 or -1 each, float64 [n]."""
        mdp = self.mdp
        if self.fast is None:
            return np.array([mdp.outcome(mdp.rollout(state, self.rng), state.to_play) for state in states])
        return self.fast.results(states, float(mdp.rules.komi), self.rng)


def alphago_named(name: str) -> AlphaGoPlayer:
    """The player that is named `alphago:option=value,…`.

    Raises:
        ValueError: an option of it that there is not, a value that it cannot have, or a folder without a network.
    """
    return AlphaGoPlayer(AlphaGoSettings.parse(name))


def _arguments(mdp: GoMDP) -> dict[str, Any]:
    """Of `GoMDP`, to make one like it with other planes."""
    names = ("board_size", "komi", "ko", "suicide", "max_moves", "handicap")
    return {name: getattr(mdp.rules, name) for name in names}


def _read(option: str, value: str) -> Any:
    kind = _READERS[option]
    try:
        return {"True": True, "true": True, "False": False, "false": False}[value] if kind is bool else kind(value)
    except (KeyError, ValueError):
        wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]
        raise ValueError(f"{option} of alphago must be {wanted}, got {value!r}") from None


_READERS: dict[str, type] = {field.name: type(field.default) for field in fields(AlphaGoSettings)}
