"""Pairs from a policy: as many as asked for, different, reproducible, of the right split; and the command."""

from __future__ import annotations

import pytest
from toys import Words, toy_tokenizer
from worlds import lm_policy, tiny_model

from llmgym.cli import main
from llmgym.pair_sampling import sample_pairs
from llmgym.policy import LMPolicy
from llmgym.preferences import read_pairs
from llmgym.tasks import split_of
from llmgym.text import TextMDP


def world(**changes):
    return TextMDP(task=Words(), tokenizer=toy_tokenizer(), max_prompt_tokens=6, **({"max_new_tokens": 5} | changes))


@pytest.mark.parametrize("count", [1, 7, 40])
def test_as_many_pairs_as_asked_for_each_of_two_different_texts(count):
    mdp = world()
    found = []
    pairs = sample_pairs(lm_policy(mdp, seed=3), mdp, count, rows=8, seed=1, progress=found.append)
    assert len(pairs) == count == sum(found)
    assert all(pair.first and pair.second and pair.first != pair.second for pair in pairs)
    assert {pair.first_finished for pair in pairs} | {pair.second_finished for pair in pairs} == {
        True,
        False,
    } or count < 9


def test_the_same_seeds_give_the_same_pairs():
    mdp = world()
    one, two = (sample_pairs(lm_policy(mdp, seed=3), mdp, 9, seed=s) for s in (1, 1))
    assert one == two != sample_pairs(lm_policy(mdp, seed=3), mdp, 9, seed=2)


def test_a_policy_that_always_says_the_same_is_named():
    mdp = world()
    policy = LMPolicy(tiny_model("gpt2", 8), mdp, temperature=1e-4, dtype="float64", device="cpu", seed=0)
    with pytest.raises(ValueError, match=r"of 1\d{3} pairs differ: at temperature 0.0001"):
        sample_pairs(policy, mdp, 30)


def test_no_pair_is_too_few():
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        sample_pairs(None, world(), 0)


def test_the_command_writes_what_label_reads(tmp_path, capsys):
    out = tmp_path / "pairs.jsonl"
    assert main(["pairs", "--out", str(out), "--count", "12", "--split", "test", "--threads", "1"]) == 0
    pairs = read_pairs(out)
    assert len(pairs) == 12 and all(split_of(pair.problem.prompt) == "test" for pair in pairs)
    assert all(pair.problem.answer.isdigit() for pair in pairs)
    assert "12 pairs of arithmetic" in capsys.readouterr().out
    labels = tmp_path / "labels.jsonl"
    assert (
        main(["label", str(out), "--out", str(labels), "--by", "rule", "--task", "arithmetic", "--ties", "random"]) == 0
    )
    assert len(read_pairs(labels)) == 12


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--count 0", "count must be above 0, got 0"),
        ("--policy nowhere", "no tokenizer could be loaded from 'nowhere'"),
        ("--temperature 0", "temperature must be above 0"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, words, said):
    assert main(["pairs", "--out", str(tmp_path / "p.jsonl"), *words.split()]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and not (tmp_path / "p.jsonl").exists()


def test_an_existing_file_is_not_replaced(tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text("mine")
    assert main(["pairs", "--out", str(tmp_path / "p.jsonl")]) == 2
    assert "new file" in capsys.readouterr().err and (tmp_path / "p.jsonl").read_text() == "mine"
