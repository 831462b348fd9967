"""One search over tokens, blocks and lines: what it finds beside greedy decoding and best-of-N, and what that costs.

The embedded model adds three-digit numbers, right three times in ten when it is greedy. Everyone reads it along a tree
of texts, in which a prefix is paid once, and is charged the tokens that went through the model. Search and best-of-N
are told which finished text is right.

    python examples/11_search_language.py --task countdown

About ten seconds on one core; `llmgym search-study` is the same with other values, rules and baselines, and intervals.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import tyro
from rich.console import Console
from rich.table import Table

from llmgym.evaluation import draw_problems
from llmgym.policy import LMPolicy
from llmgym.search import Search, SearchOptions
from llmgym.search.decoding import best_by_reward, draw, found, greedy
from llmgym.search.study import Plan
from llmgym.search.text import TextEvaluator, TextReader
from llmgym.search.text_values import RolloutValue


@dataclass(frozen=True)
class Config:
    """What is compared."""

    task: str = "arithmetic"  # or countdown, reverse, …
    problems: int = 20  # from the test split
    simulations: int = 16  # of the search
    samples: int = 16  # of best-of-N
    k: int = 4  # candidates of a state


def search(config: Config, reader: TextReader, states: list) -> list:
    """The best finished text that PUCT with rollouts has seen from each state."""
    rollouts = RolloutValue(reader)
    tree: Search = Search(reader.mdp, TextEvaluator(reader, config.k, rollouts), SearchOptions(best=1.0))
    tree.start(states)
    tree.run(config.simulations)
    return found(tree, reader, rollouts)


def main(config: Config) -> None:
    """Print a row a method."""
    plan, table = Plan(config.task), Table("method", "solved", "forward tokens a problem")
    policy = LMPolicy("tiny", plan.mdp(), device="cpu", seed=0)
    states = [plan.mdp().start(problem) for problem in draw_problems(plan.mdp(), config.problems)]
    methods = {"greedy": greedy, f"best of {config.samples}": lambda r, s: best_by_reward(draw(r, s, config.samples))}
    levels = {"greedy": "token", f"best of {config.samples}": "token"}
    for level in ("token", "block", "line"):
        name = f"search, {level} level"
        methods[name], levels[name] = (lambda r, s: search(config, r, s)), level
    for name, method in methods.items():
        before = policy.counters.forward_tokens
        answers = method(TextReader(policy, plan.mdp(levels[name])), states)
        tokens = (policy.counters.forward_tokens - before) / len(states)
        table.add_row(name, f"{sum(answer.is_success for answer in answers)} of {len(states)}", f"{tokens:.0f}")
    Console(width=80).print(table)


if __name__ == "__main__":
    torch.set_num_threads(1)  # more cost a model this small more than they save
    main(tyro.cli(Config, description=__doc__))
