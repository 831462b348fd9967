"""AdamW's state as safetensors, so that training goes on where it stopped without a pickle on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def save_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Write every tensor of the optimiser's state under "index.name"."""
    state = optimizer.state_dict()["state"]
    tensors = {f"{i}.{name}": torch.as_tensor(x).contiguous() for i, s in state.items() for name, x in s.items()}
    save_file(tensors, path)


def load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Read what `save_optimizer` wrote for the same list of parameters."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, x in load_file(path).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = x.clone()  # a mapped file is not aligned as memory is
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
