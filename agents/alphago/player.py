"""Stage 5: the search that mixes them as a player, and its name on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmgym.agents.alphago.nets import load_net
from llmgym.agents.config import check_least, check_unit
from llmgym.agents.planner import Planner
from llmgym.envs.go.fast_policy import FastPolicy
from llmgym.envs.go.leaf_playouts import LeafPlayouts
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.opponents import Game, Opponent
from llmgym.envs.go.settings import Settings
from llmgym.envs.go.state import GoState
from llmgym.envs.go.trained import check_board
from llmgym.nets import NetPolicy
from llmgym.search import SearchOptions
from llmgym.search.evaluators import NetEvaluator
from llmgym.search.mixed import MixedEvaluator, NetValue

LIGHT = "light"
BY_RULES = (LIGHT, "heavy")


@dataclass(frozen=True)
class AlphaGoSettings(Settings):
    """How an `AlphaGoPlayer` searches; on the command line `alphago:policy=DIR,value=DIR,rollout=DIR,mix=0.5`.

    Raises:
        ValueError: a setting out of range, or a network that the mix needs is missing.
    """

    policy: str = ""  # folder of the policy network, which gives the priors
    value: str = ""  # folder of the value network; not needed where mix is 1
    rollout: str = (
        LIGHT  # folder of the fast policy that plays leaves out; or light (uniform moves) or heavy (by rules)
    )
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
            self.value, self._valued = load_net(settings.value, settings.device)
            self.rules = self.rules | {"komi": GoMDP(**self._valued).rules.komi}
            if self._valued.get("reward", "result") != "result":
                raise ValueError(f"the value network in {settings.value!r} has learnt margins, here results are mixed")
        self.fast = None if settings.mix == 0 or settings.rollout in BY_RULES else FastPolicy.load(settings.rollout)
        self._ready: tuple[Planner, Playouts] | None = None

    @property
    def mdp(self) -> GoMDP:
        """The game that its networks were trained on."""
        return GoMDP(**self.rules)

    def check(self, mdp: GoMDP) -> None:
        """It plays on the board that its networks were trained on, and with the komi of its value network."""
        own, asked = self.mdp.rules, mdp.rules
        check_board(self.settings.policy, own, asked)
        if self.value is not None and own.komi != asked.komi:
            komi = f"komi {own.komi:g} and cannot judge a game with komi {asked.komi:g}"
            raise ValueError(f"the value network in {self.settings.value!r} was trained with {komi}")

    def start(self, game: Game) -> None:
        """A new game needs a new tree."""
        self.check(game.mdp)
        self._ready = None

    def move(self, game: Game, rng: np.random.Generator) -> int:
        """The move that a search finds; playouts are drawn by `rng`."""
        if self._ready is None or self._ready[0].search.mdp.rules != game.mdp.rules:  # type: ignore[attr-defined]
            self._ready = self._made(game.mdp)
        planner, playouts = self._ready
        playouts.seed(int(rng.integers(2**63)))
        return int(planner.plan([game.state], rng, chance=False)[0].action)

    def close(self) -> None:
        """Free the tree."""
        self._ready = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ready": None}  # a copy grows a tree of its own

    def _made(self, mdp: GoMDP) -> tuple[Planner, Playouts]:
        s, rules = self.settings, _arguments(mdp)
        own = GoMDP(**rules, planes=self.rules.get("planes", mdp.planes))
        value = None
        if self.value is not None:
            seen = GoMDP(**rules, planes=self._valued.get("planes", mdp.planes))
            value = NetValue(NetEvaluator(seen, self.value))
        playouts = self._played_out(own)
        evaluate = MixedEvaluator(NetEvaluator(own, self.policy), s.mix, value=value, playout=playouts)
        options = SearchOptions(s.simulations, "puct", discount=-1.0, c_init=s.c_init, leaves=s.leaves, best=1.0)
        return Planner(own, evaluate, options, s.reuse), playouts

    def _played_out(self, mdp: GoMDP) -> Playouts:
        if self.fast is not None:
            return FastPlayouts(mdp, self.fast)
        return LeafPlayouts(mdp, heavy=self.settings.rollout == "heavy")


class FastPlayouts:
    """Results of one playout of a fast policy from each state, for its player to move.

    Args:
        mdp: the rules.
        fast: who plays.
        seed: of the playouts.
    """

    def __init__(self, mdp: GoMDP, fast: FastPolicy, seed: int = 0):
        self.mdp, self.fast = mdp, fast
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Draw the next playouts by this seed."""
        self._rng = np.random.default_rng(seed)

    def __call__(self, states: Sequence[GoState]) -> np.ndarray:
        """n states -> 1, 0 or -1 each, float64 [n]."""
        return self.fast.results(states, float(self.mdp.rules.komi), self._rng)


Playouts = FastPlayouts | LeafPlayouts


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
