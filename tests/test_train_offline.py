"""`llmgym train sft`, `dpo` and `reward-model`: run folders, held-out rows, bad input, and PPO on the result."""

from __future__ import annotations

import json

import pytest

from llmgym.agents import PPO
from llmgym.agents.dpo import DPO
from llmgym.cli import main
from llmgym.reward_model import is_reward_model

PAIRS = [
    {"prompt": f"{a}+{b}=", "chosen": f"<answer>{a + b}</answer>", "rejected": f"<answer>{a + b + 1}</answer>"}
    for a, b in zip(range(100, 140), range(300, 340), strict=True)
]
DEMONSTRATIONS = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, rows in (("pairs", PAIRS), ("demonstrations", DEMONSTRATIONS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(("name", "data"), [("sft", "demonstrations"), ("dpo", "pairs"), ("reward-model", "pairs")])
def test_a_run_leaves_a_policy_metrics_and_a_picture(files, tmp_path, capsys, name, data):
    out = tmp_path / "run"
    words = ["train", name, "--data", str(files / f"{data}.jsonl"), "--out", str(out), "--batch-size", "8"]
    assert main([*words, "--threads", "1", "--verbose", "0", "--learning-rate", "1e-3"]) == 0
    said = capsys.readouterr().out
    assert "36 rows" in said and "4 held out" in said and str(out) in said
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 5 and records[-1]["timesteps"] == 36
    scores = json.loads((out / "evaluation.json").read_text())
    key = "loss" if name == "sft" else "accuracy"
    assert scores["before"][key] != scores["after"][key] or name != "sft"
    assert (out / "learning_curve.png").stat().st_size > 5_000 and (out / "policy" / "model.safetensors").is_file()
    assert is_reward_model(out / "policy") == (name == "reward-model")
    assert json.loads((out / "config.json").read_text())["run"]["data"].endswith(f"{data}.jsonl")


def test_ppo_learns_from_the_reward_model_of_a_run(files, tmp_path, capsys):
    rewards = tmp_path / "rewards"
    assert main(["train", "reward-model", "--data", str(files / "pairs.jsonl"), "--out", str(rewards)]) == 0
    out = tmp_path / "ppo"
    words = ["train", "ppo", "--reward", str(rewards), "--out", str(out), "--eval-problems", "10", "--prompts", "2"]
    assert main([*words, "--total-tokens", "100", "--threads", "1"]) == 0
    record = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert record["reward"] == pytest.approx(record["reward_terms/reward_model"], abs=1e-5)
    assert "reward_terms/correct" in record
    assert PPO.load(out / "policy").mdp.task.model is not None
    assert main(["eval", "--policy", str(out), "--problems", "10"]) == 0
    assert "arithmetic" in capsys.readouterr().out


def test_a_dpo_run_goes_on_in_python(files, tmp_path):
    out, data = tmp_path / "run", files / "pairs.jsonl"
    assert main(["train", "dpo", "--data", str(data), "--held-out", "0", "--out", str(out), "--verbose", "0"]) == 0
    agent = DPO.load(out / "policy", preferences=data)
    assert agent.num_timesteps == 40 and agent.learn(epochs=1).num_timesteps == 80


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("dpo", "--data"),
        ("dpo --data nowhere.jsonl", "nowhere.jsonl"),
        ("dpo --data {demonstrations}", "line 1 of"),
        ("sft --data {pairs}", "completion"),
        ("reward-model --data {pairs} --held-out 1", "held_out must be in [0, 1), got 1.0"),
        ("dpo --data {pairs} --beta 0", "beta must be > 0, got 0.0"),
        ("dpo --data {pairs} --max-prompt-tokens 3", "max_prompt_tokens"),
        ("sft --data {demonstrations} --held-out 0.99", "none is left"),
    ],
)
def test_bad_input_is_one_sentence(files, tmp_path, capsys, words, said):
    named = {name: str(files / f"{name}.jsonl") for name in ("pairs", "demonstrations")}
    assert main(["train", *words.format(**named).split(), "--out", str(tmp_path / "r")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and "Traceback" not in error and not (tmp_path / "r").exists()
