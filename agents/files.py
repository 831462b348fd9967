"""An agent on disk and back: the policy's folder with optimiser, random generators and description beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from llmgym.agents.environments import saved_env, spec_json
from llmgym.agents.optimizer import load_optimizer, save_optimizer
from llmgym.files import atomic_folder, read_json, write_json
from llmgym.nets import NetPolicy


def save_agent(agent: Any, path: str | Path) -> None:
    """Everything that training needs to go on as if it had not stopped; an older folder is replaced in one step."""
    spec = getattr(agent.env, "spec", None)
    described = {"agent": getattr(agent, "saved_as", type(agent).__name__)}
    described["policy"] = getattr(agent.policy, "kind", None)
    described["env"] = None if spec is None else spec_json(spec)
    with atomic_folder(path) as folder:
        agent.policy.save(folder)
        save_optimizer(agent.optimizer, folder / "optimizer.safetensors")
        save_file({"generator": agent.policy.generator.get_state()}, folder / "sampling.safetensors")
        agent._save_more(folder)
        write_json(folder / "agent.json", described | agent._description())


def load_agent(cls: type, path: str | Path, env: Any, config: dict[str, Any], **more: Any) -> Any:
    """The counterpart of `save_agent`.

    Args:
        cls: the agent's class.
        path: the folder.
        env: where to act; None rebuilds the saved one.
        config: replaces saved settings.
        **more: further arguments of the constructor.
    """
    folder, saved = Path(path), described(path, cls.__name__)
    env = saved_env(saved, path) if env is None else env
    # Adapters come with the folder's model: none are to be added.
    settings = saved["config"] | {"lora": 0} | config
    policy: Any = str(folder)
    if saved.get("policy"):
        policy = NetPolicy.load(folder, env, device=settings["device"], dtype=settings["dtype"])
    agent = cls(policy, env, **more, **settings)
    if hasattr(agent.policy, "load_value_head"):
        agent.policy.load_value_head(folder)
    load_optimizer(agent.optimizer, folder / "optimizer.safetensors")
    agent._load_more(folder)
    agent._restore(saved)
    _restore_generator(agent.policy.generator, load_file(folder / "sampling.safetensors")["generator"])
    return agent


def described(path: str | Path, name: str) -> dict[str, Any]:
    """What `agent.json` in a folder says.

    Raises:
        ValueError: there is none, or another agent wrote it.
    """
    file = Path(path) / "agent.json"
    if not file.is_file():
        raise ValueError(f"{str(path)!r} is no folder that an agent saved: agent.json is missing")
    saved = read_json(file)
    if saved["agent"] != name:
        raise ValueError(f"{str(path)!r} holds a {saved['agent']}, load it with {saved['agent']}.load")
    return saved


def _restore_generator(generator: torch.Generator, state: torch.Tensor) -> None:
    if state.shape == generator.get_state().shape:  # CPU and CUDA generators differ
        generator.set_state(state)
