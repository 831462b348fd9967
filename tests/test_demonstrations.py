"""Demonstrations: what is read and written, the sentence for every bad row, and what fits an environment."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import Words, no_repeat, toy_tokenizer

from llmgym.demonstrations import Demonstration, check_demonstrations, read_demonstrations, write_demonstrations
from llmgym.tasks import Problem
from llmgym.text import TextMDP

ROW = {"prompt": "2+2=", "completion": "4"}
DEMONSTRATION = Demonstration("2+2=", "4")


@pytest.fixture
def write(tmp_path):
    """Writes lines, given as text or objects; returns the path."""

    def write(*lines):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), "utf-8")
        return path

    return write


def world(**changes):
    return TextMDP(Words(), tokenizer=toy_tokenizer(), **({"max_prompt_tokens": 4, "max_new_tokens": 4} | changes))


def test_files_rows_and_demonstrations_are_read(write):
    assert read_demonstrations(write(ROW, "", ROW)) == [DEMONSTRATION] * 2
    assert read_demonstrations(iter([ROW, DEMONSTRATION])) == [DEMONSTRATION] * 2


def test_everything_a_row_may_hold_is_kept():
    row = ROW | {"finished": False, "answer": "4", "data": {"numbers": [2, 2]}, "level": 3}
    (found,) = read_demonstrations([row])
    assert found == Demonstration("2+2=", "4", False, "4")
    assert found.data == {"numbers": [2, 2], "level": 3}
    assert found.problem == Problem("2+2=", "4") and found.problem.data == found.data


def test_a_dataset_is_a_source():
    import datasets

    rows = [ROW, ROW | {"finished": False}, ROW | {"answer": "4"}]
    columns = dict.fromkeys(key for row in rows for key in row)
    table = datasets.Dataset.from_dict({key: [row.get(key) for row in rows] for key in columns})
    assert table[0]["finished"] is None  # columns of some rows are None in the others
    expected = [DEMONSTRATION, Demonstration("2+2=", "4", False), Demonstration("2+2=", "4", answer="4")]
    assert read_demonstrations(table) == expected


BAD_ROWS = [
    ("{", "line 2 of {path} is not valid JSON"),
    ([1, 2], "line 2 of {path} must be an object with keys, got [1, 2]"),
    ({"prompt": "p", "text": "t"}, "line 2 of {path} has no key 'completion': it has 'prompt', 'text'"),
    ({"completion": "p"}, "line 2 of {path} has no key 'prompt': it has 'completion'"),
    (ROW | {"completion": ""}, "line 2 of {path}: completion must be a non-empty string, got ''"),
    (ROW | {"completion": " \n"}, r"line 2 of {path}: completion must be a non-empty string, got ' \n'"),
    (ROW | {"completion": None}, "line 2 of {path}: completion must be a non-empty string, got None"),
    (ROW | {"completion": [{"role": "assistant"}]}, "line 2 of {path}: completion must be a non-empty string, got ["),
    (ROW | {"completion": "\ud83d"}, "line 2 of {path}: completion must be valid Unicode"),
    (ROW | {"prompt": ""}, "line 2 of {path}: prompt must be a non-empty string, got ''"),
    (ROW | {"finished": "yes"}, "line 2 of {path}: finished must be true or false, got 'yes'"),
    (ROW | {"answer": 4}, "line 2 of {path}: answer must be a string, got 4"),
    (ROW | {"data": [4]}, "line 2 of {path}: data must be an object with keys, got [4]"),
]


@pytest.mark.parametrize(("row", "sentence"), BAD_ROWS, ids=[sentence[:60] for _, sentence in BAD_ROWS])
def test_a_bad_row_is_named(write, row, sentence):
    path = write(ROW, row, ROW)
    with pytest.raises(ValueError) as said:
        read_demonstrations(path)
    assert sentence.format(path=path) in str(said.value) and "\n" not in str(said.value)


@pytest.mark.parametrize("source", [5, None, ROW])
def test_what_holds_no_rows_is_refused(source):
    with pytest.raises(ValueError, match="rows must come from a file or an iterable of mappings, got a"):
        read_demonstrations(source)


def test_nothing_to_learn_from_is_refused(write, tmp_path):
    with pytest.raises(ValueError, match="is empty: at least one line"):
        read_demonstrations(write())
    with pytest.raises(ValueError, match="the rows hold no demonstration"):
        read_demonstrations([])
    with pytest.raises(ValueError, match=r"cannot read .*none\.jsonl: No such file"):
        read_demonstrations(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (Demonstration("abcab", "a"), "follows a prompt of 5 tokens, max_prompt_tokens is 4"),
        (Demonstration("ab=", "abca"), "has 5 tokens, end-of-text included, max_new_tokens is 4"),
        (Demonstration("ab=", "abcab", finished=False), "has 5 tokens, max_new_tokens is 4"),
        (Demonstration("ab=", "a<eos>"), "holds the end-of-text token"),
        (Demonstration("ab=", "aab"), "holds the token 'a' where the environment forbids it"),
    ],
    ids=lambda x: x[:30] if isinstance(x, str) else "",
)
def test_what_does_not_fit_the_environment_is_named(row, sentence):
    good, mdp = Demonstration("ab=", "ab"), world(constraint=no_repeat)
    with pytest.raises(ValueError, match=f"row 1: completion {sentence}"):
        check_demonstrations([good, row], mdp)
    with pytest.raises(ValueError, match=f"row 1: completion {sentence}"):
        read_demonstrations([good, row], mdp)
    check_demonstrations([good, Demonstration("ab=", "abca", finished=False)], mdp)


text = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
values = st.dictionaries(st.text(st.characters(codec="utf-8")), st.integers() | st.none() | st.booleans())


@given(st.lists(st.builds(Demonstration, text, text, st.booleans(), st.just("") | text, values), min_size=1))
def test_what_is_written_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_demonstrations(path, rows)
    found = read_demonstrations(path)
    assert found == rows and [row.data for row in found] == [row.data for row in rows]


def test_what_json_cannot_hold_leaves_the_old_file(write):
    path = write(ROW)
    with pytest.raises(ValueError, match=r"row 1: the data of '2\+2=' cannot be written as JSON"):
        write_demonstrations(path, [DEMONSTRATION, Demonstration("2+2=", "4", data={"x": {1}})])
    assert read_demonstrations(path) == [DEMONSTRATION]
