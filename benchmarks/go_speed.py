"""Go against OpenSpiel, EnvPool, pgx and PettingZoo: moves, steps and playouts a second, all sides in one run.

Every side is a process of its own (`go_ours.py`, `go_peers.py`) that may use one core or two; it warms up, then
the sides of a table take turns, each round beginning with another one. Medians over rounds; ratios of medians, and the
least ratio of a round.

What is counted:

boards    Moves played, passes included, both colours, uniformly random legal actions, finished games begun anew, at
          most 2 · points moves a game (OpenSpiel's, EnvPool's and pgx's own cap).
          "masks": `GoBatch` gives the exact mask of every row, positional superko included, in a numpy array, draws
          an action from it, plays it. OpenSpiel: `random.choice(state.legal_actions())` and `apply_action`, one game
          at a time; its list leaves out the simple ko only, and a repetition ends the game as a draw. A second row
          makes a numpy mask of it, which is nearer to what `GoBatch` does.
          "planes": the same with the 17 planes (own and other stones of 8 positions, colour) of every row after every
          move. EnvPool and pgx compute the same 17 planes (EnvPool for both players) and a mask without superko.
          A step in which EnvPool only resets a row does not count.
single    Calls of `step`, one environment, random legal actions from the mask. A step of Go-v0 is two moves, the
          agent's and its random opponent's; one of PettingZoo's go_v5 is one move, seen through `last()`. The native
          vector form is stepped with one action a row, and every row counts.
playouts  Whole games from the empty board. Ours: uniform over legal moves that fill no own eye, positional superko,
          scored. OpenSpiel: simulations of its C++ MCTSBot with `RandomRolloutEvaluator(1)`, its tree included.
ready     Seconds from `import numpy, gymnasium` being done to the first reset and step of Go-v0 being done, in a new
          process; the machine code lies on the disk.

EnvPool and pgx are asked for in an environment of their own, without which they are left out:

    python -m venv peers && peers/bin/pip install envpool==1.2.5 pgx==2.6.0 jax==0.10.2 "gymnasium<1.4"
    python benchmarks/go_speed.py --peers-python peers/bin/python
    python benchmarks/go_speed.py --tables boards --boards 256 --rounds 3
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

HERE = Path(__file__).parent
Table = Literal["boards", "single", "playouts", "ready"]


@dataclass(frozen=True)
class Config:
    """What to measure."""

    peers_python: str | None = None  # interpreter of the environment that has EnvPool and pgx
    tables: tuple[Table, ...] = ("boards", "single", "playouts", "ready")
    size: int = 9  # board side of the first two tables; playouts are on 9 and 19
    boards: int = 512  # rows of the vector forms
    pgx_boards: int = 256  # rows of pgx, which is at its fastest about there
    rounds: int = 5
    seconds: float = 2.0  # of each side in each round
    json: Path | None = None  # also write everything here
    markdown: bool = False  # also print the tables as README.md has them


@dataclass(frozen=True)
class Side:
    """A row of a table."""

    name: str
    command: list[str]
    against: tuple[str, ...] = ()  # names of sides whose rates are divided by
    runs: list[float] = field(default_factory=list)  # a round's rate, or seconds


def main(config: Config) -> None:
    result: dict[str, Any] = {"about": about(config), "versions": [], "tables": {}}
    for name in config.tables:
        rows = ready(config) if name == "ready" else compare(config, TABLES[name](config), result["versions"])
        show(name, rows)
        if config.markdown:
            print(markdown(rows))
        result["tables"][name] = rows
    print("; ".join([*result["about"].values(), *result["versions"]]))
    if config.json is not None:
        config.json.write_text(json.dumps(result, indent=2) + "\n")


# --- the tables -----------------------------------------------------------------------------------------------------


def boards(config: Config) -> list[Side]:
    """Many games side by side."""
    sides = [Side(name, peer(config, side)) for name, side in OPENSPIEL.items()]
    for n in (1, 2):
        others = [
            Side(f"EnvPool, {cores(n)}", peer(config, "envpool", n, config.boards)),
            Side(f"pgx, {cores(n)}", peer(config, "pgx", n, config.pgx_boards)),
        ] * bool(config.peers_python)
        names = tuple(other.name for other in others)
        sides.append(Side(f"masks, {cores(n)}", ours(config, "masks", n), tuple(OPENSPIEL)))
        sides += [Side(f"planes, {cores(n)}", ours(config, "planes", n), names), *others]
    return sides


def single(config: Config) -> list[Side]:
    """One environment, and the native vector form beside it."""
    other = Side("PettingZoo go_v5", peer(config, "pettingzoo"))
    rows = [Side(f"make_vec, {config.boards} rows, {cores(n)}", ours(config, "vector", n)) for n in (1, 2)]
    return [Side("Go-v0", ours(config, "single"), (other.name,)), other, *rows]


def playouts(config: Config) -> list[Side]:
    """Light playouts against simulations."""
    sides = []
    for size in (9, 19):
        name = f"OpenSpiel MCTSBot, {size}x{size}"
        sides += [Side(f"light playouts, {size}x{size}", ours(config, "playouts", size=size), (name,))]
        sides += [Side(name, peer(config, "openspiel_mcts", size=size))]
    return sides


OPENSPIEL = {"OpenSpiel, list": "openspiel", "OpenSpiel, mask": "openspiel_mask"}
TABLES: dict[str, Callable[[Config], list[Side]]] = {"boards": boards, "single": single, "playouts": playouts}


def ours(config: Config, side: str, threads: int = 1, size: int | None = None) -> list[str]:
    """Command of a worker of ours."""
    flags = {"cores": threads, "size": size or config.size, "boards": config.boards}
    return [sys.executable, str(HERE / "go_ours.py"), side, *words(flags)]


def peer(config: Config, side: str, threads: int = 1, rows: int = 1, size: int | None = None) -> list[str]:
    """Command of another's worker."""
    python = config.peers_python if side in ("envpool", "pgx") else sys.executable
    flags = {"cores": threads, "size": size or config.size, "boards": rows}
    return [str(python), "-W", "ignore", str(HERE / "go_peers.py"), side, *words(flags)]


def cores(n: int) -> str:
    return "1 core" if n == 1 else f"{n} cores"


def words(flags: dict[str, Any]) -> list[str]:
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


# --- measuring ------------------------------------------------------------------------------------------------------


def compare(config: Config, sides: list[Side], versions: list[str]) -> list[dict[str, Any]]:
    """All sides are started and warmed up one by one, then take turns."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(side)) for side in sides]
        versions += sorted({worker.versions for worker in workers} - set(versions))
        for round_ in range(config.rounds):
            for i in range(len(sides)):
                turn = (round_ + i) % len(sides)
                sides[turn].runs.append(workers[turn].rate(config.seconds))
                print(f"round {round_}: {sides[turn].name:32} {sides[turn].runs[-1]:14,.0f} /s", flush=True)
    by_name = {side.name: side for side in sides}
    return [row(side, by_name) for side in sides]


def row(side: Side, by_name: dict[str, Side]) -> dict[str, Any]:
    """Median, rounds and ratios of a side."""
    ratios = {
        name: {
            "of_medians": median(side.runs) / median(by_name[name].runs),
            "least": min(a / b for a, b in zip(side.runs, by_name[name].runs, strict=True)),
        }
        for name in side.against
    }
    return {"side": side.name, "rate": median(side.runs), "runs": side.runs, "ratios": ratios}


class Worker:
    """A side's process: it idles until it is asked for a rate."""

    def __init__(self, side: Side):
        self.side = side
        self.process = subprocess.Popen(side.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Worker:
        self.versions = self._answer()["versions"]
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()

    def rate(self, seconds: float) -> float:
        """Work a second, over at least so many seconds."""
        print(seconds, file=self.process.stdin, flush=True)
        answer = self._answer()
        return answer["count"] / answer["seconds"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        while line and not line.startswith("{"):  # what libraries print
            line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.side.name!r} has stopped; it was started by {' '.join(self.side.command)}")
        return json.loads(line)


READY = """
import time, numpy, gymnasium
began = time.perf_counter()
import llmgym
env = gymnasium.make("llmgym/Go-v0", board_size={size})
env.reset(seed=0)
env.step({size} * {size} // 2)
print(time.perf_counter() - began)
"""


def ready(config: Config) -> list[dict[str, Any]]:
    """New processes, the first of them uncounted."""
    command = [sys.executable, "-c", READY.format(size=config.size)]
    runs = [
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(config.rounds + 1)
    ]
    return [{"side": "Go-v0 ready, s", "rate": median(runs[1:]), "runs": runs[1:], "ratios": {}}]


COLUMNS = ("", "a second", "against", "ratio", "least ratio of a round")


def show(name: str, rows: list[dict[str, Any]]) -> None:
    """A table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=name)
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if i in (0, 2) else "right")
    for cells in lines(rows):
        table.add_row(*cells)
    Console(width=120).print(table)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The same as README.md has it."""
    table = [COLUMNS, ("---", "---:", "---", "---:", "---:"), *lines(rows)]
    return "\n".join("|" + "|".join(f" {cell} " if "---" not in cell else cell for cell in row) + "|" for row in table)


def lines(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Cells: a line for each ratio, the side named in the first."""
    cells: list[tuple[str, ...]] = []
    for row in rows:
        rate = row["rate"]
        first = (row["side"], f"{rate:,.0f}" if rate > 20 else f"{rate:.3f}")  # few numbers are seconds
        ratios = [(other, f"{r['of_medians']:.1f}", f"{r['least']:.1f}") for other, r in row["ratios"].items()]
        for i, ratio in enumerate(ratios or [("", "", "")]):
            cells.append((*(("", "") if i else first), *ratio))
    return cells


def about(config: Config) -> dict[str, str]:
    """What the figures belong to."""
    settings = {k: v for k, v in asdict(config).items() if k in ("size", "boards", "pgx_boards", "rounds", "seconds")}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{_processor()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}",
        "settings": ", ".join(f"{name} {value}" for name, value in settings.items()),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
