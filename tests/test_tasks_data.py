"""Tasks from files and datasets: what is read, how it is split and scored, and the sentence for every bad row."""

from __future__ import annotations

import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgym.tasks import Problem, make_task, split_of
from llmgym.tasks.data import exact_match, from_dataset, from_jsonl, normalise, split_by_hash

ROWS = [{"prompt": f"What is {i}+{i}?", "answer": str(2 * i), "level": i % 3} for i in range(300)]


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def write(tmp_path, text):
    file = tmp_path / "data.jsonl"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_rows_become_problems(path):
    task = from_jsonl(path)
    assert task.name == "sums"
    everything = task.problems["train"] + task.problems["test"]
    assert {(p.prompt, p.answer) for p in everything} == {(row["prompt"], row["answer"]) for row in ROWS}
    assert everything[0].data == {"level": int(everything[0].answer) // 2 % 3}
    assert 10 < len(task.problems["test"]) < 60
    assert all(split_of(p.prompt) == split for split, rows in task.problems.items() for p in rows)


def test_draws_are_reproducible_and_stay_in_their_split(path):
    task = make_task("jsonl", path=path)
    drawn = {split: [task.problem(np.random.default_rng(i), split) for i in range(500)] for split in ("train", "test")}
    assert not set(drawn["train"]) & set(drawn["test"])
    assert set(drawn["test"]) == set(task.problems["test"])
    assert drawn["train"] == [task.problem(np.random.default_rng(i)) for i in range(500)]
    with pytest.raises(ValueError, match="split must be one of"):
        task.problem(np.random.default_rng(0), "dev")


def test_equal_prompts_stay_on_one_side(tmp_path):
    rows = [{"prompt": f"p{i % 40}", "answer": str(i)} for i in range(400)]
    task = from_jsonl(write(tmp_path, "\n".join(map(json.dumps, rows))), test_fraction=0.5)
    train, test = ({p.prompt for p in task.problems[split]} for split in ("train", "test"))
    assert train and test and not train & test
    assert sum(map(len, task.problems.values())) == 400


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_splits_are_nested_and_a_tenth_is_split_of(prompt, a, b):
    prompt = prompt.encode("utf-8", "ignore").decode()
    low, high = sorted((a, b))
    assert split_by_hash(prompt, 0.1) == split_of(prompt)
    assert split_by_hash(prompt, low) == "train" or split_by_hash(prompt, high) == "test"


def test_the_test_fraction_is_kept():
    share = np.mean([split_by_hash(f"prompt {i}", 0.25) == "test" for i in range(10_000)])
    assert share == pytest.approx(0.25, abs=0.02)
    assert split_by_hash("a", 0) == "train"
    assert split_by_hash("a", 1) == "test"


@pytest.mark.parametrize(
    ("text", "answer", "correct"),
    [
        ("<answer>Paris</answer>", "paris", 1.0),
        ("  the\n Eiffel   Tower. ", "The Eiffel Tower", 1.0),
        ("Ｐａｒｉｓ", "Paris", 1.0),
        ("<answer>3.0</answer>", "3", 1.0),
        ("1,000", "1000", 1.0),
        ("3", "Three", 0.0),
        ("It is Paris", "Paris", 0.0),
        ("nan", "NaN", 1.0),
        ("", "Paris", 0.0),
    ],
)
def test_the_default_scorer(text, answer, correct):
    assert exact_match(Problem("?", answer), text)["correct"] == correct


@given(st.text(), st.text(min_size=1))
def test_the_default_scorer_never_raises_and_knows_its_answer(text, answer):
    assert set(exact_match(Problem("?", answer), text).values()) <= {0.0, 1.0}
    assert exact_match(Problem("?", answer), answer)["correct"] in (0.0, 1.0)
    assert normalise(normalise(answer)) == normalise(answer) or answer.rstrip().endswith(".")


def test_scores_are_right_in_a_worker_thread(path):
    rows = from_jsonl(path).problems["train"]
    with ThreadPoolExecutor(2) as pool:
        assert all(terms["correct"] == 1.0 for terms in pool.map(exact_match, rows, [p.answer for p in rows]))


def test_a_scorer_of_your_own(path):
    number = from_jsonl(path, scorer=lambda problem, text: len(text) / problem.data.get("level", 1), answer=None)
    assert number.score(Problem("?", data={"level": 2}), "abc") == {"correct": 1.5}
    assert number.reward({"correct": 1.5}) == 1.5
    terms = from_jsonl(path, scorer=lambda problem, text: {"short": len(text) < 3, "style": 2})
    assert terms.score(Problem("?"), "ab") == {"short": 1.0, "style": 2.0}
    assert terms.reward({"short": 1.0, "style": 2.0}) == 3.0
    weighted = from_jsonl(path, scorer=lambda problem, text: {"short": 1, "style": 2}, weights={"style": 0.5})
    assert weighted.reward(weighted.score(Problem("?"), "")) == 1.0


def test_options_reach_the_task(path):
    task = from_jsonl(path, weights={"format": 1.0}, chat_template=True, system="Add.")
    assert (task.weights, task.chat_template, task.system) == ({"format": 1.0}, True, "Add.")
    copied = pickle.loads(pickle.dumps(task))
    assert copied.problems == task.problems


def test_keys_can_be_named_and_blank_lines_do_not_count(tmp_path):
    text = '\ufeff{"q": "1+1\u2028?", "a": "2"}\r\n\n  \n{"q": "2+2?", "a": "4"}'
    task = from_jsonl(write(tmp_path, text), prompt="q", answer="a")
    assert {p.prompt for rows in task.problems.values() for p in rows} == {"1+1\u2028?", "2+2?"}


GOOD = '{"prompt": "1+1?", "answer": "2"}\n'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty: at least one line"),
        ("\n \n", "is empty: at least one line"),
        (GOOD + '{"prompt": "1', "^line 2 of .*data.jsonl is not valid JSON .*column 12.*prompt"),
        (GOOD + "\n" + GOOD + "nonsense", "line 4 of .* is not valid JSON"),
        (GOOD + "[" * 100_000, "line 2 of .* is not valid JSON"),
        (GOOD + "9" * 5000, "line 2 of .* is not valid JSON"),
        (GOOD + "[1, 2]", r"line 2 of .* must be an object with keys, got \[1, 2\]"),
        (GOOD + '{"answer": "2"}', "line 2 of .* has no key 'prompt': it has 'answer'"),
        (GOOD + '{"prompt": "2"}', "line 2 of .* has no key 'answer': it has 'prompt'"),
        (GOOD + "{}", "line 2 of .* has no key 'prompt': it has none"),
        (GOOD + '{"prompt": "", "answer": "2"}', "'prompt' in line 2 of .* must be a non-empty string, got ''"),
        (GOOD + '{"prompt": " ", "answer": "2"}', "'prompt' in line 2 of .* must be a non-empty string, got ' '"),
        (GOOD + '{"prompt": 7, "answer": "2"}', "'prompt' in line 2 of .* must be a non-empty string, got 7"),
        (GOOD + '{"prompt": "7", "answer": 2}', "'answer' in line 2 of .* must be a non-empty string, got 2"),
        (GOOD + '{"prompt": "7", "answer": ""}', "'answer' in line 2 of .* must be a non-empty string, got ''"),
        (GOOD + '{"prompt": "7", "answer": null}', "'answer' in line 2 of .* must be .* got None"),
        (GOOD + '{"prompt": "\\ud800", "answer": "2"}', "'prompt' in line 2 of .* must be valid Unicode"),
        (b"\xff\xfe", "byte 0 is not UTF-8"),
    ],
)
def test_bad_lines_get_a_sentence_with_their_number(tmp_path, text, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        from_jsonl(write(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_missing_files_and_folders_get_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read .*nothing\.jsonl: No such file"):
        from_jsonl(tmp_path / "nothing.jsonl")
    with pytest.raises(ValueError, match=r"cannot read .*: Is a directory"):
        from_jsonl(tmp_path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prompt": ""}, "prompt must name the key"),
        ({"answer": 3}, "answer must name the key"),
        ({"answer": None}, "answer=None needs a scorer"),
        ({"scorer": "exact"}, "scorer must be a function"),
        ({"test_fraction": 1.5}, r"test_fraction must be in \[0, 1\], got 1.5"),
        ({"test_fraction": "0.1"}, "test_fraction must be in"),
        ({"weights": {"exact": 1}}, "unknown term 'exact'"),
    ],
)
def test_bad_options_get_a_sentence(path, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        from_jsonl(path, **options)


def test_a_misspelt_option_is_an_error(path):
    with pytest.raises(TypeError, match="test_fracton"):
        from_jsonl(path, test_fracton=0.1)


def test_a_split_without_rows_gets_a_sentence(path):
    task = from_jsonl(path, test_fraction=0)
    task.problem(np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"the 'test' split of sums is empty: .* all 300 rows"):
        task.problem(np.random.default_rng(0), "test")


# ---- Hugging Face datasets


@pytest.fixture(scope="module")
def table():
    return pytest.importorskip("datasets").Dataset.from_list(ROWS)


def everything(task):
    return sorted((p for rows in task.problems.values() for p in rows), key=lambda p: int(p.answer))


def test_a_dataset_its_folder_and_a_file_give_the_same_problems(table, path, tmp_path):
    datasets = pytest.importorskip("datasets")
    expected = everything(from_jsonl(path))
    table.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": table, "test": table.select(range(3))}).save_to_disk(tmp_path / "both")
    for source in (table, tmp_path / "saved", str(tmp_path / "both")):
        assert everything(from_dataset(source)) == expected
    assert len(everything(from_dataset(tmp_path / "both", source_split="test"))) == 3
    assert everything(make_task("dataset", dataset=table))[5].data == {"level": 2}


def test_a_hub_id_is_loaded_with_its_subset(table, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(*arguments):
        asked.append(arguments)
        return datasets.DatasetDict({"train": table})

    monkeypatch.setattr(datasets, "load_dataset", load)
    task = from_dataset("someone/sums", subset="main")
    assert task.name == "someone/sums"
    assert asked == [("someone/sums", "main")]
    with pytest.raises(ValueError, match="source_split must be one of 'train', got 'validation'"):
        from_dataset("someone/sums", source_split="validation")


def test_unusable_datasets_get_a_sentence(table, path, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    with pytest.raises(ValueError, match=r"row 0 of .* has no key 'question': it has 'prompt', 'answer', 'level'"):
        from_dataset(table, prompt="question")
    with pytest.raises(ValueError, match=r"row 0 of .* must be a non-empty string, got 0"):
        from_dataset(table, answer="level")
    with pytest.raises(ValueError, match="holds no rows"):
        from_dataset(table.select([]))
    with pytest.raises(ValueError, match="a hub id or a folder, got 3"):
        from_dataset(3)
    with pytest.raises(ValueError, match="try from_jsonl"):
        from_dataset(path)
    with pytest.raises(ValueError, match="cannot load the dataset"):
        from_dataset(tmp_path / "empty folder")

    def offline(*_):
        raise ConnectionError("no network\nand a long story")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ValueError, match=r"cannot load the dataset 'someone/sums': no network$"):
        from_dataset("someone/sums")


def test_without_the_library_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[tasks\]"'):
        from_dataset("someone/sums")
