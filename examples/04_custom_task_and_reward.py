"""Your own problems and rewards, three ways, each trained for a few seconds with GRPO.

    python examples/04_custom_task_and_reward.py --seconds 12

A `Task` class draws problems and scores answers; a plain function replaces the score of any task; a file of JSON
lines holds prompts and gold answers.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import tyro

import llmgym  # noqa: F401  (registers the environments)
from llmgym.agents import GRPO
from llmgym.evaluation import evaluate
from llmgym.tasks import Problem, Task
from llmgym.tasks.base import draw, extract_answer
from llmgym.tasks.data import from_jsonl


class SortHand(Task):
    """Sort four letters; an answer with the right letters in the wrong order earns a little."""

    name = "sort_hand"
    weights = {"correct": 1.0, "letters": 0.2}  # noqa: RUF012

    def problem(self, rng: np.random.Generator, split: str = "train") -> Problem:
        return draw(lambda: self.make(rng), split)  # keeps test problems out of training

    def make(self, rng: np.random.Generator) -> Problem:
        hand = "".join(rng.choice(list("abcdef"), size=4))
        return Problem(f"sort {hand}=", "".join(sorted(hand)))

    def score(self, problem: Problem, text: str) -> dict[str, float]:
        answer = extract_answer(text)
        return {"correct": float(answer == problem.answer), "letters": float(sorted(answer) == sorted(problem.answer))}


def right_and_brief(problem: Problem, text: str, tokens: tuple[int, ...]) -> dict[str, float]:
    """A plain function as the reward: it sees the gold answer, the text and the token ids."""
    return {"correct": float(extract_answer(text) == problem.answer), "brief": -0.01 * len(tokens)}


def write_pairs(path: Path) -> Path:
    """A file such as you may have: one JSON object a line."""
    pairs = [(a, b) for a in range(10, 60) for b in range(10, 30)]
    path.write_text("".join(json.dumps({"prompt": f"{a}+{b}=", "answer": str(a + b)}) + "\n" for a, b in pairs))
    return path


def main(seconds: float = 12.0, problems: int = 100) -> None:
    """Train three environments for `seconds` each; score them on `problems` held-out problems (fewer if few exist)."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = from_jsonl(write_pairs(Path(folder) / "pairs.jsonl"))
    ways = {
        "own Task class": {"task": SortHand()},
        "plain function": {"task": "arithmetic", "reward": right_and_brief},
        "JSON lines": {"task": pairs},
    }
    for way, options in ways.items():
        env = gym.make("llmgym/TokenMDP-v0", max_new_tokens=32, **options)
        agent = GRPO("tiny", env, learning_rate=3e-4, seed=0)
        before = evaluate(agent.policy, agent.mdp, problems)
        agent.learn(max_seconds=seconds)
        after = evaluate(agent.policy, agent.mdp, problems)
        print(
            f"{way}: accuracy {before.accuracy:.0%} -> {after.accuracy:.0%} on {after.problems} held-out problems, "
            f"{before.mean_tokens:.1f} -> {after.mean_tokens:.1f} tokens"
        )


if __name__ == "__main__":
    tyro.cli(main)
