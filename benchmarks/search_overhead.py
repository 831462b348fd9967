"""What a search costs beside its evaluator and the rules: microseconds a simulation, and a level of the tree visited.

9x9 Go with priors and values from a table, drawn once at random; many trees from positions of different lengths; one
core, processor time. A simulation visits as many levels as its leaf is deep. "Search" is the total less the moves,
planes and masks of Go and the look-up in the table. Of some runs the fastest counts.

    python benchmarks/search_overhead.py
    python benchmarks/search_overhead.py --simulations 400 --markdown
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from search_share import Clock, opening

from llmgym.envs.go.many import GoStore
from llmgym.envs.go.mdp import GoMDP
from llmgym.search import Search, SearchOptions
from llmgym.search.proposals import LegalActions

ROWS = 1 << 14  # of the table
HEADER = ("rule", "trees", "simulations", "levels", "all, µs", "search, µs", "search, µs a level")


@dataclass(frozen=True)
class Config:
    """What to measure."""

    rules: tuple[str, ...] = ("puct", "gumbel")
    trees: tuple[int, ...] = (16, 64)
    simulations: tuple[int, ...] = (32, 200)  # of each tree
    size: int = 9  # board side
    repeats: int = 20
    markdown: bool = False  # print the table as README.md has it


class Table:
    """Priors and values of states, in the order in which they are asked for."""

    def __init__(self, mdp: GoMDP, rng: np.random.Generator):
        self.mdp, self.at = mdp, 0
        self.logits = rng.normal(size=(ROWS, mdp.rules.points + 1)).astype(np.float32)
        self.values = rng.uniform(-0.5, 0.5, ROWS).astype(np.float32)

    def __call__(self, states: Sequence[Any]) -> LegalActions:
        """n states -> n proposals."""
        n, masks = len(states), self.mdp.views(states)[1]
        self.at = 0 if self.at + n > ROWS else self.at
        rows = slice(self.at, self.at + n)
        self.at += n
        return LegalActions(masks, self.logits[rows], self.values[rows])


def main(config: Config) -> None:
    clock = Clock()
    clock.watch(GoStore, "step", "rules")
    clock.watch(Table, "__call__", "evaluator")
    mdp, rng = GoMDP(config.size), np.random.default_rng(0)
    rows = [HEADER]
    for rule in config.rules:
        for trees in config.trees:
            states = [opening(mdp, 3 * i % (config.size**2 // 2), rng) for i in range(trees)]
            for simulations in config.simulations:
                search = Search(mdp, Table(mdp, rng), SearchOptions(simulations, rule, discount=-1.0))
                rows.append((rule, str(trees), str(simulations), *measure(search, states, rng, config.repeats, clock)))
    if config.markdown:
        rows.insert(1, ("---", *["---:"] * (len(HEADER) - 1)))
    for row in rows:
        print("| " + " | ".join(row) + " |" if config.markdown else "  ".join(f"{cell:>11}" for cell in row))


def measure(
    search: Search, states: list[Any], rng: np.random.Generator, repeats: int, clock: Clock
) -> tuple[str, str, str, str]:
    """Levels, and microseconds a simulation: all of it, the search alone, and that a level."""
    n, best = len(states) * search.options.simulations, (np.inf, np.inf)
    for _ in range(repeats):
        clock.seconds.clear()
        began = time.thread_time()
        search.start(states, rng)
        search.run()
        spent = time.thread_time() - began
        best = min(best, (spent, spent - clock.seconds.total()))
    visits = search.forest.nodes["visits"]
    levels = sum(int(visits[tree, 1:nodes].sum()) for tree, nodes in enumerate(search.forest.counts[:, 0])) / n
    total, alone = (1e6 * seconds / n for seconds in best)
    return f"{levels:.1f}", f"{total:.1f}", f"{alone:.1f}", f"{alone / levels:.2f}"


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
