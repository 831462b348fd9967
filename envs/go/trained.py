"""Networks of Go on disk: where they are, what game they were trained on, and what they say of positions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.rules import GoRules
from llmgym.files import read_json

if TYPE_CHECKING:
    from llmgym.search.evaluators import NetEvaluator

SHIPPED = Path(__file__).parent / "nets"


def policy_folder(name: str | Path) -> Path:
    """The folder of a network, or that of the run that trained it.

    Raises:
        ValueError: there is none.
    """
    for folder in (Path(name), Path(name) / "policy"):
        if (folder / "policy.json").is_file():
            return folder
    raise ValueError(f"the folder {str(name)!r} holds no policy for Go: policy.json is missing")


def trained_with(folder: Path) -> dict[str, Any]:
    """Arguments of `GoMDP` that a network was trained with; an environment that could not be described had defaults.

    Raises:
        ValueError: it was trained on something else.
    """
    file = folder / "agent.json"
    saved: dict[str, Any] = read_json(file) if file.is_file() else {}
    spec: dict[str, Any] = json.loads(saved["env"]) if saved.get("env") else {"id": "llmgym/Go-v0", "kwargs": {}}
    if spec["id"] != "llmgym/Go-v0":
        raise ValueError(f"the policy in {str(folder)!r} was trained on {spec['id']}, not on llmgym/Go-v0")
    known = ("board_size", "komi", "ko", "suicide", "max_moves", "reward", "planes")
    return {name: spec["kwargs"][name] for name in known if name in spec["kwargs"]}


def check_board(folder: str | Path, own: GoRules, asked: GoRules) -> None:
    """Refuse a board other than the one that a network was trained on.

    Raises:
        ValueError: it is another one.
    """
    if (own.rows, own.cols) != (asked.rows, asked.cols):
        sizes = f"{own.rows}x{own.cols} and cannot play on {asked.rows}x{asked.cols}"
        raise ValueError(f"the policy in {str(folder)!r} was trained on {sizes}")


def shipped_folder(rules: GoRules) -> Path:
    """The folder of the network that llmgym brings for a board.

    Raises:
        ValueError: it brings none.
    """
    sides = f"{rules.rows}x{rules.cols}"
    if not (SHIPPED / sides).is_dir():
        known = ", ".join(sorted(path.name for path in SHIPPED.glob("*x*")))
        raise ValueError(f"llmgym brings networks for {known}, none for {sides}: name the folder of one of yours")
    return SHIPPED / sides


def net_evaluator(folder: Path, rules: GoRules, bfloat16: bool, device: str) -> NetEvaluator:
    """What the network in a folder says of positions under these rules; its `mdp` rewards what it has learnt."""
    from llmgym.nets import NetPolicy  # loads torch
    from llmgym.search.evaluators import NetEvaluator

    told = {name: value for name, value in trained_with(folder).items() if name in ("reward", "planes")}
    mdp = GoMDP(rules.board_size, rules.komi, rules.ko, rules.suicide, rules.max_moves, rules.handicap, **told)
    return NetEvaluator(mdp, NetPolicy.load(folder, mdp, device=device), bfloat16=bfloat16)
