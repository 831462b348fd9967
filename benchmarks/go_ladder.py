"""The search's strength against GNU Go 3.8, level 10, on 9x9: a row for each thing that it learns, game by game.

Positional superko, area scoring with every stone alive, komi 7 (draws can happen), at most 243 moves. Every pair of
games begins with two random moves of its own, and colours swap within it. The referee is that of `llmgym match`. A void
game (an engine has crashed, or has not answered) counts for nobody and is told apart.

Ours plays on one thread and keeps its tree between moves. Its simulations, or its seconds, are at most so many a move:
it stops where the rest could not change the move. It resigns where it gives itself a chance of 2 % or less, which can
cost it points but win none; GNU Go never resigns. Seconds a move are ours: of the clock, and of the processor, which
other work on the machine slows less.

A row's games lie in FOLDER/ROW.json, which is written after every game: the same command goes on where it was stopped,
and plays nothing if all games are there. Games with a fixed number of simulations repeat with their seed.

    python benchmarks/go_ladder.py
    python benchmarks/go_ladder.py --rows uct rave --games 20 --folder runs/ladder
    python benchmarks/go_ladder.py --rows best --processes 2
    python benchmarks/go_ladder.py --games 0
"""

from __future__ import annotations

import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import date
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from llmgym.commands.players import make_player
from llmgym.envs.go.match import Entrant, Played, draw_openings, play_game
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.opponents import Game, Opponent
from llmgym.envs.go.vertices import vertex
from llmgym.files import read_json, write_json
from llmgym.intervals import wilson

GNU_GO = "gnugo --mode gtp --chinese-rules --capture-all-dead --level 10 --positional-superko"
SIZE, KOMI, RANDOM_MOVES, SEED = 9, 7.0, 2, 0
TIMEOUT = 600.0  # seconds in which it must have answered: a busy machine is no crash
# What a row is called, and its player. Later rows have what earlier ones have.
ROWS = {
    "uct": ("UCT, light playouts, 5,000", "mcts:simulations=5000,resign=0.02,playouts=light,rule=uct,c_uct=0.5"),
    "rave": ("+ RAVE", "mcts:simulations=5000,resign=0.02,playouts=light,prior=0"),
    "heavy": ("+ heavy playouts", "mcts:simulations=5000,resign=0.02,prior=0"),
    "best": ("+ first impressions of moves, 15,000", "mcts:simulations=15000,resign=0.02"),
    "net": (
        "+ the network's, 0.9 s",
        "mcts:seconds=0.9,resign=0.02,network=shipped,network_after=30,bfloat16=true,device=cpu",
    ),
}
_SECONDS = ("s a move", "longest", "CPU s a move", "longest")
HEAD = ("player", "games", "distinct", "void", "score", "95 % interval", "as Black", "as White", *_SECONDS)


@dataclass(frozen=True)
class Config:
    """What to play."""

    rows: tuple[str, ...] = tuple(ROWS)  # some of uct, rave, heavy, best, net
    games: int = 200  # of each row; fewer than there are already: none is played
    processes: int = 1  # games at once, each with an engine of its own
    folder: Path = Path(__file__).parent / "go_ladder"  # where the games are

    def __post_init__(self):
        for row in self.rows:
            if row not in ROWS:
                raise ValueError(f"rows must be some of {', '.join(ROWS)}, got {row!r}")
        if self.games < 0 or self.processes < 1:
            raise ValueError(f"games must be at least 0 and processes 1, got {self.games} and {self.processes}")


def main(config: Config) -> None:
    found = {row: play(row, config) for row in config.rows}
    print(markdown([(ROWS[row][0], games) for row, games in found.items() if games]))


def play(row: str, config: Config) -> list[dict[str, Any]]:
    """The games of a row, those that are missing played."""
    file, player = config.folder / f"{row}.json", ROWS[row][1]
    games = read(file, player)
    missing = sorted(set(range(config.games)) - {game["number"] for game in games})
    if missing:
        config.folder.mkdir(parents=True, exist_ok=True)
        context = get_context("spawn")
        with ProcessPoolExecutor(min(config.processes, len(missing)), context, Table, (player, config.games)) as pool:
            asked = [pool.submit(one_game, number) for number in missing]
            try:
                for future in tqdm(as_completed(asked), row, len(missing), file=sys.stderr):
                    games = sorted([*games, future.result()], key=lambda game: game["number"])
                    write_json(file, about(player) | {"games": games})
            except KeyboardInterrupt:
                pool.shutdown(cancel_futures=True)
                raise
    return games


def read(file: Path, player: str) -> list[dict[str, Any]]:
    """The games that a file has already.

    Raises:
        ValueError: they are another player's.
    """
    if not file.is_file():
        return []
    kept = read_json(file)
    if kept["player"] != player:
        raise ValueError(f"{file} has games of {kept['player']}, not of {player}: move it away to play new ones")
    return kept["games"]


def about(player: str) -> dict[str, Any]:
    """What games belong to."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    rules = {"size": SIZE, "komi": KOMI, "ko": "positional", "random_moves": RANDOM_MOVES, "seed": SEED}
    return {"player": player, "opponent": GNU_GO, "rules": rules, "machine": machine, "date": str(date.today())}


class Timed(Opponent):
    """A player that keeps the seconds of each of its moves, of the clock and of its thread."""

    remembers = True

    def __init__(self, player: Opponent):
        self.player, self.seconds, self.cpu = player, list[float](), list[float]()

    def start(self, game: Game) -> None:
        """Not counted."""
        self.player.start(game)
        self.seconds, self.cpu = [], []

    def move(self, game: Game, rng: np.random.Generator) -> int | None:
        """The player's own."""
        began, worked = time.perf_counter(), time.thread_time()
        action = self.player.move(game, rng)
        self.seconds.append(round(time.perf_counter() - began, 3))
        self.cpu.append(round(time.thread_time() - worked, 3))
        return action


class Table:
    """Where a worker process plays: both players, warmed up, and the openings."""

    here: Table

    def __init__(self, player: str, games: int):
        torch.set_num_threads(1)
        mdp = GoMDP(SIZE, KOMI, "positional")
        self.ours = Timed(make_player(player))
        self.entrants = [Entrant("llmgym", self.ours), Entrant("GNU Go", make_player(GNU_GO, TIMEOUT))]
        self.openings = draw_openings(mdp, (games + 1) // 2, SEED, RANDOM_MOVES)
        self.ours.move(self.openings[0], np.random.default_rng(0))  # compiled, or read from the disk
        Table.here = self
        Thread(target=leave_with_parent, daemon=True).start()


def leave_with_parent() -> None:
    """A worker ends when the process that began it is gone, however that ended."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def one_game(number: int) -> dict[str, Any]:
    """Game `number` of `play_match`, as it is kept."""
    table = Table.here
    played = play_game(table.entrants, table.openings, number, np.random.default_rng([SEED, number]))
    return {"number": number} | kept(played) | {"seconds": table.ours.seconds, "cpu": table.ours.cpu}


def kept(played: Played) -> dict[str, Any]:
    """A game as JSON."""
    record = played.record
    moves = " ".join(vertex(action, SIZE, SIZE) for _, action in record.moves)
    told = {"black": played.black, "winner": played.winner, "result": record.result, "ending": record.ending}
    return told | {"void": not played.counts, "failed": played.failed, "comment": record.comment, "moves": moves}


def markdown(rows: list[tuple[str, list[dict[str, Any]]]]) -> str:
    """The table, as README.md has it."""
    lines = [HEAD, ("---", *["---:"] * (len(HEAD) - 1)), *[cells(*row) for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(name: str, games: list[dict[str, Any]]) -> tuple[str, ...]:
    """A row of the table; a draw is half a point."""
    counted = [game for game in games if not game["void"]]
    clocks = [[each for game in counted for each in game[clock]] or [float("nan")] for clock in ("seconds", "cpu")]
    distinct, void = len({game["moves"] for game in counted}), len(games) - len(counted)
    low, high = wilson(points(counted), len(counted))
    share = f"{100 * points(counted) / max(len(counted), 1):.1f} %"
    colours = [[game for game in counted if game["black"] == black] for black in (0, 1)]
    scores = [f"{points(found):g} of {len(found)}" for found in colours]
    times = [f"{figure:.2f}" for seconds in clocks for figure in (np.mean(seconds), max(seconds))]
    numbers = str(len(counted)), str(distinct), str(void)
    return name, *numbers, share, f"{100 * low:.1f}–{100 * high:.1f} %", *scores, *times


def points(games: list[dict[str, Any]]) -> float:
    """Ours."""
    return sum(0.5 if game["winner"] is None else float(game["winner"] == 0) for game in games)


if __name__ == "__main__":
    import tyro

    try:
        main(tyro.cli(Config, description=__doc__))
    except ValueError as error:
        sys.exit(f"go_ladder: {error}")
