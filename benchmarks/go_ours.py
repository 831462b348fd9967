"""Our own sides of `go_speed.py` and `go_search.py`, one a process; `go_peers.py` says how a worker is asked.

python benchmarks/go_ours.py masks --cores 2
"""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import numpy as np
from go_peers import KOMI, Chunk, Side, main, one_of, sample

import llmgym  # noqa: F401
from llmgym.envs.go.batch import GoBatch
from llmgym.envs.go.layout import empty_game
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.playout import playouts
from llmgym.envs.go.rollout_search import RolloutSearch
from llmgym.envs.go.rules import GoRules
from llmgym.search import SearchOptions


def boards(size: int, rows: int, cores: int, planes: tuple[str, ...]) -> Chunk:
    """`GoBatch`: draw, step, begin finished games anew."""
    rules = GoRules(size, komi=KOMI, ko="positional", max_moves=2 * size**2)
    batch, rng = GoBatch(rules, rows, planes=planes, threads=cores), np.random.default_rng(0)

    def steps() -> int:
        for _ in range(16):
            batch.step(batch.sample(rng))
            if (over := batch.terminated).any():
                batch.reset(over)
        return 16 * rows

    return steps


def single(size: int, rows: int, cores: int) -> Chunk:
    """An episode of Go-v0 against a random opponent."""
    env, rng = gym.make("llmgym/Go-v0", board_size=size, opponent="random", komi=KOMI), np.random.default_rng(0)

    def play() -> int:
        _, info = env.reset(seed=int(rng.integers(2**31)))
        steps, over = 0, False
        while not over:
            _, _, terminated, truncated, info = env.step(one_of(info["action_mask"], rng))
            over, steps = terminated or truncated, steps + 1
        return steps

    return play


def vector(size: int, rows: int, cores: int) -> Chunk:
    """The native vector form of Go-v0 against a random opponent."""
    named = {"board_size": size, "opponent": "random", "komi": KOMI, "threads": cores}
    env = gym.make_vec("llmgym/Go-v0", rows, autoreset_mode="SameStep", **named)  # type: ignore[arg-type]
    masks, rng = env.reset(seed=0)[1]["action_mask"], np.random.default_rng(0)

    def step() -> int:
        nonlocal masks
        masks = env.step(sample(masks, rng))[4]["action_mask"]
        return rows

    return step


def light(size: int, rows: int, cores: int) -> Chunk:
    """Light playouts from the empty board, with their scores."""
    ints, longs, _ = empty_game(GoRules(size, komi=KOMI, ko="positional"))
    seed, margins = np.zeros(1, np.uint64), np.zeros(1000 if size <= 9 else 100, np.int64)

    def games() -> int:
        playouts(ints, longs, seed, margins)
        return len(margins)

    return games


def search(size: int, rows: int, cores: int, rule: str, playouts: str) -> Chunk:
    """Simulations of `RolloutSearch` from the empty board, as many a search as `go_peers.openspiel_mcts` makes."""
    mdp, simulations = GoMDP(size, komi=KOMI), 1000 if size <= 9 else 100
    options = SearchOptions(simulations, rule=rule, c_uct=1.0 if rule == "uct" else 0.0)
    searcher = RolloutSearch(mdp, options, playouts=playouts, threads=cores)

    def grow() -> int:
        searcher.forget()
        searcher.run(mdp.initial())
        return simulations

    return grow


WITH = ("llmgym", "numba", "numpy")
SIDES: dict[str, Side] = {
    "masks": (partial(boards, planes=()), WITH),
    "planes": (partial(boards, planes=("stones", "history", "colour")), WITH),
    "single": (single, WITH),
    "vector": (vector, WITH),
    "playouts": (light, WITH),
}
for _rule in ("uct", "rave"):
    for _playouts in ("light", "heavy"):
        SIDES[f"{_rule}-{_playouts}"] = (partial(search, rule=_rule, playouts=_playouts), WITH)

if __name__ == "__main__":
    main(SIDES, __doc__)
