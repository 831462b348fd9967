"""LoRA adapters (Hu et al. 2022) through peft: small trainable matrices beside frozen ones.

peft is an extra: only these functions import it, and its absence is said in one sentence.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from llmgym.files import read_json, write_json

BASE = "base"  # subfolder that holds a base model without a name


def add_lora(model: Any, rank: int, *, seed: int = 0) -> Any:
    """`model` with adapters of `rank` on every linear layer but its output, the rest frozen; its output is unchanged.

    Scale 2 (alpha = 2 · rank) and no dropout: the policy's log-probs must not differ between two scorings.

    Raises:
        ValueError: the rank is below 1, or the model has adapters already.
        ImportError: peft is missing.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"lora must be the rank of the adapters, at least 1, or 0 for none, got {rank!r}")
    if is_lora(model):
        raise ValueError(f"the model has LoRA adapters already: lora must be 0 to go on training them, got {rank}")
    peft = _peft()
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng():  # the adapters' first matrix is random
        torch.manual_seed(seed)
        return peft.get_peft_model(model, config).eval()


def is_lora(model: Any) -> bool:
    """Whether `model` carries peft's adapters."""
    return hasattr(model, "peft_config") and hasattr(model, "disable_adapter")


def adapters_off(model: Any) -> AbstractContextManager:
    """Within this context a model with adapters is its base; any other model is itself."""
    return model.disable_adapter() if is_lora(model) else nullcontext()


def save_lora(model: Any, folder: Path, name: str | None) -> None:
    """Write the adapters, and the name of their base model; a base without a name is written beside them."""
    model.save_pretrained(folder, safe_serialization=True)
    if name is None or Path(name).exists():
        # A folder may move or be replaced, adapters without their base are lost.
        copy.deepcopy(model).unload().save_pretrained(folder / BASE, safe_serialization=True)
        name = BASE
    config = read_json(folder / "adapter_config.json")
    write_json(folder / "adapter_config.json", config | {"base_model_name_or_path": name})


def lora_base(folder: str | Path) -> str | None:
    """Name or folder of the base model of the adapters in `folder`; None where there are none."""
    file = Path(folder) / "adapter_config.json"
    if not file.is_file():
        return None
    name = read_json(file)["base_model_name_or_path"]
    return str(Path(folder) / BASE) if name == BASE else name


def load_lora(base: Any, folder: str | Path) -> Any:
    """The adapters in `folder` on their base model, trainable."""
    return _peft().PeftModel.from_pretrained(base, str(folder), is_trainable=True).eval()


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError("LoRA needs peft: run pip install -e '.[lora]' in the checkout of llmgym") from error
    return peft
