"""What the embedded model can do: accuracies on held-out problems, greedily and at temperature 1.

`python -m llmgym.tiny.measure` prints the table of the shipped model, with `--samples 20` completions too.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import tyro
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from llmgym.tasks.base import Problem, draw, extract_answer, well_formed
from llmgym.tiny import MODEL_FOLDER
from llmgym.tiny.corpus import Exercise, careful_sum, countdown, strings

BATCH = 250  # prompts a call of generate
MAX_NEW_TOKENS = 48
COLUMNS = ("accuracy", "well-formed", "reasons", "accuracy when reasoning", "accuracy when hasty", "mean tokens")
OPERATORS = str.maketrans({"+": " ", "-": " ", "*": " "})


def held_out_additions(count: int, seed: int) -> list[Problem]:
    """Additions of two three-digit numbers from the test split."""
    rng = np.random.default_rng(seed)

    def make() -> Problem:
        a, b = (int(n) for n in rng.integers(100, 1000, size=2))
        return Problem(f"{a}+{b}=", str(careful_sum(a, b)[1]))

    return [draw(make, "test") for _ in range(count)]


def held_out_exercises(make: Callable[[np.random.Generator], Exercise], name: str, count: int, seed: int):
    """Problems of one kind from the test split, chosen by how their prompt begins."""
    rng = np.random.default_rng(seed)

    def problem() -> Problem:
        while not (exercise := make(rng)).prompt.startswith(name):
            pass
        return Problem(exercise.prompt, exercise.careful)

    return [draw(problem, "test") for _ in range(count)]


def is_right(problem: Problem, text: str) -> bool:
    """Whether the answer is right; on countdown, any expression of the given numbers with the right value."""
    answer = extract_answer(text)
    if not problem.prompt.startswith("countdown"):
        return answer == problem.answer
    numbers, target = problem.prompt.removeprefix("countdown ").rstrip("=").split(" -> ")
    terms = answer.translate(OPERATORS).split()
    if not all(term.isdecimal() for term in terms) or sorted(terms) != sorted(numbers.split()):
        return False
    try:
        return eval(answer) == int(target)  # nothing but the given numbers and + - *
    except SyntaxError:
        return False


@torch.no_grad()
def complete(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], temperature: float, forced: str = ""
) -> list[tuple[str, int]]:
    """(completion, its number of tokens) a prompt, with its <eos> where there is one.

    Temperature 0 is greedy; `forced` is put behind every prompt and is part of the completion's text.
    """
    completions: list[tuple[str, int]] = []
    how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    for i in range(0, len(prompts), BATCH):
        batch = tokenizer([prompt + forced for prompt in prompts[i : i + BATCH]], return_tensors="pt", padding=True)
        ids = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        new = model.generate(**ids, max_new_tokens=MAX_NEW_TOKENS, **how)[:, ids["input_ids"].shape[1] :]
        rows = [row[row != tokenizer.pad_token_id] for row in new]
        completions += [(forced + tokenizer.decode(row), len(row)) for row in rows]
    return completions


def figures(problems: list[Problem], completions: list[tuple[str, int]]) -> tuple[float, ...]:
    """`COLUMNS` over one set of completions; shares in [0, 1], nan where there is nothing to average."""
    texts = [text.removesuffix("<eos>") for text, _ in completions]
    right = np.array([is_right(*pair) for pair in zip(problems, texts, strict=True)], dtype=float)
    reasons = np.array([text.startswith("<think>") for text in texts])
    formed = [text.endswith("<eos>") and well_formed(text.removesuffix("<eos>")) for text, _ in completions]
    groups = (right, formed, reasons, right[reasons], right[~reasons], [n for _, n in completions])
    return tuple(float(np.mean(group)) if len(group) else float("nan") for group in groups)


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: int = 1000, seed: int = 0
) -> dict[str, tuple[float, ...]]:
    """Row name -> `COLUMNS`: additions (greedy, temperature 1, greedy behind <think>), then the other tasks."""
    torch.manual_seed(seed)
    rows = {}
    additions = held_out_additions(problems, seed)
    for name, temperature, forced in (
        ("addition, greedy", 0.0, ""),
        ("addition, temperature 1", 1.0, ""),
        ("addition, greedy after a forced `<think>`", 0.0, "<think>"),
    ):
        done = complete(model, tokenizer, [p.prompt for p in additions], temperature, forced)
        rows[name] = figures(additions, done)
    for make, name in ((strings, "copy"), (strings, "reverse"), (strings, "sort"), (countdown, "countdown")):
        others = held_out_exercises(make, name, max(1, problems // 4), seed)
        rows[f"{name}, greedy"] = figures(others, complete(model, tokenizer, [p.prompt for p in others], 0.0))
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
        prompts = [problem.prompt for problem in held_out_additions(samples, seed)]
        for prompt, (text, _) in zip(prompts, complete(loaded, tokenizer, prompts, 1.0), strict=True):
            print(prompt + text)


if __name__ == "__main__":
    tyro.cli(main)
