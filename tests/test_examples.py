"""The examples run, each in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: str, timeout: float = 120.0) -> str:
    """What an example prints."""
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | threads,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart_earns_the_same_at_every_granularity():
    said = run("01_quickstart.py")
    returns = re.findall(r"MDP: (\d+) actions, return ([\d.]+)", said)
    assert [int(n) for n, _ in returns] == sorted({int(n) for n, _ in returns}, reverse=True)
    assert len(returns) == 3 and len({value for _, value in returns}) == 1


def test_the_classic_snippet_runs_with_both_libraries():
    said = run("00_cartpole.py", "--steps", "600", "--episodes", "2")
    assert len(re.findall(r"│ (?:stable-baselines3|llmgym) +│ +\d+ ± \d+", said)) == 2


@pytest.mark.slow
def test_the_pole_is_balanced_after_ten_thousand_steps():
    said = run("00_cartpole.py", timeout=300)
    theirs, ours = (int(x) for x in re.findall(r"│ +(\d+) ± \d+", said))
    assert ours >= 400 <= theirs + 100, said


def test_the_oracle_says_what_its_docstring_says():
    rows = [re.findall(r"[\d.]+", line) for line in run("05_exact_oracle.py").splitlines() if "│" in line]
    values = [[float(x) for x in row[-5:]] for row in rows]
    token, block, sequence = values
    assert token[:4] == block[:4] == sequence[:4]  # V(start), gradient, no baseline, V(start) as the baseline
    assert token[4] < block[4] < sequence[4] == sequence[3] < sequence[2]


def test_gradient_coefficients_are_drawn(tmp_path):
    picture = tmp_path / "picture.png"
    few = ["--prompts", "1", "--shown", "2", "--candidates", "12", "--continuations", "2"]
    said = run("06_gradient_coefficients.py", *few, "--out", str(picture))
    assert said.startswith("2 completions, ") and picture.read_bytes().startswith(b"\x89PNG")


def test_own_tasks_and_rewards_run():
    said = run("04_custom_task_and_reward.py", "--seconds", "0.5", "--problems", "5")
    assert len(re.findall(r"accuracy \d+% -> \d+%", said)) == 3


@pytest.mark.slow
def test_own_tasks_and_rewards_are_learnt():
    said = run("04_custom_task_and_reward.py", "--seconds", "25", timeout=300)
    scores = [(int(a), int(b)) for a, b in re.findall(r"accuracy (\d+)% -> (\d+)%", said)]
    assert all(after > before for before, after in scores), said
