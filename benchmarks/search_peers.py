"""The other side of `search_mctx.py`: mctx's Gumbel search over pgx's Go with the same network in JAX.

`go_peers.py` says how a worker is asked. This file imports nothing of llmgym, for mctx and pgx live in an environment
of their own.

    python benchmarks/search_peers.py float32 FOLDER --cores 1
    python benchmarks/search_peers.py outputs FOLDER
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from go_peers import Chunk, serve

PACKAGES = ("mctx", "pgx", "jax")


def network(weights: dict[str, Any], x: Any) -> tuple[Any, Any]:
    """`llmgym.residual.ResNet` in JAX: planes [n, H, W, C] -> logits [n, H · W + 1] and values [n]."""
    import jax
    import jax.numpy as jnp

    def convolution(name: str, x: Any) -> Any:
        kernel, axes = weights[f"{name}.weight"].transpose(2, 3, 1, 0), ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=axes)
        return x + weights[f"{name}.bias"]

    def linear(name: str, x: Any) -> Any:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def pooled(x: Any) -> Any:
        return jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], 1)

    relu, n = jax.nn.relu, x.shape[0]
    x = convolution("stem", x)
    for i in range(sum(name.endswith(".first.weight") for name in weights)):
        x = x + convolution(f"blocks.{i}.second", relu(convolution(f"blocks.{i}.first", relu(x))))
    x = relu(x)
    points = relu(convolution("actor.seen", x))
    board = pooled(points)
    points = convolution("actor.points", relu(points + linear("actor.board", board)[:, None, None]))
    values = linear("critic.value", relu(linear("critic.hidden", pooled(relu(convolution("critic.seen", x))))))
    return jnp.concatenate([points.reshape(n, -1), linear("actor.skip", board)], 1), values[:, 0]


def load(folder: Path, kind: str) -> dict[str, Any]:
    """The network's weights."""
    import jax.numpy as jnp

    with np.load(folder / "net.npz") as file:
        return {name: jnp.asarray(file[name], kind) for name in file.files}


def positions(env: Any, openings: list[list[int]]) -> Any:
    """pgx's states after these moves, in one batch."""
    import jax
    import jax.numpy as jnp

    step, states = jax.jit(env.step), []
    for moves in openings:
        state = env.init(jax.random.PRNGKey(0))
        for move in moves:
            state = step(state, move)
        states.append(state)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def gumbel(folder: Path, kind: str, size: int, simulations: int) -> Chunk:
    """One search from all positions: the network at the roots, then so many simulations each, in one jitted call."""
    import jax
    import jax.numpy as jnp
    import mctx
    import pgx

    env, weights = pgx.make(f"go_{size}x{size}"), load(folder, kind)
    states = positions(env, json.loads((folder / "openings.json").read_text()))

    def judge(weights: Any, states: Any) -> tuple[Any, Any]:
        logits, values = network(weights, states.observation.astype(kind))
        logits = jnp.where(states.legal_action_mask, logits.astype(jnp.float32), -jnp.inf)
        return jnp.maximum(logits, jnp.finfo(jnp.float32).min), jnp.tanh(values.astype(jnp.float32))

    def expand(weights: Any, key: Any, actions: Any, states: Any) -> tuple[Any, Any]:
        movers = states.current_player
        states = jax.vmap(env.step)(states, actions)
        logits, values = judge(weights, states)
        rewards = jnp.take_along_axis(states.rewards, movers[:, None], 1)[:, 0]
        going = ~states.terminated
        output = mctx.RecurrentFnOutput(
            reward=rewards, discount=-1.0 * going, prior_logits=logits, value=jnp.where(going, values, 0.0)
        )
        return output, states

    @jax.jit
    def search(weights: Any, key: Any, states: Any) -> Any:
        logits, values = judge(weights, states)
        root = mctx.RootFnOutput(prior_logits=logits, value=values, embedding=states)
        found = mctx.gumbel_muzero_policy(
            weights,
            key,
            root,
            expand,
            simulations,
            invalid_actions=~states.legal_action_mask,
            max_num_considered_actions=16,
            # Values are in [-1, 1] already: no rescaling, σ(q) = (50 + max N) q, as ours.
            qtransform=partial(mctx.qtransform_completed_by_mix_value, value_scale=1.0, rescale_values=False),
        )
        return found.action, found.action_weights

    key = jax.random.PRNGKey(0)

    def run() -> int:
        nonlocal key
        key, now = jax.random.split(key)
        jax.block_until_ready(search(weights, now, states))
        return states.current_player.shape[0] * simulations

    return run


def alone(folder: Path, kind: str, size: int, batch: int) -> Chunk:
    """The network alone, on planes of as many positions."""
    import jax

    weights = load(folder, kind)
    planes = np.random.default_rng(0).integers(0, 2, (batch, size, size, 17)).astype(np.float32)
    planes, apply = jax.numpy.asarray(planes, kind), jax.jit(network)

    def run() -> int:
        jax.block_until_ready(apply(weights, planes))
        return batch

    return run


def outputs(folder: Path) -> None:
    """Write what the network says of the planes in planes.npy, [n, C, H, W]."""
    planes = np.load(folder / "planes.npy").transpose(0, 2, 3, 1).astype(np.float32)
    logits, values = network(load(folder, "float32"), planes)
    np.savez(folder / "peer.npz", logits=np.asarray(logits), values=np.asarray(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=("float32", "bfloat16", "float32-net", "bfloat16-net", "outputs"))
    parser.add_argument("folder", type=Path, help="where net.npz, openings.json and planes.npy are")
    parser.add_argument("--size", type=int, default=9, help="board side")
    parser.add_argument("--simulations", type=int, default=32, help="of each position")
    parser.add_argument("--cores", type=int, default=1, help="cores that may be used")
    a = parser.parse_args()
    if a.side == "outputs":
        return outputs(a.folder)
    kind, _, rest = a.side.partition("-")
    batch = len(json.loads((a.folder / "openings.json").read_text()))
    make, last = (alone, batch) if rest else (gumbel, a.simulations)
    make = partial(make, a.folder, kind, a.size, last)
    serve(make, a.cores, ", ".join(f"{name} {version(name)}" for name in PACKAGES))


if __name__ == "__main__":
    main()
