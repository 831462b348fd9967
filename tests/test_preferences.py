"""Preference data: what is read and written, the sentence for every bad row, and what fits an environment."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import CHAT_TEMPLATE, EOS, A, B, C, Words, newline_or_tag, no_repeat, toy_tokenizer

from llmgym.completions import check_completion
from llmgym.preferences import (
    Pair,
    Preference,
    check_preferences,
    encode,
    read_labels,
    read_pairs,
    read_preferences,
    write_pairs,
    write_preferences,
)
from llmgym.tasks import Problem, make_task
from llmgym.text import TextMDP

TRL = {"prompt": "2+2=", "chosen": "4", "rejected": "5"}
LABELLED = {"prompt": "2+2=", "first": "5", "second": "4", "label": "second"}
PREFERENCE = Preference("2+2=", "4", "5")


@pytest.fixture
def write(tmp_path):
    """Writes lines, given as text, bytes or objects; returns the path."""

    def write(*lines):
        encoded = [line if isinstance(line, str | bytes) else json.dumps(line) for line in lines]
        path = tmp_path / "pairs.jsonl"
        path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in encoded))
        return path

    return write


# --- reading --------------------------------------------------------------------------------------------------------


def test_both_kinds_of_rows_are_read(write):
    skipped = LABELLED | {"label": "skip"}
    assert read_preferences(write(TRL, "", LABELLED, skipped)) == [PREFERENCE, PREFERENCE]
    assert read_preferences(iter([TRL, LABELLED, skipped])) == [PREFERENCE, PREFERENCE]


def test_everything_a_row_may_hold_is_kept():
    row = LABELLED | {"first_finished": False, "answer": "4", "data": {"numbers": [2, 2]}, "level": 3}
    (preference,) = read_preferences([row])
    assert preference == Preference("2+2=", "4", "5", True, False, "4")
    assert preference.data == {"numbers": [2, 2], "level": 3}
    assert preference.problem == Problem("2+2=", "4")
    assert preference.problem.data == preference.data
    row = TRL | {"chosen_finished": False, "answer": "4", "score": 0.5}
    (preference,) = read_preferences([row])
    assert preference == Preference("2+2=", "4", "5", False, True, "4")
    assert preference.data == {"score": 0.5}


def test_preferences_are_rows_too():
    assert read_preferences([PREFERENCE, TRL]) == [PREFERENCE, PREFERENCE]
    pair = Pair(Problem("p"), "a", "b")
    assert read_pairs([pair]) == [pair]


def test_a_dataset_is_a_source():
    import datasets

    rows = [TRL, TRL | {"chosen_finished": False}, LABELLED | {"answer": "4"}]
    columns = dict.fromkeys(key for row in rows for key in row)
    table = datasets.Dataset.from_dict({key: [row.get(key) for row in rows] for key in columns})
    assert table[2]["chosen"] is table[0]["answer"] is None  # columns of some rows are None in the others
    expected = [PREFERENCE, Preference("2+2=", "4", "5", False), Preference("2+2=", "4", "5", answer="4")]
    assert read_preferences(table) == expected
    with pytest.raises(ValueError, match=r"rows must come from a file or an iterable of mappings, got a DatasetDict"):
        read_preferences(datasets.DatasetDict(train=table))


def test_labels_keep_the_order_and_the_skips(write):
    rows = list(read_labels(write(TRL, LABELLED, LABELLED | {"label": "skip"})))
    assert [(pair.first, pair.second, label) for _, pair, label in rows] == [
        ("4", "5", "first"),
        ("5", "4", "second"),
        ("5", "4", "skip"),
    ]
    assert rows[2][0].startswith("line 3 of ")


def test_a_labelled_pair_can_be_read_as_an_unlabelled_one():
    (pair,) = read_pairs([LABELLED])
    assert pair == Pair(Problem("2+2="), "5", "4")
    assert pair.problem.data == {}


def without(row, key):
    return {name: value for name, value in row.items() if name != key}


BAD_ROWS = [
    ("{", "line 2 of {path} is not valid JSON (Expecting property name enclosed in double quotes, column 2)"),
    ('{"prompt": "2+', "line 2 of {path} is not valid JSON (Unterminated string starting at, column 12)"),
    ("[" * 100_000, "line 2 of {path} is not valid JSON"),
    ([1, 2], "line 2 of {path} must be an object with keys, got [1, 2]"),
    ({}, "line 2 of {path} has neither 'chosen' and 'rejected' nor 'first', 'second' and 'label': it has no key"),
    ({"prompt": "p", "text": "t"}, "it has 'prompt', 'text'"),
    (without(TRL, "prompt"), "line 2 of {path} has no key 'prompt': it has 'chosen', 'rejected'"),
    (without(TRL, "chosen"), "line 2 of {path} has no key 'chosen'"),
    (without(TRL, "rejected"), "line 2 of {path} has no key 'rejected'"),
    (without(LABELLED, "second"), "line 2 of {path} has no key 'second'"),
    (without(LABELLED, "label"), "line 2 of {path} has no key 'label'"),
    (TRL | {"rejected": "4"}, "line 2 of {path}: chosen and rejected are the same text, '4'"),
    (LABELLED | {"first": "4"}, "line 2 of {path}: first and second are the same text, '4'"),
    (TRL | {"chosen": ""}, "line 2 of {path}: chosen must be a non-empty string, got ''"),
    (TRL | {"rejected": " \n"}, r"line 2 of {path}: rejected must be a non-empty string, got ' \n'"),
    (LABELLED | {"second": None}, "line 2 of {path}: second must be a non-empty string, got None"),
    (TRL | {"prompt": ""}, "line 2 of {path}: prompt must be a non-empty string, got ''"),
    (TRL | {"prompt": [{"role": "user"}]}, "line 2 of {path}: prompt must be a non-empty string, got ["),
    (TRL | {"chosen": 4}, "line 2 of {path}: chosen must be a non-empty string, got 4"),
    (TRL | {"chosen": "\ud83d"}, "line 2 of {path}: chosen must be valid Unicode"),
    (TRL | {"answer": 4}, "line 2 of {path}: answer must be a string, got 4"),
    (TRL | {"data": [4]}, "line 2 of {path}: data must be an object with keys, got [4]"),
    (TRL | {"chosen_finished": 1}, "line 2 of {path}: chosen_finished must be true or false, got 1"),
    (LABELLED | {"second_finished": "no"}, "line 2 of {path}: second_finished must be true or false, got 'no'"),
    (LABELLED | {"label": "tie"}, "line 2 of {path}: label must be one of 'first', 'second', 'skip', got 'tie'"),
    (LABELLED | {"label": 1}, "line 2 of {path}: label must be one of 'first', 'second', 'skip', got 1"),
    (LABELLED | {"label": None}, "line 2 of {path}: label must be one of 'first', 'second', 'skip', got None"),
    (b'{"prompt": "\xff"}', "cannot read {path}: byte "),
]


@pytest.mark.parametrize(("row", "sentence"), BAD_ROWS, ids=[sentence[:60] for _, sentence in BAD_ROWS])
def test_a_bad_row_is_named(write, row, sentence):
    path = write(TRL, row, TRL)
    with pytest.raises(ValueError) as said:
        read_preferences(path)
    assert sentence.format(path=path) in str(said.value)
    assert "\n" not in str(said.value)


def test_rows_of_a_list_are_counted_from_0():
    with pytest.raises(ValueError, match=r"^row 1: chosen must be a non-empty string, got ''$"):
        read_preferences([TRL, TRL | {"chosen": ""}])
    with pytest.raises(ValueError, match=r"^row 0 has no key 'first': it has 'prompt', 'chosen', 'rejected'$"):
        read_pairs([TRL])


@pytest.mark.parametrize("source", [5, None, TRL])
def test_what_holds_no_rows_is_refused(source):
    with pytest.raises(ValueError, match="rows must come from a file or an iterable of mappings, got a"):
        read_preferences(source)


def test_nothing_to_learn_from_is_refused(write, tmp_path):
    with pytest.raises(ValueError, match=r"pairs\.jsonl is empty: at least one line"):
        read_preferences(write())
    with pytest.raises(ValueError, match=r"pairs\.jsonl holds no preference: at least one is needed"):
        read_preferences(write(LABELLED | {"label": "skip"}))
    with pytest.raises(ValueError, match="the rows hold no preference"):
        read_preferences([])
    with pytest.raises(ValueError, match=r"cannot read .*none\.jsonl: No such file"):
        read_preferences(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Pair("2+2=", "4", "5"), "problem must be a Problem, got '2\\+2='"),
        (lambda: Pair(Problem(4), "4", "5"), "prompt must be a non-empty string, got 4"),
        (lambda: Pair(Problem("p"), "4", "4"), "first and second are the same text, '4'"),
        (lambda: Pair(Problem("p"), "4", "4", True, False), "first and second are the same text, '4'"),
        (lambda: Pair(Problem("p"), "4", "5", None), "first_finished must be true or false, got None"),
        (lambda: Preference("p", "a", "b", rejected_finished=0), "rejected_finished must be true or false, got 0"),
        (lambda: Preference("p", "a", "b", data=None), "data must be an object with keys, got None"),
    ],
)
def test_no_bad_pair_or_preference_can_be_made(make, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        make()


def test_a_label_makes_a_preference():
    pair = Pair(Problem("p", "g", {"n": 1}), "a", "b", first_finished=False)
    assert pair.preference("first") == Preference("p", "a", "b", False, True, "g")
    assert pair.preference("second") == Preference("p", "b", "a", True, False, "g")
    assert pair.preference("second").data == {"n": 1}
    assert pair.preference("skip") is None
    with pytest.raises(ValueError, match="label must be one of 'first', 'second', 'skip', got 'left'"):
        pair.preference("left")


def test_pairs_and_preferences_are_values():
    pair, preference = Pair(Problem("p", data={"n": [1]}), "a", "b"), Preference("p", "a", "b", data={"n": [1]})
    assert pair == Pair(Problem("p"), "a", "b") and preference == Preference("p", "a", "b")
    assert len({pair, Pair(Problem("p"), "a", "b")}) == len({preference, Preference("p", "a", "b")}) == 1
    assert pickle.loads(pickle.dumps(pair)).problem.data == {"n": [1]}
    with pytest.raises(FrozenInstanceError):
        pair.first = "c"


# --- writing --------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
data = st.dictionaries(st.text(max_size=3).filter(lambda k: k.isascii()), st.integers() | st.lists(st.booleans()))


@st.composite
def pairs(draw):
    first, second = draw(st.lists(texts, min_size=2, max_size=2, unique=True))
    problem = Problem(draw(texts), draw(st.sampled_from(["", "42", "ü"])), draw(data))
    return Pair(problem, first, second, draw(st.booleans()), draw(st.booleans()))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(pairs(), min_size=1))
def test_what_is_written_is_read_back(tmp_path, written):
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, written)
    read = read_pairs(path)
    assert read == written
    assert [pair.problem.data for pair in read] == [pair.problem.data for pair in written]
    preferences = [pair.preference("second") for pair in written]
    write_preferences(path, preferences)
    assert read_preferences(path) == preferences
    assert [p.data for p in read_preferences(path)] == [p.data for p in preferences]


def test_preferences_are_written_with_the_names_of_trl(tmp_path):
    import datasets

    path = tmp_path / "preferences.jsonl"
    write_preferences(path, [PREFERENCE, Preference("日本=", "東京", "京都", False, data={"n": 1})])
    lines = path.read_text("utf-8").splitlines()
    assert json.loads(lines[0]) == TRL | {"chosen_finished": True, "rejected_finished": True}
    assert '"chosen": "東京"' in lines[1] and '"data": {"n": 1}' in lines[1]
    table = datasets.Dataset.from_json(str(path), cache_dir=str(tmp_path))
    assert {"prompt", "chosen", "rejected"} <= set(table.column_names)
    assert read_preferences(table) == read_preferences(path)


def test_data_of_a_scorer_survives_a_file(tmp_path):
    task = make_task("countdown")
    problem = task.problem(np.random.default_rng(0))
    write_pairs(tmp_path / "pairs.jsonl", [Pair(problem, problem.answer, "1")])
    (pair,) = read_pairs(tmp_path / "pairs.jsonl")
    assert dict(pair.problem.data) == json.loads(json.dumps(dict(problem.data)))
    assert task.score(pair.problem, pair.first)["correct"] == 1.0


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), np.int64(3), "\ud83d"])
def test_data_that_is_no_json_is_refused_and_the_old_file_stays(tmp_path, value):
    path = tmp_path / "pairs.jsonl"
    good, bad = Pair(Problem("p"), "a", "b"), Pair(Problem("q", data={"x": value}), "a", "b")
    write_pairs(path, [good])
    with pytest.raises(ValueError, match=r"^row 1: the data of 'q' cannot be written as JSON: "):
        write_pairs(path, [good, bad])
    with pytest.raises(ValueError, match=r"^row 0: the data of 'q' cannot be written as JSON: "):
        write_preferences(path, [bad.preference("first")])
    assert read_pairs(path) == [good]
    assert [file.name for file in tmp_path.iterdir()] == ["pairs.jsonl"]


# --- what fits an environment ---------------------------------------------------------------------------------------


def mdp(**changes):
    options = {"task": Words(), "tokenizer": toy_tokenizer(), "max_prompt_tokens": 4, "max_new_tokens": 3}
    return TextMDP(**(options | changes))


def test_encode_gives_prompt_completion_and_end():
    assert encode(mdp(), Problem("ab="), "ca", finished=True) == ((A, B, 5, C, A, EOS), 3)
    assert encode(mdp(), Problem("ab="), "ca", finished=False) == ((A, B, 5, C, A), 3)


def test_encode_uses_the_chat_template_of_the_task():
    tokenizer, task = toy_tokenizer(), Words()
    tokenizer.chat_template = CHAT_TEMPLATE
    task.configure(chat_template=True, system="b")
    tokens, n_prompt = encode(mdp(task=task, tokenizer=tokenizer), Problem("b"), "ca")
    assert (tokens, n_prompt) == ((C, B, A, B, 5, C, A, EOS), 5)


def test_encode_is_what_an_episode_holds():
    rules = mdp()
    state = rules.transition(rules.transition(rules.start(Problem("ab=")), C), EOS)
    assert encode(rules, state.problem, rules.text(state)) == (state.tokens, state.n_prompt)


FITS = [Preference("abc=", "ab", "c"), Preference("a=", "abc", "ab", chosen_finished=False)]
UNFIT = [
    (Preference("aabc=", "a", "b"), {}, "chosen follows a prompt of 5 tokens, max_prompt_tokens is 4"),
    (Preference("a=", "abc", "b"), {}, "chosen has 4 tokens, end-of-text included, max_new_tokens is 3"),
    (Preference("a=", "b", "abca", True, False), {}, "rejected has 4 tokens, max_new_tokens is 3"),
    (Preference("a=", "b", "a<eos>", True, False), {}, "rejected holds the end-of-text token"),
    (Preference("a=", "a", "b"), {"banned_tokens": ["b"]}, "rejected holds the token 'b' where the environment"),
    (Preference("a=", "a", "bc"), {"min_new_tokens": 2}, "chosen holds the token '<eos>' where the environment"),
    (Preference("a=", "bb", "bc"), {"constraint": no_repeat}, "chosen holds the token 'b' where the environment"),
]


@pytest.mark.parametrize(("preference", "options", "sentence"), UNFIT, ids=[sentence[:40] for *_, sentence in UNFIT])
def test_what_could_not_have_happened_is_refused_by_its_row(write, preference, options, sentence):
    rules = mdp(**options)
    if not options:
        check_preferences(FITS, rules)
    ok = Preference("a=", "ac", "ca")
    with pytest.raises(ValueError) as said:
        check_preferences([ok, preference], rules)
    assert str(said.value).startswith(f"row 1: {sentence}")
    row = {name: getattr(preference, name) for name in ("prompt", "chosen", "rejected", "rejected_finished")}
    path = write(TRL | {"prompt": "a=", "chosen": "ac", "rejected": "ca"}, LABELLED | {"label": "skip"}, row)
    read_preferences(path)
    with pytest.raises(ValueError) as said:
        read_preferences(path, rules)
    assert str(said.value).startswith(f"line 3 of {path}: {sentence}")


def test_masks_are_asked_block_by_block():
    """The grammar sees the state at the start of the block: with a stop rule, after every newline."""
    asked = []

    def watch(state, tokens):
        asked.append((state.completion, tuple(tokens)))

    rules = mdp(max_new_tokens=8, block_size=3, stop=newline_or_tag, constraint=watch)
    check_completion("it", rules, Problem("a="), "a\nbcab")
    newline = 6
    assert asked == [
        ((), ()),
        ((), (A,)),
        ((A, newline), ()),
        ((A, newline), (B,)),
        ((A, newline), (B, C)),
        ((A, newline, B, C, A), ()),
        ((A, newline, B, C, A), (B,)),
    ]


def test_a_text_that_is_no_token_is_refused(monkeypatch):
    rules = mdp()
    monkeypatch.setattr(rules.codec, "encode_text", lambda text: ())
    with pytest.raises(ValueError, match=r"^row 0: chosen encodes to no token"):
        check_preferences([Preference("a=", "b", "c")], rules)


def test_preferences_and_labellers_need_no_torch():
    code = "import sys, llmgym.preferences, llmgym.labellers, llmgym.terminal; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
