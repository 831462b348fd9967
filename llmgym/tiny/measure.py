"""What the embedded model can do: accuracies on held-out problems, greedily and at temperature 1.

`python -m llmgym.tiny.measure` prints the table of the shipped model, with `--samples 20` completions too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import tyro
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmgym.tasks import Problem, make_task
from llmgym.tiny import MODEL_FOLDER

BATCH = 250  # prompts a call of generate
MAX_NEW_TOKENS = 48
COLUMNS = ("accuracy", "well-formed", "reasons", "accuracy when reasoning", "accuracy when hasty", "mean tokens")
ROWS = (  # task, how it is decoded, temperature (0: greedy), text put behind the prompt
    ("arithmetic", "greedy", 0.0, ""),
    ("arithmetic", "temperature 1", 1.0, ""),
    ("arithmetic", "greedy after a forced `<think>`", 0.0, "<think>"),
    *((task, "greedy", 0.0, "") for task in ("copy", "reverse", "sort", "countdown")),
    *((task, "temperature 1", 1.0, "") for task in ("copy", "reverse", "sort", "countdown")),
)


def held_out(task: str, count: int, seed: int) -> list[Problem]:
    """`count` problems of the test split of a registered task, with its default options."""
    rng = np.random.default_rng(seed)
    return [make_task(task).problem(rng, "test") for _ in range(count)]


@torch.no_grad()
def complete(
    model: Any, tokenizer: Any, prompts: list[str], temperature: float, forced: str = ""
) -> list[tuple[str, int]]:
    """(completion, its number of tokens) a prompt, with its <eos> where there is one, from a Hugging Face model.

    Temperature 0 is greedy; `forced` is put behind every prompt and is part of the completion's text.
    """
    completions: list[tuple[str, int]] = []
    how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    for i in range(0, len(prompts), BATCH):
        batch = tokenizer([prompt + forced for prompt in prompts[i : i + BATCH]], return_tensors="pt", padding=True)
        ids = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        new = model.generate(**ids, max_new_tokens=MAX_NEW_TOKENS, **how)[:, ids["input_ids"].shape[1] :]
        rows = [row[row != tokenizer.pad_token_id] for row in new]
        completions += [(forced + str(tokenizer.decode(row)), len(row)) for row in rows]
    return completions


def figures(task: str, problems: list[Problem], completions: list[tuple[str, int]]) -> tuple[float, ...]:
    """`COLUMNS` over one set of completions; shares in [0, 1], nan where there is nothing to average."""
    texts = [text.removesuffix("<eos>") for text, _ in completions]
    terms = [make_task(task).score(*pair) for pair in zip(problems, texts, strict=True)]
    right = np.array([term["correct"] for term in terms])
    reasons = np.array([text.startswith("<think>") for text in texts])
    formed = [t["format"] and text.endswith("<eos>") for t, (text, _) in zip(terms, completions, strict=True)]
    groups = (right, formed, reasons, right[reasons], right[~reasons], [n for _, n in completions])
    return tuple(float(np.mean(group)) if len(group) else float("nan") for group in groups)


def measure(model: Any, tokenizer: Any, problems: int = 1000, seed: int = 0) -> dict[str, tuple[float, ...]]:
    """Row name -> `COLUMNS`: additions in three ways of decoding, then a quarter as many of each other task."""
    rows = {}
    with torch.random.fork_rng(devices=[]):  # generate takes no generator
        torch.manual_seed(seed)
        for task, mode, temperature, forced in ROWS:
            asked = held_out(task, problems if task == "arithmetic" else max(1, problems // 4), seed)
            completions = complete(model, tokenizer, [p.prompt for p in asked], temperature, forced)
            rows[f"{task}, {mode}"] = figures(task, asked, completions)
    return rows


def table(rows: dict[str, tuple[float, ...]]) -> str:
    """The figures as a Markdown table: shares in per cent, lengths in tokens."""
    lines = ["| held-out problems | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for name, values in rows.items():
        cells = ["–" if np.isnan(v) else f"{100 * v:.1f} %" for v in values[:-1]] + [f"{values[-1]:.1f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(model: str = str(MODEL_FOLDER), problems: int = 1000, seed: int = 0, samples: int = 0) -> None:
    """Measure a model folder on held-out problems.

    Args:
        model: folder of the model.
        problems: held-out additions; a quarter as many of each other task.
        seed: of the problems and of the sampling.
        samples: completions at temperature 1 to print.
    """
    loaded = AutoModelForCausalLM.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    print(table(measure(loaded, tokenizer, problems, seed)))
    if samples:
        prompts = [problem.prompt for problem in held_out("arithmetic", samples, seed)]
        for prompt, (text, _) in zip(prompts, complete(loaded, tokenizer, prompts, 1.0), strict=True):
            print(prompt + text)


if __name__ == "__main__":
    tyro.cli(main)
