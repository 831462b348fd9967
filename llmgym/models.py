"""Loading Hugging Face causal language models: from a name to a model in evaluation mode on a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmgym.lora import load_lora, lora_base
from llmgym.tokenization import TINY, Codec, tiny_path

if TYPE_CHECKING:
    import torch

ALIGNMENT = 64  # bytes, of torch's own memory on the CPU
DTYPES = ("auto", "float32", "bfloat16", "float64")


def load_model(name_or_model: Any, *, device: Any = "auto", dtype: str = "auto") -> Any:
    """A causal language model in evaluation mode.

    Args:
        name_or_model: "tiny" (the embedded model), a folder, a hub id, or a model. A model is not copied: it is
            the one that is moved and converted.
        device: "auto" (CUDA when there is one, else the CPU), or whatever `torch.device` accepts and this machine
            has.
        dtype: "float32", "bfloat16", "float64", or "auto": as stored, and a model's own.

    Raises:
        ValueError: nothing can be loaded under that name, or the device or dtype is unknown here.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(repr, DTYPES))}, got {dtype!r}")
    target = resolve_device(device)
    if isinstance(name_or_model, str | Path):
        model = _from_name(name_or_model, dtype)
    else:
        model = name_or_model if dtype == "auto" else name_or_model.to(_torch_dtype(dtype))
    return _aligned(model.to(target).eval())


def resolve_device(device: Any = "auto") -> torch.device:
    """The `torch.device` of a name; "auto" is CUDA when there is one, else the CPU.

    Raises:
        ValueError: torch does not know the name, or this machine lacks the device.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    # torch raises AssertionError for a backend it was built without.
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device must be 'auto' {_available()}, got {device!r}") from error
    return found


def check_vocab(model: Any, codec: Codec) -> None:
    """Refuse a model whose embedding does not cover every token of the tokenizer (it may be padded beyond).

    Raises:
        ValueError: the model has fewer rows than the tokenizer has tokens.
    """
    rows = model.get_input_embeddings().num_embeddings
    if rows < codec.vocab_size:
        raise ValueError(
            f"the model embeds {rows} tokens, but the tokenizer has {codec.vocab_size}: they must belong together"
        )


def check_positions(model: Any, length: int) -> None:
    """Refuse texts longer than the model has positions for.

    Raises:
        ValueError: `length` tokens (prompt and completion) exceed the model's positions.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise ValueError(
            f"max_prompt_tokens + max_new_tokens is {length}, but the model has positions for {positions} tokens only"
        )


def _from_name(name: str | Path, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    if (base := lora_base(name)) is not None:
        return load_lora(_from_name(base, dtype), name)
    source = tiny_path() if str(name) == TINY else name
    kind = "auto" if dtype == "auto" else _torch_dtype(dtype)
    try:
        return AutoModelForCausalLM.from_pretrained(source, dtype=kind)
    # A damaged safetensors file and a config of no language model raise types of their own.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"no language model could be loaded from {str(name)!r}: give 'tiny', a folder with a Hugging Face "
            f"causal language model or a hub id ({reason})"
        ) from error


def _aligned(model: Any) -> Any:
    """`model` with its tensors where torch itself would have put them.

    Tensors mapped from a file begin anywhere. Kernels then split them elsewhere and round the last bit otherwise, so
    that training from a loaded model would leave the path of the one that was saved.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
    return model


def _torch_dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


def _available() -> str:
    import torch

    count = torch.cuda.device_count()
    return f"or 'cpu' or 'cuda:0' to 'cuda:{count - 1}'" if count else "or 'cpu' (no CUDA device is visible here)"
