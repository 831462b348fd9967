"""The four stages of RLHF: what each leaves, that each resumes on its own, and that no answer is ever lost."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from toys import Words, toy_tokenizer
from worlds import tiny_model

from llmgym.agents.ppo import PPO
from llmgym.agents.reward_trainer import RewardTrainer
from llmgym.agents.rlhf import RLHF, RLHFConfig, Unfinished
from llmgym.agents.sft import SFT
from llmgym.cli import main
from llmgym.labellers import RuleLabeller
from llmgym.pairs import Pair
from llmgym.tasks import Problem
from llmgym.text import TextMDP

DEMONSTRATIONS = [{"prompt": f"{word}=", "completion": word} for word in ("a", "ab", "abc", "ba", "cc", "bca")]
SMALL = {"rounds": 1, "pairs": 24, "ppo_tokens": 150, "problems": 20, "held_out": 0.2, "checkpoint_seconds": 0.0}
pytestmark = pytest.mark.filterwarnings("ignore:every completion ran:RuntimeWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a tiny model and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama", 8, dtype=torch.float32).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return str(folder)


def world():
    return TextMDP(task=Words(), tokenizer=toy_tokenizer(), max_prompt_tokens=6, max_new_tokens=6)


def rlhf(base, folder, labeller=None, **changes):
    named = {name: changes.pop(name) for name in ("demonstrations", "sft", "reward", "ppo", "say") if name in changes}
    settings = {"demonstrations": DEMONSTRATIONS, "ppo": {"device": "cpu", "prompts": 4, "samples": 4}} | named
    labeller = labeller or RuleLabeller(Words(), seed=0)
    return RLHF(base, world(), labeller, folder, config=RLHFConfig(**(SMALL | changes)), **settings)


def weights(folder):
    return load_file(folder / "round-01" / "policy" / "model.safetensors")


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, rlhf(base, folder).run()


def test_a_run_leaves_every_stage_and_a_row_for_every_policy(finished):
    folder, rows = finished
    assert [row["name"] for row in rows] == ["base", "SFT", "round 1"]
    assert rows[0]["kl"] is None and rows[1]["kl"] == 0.0 and rows[2]["kl"] is not None
    assert 0 <= rows[2]["reward_model"]["accuracy"] <= 1 and rows[2]["proxy"] is not None
    assert {path.name for path in (folder / "round-01").iterdir()} == {
        "pairs.jsonl", "preferences.jsonl", "reward_model", "reward_model.json", "reward_model.metrics.jsonl",
        "policy", "policy.metrics.jsonl",
    }  # fmt: skip
    assert json.loads((folder / "results.json").read_text()) == rows
    assert not same(weights(folder), load_file(folder / "sft" / "model.safetensors"))


def test_the_same_seed_gives_the_same_policy_and_another_one_another(base, finished, tmp_path):
    rlhf(base, tmp_path / "again").run()
    assert same(weights(tmp_path / "again"), weights(finished[0]))
    rlhf(base, tmp_path / "other", seed=1).run()
    assert not same(weights(tmp_path / "other"), weights(finished[0]))


def test_what_is_done_is_not_done_again(base, finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    said = []
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    rlhf(base, folder, labeller=lambda pair: pytest.fail("asked again"), say=said.append).run()
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert not any("from" in sentence or "sampling" in sentence for sentence in said)


class Stop(Exception):
    """What ends a run in the middle of a stage."""


@pytest.mark.parametrize(("cls", "at"), [(SFT, 1), (RewardTrainer, 1), (PPO, 1)], ids=["SFT", "reward model", "PPO"])
def test_a_learning_stage_goes_on_from_its_checkpoint_bit_for_bit(base, finished, tmp_path, monkeypatch, cls, at):
    settings = {"sft": {"batch_size": 2}, "reward": {"batch_size": 4}}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    rlhf(base, whole, **settings).run()
    original, calls = cls.update, []

    def update(self, *args):
        if len(calls) == at:
            raise Stop
        calls.append(self)
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(cls, "update", update)
        with pytest.raises(Stop):
            rlhf(base, cut, **settings).run()
    assert list(cut.rglob("*.checkpoint")), "the stage left a checkpoint"
    said = []
    rlhf(base, cut, say=said.append, **settings).run()
    assert any("from its checkpoint" in sentence for sentence in said)
    assert same(weights(cut), weights(whole)) and not list(cut.rglob("*.checkpoint"))
    for name in ("policy", "reward_model"):
        one, two = ((f / "round-01" / f"{name}.metrics.jsonl").read_text().splitlines() for f in (cut, whole))
        assert [json.loads(x)["timesteps"] for x in one] == [json.loads(x)["timesteps"] for x in two]


def test_a_person_who_quits_goes_on_with_the_next_pair(base, finished, tmp_path):
    rule, asked = RuleLabeller(Words(), seed=0), []

    def person(pair):
        asked.append(pair)
        return "quit" if len(asked) == 8 else rule(pair)

    with pytest.raises(Unfinished, match="round 1: 17 of 24 pairs have no answer yet"):
        rlhf(base, tmp_path / "run", labeller=person).run()
    rlhf(base, tmp_path / "run", labeller=person).run()
    assert len(asked) == 25 and asked[7] == asked[8] and len(set(asked)) == 24
    assert same(weights(tmp_path / "run"), weights(finished[0]))


def test_a_second_round_compares_the_first_rounds_policy_and_keeps_all_preferences(base, finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "more")
    said = []
    rows = rlhf(base, folder, rounds=2, say=said.append).run()
    assert [row["name"] for row in rows] == ["base", "SFT", "round 1", "round 2"]
    first, second = (len((folder / f"round-0{n}" / "preferences.jsonl").read_text().splitlines()) for n in (1, 2))
    fitted = next(s for s in said if s.startswith("round 2: a reward model from"))
    assert first == second == 24 and int(fitted.split()[-2]) > 24  # skipped pairs and held-out ones are not fitted
    assert (folder / "round-01" / "pairs.jsonl").read_text() != (folder / "round-02" / "pairs.jsonl").read_text()


def test_a_folder_of_other_settings_is_refused(base, finished):
    with pytest.raises(ValueError, match=r"was made with pairs=24, got 30: take a new folder or the same settings"):
        rlhf(base, finished[0], pairs=30)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ppo": {"clip": 0.0}}, "clip must be above 0, got 0.0"),
        ({"reward": {"batch_size": 0}}, "batch_size must be at least 1, got 0"),
        ({"demonstrations": [{"prompt": "ab=", "completion": ""}]}, "row 0"),
        ({"demonstrations": [{"prompt": "abcabcabc=", "completion": "a"}]}, "max_prompt_tokens is 6"),
        ({"pairs": 0}, "pairs must be at least 1, got 0"),
        ({"held_out": 1.0}, r"held_out must be in \(0, 1\), got 1.0"),
    ],
)
def test_a_mistake_is_said_before_anything_is_done(base, tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        rlhf(base, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_labeller_that_cannot_tell_anything_apart(base, tmp_path):
    with pytest.raises(ValueError, match="round 1: no pair was preferred to another, 24 were compared"):
        rlhf(base, tmp_path / "run", labeller=lambda pair: "skip").run()


def test_a_labeller_that_fails_loses_no_answer(base, tmp_path):
    rule, asked = RuleLabeller(Words(), seed=0), []

    def failing(pair: Pair):
        asked.append(pair)
        return "maybe" if len(asked) == 5 else rule(pair)

    with pytest.raises(ValueError, match="pair 5 of 24"):
        rlhf(base, tmp_path / "run", labeller=failing).run()
    assert len((tmp_path / "run" / "round-01" / "preferences.jsonl").read_text().splitlines()) == 4


def test_the_command_says_what_it_does_and_goes_on(tmp_path, capsys):
    words = ["rlhf", "--out", str(tmp_path / "r"), "--pairs", "30", "--ppo-tokens", "500", "--problems", "20"]
    words += ["--rounds", "1", "--noise", "0.1", "--ppo.prompts", "4", "--threads", "1"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "round 1: 30 pairs are compared" in said and "base" in said and "judge" in said
    assert (tmp_path / "r" / "rounds.png").stat().st_size > 5_000
    assert main(words) == 0 and "sampling" not in capsys.readouterr().out
    assert main([*words, "--seed", "3"]) == 2 and "was made with seed=0, got 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--by file", "--by file and --labels FILE go together"),
        ("--by person --noise 0.1", "noise is an option of --by rule only"),
        ("--noise 0.7", "noise must be in [0, 0.5), got 0.7"),
        ("--ppo.clip -1", "clip must be above 0, got -1.0"),
        ("--demonstrations nowhere.jsonl", "nowhere.jsonl"),
        ("--rounds 0", "rounds must be at least 1, got 0"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, words, said):
    assert main(["rlhf", "--out", str(tmp_path / "r"), *words.split()]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "r").exists()


def test_problems_travel_with_their_data(base, tmp_path):
    task = Words()
    task.problem = lambda rng, split: Problem("ab=", "ab", {"weight": 2})
    mdp = TextMDP(task=task, tokenizer=toy_tokenizer(), max_prompt_tokens=6, max_new_tokens=6)
    seen = []
    run = RLHF(base, mdp, lambda pair: seen.append(pair) or "first", tmp_path / "r", config=RLHFConfig(**SMALL))
    run.compare(1, base)
    assert all(pair.problem.data == {"weight": 2} for pair in seen) and len(seen) == 24
