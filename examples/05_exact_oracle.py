"""No sampling: exact values and the exact variance of the policy gradient, per unit action and baseline.

    python examples/05_exact_oracle.py

Three tokens and at most four of them a text: 31 texts, so that everything can be summed. Without a baseline the
variance is the same whatever the unit action. A baseline that depends on the state knows more the finer the unit.
"""

from __future__ import annotations

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llmgym.oracle import Oracle
from llmgym.tasks import Problem, Task
from llmgym.text import TextMDP

PROBLEM = Problem("a")


class CountB(Task):
    """The reward is the number of b in the text."""

    def score(self, problem: Problem, text: str) -> dict[str, float]:
        return {"correct": float(text.count("b"))}


def three_tokens() -> PreTrainedTokenizerFast:
    """<eos>, a and b."""
    backend = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "b": 2}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def main() -> None:
    # The smallest language model: scores of the next token are the row of the last one in a table.
    table = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)

    def policy(prefixes):
        return table[[prefix[-1] for prefix in prefixes]]

    rows = Table(title="variance of the REINFORCE gradient of one episode, by baseline b(s)")
    for column in ("unit action", "V(start)", "gradient norm", "none", "V(start)", "V(s)"):
        rows.add_column(column, justify="right")
    for size in (1, 2, 4):
        mdp = TextMDP(CountB(), tokenizer=three_tokens(), max_prompt_tokens=1, max_new_tokens=4, block_size=size)
        oracle = Oracle(mdp, PROBLEM, policy)
        (gradient,) = oracle.policy_gradient([table])
        start = oracle.value(oracle.start)
        baselines = (0.0, start, oracle.values().__getitem__)
        variances = [oracle.gradient_variance([table], baseline) for baseline in baselines]
        name = {1: "token", 4: "sequence"}.get(size, f"block of {size}")
        rows.add_row(name, *(f"{x:.4f}" for x in (start, float(gradient.norm()), *variances)))
    Console().print(rows)


if __name__ == "__main__":
    main()
