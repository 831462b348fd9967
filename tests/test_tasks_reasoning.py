"""Every generator of reasoning-gym: problems, splits, gold answers, and answers meant to break its scorers."""

from __future__ import annotations

import ast
import inspect
import json
import pickle
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgym.tasks import Problem, make_task, split_of
from llmgym.tasks import reasoning as module
from llmgym.tasks.reasoning import ReasoningGym, is_formula, is_literal

# The library leaves files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

DATASETS = pytest.importorskip("reasoning_gym.factory").DATASETS
NO_GOLD = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
OPTIONS = {"acre": {"size": 200}, "composite": {"datasets": [{"name": "maze"}, {"name": "leg_counting", "weight": 2}]}}
SLOW = {"futoshiki", "intermediate_integration", "knight_swap"}  # seconds for ten problems
HOSTILE = [
    "",
    "zzz",
    "nan",
    "[NaN, NaN, NaN, NaN]",
    "1e999999999",
    "9**9**9**9**9",
    "99999999!",
    "exp(exp(exp(exp(99))))",
    "[0]*10**10",
    "{}",
    '{"a": 1}',
    '{"a": {"b": [1]}}',
    "[[[1]]]",
    "9" * 6000,
    "(" * 3000,
    "a,b=c:1.2.3",
    "\x00\ud800",
]


def make(name, **options):
    return make_task("reasoning_gym", dataset=name, **OPTIONS.get(name, {}), **options)


def first(task, seed=0, split="train"):
    return task.problem(np.random.default_rng(seed), split)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in sorted(DATASETS)]
)
def test_every_generator(name):
    task = make(name)
    problem, held_out = first(task), first(task, split="test")
    assert first(make(name)) == problem  # history does not count
    for p, split in ((problem, "train"), (held_out, "test")):
        assert split_of(p.prompt) == split
        assert pickle.loads(pickle.dumps(p)) == p
        assert isinstance(p.prompt, str) and isinstance(p.answer, str)
        before = repr(p.data)
        if name in NO_GOLD:
            assert p.answer == ""
        else:
            assert task.score(p, f"<think>hm</think><answer>{p.answer}</answer>") == {"correct": 1.0, "format": 1.0}
            assert task.score(p, p.answer)["correct"] == 1.0
        with ThreadPoolExecutor(1) as pool:  # no signals, no alarms
            terms = [pool.submit(task.score, p, f"<answer>{text}</answer>").result(20) for text in HOSTILE]
        assert all(0.0 <= t["correct"] < 0.5 for t in terms)
        assert repr(p.data) == before


def test_solutions_of_generators_without_a_gold_answer():
    graph = first(make("graph_color"))
    solution = json.dumps(graph.data["entry"]["metadata"]["possible_answer"])
    assert make("graph_color").score(graph, f"<answer>{solution}</answer>")["correct"] == 1.0
    cube = first(make("rubiks_cube"))
    solution = cube.data["entry"]["metadata"]["example_correct_answer"]
    assert make("rubiks_cube").score(cube, f"<answer>{solution}</answer>")["correct"] == 1.0


def test_held_out_problems_never_occur_in_training():
    task, rng = make("chain_sum"), np.random.default_rng(0)
    train = {task.problem(rng).prompt for _ in range(5_000)}
    assert len(train) > 4_000
    assert not train & {task.problem(rng, "test").prompt for _ in range(500)}


def test_the_data_sets_own_score_counts():
    task = make("chain_sum")
    problem = first(task)
    assert task.score(problem, f"<answer>{problem.answer}.00</answer>")["correct"] == 1.0
    assert 0 < task.score(problem, f"<answer>so {problem.answer}</answer>")["correct"] < 1


@pytest.mark.parametrize("name", ["pool_matrix", "list_functions"])
def test_generators_that_use_global_randomness_leave_it_alone(name):
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    first(make(name))
    assert (random.random(), np.random.rand()) == expected


def test_scorers_that_evaluate_text_are_all_guarded():
    """A new release that evaluates more answers must be noticed."""
    evaluating = {
        name
        for name, (cls, _) in DATASETS.items()
        if any(word in inspect.getsource(cls.score_answer) for word in ("eval(", "parse_expr", "sympify", "exec("))
    }
    evaluating.discard("number_sorting")  # evaluates its own gold answer
    assert evaluating <= module._EVALUATED | module._NUMERIC | module._SYMBOLIC


@pytest.mark.parametrize("name", ["n_queens", "spiral_matrix", "countdown", "polynomial_multiplication"])
def test_answers_are_not_run(name, tmp_path):
    task, target = make(name), tmp_path / "written"
    code = f"__import__('pathlib').Path({str(target)!r}).write_text('')"
    for text in (code, f"[{code}]", f"1 if {code} else 2", f"sin({code})", "(" * 50 + code + ")" * 50):
        assert task.score(first(task), f"<answer>{text}</answer>")["correct"] < 0.5
    assert not target.exists()


def test_marks_for_nothing_are_not_given():
    halting = make("game_of_life_halting")
    problem = first(halting)
    other = {"True": "False", "False": "True"}[problem.answer]
    assert halting.score(problem, f"<answer>{other}</answer>")["correct"] == 0.0
    puzzle = make("puzzle24")
    assert puzzle.score(first(puzzle), "<answer>6*4*1*1</answer>")["correct"] == 0.0
    integral = make("simple_integration")
    problem = first(integral)
    formula = problem.data["entry"]["metadata"]["integrand"]
    variable = problem.data["entry"]["metadata"]["variable"]
    assert integral.score(problem, f"<answer>Integral({formula}, {variable})</answer>")["correct"] == 0.0
    assert integral.score(problem, f"<answer>7 + {problem.answer}</answer>")["correct"] == 1.0


def test_a_broken_scorer_is_not_a_wrong_answer(monkeypatch):
    task = make("chain_sum")
    problem = first(task)

    def broken(answer, entry):
        raise ValueError("signal only works in the main thread")

    monkeypatch.setattr(task.dataset, "score_answer", broken)
    with pytest.raises(ValueError, match="signal only works"):
        task.score(problem, "<answer>1</answer>")


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        ("[1, 'a', (2,), {3: None}]", True),
        ("_ Q _\nQ _ _", True),  # a syntax error: eval() does nothing
        ("-1", True),
        ("[x for x in range(9)]", False),
        ("9**9", False),
        ("f()", False),
        (" f()", False),
        ("a.b", False),
        ("-" * 100_000 + "1", False),
    ],
)
def test_literals(text, harmless):
    assert is_literal(text) is harmless


@given(st.recursive(st.integers() | st.text() | st.none(), lambda inner: st.lists(inner) | st.tuples(inner)))
def test_every_literal_is_literal(value):
    assert ast.literal_eval(repr(value)) == value
    assert is_literal(repr(value))


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        ("-2*x**3*cos(x) + 6*x**2*sin(x) - 12*sin(x) + C", True),
        ("2*(-10*x - 10)**(3/2)/3 + C", True),
        ("x*asin(3*x) + sqrt(1 - 9*x**2)/3 + log(x)", True),
        ("exp(x)*x**(-2)", True),
        ("1.5*x**0.5", True),
        ("9**9**9", False),
        ("((x**9)**9)**9", False),
        ("x**(1/(1/999))", False),
        ("x**(1/0.001)", False),
        ("x**(99*99)", False),
        ("1e31", False),
        ("factorial(99)", False),
        ("x.args", False),
        ("__name__", False),
        ("'x'", False),
        ("x[0]", False),
        ("log(x, 2)", False),
        ("lambda: x", False),
        ("x!", False),
        ("x + " * 400 + "x", False),
    ],
)
def test_formulas(text, harmless):
    assert is_formula(text) is harmless


TASKS = [make(name) for name in ("countdown", "puzzle24", "n_queens", "game_of_life", "boxnet", "prime_factorization")]


@settings(deadline=None)
@given(st.sampled_from(TASKS), st.text() | st.text(alphabet="0123456789+-*/() .,[]{}:\"'nae", max_size=40))
def test_no_text_breaks_a_scorer(task, text):
    terms = task.score(first(task), f"<answer>{text}</answer>")
    assert 0.0 <= terms["correct"] <= 1.0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dataset": "chain_sums"}, "unknown reasoning-gym data set 'chain_sums': choose one such as chain_sum"),
        ({"dataset": "qqqq"}, "unknown reasoning-gym data set 'qqqq': choose one such as ab, acre"),
        ({"dataset": 3}, "unknown reasoning-gym data set 3"),
        ({"min_term": 2}, "chain_sum has no option 'min_term': it has .*min_terms"),
        ({"min_terms": -1}, "chain_sum cannot be made with .*min_terms.*: min_terms must be positive"),
        ({"min_terms": "two"}, "chain_sum cannot be made with"),
        ({"weights": {"right": 1}}, "unknown term 'right'"),
        ({"dataset": "composite"}, "composite needs datasets="),
        ({"dataset": "composite", "datasets": [{"title": "maze"}]}, "has the keys name, weight and config"),
        ({"dataset": "composite", "datasets": [{"name": "maize"}]}, "composite cannot be made with"),
    ],
)
def test_bad_options_get_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        ReasoningGym(**options)
    assert "\n" not in str(caught.value)


def test_config_reaches_the_data_set():
    task = make("chain_sum", min_terms=7, max_terms=7, weights={"correct": 1.0, "format": 0.1})
    problem = first(task)
    assert len(problem.data["entry"]["metadata"]["expression"].split()) == 13
    assert task.name == "reasoning_gym/chain_sum"
    assert task.reward({"correct": 1.0, "format": 1.0}) == pytest.approx(1.1)
    with pytest.raises(KeyError):
        task.score(Problem("2+2?", "4"), "4")


def test_without_the_library_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[tasks\]"'):
        ReasoningGym()
