"""AlphaGo in miniature on 5x5: records, policy, self-play, value, fast rollouts, and the search that mixes them.

    python examples/12_alphago.py                  # some minutes on one core
    llmgym match "alphago:policy=alphago5/policy,value=alphago5/value,rollout=alphago5/rollout" light --komi 3.5

Each step is a command of its own (`llmgym match`, `llmgym alphago STAGE`), which this prints before it runs it. Each
leaves a folder with its results as JSON and a picture.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import tyro

from llmgym.cli import main as llmgym
from llmgym.files import read_json


@dataclass(frozen=True)
class Config:
    """How much of everything."""

    out: Path = Path("alphago5")  # folder of all that is made, new or empty
    board_size: int = 5
    komi: float = 3.5
    records: int = 200  # games of our own search, which the networks begin with
    simulations: int = 100  # of a move, in the records and in the last match
    epochs: int = 5
    updates: int = 20  # of REINFORCE
    positions: int = 2000  # one a game, for the value network
    games: int = 20  # of every pair in the last match


def main(config: Config) -> dict[str, float]:
    """All stages; the score of each mix over its games."""
    at = {
        name: shlex.quote(str(config.out / name))
        for name in ("records", "policy", "reinforce", "value", "rollout", "match")
    }
    rules = f"--board-size {config.board_size} --komi {config.komi} --opening-moves 2"
    search = f"mcts:simulations={config.simulations}"
    run(f"match {search} {search} --games {config.records} {rules} --out {at['records']}")
    learn = f"{at['records']} --skip 2 --epochs {config.epochs}"
    run(f"alphago policy {learn} --hidden 16 16 --out {at['policy']}")
    run(f"alphago reinforce --policy {at['policy']} --updates {config.updates} --out {at['reinforce']}")
    value = f"--policy {at['reinforce']} --opening {at['policy']} --games {config.positions}"
    run(f"alphago value {value} --epochs {config.epochs} --out {at['value']}")
    run(f"alphago rollout {learn} --out {at['rollout']}")
    nets = " ".join(f"--{name} {at[name]}" for name in ("policy", "value", "rollout"))
    played = f"--mix 0 0.5 1 --games {config.games} --simulations {config.simulations} --out {at['match']}"
    run(f"alphago match {nets} {played}")
    players = read_json(config.out / "match" / "results.json")["results"]["players"]
    return {player["name"]: player["score"] for player in players}


def run(words: str) -> None:
    """One command, as in a shell."""
    print(f"\n$ llmgym {words}", flush=True)
    if code := llmgym(shlex.split(words)):
        raise SystemExit(code)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
