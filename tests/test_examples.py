"""The examples run, each in a process of its own."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def load(name: str) -> Any:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), EXAMPLES / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


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


def test_preferences_lead_to_policies_that_are_judged_alike(tmp_path, capsys):
    """In this process: in those of the example the imports alone would take longer."""
    example = load("08_preferences.py")
    config = example.Config(demonstrations=10, pairs=30, ppo_tokens=1_000, test_problems=20, seeds=1, out=tmp_path)
    prepared = example.prepare(config, 0)
    runs = [example.judge(config, *run, 0) for run in (("SFT", math.nan), ("DPO", 0.5), ("PPO", 0.2))]
    rows = [example.summary([run]) for run in runs]
    example.frontier_picture(rows, tmp_path / "picture.png")
    example.show(config, [prepared], rows)
    assert [run["name"] for run in runs] == ["SFT", "DPO, β = 0.5", "PPO, β = 0.2"]
    said = capsys.readouterr().out
    assert runs[0]["kl"] == 0 and all(row["name"] in said for row in rows)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_true_and_learned_reward_are_followed_while_either_is_maximised(tmp_path):
    example = load("09_reward_hacking.py")
    config = example.Config(few=4, many=6, fit=30, tokens=1_000, every=500, test_problems=10, seeds=1, out=tmp_path)
    settings = [example.Setting(True, 4, 0.0), example.Setting(False, 6, 0.1)]
    results = {setting.name: [example.optimise(config, setting, 0)] for setting in settings}
    assert list(results) == ["the rule", "reward model of 6 pairs, β = 0.1"]
    for (run,) in results.values():
        assert run["curve"][0]["kl"] == 0 and run["curve"][-1]["tokens"] >= 1_000
        assert all(0 <= point["true"] <= 1 for point in run["curve"]) and len(run["texts"]) == 5
    example.hacking_picture(
        {name: [run["curve"] for run in runs] for name, runs in results.items()}, tmp_path / "x.png"
    )
    example.show(config, results)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_go_is_learnt_shown_and_kept(tmp_path, capsys):
    example = load("10_go.py")
    example.main(example.Config(steps=4_096, games=20, out=tmp_path))
    assert re.search(r"before +\d+ of 20.*\nafter +\d+ of 20", capsys.readouterr().out)
    assert (tmp_path / "last.png").read_bytes().startswith(b"\x89PNG")
    assert "PB[PPO]" in (tmp_path / "game.sgf").read_text("utf-8")


@pytest.mark.slow
def test_go_is_won_after_learning(tmp_path):
    example = load("10_go.py")
    before, after = example.main(example.Config(steps=60_000, out=tmp_path))
    assert before < 0.5 and after > 0.75


@pytest.mark.slow
def test_own_tasks_and_rewards_are_learnt():
    said = run("04_custom_task_and_reward.py", "--seconds", "25", timeout=300)
    scores = [(int(a), int(b)) for a, b in re.findall(r"accuracy (\d+)% -> (\d+)%", said)]
    assert all(after > before for before, after in scores), said
