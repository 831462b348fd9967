"""Labellers, and the file of answers: labels are functions of the pair, and no answer is ever lost."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace

import numpy as np
import pytest
from toys import A, B, Words, toy_tokenizer

from llmgym.answers import Answers
from llmgym.labellers import FileLabeller, RuleLabeller, label, uniform
from llmgym.preferences import Pair, Preference, read_labels, read_preferences, write_preferences
from llmgym.tasks import FunctionReward, Problem, Task, make_task
from llmgym.tasks.data import from_jsonl

SUM = Problem("2+2=", "4")
PAIRS = [Pair(Problem(f"p{i}"), f"a{i}", f"b{i}") for i in range(6)]


def pair_of(i, first=1.0, second=0.0):
    """A pair whose scores under `by_number` are the two numbers."""
    return Pair(Problem(f"prompt {i}"), f"a {first}", f"b {second}")


def by_number(problem, text):
    return float(text.split()[1])


def swapped(pair):
    return Pair(pair.problem, pair.second, pair.first, pair.second_finished, pair.first_finished)


OTHER = {"first": "second", "second": "first", "skip": "skip"}


# --- rules ----------------------------------------------------------------------------------------------------------


def test_the_higher_score_is_preferred():
    labeller = RuleLabeller(by_number)
    assert labeller(pair_of(0, 2, 1)) == "first"
    assert labeller(pair_of(0, 1, 2)) == "second"
    assert labeller(pair_of(0, 1, 1)) == "skip"


def test_the_score_may_be_a_task():
    labeller = RuleLabeller(make_task("arithmetic"))
    assert labeller(Pair(SUM, "<answer>5</answer>", "4")) == "second"
    assert labeller(Pair(SUM, "<answer>4</answer>", "4")) == "skip"
    labeller = RuleLabeller(make_task("arithmetic", weights={"correct": 1, "format": 0.1}))
    assert labeller(Pair(SUM, "<answer>4</answer>", "4")) == "first"


def test_the_score_may_be_a_sum_of_terms():
    labeller = RuleLabeller(lambda problem, text: {"right": text.count(problem.answer), "short": -len(text)})
    assert labeller.score(SUM, "444") == 0.0
    assert labeller(Pair(SUM, "44444", "1")) == "first"


@pytest.mark.parametrize("as_task", [False, True])
def test_a_score_that_looks_at_tokens_gets_those_of_an_episode(as_task):
    seen = []

    def reward(problem, text, tokens):
        seen.append(tokens)
        return float(len(tokens))

    score = FunctionReward(Words(), reward) if as_task else reward
    labeller = RuleLabeller(score, tokenizer=toy_tokenizer())
    assert labeller(Pair(SUM, "ab", "ba", first_finished=False)) == "second"
    assert seen == [(A, B), (B, A, 1)]  # EOS where the completion ended by itself
    with pytest.raises(ValueError, match="the score looks at tokens: give the labeller a tokenizer"):
        RuleLabeller(score)


def test_a_default_argument_is_no_token():
    assert RuleLabeller(lambda problem, text, power=2: len(text) ** power).score(SUM, "abc") == 9.0


@pytest.mark.parametrize(
    ("options", "margin", "p"),
    [
        ({}, 1, 1.0),
        ({"noise": 0.25}, 1, 0.75),
        ({"noise": 0.25}, -3, 0.25),
        ({"ties": "random"}, 0, 0.5),
        ({"ties": "random", "noise": 0.3}, 0, 0.5),
        ({"temperature": 1.0}, 2, 1 / (1 + math.exp(-2))),
        ({"temperature": 0.5}, -1, 1 / (1 + math.exp(2))),
        ({"temperature": 2.0, "noise": 0.1}, 2, 0.1 + 0.8 / (1 + math.exp(-1))),
        ({"temperature": 1e-300}, 5, 1.0),
        ({"temperature": 1e-300}, -5, 0.0),
    ],
)
def test_probability_and_frequency(options, margin, p):
    labellers = [RuleLabeller(by_number, seed=seed, **options) for seed in range(2000)]
    pair = pair_of(0, margin, 0)
    assert labellers[0].probability(pair) == pytest.approx(p, abs=1e-15)
    assert labellers[0].probability(swapped(pair)) == pytest.approx(1 - p, abs=1e-15)
    share = np.mean([labeller(pair) == "first" for labeller in labellers])
    assert share == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / len(labellers)) + 1e-12)


def test_ties_are_skipped_with_a_temperature_too():
    labeller = RuleLabeller(by_number, temperature=1.0)
    assert labeller.probability(pair_of(0, 1, 1)) is None
    assert labeller(pair_of(0, 1, 1)) == "skip"


def test_noise_over_pairs_is_as_frequent_as_it_says():
    labeller = RuleLabeller(by_number, 0.2, seed=3)
    flips = np.array([labeller(pair_of(i)) == "second" for i in range(4000)])
    assert flips.mean() == pytest.approx(0.2, abs=4 * math.sqrt(0.16 / 4000))
    assert abs(np.corrcoef(flips[1:], flips[:-1])[0, 1]) < 0.06


def test_a_label_depends_on_seed_and_pair_alone():
    pairs = [pair_of(i) for i in range(200)]
    labels = [RuleLabeller(by_number, 0.4, seed=1)(pair) for pair in pairs]
    again = RuleLabeller(by_number, 0.4, seed=1)
    assert [again(pair) for pair in reversed(pairs)] == labels[::-1]
    assert [OTHER[again(swapped(pair))] for pair in pairs] == labels
    assert [RuleLabeller(by_number, 0.4, seed=2)(pair) for pair in pairs] != labels


def test_more_noise_flips_the_same_pairs_and_more():
    flipped = [
        {i for i in range(500) if RuleLabeller(by_number, noise)(pair_of(i)) == "second"} for noise in (0, 0.1, 0.4)
    ]
    assert flipped[0] == set() and flipped[1] < flipped[2]


def test_uniform_is_uniform_and_mirrored():
    u = np.array([uniform(7, pair) for pair in (pair_of(i) for i in range(4000))])
    assert (u > 0).all() and (u < 1).all()
    assert np.histogram(u, 10, (0, 1))[0] == pytest.approx(400, abs=100)
    pair = pair_of(0)
    assert uniform(7, swapped(pair)) == 1 - uniform(7, pair)
    assert uniform(7, replace(pair, second_finished=False)) == uniform(7, pair)


@pytest.mark.parametrize("value", [float("nan"), math.inf, None, "1.0", [1.0, 2.0], {"a": None}, {"a": "x"}])
def test_a_score_that_is_no_number_names_the_completion(value):
    labeller = RuleLabeller(lambda problem, text: value if text == "b" else 1.0)
    said = r"^the score of 'b' after '2\+2=' must be a finite number, got (nan|inf|None|'1.0'|\[1.0, 2.0\]|'x')$"
    with pytest.raises(ValueError, match=said):
        labeller(Pair(SUM, "a", "b"))


def test_a_score_that_raises_names_the_completion():
    with pytest.raises(ValueError, match=r"^the score of 'a' after '2\+2=' failed: KeyError: 'tests'$") as said:
        RuleLabeller(lambda problem, text: problem.data["tests"])(Pair(SUM, "a", "b"))
    assert isinstance(said.value.__cause__, KeyError)
    with pytest.raises(ValueError, match="failed: NotImplementedError"):
        RuleLabeller(Task())(Pair(SUM, "a", "b"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"noise": 0.5}, r"noise must be in \[0, 0\.5\), got 0\.5"),
        ({"noise": -0.1}, r"noise must be in \[0, 0\.5\), got -0\.1"),
        ({"noise": float("nan")}, r"noise must be in \[0, 0\.5\), got nan"),
        ({"noise": "0.1"}, r"noise must be in \[0, 0\.5\), got '0\.1'"),
        ({"temperature": 0}, "temperature must be above 0 or None, got 0"),
        ({"temperature": math.inf}, "temperature must be above 0 or None, got inf"),
        ({"ties": "first"}, "ties must be 'skip' or 'random', got 'first'"),
        ({"seed": -1}, "seed must be an integer in"),
        ({"seed": None}, "seed must be an integer in"),
        ({"score": 5}, "score must be a Task or a function, got 5"),
        ({"score": "arithmetic"}, "score must be a Task or a function, got 'arithmetic'"),
        ({"score": lambda text: 1.0}, r"score must be a function of \(problem, text\) or \(problem, text, tokens\)"),
        ({"score": len}, r"score must be a function of \(problem, text\)"),
    ],
)
def test_options_that_cannot_be_meant(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        RuleLabeller(**({"score": by_number} | options))


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_file_knows_its_pairs_in_either_order(tmp_path):
    path = tmp_path / "labels.jsonl"
    label(PAIRS, lambda pair: "skip" if pair is PAIRS[1] else "second", path)
    for source in (path, [json.loads(line) for line in path.read_text().splitlines()]):
        labeller = FileLabeller(source)
        assert [labeller(pair) for pair in PAIRS[:3]] == ["second", "skip", "second"]
        assert [labeller(swapped(pair)) for pair in PAIRS[:3]] == ["first", "skip", "first"]
    write_preferences(path, [Preference("p", "good", "bad")])
    assert FileLabeller(path)(Pair(Problem("p"), "bad", "good")) == "second"


def test_a_pair_that_the_file_does_not_know_is_refused(tmp_path):
    path = tmp_path / "labels.jsonl"
    write_preferences(path, [Preference("p", "good", "bad")])
    with pytest.raises(ValueError, match=r"labels\.jsonl holds no label of 'a0' and 'b0' after 'p0'$"):
        FileLabeller(path)(PAIRS[0])


def test_a_file_that_contradicts_itself_is_refused():
    rows = [
        {"prompt": "p", "first": "a", "second": "b", "label": "first"},
        {"prompt": "p", "first": "b", "second": "a", "label": "second"},
        {"prompt": "p", "chosen": "b", "rejected": "a"},
    ]
    FileLabeller(rows[:2])
    with pytest.raises(ValueError, match=r"^row 2 contradicts row 0: the same two completions with another label$"):
        FileLabeller(rows)


# --- labelling ------------------------------------------------------------------------------------------------------


class Script:
    """Gives prepared answers and remembers which pairs it was asked about."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def __call__(self, pair):
        self.asked.append(pair.problem.prompt)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


def test_labels_become_preferences(tmp_path):
    path = tmp_path / "answers.jsonl"
    for keep in (path, str(tmp_path / "text.jsonl"), None):
        found = label(PAIRS[:3], Script("first", "skip", "second"), keep)
        assert found == [Preference("p0", "a0", "b0"), Preference("p2", "b2", "a2")]
    assert [row for _, _, row in read_labels(path)] == ["first", "skip", "second"]
    assert read_preferences(path) == found
    assert label([], Script()) == []


def test_a_line_is_in_the_file_before_the_next_question(tmp_path):
    path, counts = tmp_path / "answers.jsonl", []

    def count(pair):
        counts.append(path.read_bytes().count(b"\n"))
        return "first"

    label(PAIRS, count, path)
    assert counts == list(range(len(PAIRS)))


@pytest.mark.parametrize("end", ["quit", KeyboardInterrupt(), KeyError("mine"), ValueError("mine")])
def test_whatever_ends_it_the_answers_are_kept_and_it_goes_on(tmp_path, end):
    path = tmp_path / "answers.jsonl"
    script = Script("first", "second", "skip", end)
    if end == "quit":
        assert len(label(PAIRS, script, path)) == 2
    else:
        with pytest.raises(type(end)):
            label(PAIRS, script, path)
    before = path.read_bytes()
    assert before.count(b"\n") == 3
    rest = Script("first", "first", "first")
    assert [p.chosen for p in label(PAIRS, rest, path)] == ["a0", "b1", "a3", "a4", "a5"]
    assert rest.asked == ["p3", "p4", "p5"]
    assert path.read_bytes().startswith(before)
    assert label(PAIRS, Script(), path) == label(PAIRS, Script(), path)  # nothing is asked again


def test_an_error_names_the_pair(tmp_path):
    path = tmp_path / "answers.jsonl"
    pairs = [pair_of(0, 1, 2), pair_of(1, 1, math.nan), pair_of(2)]
    said = r"^pair 2 of 3: the score of 'b nan' after 'prompt 1' must be a finite number, got nan$"
    with pytest.raises(ValueError, match=said):
        label(pairs, RuleLabeller(by_number), path)
    assert read_preferences(path) == [Preference("prompt 0", "b 2", "a 1")]


@pytest.mark.parametrize("answer", ["left", None, 1, ["first"], ""])
def test_another_answer_is_refused_by_its_pair(answer):
    said = r"^pair 2 of 6: a label must be one of 'first', 'second', 'skip', 'undo', 'quit', got "
    with pytest.raises(ValueError, match=said):
        label(PAIRS, Script("first", answer))


def test_the_same_noise_after_an_interruption(tmp_path):
    pairs = [pair_of(i) for i in range(40)]
    whole = label(pairs, RuleLabeller(by_number, 0.4, seed=5))
    for stop in (1, 7, 39):
        path, labeller = tmp_path / f"{stop}.jsonl", RuleLabeller(by_number, 0.4, seed=5)
        label(pairs[:stop], labeller, path)
        assert label(pairs, labeller, path) == whole


@pytest.mark.parametrize("kept", [True, False])
def test_undo(tmp_path, kept):
    path = tmp_path / "answers.jsonl" if kept else None
    script = Script("undo", "first", "undo", "second", "first", "undo", "undo", "undo", "skip", "first", "quit")
    found = label(PAIRS[:3], script, path)
    assert script.asked == ["p0", "p0", "p1", "p0", "p1", "p2", "p1", "p0", "p0", "p1", "p2"]
    assert found == [Preference("p1", "a1", "b1")]
    if path:
        assert [(pair.problem.prompt, row) for _, pair, row in read_labels(path)] == [("p0", "skip"), ("p1", "first")]


def test_undo_reaches_back_before_the_interruption_but_not_to_other_pairs(tmp_path):
    path = tmp_path / "answers.jsonl"
    label([*PAIRS[4:], *PAIRS[:2]], lambda pair: "first", path)
    script = Script("undo", "undo", "undo", "second", "quit")
    assert label(PAIRS[:3], script, path) == [Preference("p0", "b0", "a0")]
    assert script.asked == ["p2", "p1", "p0", "p0", "p1"]
    assert [pair.problem.prompt for _, pair, _ in read_labels(path)] == ["p4", "p5", "p0"]


def test_progress_is_told(tmp_path):
    told = []
    path = tmp_path / "answers.jsonl"
    label(PAIRS[:3], Script("first", "undo", "first", "quit"), path, progress=lambda *n: told.append(n))
    assert told == [(0, 3), (1, 3), (0, 3), (1, 3), (1, 3)]

    class Counting(Script):
        def progress(self, done, total):
            told.append((done, total))

    told.clear()
    label(PAIRS[:3], Counting("first", "first"), path)
    assert told == [(1, 3), (2, 3), (3, 3)]


# --- the file -------------------------------------------------------------------------------------------------------


def test_a_pair_that_occurs_twice_is_asked_twice(tmp_path):
    path = tmp_path / "answers.jsonl"
    pairs = [PAIRS[0], PAIRS[1], PAIRS[0]]
    label(pairs, Script("first", "quit"), path)
    script = Script("skip", "second")
    assert [p.chosen for p in label(pairs, script, path)] == ["a0", "b0"]
    assert script.asked == ["p1", "p0"]


def test_answers_to_swapped_pairs_and_preferences_of_trl_count(tmp_path):
    path = tmp_path / "answers.jsonl"
    label([swapped(PAIRS[0])], Script("first"), path)
    with path.open("a") as file:
        file.write(json.dumps({"prompt": "p1", "chosen": "b1", "rejected": "a1"}))  # and no newline
    script = Script("first")
    assert [p.chosen for p in label(PAIRS[:3], script, path)] == ["b0", "b1", "a2"]
    assert script.asked == ["p2"]
    assert len(read_preferences(path)) == 3


def test_any_cut_of_the_last_line_costs_that_line_only(tmp_path):
    """A process may die after any byte of a write."""
    path = tmp_path / "answers.jsonl"
    pairs = [PAIRS[0], Pair(Problem("日本=", "“x”", {"n": [1]}), "é\n", "ü")]
    label(pairs, Script("first", "second"), path)
    whole = path.read_bytes()
    first_line = whole.index(b"\n") + 1
    for end in range(first_line, len(whole)):
        path.write_bytes(whole[:end])
        script = Script("skip")
        if first_line < end < len(whole) - 1:
            with pytest.warns(UserWarning, match="the last line of .* was cut short and is dropped"):
                label(pairs, script, path)
        else:
            label(pairs, script, path)
        last = "second" if end == len(whole) - 1 else "skip"  # only the newline was missing
        assert [row for _, _, row in read_labels(path)] == ["first", last]
        assert len(script.asked) == (last == "skip")


@pytest.mark.parametrize(
    "content",
    [
        "my notes",
        '{"my": "notes"}',
        '{"prompt": "p0", "first": "a0", "second": "b0"}',
        '{"prompt": "p", "first": "a", "second": "b", "label": "both"}',
        "my notes\n",
        '{"prompt": "p", "first": "a"\n{"prompt": "p", "first": "a", "second": "b", "label": "skip"}\n',
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "notes"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"^line 1 of "):
        label(PAIRS, Script(), path)
    assert path.read_text() == content


def test_two_processes_do_not_share_a_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    with Answers(PAIRS, path) as answers:
        answers.add(0, "first")
        with pytest.raises(ValueError, match=r"answers\.jsonl is in use: another process adds answers to it$"):
            label(PAIRS, Script(), path)
    assert len(label(PAIRS, Script("quit"), path)) == 1


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_asked(tmp_path):
    for path in (tmp_path, tmp_path / "none" / "answers.jsonl"):
        with pytest.raises(ValueError, match=r"^cannot write .*: (Is a directory|No such file or directory)$"):
            label(PAIRS, Script(), path)


def test_data_that_cannot_be_kept_is_refused_before_anything_is_asked(tmp_path):
    bad = Pair(Problem("p", data={"x": {1}}), "a", "b")
    with pytest.raises(ValueError, match=r"^pair 7: the data of 'p' cannot be written as JSON"):
        label([*PAIRS, bad], Script(), tmp_path / "answers.jsonl")
    assert label([bad], Script("first")) == [Preference("p", "a", "b")]
    with pytest.raises(ValueError, match=r"^pair 2 must be a Pair, got 'p1'$"):
        label([PAIRS[0], "p1"], Script())
    assert not any(tmp_path.iterdir())


def test_a_full_disk_loses_no_answer(tmp_path, monkeypatch):
    path, synced = tmp_path / "answers.jsonl", []

    def full(fd):
        synced.append(fd)
        if len(synced) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        label(PAIRS, lambda pair: "first", path)
    assert 2 <= len(read_preferences(path)) <= 3
    assert len(label(PAIRS, lambda pair: "first", path)) == 6


def test_scorers_find_their_data_after_a_file(tmp_path):
    rows = [{"prompt": f"{i}+{i}=", "answer": str(2 * i), "level": i} for i in range(20)]
    (tmp_path / "task.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = from_jsonl(tmp_path / "task.jsonl", test_fraction=0.0)
    pairs = [Pair(problem, problem.answer, "x") for problem in task.problems["train"]]
    label(pairs, RuleLabeller(lambda problem, text: problem.data["level"] - len(text)), tmp_path / "answers.jsonl")
    for _, pair, _ in read_labels(tmp_path / "answers.jsonl"):
        assert pair.problem.data == {"level": int(pair.problem.answer) // 2}
