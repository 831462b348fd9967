"""Networks of the stages on disk: a `NetPolicy`'s folder, and the rules and planes that it was trained with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmgym.envs.go.mdp import GoMDP
from llmgym.files import read_json, write_json
from llmgym.nets import NetPolicy

RULES = ("board_size", "komi", "ko", "suicide", "max_moves", "planes")
GO = "llmgym/Go-v0"


def save_net(policy: NetPolicy, folder: str | Path, stage: str, rules: dict[str, Any]) -> None:
    """Write a network that `llmgym match` can play.

    Args:
        policy: the network.
        folder: where.
        stage: that made it.
        rules: arguments of `GoMDP` that it was trained with.
    """
    policy.save(folder)
    env = json.dumps({"id": GO, "kwargs": rules})
    write_json(Path(folder) / "agent.json", {"agent": f"alphago {stage}", "env": env})


def load_net(folder: str | Path, device: str = "cpu") -> tuple[NetPolicy, dict[str, Any]]:
    """A network that a stage or an agent has saved, and the arguments of `GoMDP` that it was trained with.

    Raises:
        ValueError: the folder holds no network for Go.
    """
    folder = net_folder(folder)
    rules = trained_with(folder)
    return NetPolicy.load(folder, GoMDP(**rules), device=device), rules


def net_folder(folder: str | Path) -> Path:
    """The folder of a network, or that of the run that made it.

    Raises:
        ValueError: there is none.
    """
    for place in (Path(folder), Path(folder) / "policy"):
        if (place / "policy.json").is_file():
            return place
    raise ValueError(f"the folder {str(folder)!r} holds no policy for Go: policy.json is missing")


def trained_with(folder: Path) -> dict[str, Any]:
    """Arguments of `GoMDP` that a saved network was trained with; an environment that could not be described had its
    defaults.

    Raises:
        ValueError: it was trained on something else.
    """
    file = folder / "agent.json"
    saved: dict[str, Any] = read_json(file) if file.is_file() else {}
    spec: dict[str, Any] = json.loads(saved["env"]) if saved.get("env") else {"id": GO, "kwargs": {}}
    if spec["id"] != GO:
        raise ValueError(f"the policy in {str(folder)!r} was trained on {spec['id']}, not on {GO}")
    return {name: spec["kwargs"][name] for name in RULES if name in spec["kwargs"]}
