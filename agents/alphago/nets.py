"""Networks of the stages on disk: a `NetPolicy`'s folder, and the rules and planes that it was trained with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.trained import policy_folder, trained_with
from llmgym.files import write_json
from llmgym.nets import NetPolicy


def save_net(policy: NetPolicy, folder: str | Path, stage: str, rules: dict[str, Any]) -> None:
    """Write a network that `llmgym match` can play.

    Args:
        policy: the network.
        folder: where.
        stage: that made it.
        rules: arguments of `GoMDP` that it was trained with.
    """
    policy.save(folder)
    env = json.dumps({"id": "llmgym/Go-v0", "kwargs": rules})
    write_json(Path(folder) / "agent.json", {"agent": f"alphago {stage}", "env": env})


def load_net(folder: str | Path, device: str = "cpu") -> tuple[NetPolicy, dict[str, Any]]:
    """A network that a stage or an agent has saved, and the arguments of `GoMDP` that it was trained with.

    Raises:
        ValueError: the folder holds no network for Go.
    """
    found = policy_folder(folder)
    rules = trained_with(found)
    return NetPolicy.load(found, GoMDP(**rules), device=device), rules
