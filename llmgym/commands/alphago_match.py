"""`llmgym alphago match`: stage 5, the search with several mixes of value network and playouts, against each other."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from llmgym.agents.alphago.player import LIGHT, AlphaGoPlayer, AlphaGoSettings
from llmgym.commands import report
from llmgym.commands.alphago_plots import match_picture
from llmgym.commands.alphago_stage import StageOptions, interval, percent, write_results
from llmgym.commands.options import check_positive, parse, plain_warnings
from llmgym.commands.players import make_player
from llmgym.envs.go.match import Entrant, Tally, draw_openings, play_match
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.sgf import save_sgf
from llmgym.intervals import wilson

PLAYERS = ("games", "score", "95 % interval", "s/move")
PAIRS = ("games", "score of the first", "95 % interval", "drawn")
Pair = tuple[int, int]


@dataclass(frozen=True)
class MixOptions:
    """Stage 5: PUCT with the policy network's priors, a leaf worth (1 - λ) v + λ z; players with different λ.

    Each plays each; with an opponent, each plays that one only. Rules and komi are those of the networks.
    """

    policy: str  # folder of the policy network
    value: str = ""  # folder of the value network; not needed where every mix is 1
    rollout: str = LIGHT  # folder of the fast policy; or light (uniform moves) or heavy (by rules)
    mix: tuple[float, ...] = (0.0, 0.5, 1.0)  # λ of each player: 0 the value network alone, 1 one playout alone
    opponent: str | None = None  # a player as `llmgym match` takes them, in place of each other
    games: int = 100  # of every pair; colours alternate, two games share an opening
    opening_moves: int = 2  # random moves that games begin with
    simulations: int = 100  # of every move
    leaves: int = 8  # evaluated at once, with virtual loss
    c_init: float = 1.25  # PUCT's constant: weight of the priors
    stage: StageOptions = field(default_factory=StageOptions)

    def __post_init__(self):
        check_positive(games=self.games)
        if not self.mix or len(set(self.mix)) < len(self.mix) or (len(self.mix) < 2 and self.opponent is None):
            raise ValueError(f"mix must be two different numbers or more, or one and an opponent, got {self.mix}")
        if self.opening_moves < 0:
            raise ValueError(f"opening_moves must be at least 0, got {self.opening_moves}")

    def player(self, mix: float) -> AlphaGoPlayer:
        """The player with this λ."""
        names = ("policy", "value", "rollout", "simulations", "leaves", "c_init")
        settings = {name: getattr(self, name) for name in names}
        return AlphaGoPlayer(AlphaGoSettings(**settings, mix=mix, device=self.stage.device))


def run_match(words: list[str]) -> int:
    """`llmgym alphago match WORDS…`."""
    options = parse(MixOptions, words, prog="llmgym alphago match", default=MixOptions(tyro.MISSING))
    out = options.stage.begin("match")
    entrants = [Entrant(f"λ = {mix:g}", options.player(mix)) for mix in options.mix]
    mdp = GoMDP(**entrants[0].player.rules)  # type: ignore[attr-defined]
    pairs = list(combinations(range(len(entrants)), 2))
    if options.opponent is not None:
        pairs = [(i, len(entrants)) for i in range(len(entrants))]
        entrants.append(Entrant(options.opponent.partition(":")[0], make_player(options.opponent)))
    match = _Match(options, entrants, mdp, out)
    try:
        return match.run(pairs)
    finally:
        for entrant in entrants:
            entrant.player.close()


class _Match:
    """All pairs, and what is left of them whenever it ends."""

    def __init__(self, options: MixOptions, entrants: Sequence[Entrant], mdp: GoMDP, out: Path):
        self.options, self.entrants, self.mdp, self.out = options, entrants, mdp, out
        self.tallies: dict[Pair, Tally] = {}

    def run(self, pairs: Sequence[Pair]) -> int:
        """Play, and say how it went; 130 after Ctrl-C."""
        code = 0
        try:
            self._play(pairs)
        except KeyboardInterrupt:
            report.say("")
            code = 130
        if any(tally.games for tally in self.tallies.values()):
            self._conclude()
        return code

    def _play(self, pairs: Sequence[Pair]) -> None:
        o = self.options
        openings = draw_openings(self.mdp, (o.games + 1) // 2, o.stage.seed, o.opening_moves)
        layout = "{desc}: {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} {elapsed}{postfix}"
        total = o.games * len(pairs)
        with plain_warnings(), tqdm(total=total, desc="games", bar_format=layout, file=sys.stderr) as shown:
            for pair in pairs:
                tally = self.tallies[pair] = Tally()
                seated = [self.entrants[i] for i in pair]
                for game in play_match(seated, openings, o.games, o.stage.seed):
                    tally.games.append(game)
                    self.out.mkdir(parents=True, exist_ok=True)
                    save_sgf(game.record, self.out / f"{pair[0]}-{pair[1]}-{len(tally.games):04}.sgf")
                    shown.set_postfix_str(f"{self._name(pair)} {tally.points(0):g}-{tally.points(1):g}", refresh=False)
                    shown.update()

    def _conclude(self) -> None:
        players = [self._player(i) for i in range(len(self.entrants))]
        pairs = [self._pair(pair, tally) for pair, tally in self.tallies.items() if tally.counted]
        write_results(self.out, "match", self.options, {"players": players, "pairs": pairs})
        match_picture([p for p in players if p["games"]], pairs, self.out / "match.png")
        report.plain_table("player", PLAYERS, [(p["name"], _cells(p, f"{p['seconds_per_move']:.3f}")) for p in players])
        report.plain_table("first and second", PAIRS, [(p["name"], _cells(p, str(p["draws"]))) for p in pairs])
        void = sum(len(tally.games) - len(tally.counted) for tally in self.tallies.values())
        report.say(f"{void} games are void and count for nobody" if void else f"games: {self.out}")

    def _name(self, pair: Pair) -> str:
        return " : ".join(self.entrants[i].name for i in pair)

    def _pair(self, pair: Pair, tally: Tally) -> dict[str, Any]:
        told = {"name": self._name(pair), "games": len(tally.counted), "score": tally.score(0)}
        return told | {"interval": tally.interval(0), "wins": [tally.wins(0), tally.wins(1)], "draws": tally.draws}

    def _player(self, i: int) -> dict[str, Any]:
        seats = [(pair.index(i), tally) for pair, tally in self.tallies.items() if i in pair]
        games = sum(len(tally.counted) for _, tally in seats)
        points = sum(tally.points(seat) for seat, tally in seats)
        moves = sum(_moves(tally, seat) for seat, tally in seats)
        seconds = sum(game.seconds[seat] for seat, tally in seats for game in tally.counted)
        told = {"name": self.entrants[i].name, "games": games, "score": points / max(games, 1)}
        return told | {"interval": wilson(points, games), "seconds_per_move": seconds / max(moves, 1)}


def _cells(told: dict[str, Any], last: str) -> list[str]:
    return [str(told["games"]), percent(told["score"]), interval(told["interval"]), last]


def _moves(tally: Tally, seat: int) -> int:
    """About half of the moves of a game are a player's."""
    return sum((len(game.record.moves) + (game.black == seat)) // 2 for game in tally.counted)
