"""The study of search over language: its values, its curves, its command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmgym.cli import main
from llmgym.search.gold import GoldValue, NoiseValue, countdown_solutions
from llmgym.search.study import LineEnd, Method, Plan, Point, at_budget, curve, methods, run
from llmgym.tasks import Problem
from llmgym.tasks.countdown import evaluate, read_puzzle
from llmgym.text import TextMDP

SAMPLES, UCT = Method("samples"), Method("UCT", "token", "rollouts")


def written(mdp, problem, text):
    return mdp.start(problem).extended(mdp.codec.encode_text(text))


def test_every_solution_of_a_countdown_reaches_the_target_and_the_gold_answer_is_among_them():
    mdp, rng = TextMDP("countdown"), np.random.default_rng(0)
    for _ in range(50):
        problem = mdp.task.problem(rng)
        found = countdown_solutions(problem)
        numbers, target = read_puzzle(problem)
        assert problem.answer in found and all(evaluate(text, numbers) == target for text in found)


def test_the_exact_value_is_one_while_the_answer_can_be_right():
    mdp, problem = TextMDP(), Problem("7+8=", "15")
    good = ["", "<think>7+8", "<think>no</think><answer>", "<answer>1", "<answer>15", "<answer>15</answer>"]
    bad = ["<answer>2", "<answer>155", "<answer>14</answer>", "<answer></answer>"]
    value = GoldValue(mdp)
    assert value([written(mdp, problem, text) for text in good]).tolist() == [1.0] * len(good)
    assert value([written(mdp, problem, text) for text in bad]).tolist() == [0.0] * len(bad)


def test_noise_is_the_same_for_the_same_state_and_for_no_other():
    mdp, problem = TextMDP(), Problem("7+8=", "15")
    states = [written(mdp, problem, text) for text in ("1", "2", "1")]
    a, b, again = NoiseValue(3)(states)
    assert a == again != b and 0 <= a < 1 and NoiseValue(4)(states)[0] != a


def test_a_line_ends_where_the_embedded_model_parts_its_steps():
    mdp = Plan().mdp("line")
    stop, state = mdp.stop, mdp.start(Problem("7+8=", "15"))
    assert isinstance(stop, LineEnd)
    for text, over in (("7", False), ("=", False), (" ", True), ("\n", True), ("</think>", True), ("<think>", False)):
        assert stop(state, mdp.codec.encode_text(text)) is over


def test_the_largest_setting_within_the_budget_of_every_seed_counts():
    points = [
        Point(SAMPLES, seed, setting, tokens, right, 10)
        for seed, rows in enumerate([[(1, 10, 2), (2, 19, 4)], [(1, 12, 3), (2, 21, 9), (4, 40, 9)]])
        for setting, tokens, right in rows
    ]
    assert at_budget(points, SAMPLES, 9) is None is at_budget(points, UCT, 9) is at_budget(points, SAMPLES, 11)
    share, (low, high) = at_budget(points, SAMPLES, 20)
    assert share == (4 + 3) / 20 and low < share < high
    np.testing.assert_allclose(curve(points, SAMPLES)[:, :2], [[11, 0.25], [20, 0.65]])
    assert curve(points, UCT).shape == (0, 4)


def test_tokens_grow_with_the_setting_and_the_same_seed_gives_the_same_points():
    plan = Plan(problems=2, fit=2, most=2)
    chosen = [SAMPLES, Method("greedy"), UCT, Method("PUCT", "line", "mixed")]
    points = run(plan, chosen, 0)
    for method in chosen:
        tokens = [p.tokens for p in points if p.method == method]
        assert len(tokens) == (1 if method.name == "greedy" else 2) and sorted(tokens) == tokens
    assert points == run(plan, chosen, 0)
    assert len(methods()) == 6 + 3 * 5 + 3 and methods()[-1].judged and not methods()[0].judged


def test_the_command_writes_a_table_a_picture_and_its_points(tmp_path, capsys):
    few = ["--problems", "2", "--seeds", "1", "--fit", "4", "--most", "2", "--levels", "token", "--values", "exact"]
    out = tmp_path / "study"
    assert main(["search-study", "--tasks", "arithmetic", *few, "--budgets", "16", "64", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "PUCT, token, exact *" in said and "UCT, token, rollouts *" in said and "64 tokens" in said
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")
    points = json.loads((tmp_path / "study.json").read_text())["points"]["arithmetic"]
    assert {point["method"]["name"] for point in points} >= {"greedy", "samples", "beam", "PUCT", "UCT"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--levels", "letter"], "levels must be one or more of token, block, line"),
        (["--values", "gut"], "values must be one or more of rollouts, learned"),
        (["--budgets", "64", "32"], "budgets must be ascending"),
        (["--k", "0"], "k must be above 0, got 0"),
        (["--out", "no/such/folder/x"], "a folder for 'no/such/folder/x'"),
        (["--task-options", '{"reverse": {}}'], "by task, one of countdown, arithmetic, got 'reverse'"),
        (["--tasks", "chess"], "chess"),
    ],
)
def test_bad_options_are_one_sentence(words, sentence, capsys):
    assert main(["search-study", *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_the_example_compares_levels_and_decodings():
    example = Path(__file__).parent.parent / "examples" / "11_search_language.py"
    few = ["--problems", "3", "--simulations", "4", "--samples", "2"]
    done = subprocess.run([sys.executable, str(example), *few], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"│ (.+?) +│ (\d) of 3 +│ +(\d+) +│", done.stdout)
    assert [row[0] for row in rows][:2] == ["greedy", "best of 2"] and len(rows) == 5
    assert int(rows[0][2]) <= min(int(tokens) for _, _, tokens in rows)
