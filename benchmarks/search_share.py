"""How much of a search's time its network takes: 9x9 Go, 16 games side by side, 32 simulations of each.

The network is `NetPolicy("ResNetPolicy")` with 4 blocks of 64 channels, in float32 and in bfloat16, on one core, whose
time is counted. Of some runs from the same 16 positions the fastest counts; a second one tells where the rest of the
time goes. Measure while nothing else runs: the network and what runs beside it share the processor's caches.

    python benchmarks/search_share.py
    python benchmarks/search_share.py --rule puct --games 64
    python benchmarks/search_share.py --size 5 --blocks 3 --channels 32
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from llmgym.envs.go.many import GoStore
from llmgym.envs.go.mdp import GoMDP
from llmgym.nets import NetPolicy
from llmgym.search import Search, SearchOptions, evaluators, search
from llmgym.search.evaluators import NetEvaluator
from llmgym.search.forest import Forest


@dataclass(frozen=True)
class Config:
    """What to measure."""

    rule: Literal["gumbel", "puct", "uct"] = "gumbel"
    games: int = 16  # side by side
    simulations: int = 32  # of each
    blocks: int = 4  # of two convolutions
    channels: int = 64
    size: int = 9  # board side
    repeats: int = 20


class Clock:
    """Seconds spent in functions, less those in the functions they call."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._inner = [0.0]

    def watch(self, owner: Any, name: str, label: str) -> None:
        """Measure the function `name` of an object, class or module."""
        function = getattr(owner, name)

        def watched(*arguments: Any) -> Any:
            started = time.thread_time()
            self._inner.append(0.0)
            try:
                return function(*arguments)
            finally:
                spent = time.thread_time() - started
                self.seconds[label] += spent - self._inner.pop()
                self._inner[-1] += spent

        setattr(owner, name, watched)


def main(config: Config) -> None:
    torch.set_num_threads(1)
    mdp, rng = GoMDP(config.size), np.random.default_rng(0)
    states = [opening(mdp, 3 * i % (config.size**2 // 2), rng) for i in range(config.games)]
    policy = NetPolicy("ResNetPolicy", mdp, hidden=(config.channels,) * config.blocks, device="cpu", seed=0)
    options = SearchOptions(rule=config.rule, simulations=config.simulations, discount=-1.0)
    found = {half: NetEvaluator(mdp, policy, bfloat16=half) for half in (False, True)}
    for half, evaluator in found.items():
        clock = Clock()
        evaluator.net = Watched(evaluator.net)
        clock.watch(evaluator.net, "run", "network")
        total, network = fastest(Search(mdp, evaluator, options), states, rng, config.repeats, clock)
        n = config.games * config.simulations
        rest = 1e6 * (total - network) / n
        name = "bfloat16" if half else "float32"
        print(f"{name}: {n / total:,.0f} simulations/s, {network / total:.1%} in the network, {rest:.0f} µs beside it")
    clock = Clock()
    for owner, name, label in PARTS:
        clock.watch(owner, name, label)
    fastest(Search(mdp, found[False], options), states, rng, config.repeats, clock)
    for label, seconds in clock.seconds.most_common():
        print(f"  {label:32s} {1e6 * seconds / config.repeats / n:5.1f} µs a simulation")


class Watched:
    """A network whose calls can be measured."""

    def __init__(self, net: Any):
        self.run = net

    def __call__(self, x: torch.Tensor) -> Any:
        return self.run(x)


PARTS = [
    (Search, "start", "new trees"),
    (Search, "run", "the loop"),
    (Search, "_result", "results"),
    (Forest, "select", "select"),
    (Forest, "grow", "expand and back up"),
    (Forest, "step", "states and actions of leaves"),
    (GoStore, "step", "moves"),
    (GoMDP, "views", "planes and masks"),
    (evaluators, "network_input", "planes to the network"),
    (search, "ask", "checks of proposals"),
    (NetEvaluator, "__call__", "evaluator"),
    (NetEvaluator, "evaluate", "network's answer to numpy"),
    (Watched, "__call__", "network"),
]


def fastest(grown: Search, states: list[Any], rng: Any, repeats: int, clock: Clock) -> tuple[float, float]:
    """Seconds of the fastest search, and those that its network took."""
    best = (np.inf, 0.0)
    grown.start(states, rng)
    grown.run()
    clock.seconds.clear()
    for _ in range(repeats):
        before, started = clock.seconds["network"], time.thread_time()
        grown.start(states, rng)
        grown.run()
        best = min(best, (time.thread_time() - started, clock.seconds["network"] - before))
    return best


def opening(mdp: GoMDP, moves: int, rng: np.random.Generator) -> Any:
    """A position after so many light moves."""
    state = mdp.initial()
    for _ in range(moves):
        state = mdp.transition(state, mdp.light_move(state, rng))
    return state


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
