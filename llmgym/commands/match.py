"""`llmgym match`: two players, many games, a result with its confidence interval, and every game as SGF."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from llmgym.commands import report
from llmgym.commands.options import check_positive, parse, plain_warnings
from llmgym.commands.players import RulesOptions, make_player, short_names
from llmgym.envs.go.match import Entrant, Played, Tally, draw_openings, play_match
from llmgym.envs.go.record import GameRecord
from llmgym.envs.go.replay import mdp_of
from llmgym.envs.go.sgf import load_sgf, save_sgf
from llmgym.files import write_json
from llmgym.runs import check_free, default_path, finite, versions

PROG = "llmgym match"
SAID = 5  # void games that are told one by one
COLUMNS = ("score", "95 % interval", "won", "lost", "drawn", "as Black", "as White", "s/game")
_BY = {"passes": "two passes", "moves": "the cap on moves", "illegal": "an illegal move", "resign": "resignation"}


@dataclass(frozen=True)
class PlayOptions:
    """How many games, what they begin with, and where they are kept."""

    games: int = 100  # colours alternate; games 1 and 2, 3 and 4, … share an opening
    openings: str | None = None  # an SGF file, or a folder of them: their main lines are played first, in turn
    opening_moves: int = 0  # random moves that come next, uniform over legal ones that fill no own eye
    seed: int = 0  # of openings and players
    timeout: float = 60.0  # seconds in which an engine must have answered, else the game is void
    out: str | None = None  # folder for SGF files and match.json, new or empty; None makes matches/A-B-DATE-TIME

    def __post_init__(self):
        check_positive(games=self.games, timeout=self.timeout)
        for name in ("opening_moves", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class MatchOptions:
    """Play a match between A and B.

    A player is random, light, mcts (a search; mcts:simulations=5000,threads=2 sets its options), a folder that an agent
    saved, or the command line of a GTP engine in quotes. The referee scores by area with every stone alive, so engines
    must capture what is dead: GNU Go needs --chinese-rules and --capture-all-dead. An illegal move loses the game; an
    engine that crashes, does not answer or answers nonsense voids it and is started anew.
    """

    a: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="A")]  # a player, Black in the first game
    b: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="B")]  # a player, White in the first game
    play: PlayOptions = field(default_factory=PlayOptions)
    rules: RulesOptions = field(default_factory=RulesOptions)


def run(words: list[str]) -> int:
    """`llmgym match WORDS…`."""
    options = parse(MatchOptions, words, prog=PROG, default=MatchOptions(tyro.MISSING, tyro.MISSING))
    players = [make_player(name, options.play.timeout) for name in (options.a, options.b)]
    names = short_names(options.a, options.b)
    try:
        return _Match(options, [Entrant(name, player) for name, player in zip(names, players, strict=True)]).run()
    finally:
        for player in players:
            player.close()


class _Match:
    """One match, and what is left of it whenever it ends."""

    def __init__(self, options: MatchOptions, entrants: Sequence[Entrant]):
        play = options.play
        self.options, self.entrants, self.tally = options, entrants, Tally()
        self.rules = options.rules.make(*(entrant.player for entrant in entrants))
        mdp = mdp_of(self.rules)
        pairs = (play.games + 1) // 2
        self.openings = draw_openings(mdp, pairs, play.seed, play.opening_moves, _records(play.openings))
        named = "-".join(re.sub(r"\W+", "-", entrant.name) for entrant in entrants)
        self.folder = check_free(play.out or default_path(named, "matches"))

    def run(self) -> int:
        """Play, and say how it went; 130 after Ctrl-C, which loses the game that is on."""
        code = 0
        try:
            self._play()
        except KeyboardInterrupt:
            report.say("")
            code = 130
        self._conclude()
        return code

    def _play(self) -> None:
        play = self.options.play
        games = play_match(self.entrants, self.openings, play.games, play.seed)
        with plain_warnings(), _bar(play.games) as shown:
            due = 0.0  # adding up takes longer the more games there are
            for number, game in enumerate(games, 1):
                self._keep(number, game)
                if number == play.games or time.monotonic() > due:
                    self._write()
                    shown.set_postfix_str(self._standing(), refresh=False)
                    due = time.monotonic() + 1.0
                shown.update()

    def _keep(self, number: int, game: Played) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        save_sgf(game.record, self.folder / _file(number))
        self.tally.games.append(game)

    def _write(self) -> None:
        """All results so far."""
        write_json(self.folder / "match.json", finite(self._result()))

    def _result(self) -> dict[str, Any]:
        tally, names = self.tally, [entrant.name for entrant in self.entrants]
        described = asdict(self.options) | {"versions": versions(), "names": names}
        games = [_described(game, number) for number, game in enumerate(tally.games, 1)]
        counts: dict[str, Any] = {"games": len(tally.counted), "draws": tally.draws}
        for name in ("wins", "score", "interval", "forfeits", "void"):
            counts[name] = [getattr(tally, name)(entrant) for entrant in (0, 1)]
        return described | {"result": counts, "games": games}

    def _standing(self) -> str:
        tally = self.tally
        score = f"{tally.points(0):g}-{tally.points(1):g}"
        lost = len(tally.games) - len(tally.counted)
        return f"{score}, {lost} void" if lost else score

    def _conclude(self) -> None:
        if not self.tally.games:
            report.say("no game was finished")
            return
        self._write()
        report.plain_table("player", COLUMNS, [(e.name, _cells(self.tally, i)) for i, e in enumerate(self.entrants)])
        ends = Counter(_BY[game.record.ending] for game in self.tally.counted)
        told = [f"{count} ended by {name}" for name, count in ends.most_common()]
        void = len(self.tally.games) - len(self.tally.counted)
        told += [f"{void} void"] if void else []
        report.say(f"{len(self.tally.games)} of {self.options.play.games} games: {', '.join(told)}")
        self._warn()
        report.say(f"games: {self.folder}")

    def _warn(self) -> None:
        """What makes a result worth less than it looks."""
        tally = self.tally
        for i, entrant in enumerate(self.entrants):
            if tally.forfeits(i) or tally.void(i):
                report.say(f"{entrant.name}: lost {tally.forfeits(i)} by an illegal move, voided {tally.void(i)}")
        void = [(number, game) for number, game in enumerate(tally.games, 1) if not game.counts]
        for number, game in void[:SAID]:
            report.say(f"{_file(number)} is void: {game.record.comment}")
        if len(void) > SAID:
            report.say(f"… and {len(void) - SAID} more")
        different = len({game.record.moves for game in tally.counted})
        if different < len(tally.counted):
            told = f"only {different} of {len(tally.counted)} games differ"
            report.say(f"{told}: --opening-moves or --openings make more of them differ")


def _cells(tally: Tally, entrant: int) -> list[str]:
    low, high = tally.interval(entrant)
    counted, won = len(tally.counted), tally.wins(entrant)
    score = f"{100 * tally.score(entrant):.1f} %" if counted else "–"
    seconds = f"{tally.seconds(entrant):.2f}" if counted else "–"
    wins = [f"{tally.wins(entrant, black)} of {tally.with_black(black)}" for black in (entrant, 1 - entrant)]
    numbers = [str(number) for number in (won, counted - won - tally.draws, tally.draws)]
    return [score, f"{100 * low:.1f}–{100 * high:.1f} %", *numbers, *wins, seconds]


def _described(game: Played, number: int) -> dict[str, Any]:
    record = game.record
    told = {"file": _file(number), "black": game.black, "opening": game.opening, "winner": game.winner}
    told |= {"result": record.result, "ending": record.ending, "moves": len(record.moves), "comment": record.comment}
    return told | {"failed": game.failed, "seconds": game.seconds}


def _file(number: int) -> str:
    return f"game-{number:04}.sgf"


def _records(path: str | None) -> list[GameRecord]:
    """The games of a file or a folder, in the order of their names.

    Raises:
        ValueError: there are none, or one cannot be read.
    """
    if path is None:
        return []
    given = Path(path)
    files = sorted(given.glob("*.sgf")) if given.is_dir() else [given]
    if not files or not all(file.is_file() for file in files):
        raise ValueError(f"openings must name an SGF file or a folder with some, got {path!r}")
    return [load_sgf(file) for file in files]


@contextmanager
def _bar(games: int) -> Iterator[tqdm]:
    """A progress bar on stderr with the running score."""
    layout = "{desc}: {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} {elapsed}{postfix}"
    with tqdm(total=games, desc="games", bar_format=layout, file=sys.stderr) as shown:
        yield shown
