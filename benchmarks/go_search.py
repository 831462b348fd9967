"""Search with playouts against OpenSpiel's C++ MCTSBot: simulations a second, all sides in one run.

A simulation goes down the tree, adds a node and plays one game to its end. Every search begins from the empty board
with an empty tree and makes 1,000 simulations (100 above 9x9). Ours is `RolloutSearch`: UCT, or RAVE with first
impressions of moves, light or heavy playouts, on one thread or two with a tree each. OpenSpiel's is `MCTSBot` with
`RandomRolloutEvaluator(1)`; it knows one thread. Light playouts are uniform over legal moves that fill no own eye, by
positional superko; OpenSpiel's are uniform over its legal actions, without superko.

Every side is a process of its own on as many cores as its row says, warmed up; the sides take turns. Medians over
rounds; ratios of medians, and the least ratio of a round. Measure while nothing else runs.

    python benchmarks/go_search.py
    python benchmarks/go_search.py --size 19 --rounds 3 --markdown
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import go_speed
from go_speed import Side, compare, cores, markdown, ours, peer, show

PEER = "OpenSpiel MCTSBot, 1 core"


@dataclass(frozen=True)
class Config:
    """What to measure."""

    size: int = 9  # board side
    rounds: int = 5
    seconds: float = 2.0  # of each side in each round
    threads: tuple[int, ...] = (1, 2)  # of ours
    json: Path | None = None  # also write everything here
    markdown: bool = False  # also print the table as README.md has it


def main(config: Config) -> None:
    settings = go_speed.Config(size=config.size, rounds=config.rounds, seconds=config.seconds, boards=1)
    versions: list[str] = []
    rows = compare(settings, sides(settings, config.threads), versions)
    show("simulations", rows)
    if config.markdown:
        print(markdown(rows))
    result: dict[str, Any] = {"about": about(settings), "versions": versions, "simulations": rows}
    print("; ".join([*result["about"].values(), *versions]))
    if config.json is not None:
        config.json.write_text(json.dumps(result, indent=2) + "\n")


def sides(settings: go_speed.Config, threads: tuple[int, ...]) -> list[Side]:
    """Ours, each against the peer, and the peer."""
    found = []
    for rule, playouts in (("uct", "light"), ("rave", "light"), ("uct", "heavy"), ("rave", "heavy")):
        for n in threads:
            name = f"{rule.upper()}, {playouts} playouts, {cores(n)}"
            found.append(Side(name, ours(settings, f"{rule}-{playouts}", n), (PEER,)))
    return [*found, Side(PEER, peer(settings, "openspiel_mcts"))]


def about(settings: go_speed.Config) -> dict[str, str]:
    """What the figures belong to."""
    told = go_speed.about(settings)
    return told | {"settings": f"size {settings.size}, rounds {settings.rounds}, seconds {settings.seconds}"}


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
