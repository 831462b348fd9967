"""The embedded language model: a character-level Llama small enough to train on a laptop.

`MODEL_FOLDER` is an ordinary Hugging Face folder (safetensors, `tokenizer.json`): load it with
`AutoModelForCausalLM.from_pretrained(MODEL_FOLDER)`. Nothing is loaded when this module is imported.
"""

from pathlib import Path

MODEL_FOLDER: Path = Path(__file__).parent / "model"

__all__ = ["MODEL_FOLDER"]
