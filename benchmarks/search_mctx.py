"""Search with a network against mctx + pgx: simulations a second, all sides in one run on the CPU.

Both grow 16 trees side by side on 9x9, 32 simulations each by Gumbel's sequential halving (16 considered actions, no
rescaling of values), from the same 16 positions, with the same residual network: a 3x3 convolution, 4 blocks of two
with 64 channels, a policy over points and pass, a value; 17 planes. The networks are checked first: equal outputs on
equal weights and planes, to 1e-3. mctx has its whole search in one jitted call, pgx's rules included.

Every side is a process of its own on as many cores as its row says, warmed up; the sides take turns, each round
beginning with another one. Medians over rounds; ratios of medians, and the least ratio of a round. "Network alone"
counts evaluations in batches of 16; "in the network" is the share of a search's time. Measure while nothing else runs.

mctx and pgx are asked for in an environment of their own:

    python -m venv peers && peers/bin/pip install mctx==0.0.71 pgx==2.6.0 jax==0.10.2
    python benchmarks/search_mctx.py --peers-python peers/bin/python
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import go_speed
import numpy as np
import torch
from go_speed import HERE, Side, compare, cores, markdown, show, words

from llmgym.envs.go.mdp import GoMDP
from llmgym.nets import NetPolicy
from llmgym.search.evaluators import NetEvaluator

TOLERANCE = 1e-3  # between the networks' outputs


@dataclass(frozen=True)
class Config:
    """What to measure."""

    peers_python: str  # interpreter of the environment that has mctx and pgx
    games: int = 16  # positions, side by side
    simulations: int = 32  # of each
    blocks: int = 4  # of the network
    channels: int = 64
    size: int = 9  # board side, as pgx has it: 9 or 19
    cores: tuple[int, ...] = (1, 2)
    rounds: int = 5
    seconds: float = 2.0  # of each side in each round
    json: Path | None = None  # also write everything here
    markdown: bool = False  # also print the table as README.md has it


def main(config: Config) -> None:
    with tempfile.TemporaryDirectory() as folder:
        prepare(config, Path(folder))
        print(f"largest difference of the networks' outputs: {check(config, Path(folder)):.1e}")
        settings = go_speed.Config(size=config.size, rounds=config.rounds, seconds=config.seconds)
        versions: list[str] = []
        rows = compare(settings, sides(config, folder), versions)
    show("simulations", rows)
    if config.markdown:
        print(markdown(rows))
    about = go_speed.about(settings) | {"settings": f"{config}"}
    print("; ".join([*about.values(), *versions]))
    if config.json is not None:
        config.json.write_text(json.dumps({"about": about, "versions": versions, "simulations": rows}, indent=2) + "\n")


def prepare(config: Config, folder: Path) -> None:
    """The network's weights, positions, and planes to compare by."""
    mdp, rng = GoMDP(config.size), np.random.default_rng(0)
    policy = NetPolicy("ResNetPolicy", mdp, hidden=(config.channels,) * config.blocks, device="cpu", seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, weights in policy.net.named_parameters():
        if name.endswith("second.weight"):  # zero at first: blocks would not be seen in the outputs
            torch.nn.init.orthogonal_(weights, 0.2, generator=generator)
        elif name == "critic.value.weight":  # opinions that draw a search into two passes would spare us evaluations
            torch.nn.init.orthogonal_(weights, 0.02, generator=generator)
    np.savez(folder / "net.npz", **{name: x.numpy() for name, x in policy.net.state_dict().items()})
    openings = [opening(mdp, 3 * i % (config.size**2 // 2), rng) for i in range(config.games)]
    (folder / "openings.json").write_text(json.dumps(openings))
    planes = mdp.views([mdp.initial(options={"moves": moves}) for moves in openings])[0]
    np.save(folder / "planes.npy", planes)
    logits, values = NetEvaluator(mdp, policy, "none").evaluate(planes)
    np.savez(folder / "own.npz", logits=logits, values=values)


def opening(mdp: GoMDP, length: int, rng: np.random.Generator) -> list[int]:
    """So many light moves."""
    state, moves = mdp.initial(), list[int]()
    for _ in range(length):
        moves.append(mdp.light_move(state, rng))
        state = mdp.transition(state, moves[-1])
    return moves


def check(config: Config, folder: Path) -> float:
    """The largest difference between both networks' outputs.

    Raises:
        SystemExit: it is above `TOLERANCE`.
    """
    subprocess.run([config.peers_python, str(HERE / "search_peers.py"), "outputs", str(folder)], check=True)
    with np.load(folder / "own.npz") as own, np.load(folder / "peer.npz") as peer:
        largest = max(float(np.abs(own[name] - peer[name]).max()) for name in ("logits", "values"))
        spread = min(float(own[name].std()) for name in ("logits", "values"))
    if not largest < TOLERANCE < spread:
        raise SystemExit(f"the networks differ by up to {largest:g} on outputs that vary by {spread:g}")
    return largest


def sides(config: Config, folder: str) -> list[Side]:
    """Ours, each against mctx in float32, and the others."""
    found = []
    for n in config.cores:
        flags = words({"size": config.size, "simulations": config.simulations, "cores": n})

        def command(python: str, file: str, side: str, flags: list[str] = flags) -> list[str]:
            return [python, "-W", "ignore", str(HERE / file), side, folder, *flags]

        rivals = {kind: f"mctx + pgx, {kind}, {cores(n)}" for kind in ("float32", "bfloat16")}
        for kind in rivals:
            ours = f"llmgym, {kind}, {cores(n)}"
            found += [
                Side(ours, command(sys.executable, "search_ours.py", kind), (rivals["float32"],)),
                Side(f"in the network, {kind}, {cores(n)}", command(sys.executable, "search_ours.py", f"{kind}-share")),
                Side(f"network alone, {kind}, {cores(n)}", command(sys.executable, "search_ours.py", f"{kind}-net")),
            ]
        found += [Side(name, command(config.peers_python, "search_peers.py", kind)) for kind, name in rivals.items()]
        name = f"mctx's network alone, float32, {cores(n)}"
        found.append(Side(name, command(config.peers_python, "search_peers.py", "float32-net")))
    return found


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
