"""Our own sides of `search_mctx.py`, one a process; `go_peers.py` says how a worker is asked.

python benchmarks/search_ours.py float32 FOLDER --cores 1
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from go_peers import Chunk, serve

from llmgym.envs.go.mdp import GoMDP
from llmgym.nets import NetPolicy
from llmgym.search import Search, SearchOptions
from llmgym.search.evaluators import NetEvaluator

PACKAGES = ("llmgym", "torch", "numba")


def evaluator(folder: Path, half: bool, size: int) -> NetEvaluator:
    """The network whose weights are in the folder."""
    mdp = GoMDP(size)
    with np.load(folder / "net.npz") as file:
        weights = {name: torch.from_numpy(file[name]) for name in file.files}
    blocks, width = sum(name.endswith(".first.weight") for name in weights), len(weights["stem.bias"])
    policy = NetPolicy("ResNetPolicy", mdp, hidden=(width,) * blocks, device="cpu", seed=0)
    policy.net.load_state_dict(weights)
    return NetEvaluator(mdp, policy, bfloat16=half)


class Timed:
    """A network that adds up the seconds it takes."""

    def __init__(self, net: Any):
        self.net, self.seconds = net, 0.0

    def __call__(self, x: torch.Tensor) -> Any:
        began = time.perf_counter()
        outputs = self.net(x)
        self.seconds += time.perf_counter() - began
        return outputs


def gumbel(folder: Path, half: bool, size: int, simulations: int, share: bool) -> Chunk:
    """One search from all positions; it counts simulations, or the seconds in the network: a second's share of it."""
    judge, rng = evaluator(folder, half, size), np.random.default_rng(0)
    judge.net = Timed(judge.net)
    mdp = judge.mdp
    states = [mdp.initial(options={"moves": moves}) for moves in json.loads((folder / "openings.json").read_text())]
    search = Search(mdp, judge, SearchOptions(simulations, "gumbel", discount=-1.0))

    def run() -> Any:
        before = judge.net.seconds
        search.start(states, rng)
        search.run()
        return judge.net.seconds - before if share else len(states) * simulations

    return run


def alone(folder: Path, half: bool, size: int) -> Chunk:
    """The network alone, planes of the same positions to numpy arrays."""
    judge = evaluator(folder, half, size)
    states = [judge.mdp.initial(options={"moves": m}) for m in json.loads((folder / "openings.json").read_text())]
    planes, _ = judge.look(states)

    def run() -> int:
        judge.evaluate(planes)
        return len(planes)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sides = [f"{kind}{rest}" for kind in ("float32", "bfloat16") for rest in ("", "-net", "-share")]
    parser.add_argument("side", choices=sides)
    parser.add_argument("folder", type=Path, help="where net.npz and openings.json are")
    parser.add_argument("--size", type=int, default=9, help="board side")
    parser.add_argument("--simulations", type=int, default=32, help="of each position")
    parser.add_argument("--cores", type=int, default=1, help="cores that may be used, and torch's threads")
    a = parser.parse_args()
    torch.set_num_threads(a.cores)
    kind, _, rest = a.side.partition("-")
    named = (a.folder, kind == "bfloat16", a.size)
    make = partial(alone, *named) if rest == "net" else partial(gumbel, *named, a.simulations, rest == "share")
    serve(make, a.cores, ", ".join(f"{name} {version(name)}" for name in PACKAGES))


if __name__ == "__main__":
    main()
