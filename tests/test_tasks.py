"""Tasks: gold answers are right, held-out problems stay out of training, and no text breaks a scorer."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmgym.tasks import Problem, make_task, register_task, split_of, task_names
from llmgym.tasks.arithmetic import Arithmetic, last_number, read_number
from llmgym.tasks.base import extract_answer, well_formed
from llmgym.tasks.countdown import Countdown, evaluate
from llmgym.tasks.strings import Reverse

TASKS: dict[str, dict[str, Any]] = {
    "arithmetic": {},
    "arithmetic wide": {"digits": 18, "min_digits": 1, "operators": "+-*"},
    "copy": {},
    "reverse": {"min_length": 8, "max_length": 8},
    "sort": {},
    "countdown": {},
    "countdown wide": {"n_numbers": 6, "max_number": 100, "operators": "+-*/"},
}
TASK_OBJECTS = {name: make_task(name.split()[0], **options) for name, options in TASKS.items()}
every_task = pytest.mark.parametrize("task", TASK_OBJECTS.values(), ids=list(TASKS))


def problems(task, n, split="train", seed=0):
    rng = np.random.default_rng(seed)
    return [task.problem(rng, split) for _ in range(n)]


@every_task
def test_held_out_problems_never_occur_in_training(task):
    n = 1 if task.name != "countdown" else 5  # its problems take longer to make
    train = {p.prompt for p in problems(task, 20_000 // n)}
    test = {p.prompt for p in problems(task, 2_000 // n, "test", seed=1)}
    assert not train & test
    assert {split_of(prompt) for prompt in train} == {"train"}
    assert {split_of(prompt) for prompt in test} == {"test"}


@every_task
def test_the_generator_decides_the_problem(task):
    assert problems(task, 20) == problems(task, 20)
    assert problems(task, 20) != problems(task, 20, seed=1)


@every_task
def test_gold_answers_score_one_and_others_zero(task):
    for problem in problems(task, 200):
        assert task.score(problem, f"<answer>{problem.answer}</answer>") == {"correct": 1.0, "format": 1.0}
        assert task.score(problem, f"<think>hm</think><answer> {problem.answer}\n</answer>")["correct"] == 1.0
        assert task.score(problem, problem.answer) == {"correct": 1.0, "format": 0.0}
        assert task.score(problem, f"<answer>{problem.answer}0</answer>")["correct"] == 0.0
        assert task.score(problem, "<answer></answer>") == {"correct": 0.0, "format": 1.0}


@every_task
def test_scores_are_right_in_a_worker_thread(task):
    batch = problems(task, 50)
    texts = [f"<answer>{p.answer}</answer>" for p in batch]
    with ThreadPoolExecutor(4) as pool:
        assert all(terms["correct"] == 1.0 for terms in pool.map(task.score, batch, texts))


@every_task
def test_tasks_and_problems_survive_pickle_and_copy(task):
    (problem,) = problems(task, 1)
    assert pickle.loads(pickle.dumps(problem)) == problem == copy.deepcopy(problem)
    assert problems(pickle.loads(pickle.dumps(task)), 5) == problems(task, 5)


@every_task
@given(text=st.text() | st.text(alphabet="0123456789+-*/() .,<>answerthink", max_size=60))
@example(text="<answer>" * 3000)
@example(text="<think>" * 3000 + "</think>")
@example(text="9" * 50_000)
@example(text="<answer>" + "9" * 50_000 + "</answer>")
@example(text="," * 50_000 + "1,1" * 10_000)
@example(text="\ud800 \x00")
def test_no_text_breaks_a_scorer(task, text):
    (problem,) = problems(task, 1)
    for completion in (text, f"<answer>{text}</answer>", f"<think>{text}</think><answer>1</answer>"):
        terms = task.score(problem, completion)
        assert set(terms) == {"correct", "format"}
        assert set(terms.values()) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("text", "formed", "answer"),
    [
        ("<answer>415</answer>", True, "415"),
        ("<think>7+8=15</think><answer>415</answer>", True, "415"),
        (" <think>a\nb</think><answer>4\n5</answer>\n", True, "4\n5"),
        ("<think></think><answer></answer>", True, ""),
        ("<answer>a < b > c</answer>", True, "a < b > c"),
        ("<think>is 3<4?</think><answer>3<4</answer>", True, "3<4"),
        ("415", False, "415"),
        ("", False, ""),
        ("<answer>415", False, "<answer>415"),
        ("415</answer>", False, "415</answer>"),
        ("<think>7+8=15", False, ""),
        ("<think>7+8=15</think>415", False, "415"),
        ("<think>7+8=15<answer>415</answer>", False, "415"),
        ("<think>a</think> <answer>415</answer>", False, "415"),
        ("<answer>415</answer>.", False, "415"),
        ("<answer>1</answer><answer>2</answer>", False, "2"),
        ("<answer>1<answer>2</answer>", False, "2"),
        ("<answer>1</answer></answer>", False, "1"),
        ("<think>a</think><think>b</think><answer>1</answer>", False, "1"),
        ("<answer>1</answer><think>a</think>", False, "1"),
        ("<ANSWER>1</ANSWER>", False, "<ANSWER>1</ANSWER>"),
    ],
)
def test_format_and_extraction(text, formed, answer):
    assert well_formed(text) is formed
    assert extract_answer(text) == answer


# ---- arithmetic


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("415", 415),
        (" +0415\n", 415),
        ("-3", -3),
        ("\N{MINUS SIGN}3", -3),
        ("415.0", 415),
        ("415.", 415),
        (".5", Fraction(1, 2)),
        ("1,234,567", 1234567),
        ("12,34", None),
        ("1234,567", None),
        ("4 15", None),
        ("1e3", None),
        ("0x1f", None),
        ("٣", None),
        ("nan", None),
        ("", None),
        ("-", None),
    ],
)
def test_read_number(text, value):
    assert read_number(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The answer is 415.", 415),
        ("147+268=415", 415),
        ("147-268", 268),
        ("147-268=-121", -121),
        ("(3)-2", 2),
        ("$\\boxed{1,234}$", 1234),
        ("first 3, then -4.50!", Fraction(-9, 2)),
        ("none", None),
    ],
)
def test_last_number(text, value):
    assert last_number(text) == value


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        ("<answer>0415</answer>", 1.0),
        ("<answer>415.0</answer>", 1.0),
        ("147 + 268 is 415.", 1.0),
        ("<think>147+268=1</think>so 415", 1.0),
        ("415 or 416", 0.0),
        ("<answer>it is 415</answer>", 0.0),  # inside the tags stands the answer and nothing else
        ("<answer>415", 0.0),  # cut off: 4150 might have followed
        ("<think>the sum is 415", 0.0),
        ("<answer>414</answer>", 0.0),
        ("-415", 0.0),
    ],
)
def test_arithmetic_compares_numbers(text, correct):
    assert Arithmetic().score(Problem("147+268=", "415"), text)["correct"] == correct


def test_a_gold_answer_that_is_no_number_equals_only_itself():
    problem = Problem("2+2=", "four")
    assert Arithmetic().score(problem, "<answer>four</answer>")["correct"] == 1.0
    assert Arithmetic().score(problem, "<answer>five</answer>")["correct"] == 0.0


@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        ({}, 100, 999),
        ({"digits": 1}, 0, 9),
        ({"digits": 2, "min_digits": 1}, 0, 99),
        ({"digits": 18}, 10**17, 10**18 - 1),
    ],
)
def test_operands_have_the_digits_asked_for(options, low, high):
    operands = [int(n) for p in problems(Arithmetic(**options), 500) for n in p.prompt[:-1].split("+")]
    assert low <= min(operands) < low + (high - low) / 10 + 1
    assert high - (high - low) / 10 - 1 < max(operands) <= high


def test_every_operator_occurs():
    task = Arithmetic(digits=2, operators="+-*")
    seen = set()
    for problem in problems(task, 200):
        seen |= set(problem.prompt) & set("+-*")
        assert str(eval(problem.prompt[:-1])) == problem.answer
    assert seen == set("+-*")


# ---- strings


def test_words_have_the_lengths_asked_for():
    task = Reverse(min_length=2, max_length=4)
    words = [p.answer[::-1] for p in problems(task, 500)]
    assert {len(word) for word in words} == {2, 3, 4}
    assert set("".join(words)) == set("abcdefghijklmnopqrstuvwxyz")


@pytest.mark.parametrize(("name", "answer"), [("copy", "dbca"), ("reverse", "acbd"), ("sort", "abcd")])
def test_what_becomes_of_a_word(name, answer):
    assert make_task(name).answer("dbca") == answer


# ---- countdown


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("25+3*7", 46),
        ("( 25 + 3 ) * 7", 196),
        ("25-7", 18),
        ("3", 3),
        ("7/3*3", None),  # each number once
        ("7/25*3", Fraction(21, 25)),
        ("3/(7-7)", None),
        ("25+3*8", None),
        ("7**3", None),
        ("7//3", None),
        ("-3+7", None),
        ("+3", None),
        ("3 7", None),
        ("3(7)", None),
        ("07+3", None),
        ("2 5", None),
        ("3+", None),
        ("()", None),
        ("", None),
        ("25+3*7=46", None),
        ("３+7", None),
        ("[3][0]", None),
        ("3if 7else 25", None),
    ],
)
def test_evaluate(expression, value):
    assert evaluate(expression, [3, 7, 25]) == value


def test_a_number_given_twice_may_be_used_twice():
    assert evaluate("7*7-7", [7, 7]) is None
    assert evaluate("7*7", [7, 7]) == 49


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9**9**9",
        "(" * 100_000,
        "(" * 99 + "3" + ")" * 99,
        "(" * 90 + "3" + ")" * 90,
        "9" * 100_000,
        "-" * 199 + "3",
        "+".join("3" * 90),
        "__import__('os').system('true')",
        "3" + "/3" * 99,
        "lambda: 0",
        "3\n+7",
        "\x00",
    ],
)
def test_hostile_expressions_score_zero(text):
    problem = Problem("countdown 3 7 25 -> 46=", "25+3*7")
    assert Countdown().score(problem, f"<answer>{text}</answer>")["correct"] == 0.0


def test_any_solution_counts_and_division_is_exact():
    problem = Problem("countdown 3 5 6 -> 10=", "6*5/3")  # made by hand: no data
    assert Countdown().score(problem, "<answer>5/3*6</answer>")["correct"] == 1.0
    assert Countdown().score(problem, "<answer>5+6</answer>")["correct"] == 0.0
    with pytest.raises(ValueError, match="a countdown prompt reads like"):
        Countdown().score(Problem("3 5 6"), "10")


@pytest.mark.parametrize("operators", ["+", "-", "*", "/", "+-*/"])
def test_countdown_problems_are_solvable_and_not_trivial(operators):
    for problem in problems(Countdown(operators=operators, max_target=200), 100):
        numbers, target = problem.data["numbers"], problem.data["target"]
        assert problem.prompt == f"countdown {' '.join(map(str, numbers))} -> {target}="
        assert 1 <= target <= 200
        assert target not in numbers
        assert evaluate(problem.answer, numbers) == target
        assert set(problem.answer) <= set(operators + "0123456789()")


@given(st.text(alphabet="0123456789+-*/() ", max_size=40))
def test_evaluate_agrees_with_python(expression):
    value = evaluate(expression, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    if value is not None:
        assert float(value) == pytest.approx(eval(expression.strip()))


# ---- options


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("arithmetic", {"digits": 0}, r"digits must be an integer in \[1, 18\], got 0"),
        ("arithmetic", {"digits": 19}, r"digits must be an integer in \[1, 18\], got 19"),
        ("arithmetic", {"digits": 2.0}, "digits must be an integer"),
        ("arithmetic", {"digits": True}, "digits must be an integer"),
        ("arithmetic", {"digits": "3"}, "digits must be an integer"),
        ("arithmetic", {"digits": 2, "min_digits": 3}, r"min_digits must be an integer in \[1, 2\], got 3"),
        ("arithmetic", {"operators": ""}, r"operators must be one or more of \+ - \*"),
        ("arithmetic", {"operators": "+/"}, "operators must be"),
        ("arithmetic", {"operators": "++"}, "each once"),
        ("arithmetic", {"operators": ["+"]}, "operators must be"),
        ("arithmetic", {"weights": {"exact": 1.0}}, "unknown term 'exact': the terms are correct, format"),
        ("arithmetic", {"weights": {"correct": float("nan")}}, "must be a finite number"),
        ("arithmetic", {"weights": {"correct": "1"}}, "must be a finite number"),
        ("arithmetic", {"weights": 1.0}, "weights must map"),
        ("arithmetic", {"chat_template": "yes"}, "chat_template must be True or False"),
        ("arithmetic", {"system": "You add."}, "chat_template=True"),
        ("arithmetic", {"system": 3, "chat_template": True}, "system must be a string"),
        ("copy", {"min_length": 0}, r"min_length must be an integer in \[1, 8\], got 0"),
        ("sort", {"min_length": 9}, r"min_length must be an integer in \[1, 8\], got 9"),
        ("reverse", {"max_length": -1}, "max_length must be an integer"),
        ("countdown", {"n_numbers": 1}, r"n_numbers must be an integer in \[2, 6\], got 1"),
        ("countdown", {"max_number": 1}, "max_number must be an integer"),
        ("countdown", {"operators": "^"}, "operators must be"),
        ("countdown", {"max_target": 0}, "max_target must be an integer"),
        ("no such task", {}, "unknown task 'no such task': choose one of arithmetic"),
    ],
)
def test_bad_options_get_a_sentence(name, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_task(name, **options)


def test_a_misspelt_option_is_an_error():
    with pytest.raises(ValueError, match="digit"):
        make_task("arithmetic", digit=3)


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (Countdown(2, 2, "*", max_target=1), "no countdown problem found"),
        (Arithmetic(), "split must be one of 'train', 'test', got 'dev'"),
    ],
)
def test_impossible_problems_get_a_sentence(task, sentence):
    with pytest.raises(ValueError, match=sentence):
        task.problem(np.random.default_rng(0), "dev" if isinstance(task, Arithmetic) else "train")


def test_weights_make_the_reward():
    task = make_task("arithmetic", weights={"correct": 1, "format": 0.5})
    assert task.reward({"correct": 1.0, "format": 1.0}) == 1.5
    assert make_task("arithmetic").reward({"correct": 1.0, "format": 1.0}) == 1.0
    assert make_task("arithmetic", weights={"format": 1.0}).reward({"correct": 1.0, "format": 0.0}) == 0.0


def test_the_registry():
    assert {"arithmetic", "copy", "countdown", "dataset", "jsonl", "reasoning_gym"} <= set(task_names())
    with pytest.raises(ValueError, match="registered already"):
        register_task("copy", Reverse)
    with pytest.raises(ValueError, match="need a task name"):
        make_task(Reverse(), min_length=3)
