"""The other sides of `go_speed.py`, one a process: OpenSpiel, PettingZoo, EnvPool and pgx playing random legal Go.

A worker does its warm-up, prints a line of JSON about itself, and then answers each line of standard input, a number
of seconds, with a line of JSON: how many moves (or simulations) it made in how many seconds. This file imports nothing
of llmgym, for EnvPool and pgx live in an environment of their own.

    python benchmarks/go_peers.py openspiel --cores 1
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np

Chunk = Callable[[], int]  # plays for some milliseconds; how much work that was
Side = tuple[Callable[[int, int, int], Chunk], tuple[str, ...]]  # of (size, boards, cores); packages to name

KOMI = 7.5


def serve(make: Callable[[], Chunk], cores: int, versions: str, warm_up: float = 2.0) -> None:
    """The worker's life: `cores` cores are all that it may use, libraries' threads included."""
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:cores]))
    chunk = make()
    measure(chunk, warm_up)
    print(json.dumps({"versions": versions}), flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(chunk, float(line))), flush=True)


def measure(chunk: Chunk, seconds: float) -> dict[str, float]:
    """Play whole chunks for at least so long."""
    count, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        count += chunk()
    return {"count": count, "seconds": spent}


def sample(masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A uniformly drawn True of every row; bool [N, A] -> int64 [N]."""
    running = masks.cumsum(1, dtype=np.int32)
    return (running > (rng.random(len(masks)) * running[:, -1])[:, None]).argmax(1)


def one_of(mask: np.ndarray, rng: np.random.Generator) -> int:
    """A uniformly drawn True of one row."""
    legal = np.flatnonzero(mask)
    return int(legal[int(rng.random() * len(legal))])


def openspiel(size: int, boards: int, cores: int) -> Chunk:
    """One game at a time: `random.choice(state.legal_actions())`."""
    game = _openspiel_game(size)

    def play() -> int:
        state, moves = game.new_initial_state(), 0
        while not state.is_terminal():
            state.apply_action(random.choice(state.legal_actions()))
            moves += 1
        state.returns()
        return moves

    return play


def openspiel_mask(size: int, boards: int, cores: int) -> Chunk:
    """The same with the mask as a numpy array, as a learner reads it, and an action drawn from that."""
    game, rng = _openspiel_game(size), np.random.default_rng(0)

    def play() -> int:
        state, moves = game.new_initial_state(), 0
        while not state.is_terminal():
            state.apply_action(one_of(np.array(state.legal_actions_mask(), bool), rng))
            moves += 1
        state.returns()
        return moves

    return play


def openspiel_mcts(size: int, boards: int, cores: int) -> Chunk:
    """Simulations of the C++ MCTSBot with one random rollout each, from the empty board."""
    import pyspiel

    game, simulations = _openspiel_game(size), 1000 if size <= 9 else 100
    evaluator = pyspiel.RandomRolloutEvaluator(1, 0)
    bot = pyspiel.MCTSBot(game, evaluator, 2.0, simulations, 1000, False, 0, False)

    def search() -> int:
        bot.mcts_search(game.new_initial_state())
        return simulations

    return search


def _openspiel_game(size: int):
    import pyspiel

    return pyspiel.load_game(f"go(board_size={size},komi={KOMI})")


def pettingzoo(size: int, boards: int, cores: int) -> Chunk:
    """go_v5 as its documentation steps it: `last()`, an action of the mask, `step()`."""
    from pettingzoo.classic import go_v5

    env, rng = go_v5.env(board_size=size, komi=KOMI), np.random.default_rng(0)

    def play() -> int:
        env.reset(seed=int(rng.integers(2**31)))
        moves = 0
        while True:
            observation, _, terminated, truncated, _ = env.last()
            if terminated or truncated:
                return moves
            env.step(one_of(observation["action_mask"], rng))
            moves += 1

    return play


def envpool(size: int, boards: int, cores: int) -> Chunk:
    """The native vector Go, its observations included. A step that only resets a finished row is not counted."""
    import envpool as library

    env = library.make_gymnasium(f"Go{size}x{size}-v1", num_envs=boards, num_threads=cores, seed=0)
    rng, masks, over = np.random.default_rng(0), env.reset()[1]["legal_action_mask"], np.zeros(boards, bool)

    def step() -> int:
        nonlocal masks, over
        counted = boards - int(over.sum())
        _, _, terminated, truncated, info = env.step(sample(masks, rng).astype(np.int32))
        masks, over = info["legal_action_mask"], terminated | truncated
        masks[~masks.any(1), -1] = True  # a finished row's action is ignored
        return counted

    return step


def pgx(size: int, boards: int, cores: int) -> Chunk:
    """One jitted function a step: random legal actions, the vmapped step with its observation, automatic reset."""
    import jax
    import jax.numpy as jnp
    import pgx as library
    from pgx.experimental.wrappers import auto_reset

    env = library.make(f"go_{size}x{size}")
    step_one = auto_reset(env.step, env.init)

    @jax.jit
    def step(state, key):
        key, choice, reset = jax.random.split(key, 3)
        logits = jnp.log(state.legal_action_mask.astype(jnp.float32))
        actions = jax.random.categorical(choice, logits, axis=-1)
        return jax.vmap(step_one)(state, actions, jax.random.split(reset, boards)), key

    key = jax.random.PRNGKey(0)
    state = jax.jit(jax.vmap(env.init))(jax.random.split(key, boards))

    def play() -> int:
        nonlocal state, key
        state, key = step(state, key)
        state.observation.block_until_ready()
        return boards

    return play


SIDES: dict[str, Side] = {
    "openspiel": (openspiel, ("open_spiel",)),
    "openspiel_mask": (openspiel_mask, ("open_spiel",)),
    "openspiel_mcts": (openspiel_mcts, ("open_spiel",)),
    "pettingzoo": (pettingzoo, ("pettingzoo",)),
    "envpool": (envpool, ("envpool",)),
    "pgx": (pgx, ("pgx", "jax")),
}


def main(sides: dict[str, Side], about: str | None) -> None:
    """The command line of a worker."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=sides)
    parser.add_argument("--size", type=int, default=9, help="board side")
    parser.add_argument("--boards", type=int, default=512, help="rows of a vector environment")
    parser.add_argument("--cores", type=int, default=1, help="cores, and threads where they can be set")
    a = parser.parse_args()
    make, packages = sides[a.side]
    serve(lambda: make(a.size, a.boards, a.cores), a.cores, ", ".join(f"{name} {version(name)}" for name in packages))


if __name__ == "__main__":
    main(SIDES, __doc__)
