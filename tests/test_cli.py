"""The command line: what it leaves behind, what it says of bad input, and how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
from toys import toy_tokenizer

from llmgym.agents import GRPOConfig, ReinforceConfig
from llmgym.cli import main
from llmgym.commands.eval import PolicyOptions
from llmgym.commands.options import EnvOptions
from llmgym.commands.train import RunOptions
from llmgym.files import read_json

RUN_FILES = {"config.json", "metrics.jsonl", "evaluation.json", "samples.md", "learning_curve.png", "policy"}
QUICK = ["--eval-problems", "8", "--prompts", "2", "--samples", "4"]

# A tiny batch may well hold groups of equal reward; that warning is not what is tested here.
pytestmark = pytest.mark.filterwarnings("default::RuntimeWarning")


def lines_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def llmgym(*words, **options):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "llmgym.cli", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A short run on blocks of four, with the options of its environment away from their defaults."""
    path = tmp_path_factory.mktemp("runs") / "grpo"
    env = ["--env", "block", "--block-size", "4", "--task-options", '{"digits": 2}', "--max-new-tokens", "40"]
    assert main(["train", "grpo", "--out", str(path), "--max-seconds", "1", *QUICK, *env]) == 0
    return path


# --- train ----------------------------------------------------------------------------------------------------------


def test_train_leaves_a_complete_run_folder(run_folder):
    names = {path.name for path in run_folder.iterdir()}
    assert names > RUN_FILES
    assert [name for name in names - RUN_FILES if not name.startswith("events.out.tfevents")] == []
    metrics = lines_of(run_folder / "metrics.jsonl")
    assert [record["update"] for record in metrics] == list(range(1, len(metrics) + 1))
    assert metrics[0]["sampled_tokens"] == pytest.approx(8 * metrics[0]["length"])  # evaluation is not counted
    assert {"reward", "accuracy", "kl", "tokens_per_second", "forward_passes", "cache_hits"} <= set(metrics[0])


def test_train_writes_its_settings(run_folder):
    config = read_json(run_folder / "config.json")
    assert (config["agent"]["prompts"], config["agent"]["seed"]) == (2, 0)
    assert (config["env"]["block_size"], config["env"]["task_options"]) == (4, '{"digits": 2}')
    assert config["command"][:2] == ["train", "grpo"]


def test_train_evaluates_before_and_after(run_folder):
    table = read_json(run_folder / "evaluation.json")
    for when in ("before", "after"):
        assert set(table[when]) == {"greedy", "temperature 1"}
        assert table[when]["greedy"]["problems"] == 8
        low, high = table[when]["greedy"]["interval"]
        assert low <= table[when]["greedy"]["accuracy"] <= high
    assert len(re.findall("^[|] `", (run_folder / "samples.md").read_text(), re.MULTILINE)) == 8


def test_the_policy_folder_is_a_hugging_face_folder(run_folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(run_folder / "policy")
    tokenizer = AutoTokenizer.from_pretrained(run_folder / "policy")
    assert (run_folder / "policy" / "model.safetensors").is_file()
    assert len(tokenizer) <= model.get_input_embeddings().num_embeddings


def test_train_says_what_it_does(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "reinforce", "--out", str(out), "--total-timesteps", "10", *QUICK]) == 0
    said = capsys.readouterr()
    assert f"run folder: {out}" in said.out
    assert "training for at most 10 steps of all rows together" in said.out
    for row in (r"greedy +before", r"greedy +after", r"temperature 1 +before", r"temperature 1 +after"):
        assert re.search(row + r" +\d+\.\d % +\d+\.\d–\d+\.\d % +\d+\.\d % +\d+\.\d", said.out), said.out
    assert "100%" in said.err
    assert "Loading weights" not in said.err
    assert len(lines_of(out / "metrics.jsonl")) == 1  # the first update spends the budget


def test_the_default_run_folder_has_agent_task_and_time_in_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "grpo", "--task", "copy", "--total-tokens", "1", "--no-evaluate", *QUICK]) == 0
    (path,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"grpo-copy-\d{8}-\d{6}", path.name)
    assert not (path / "evaluation.json").exists()
    assert (path / "policy" / "config.json").is_file()


def test_without_a_budget_training_takes_less_than_a_minute():
    assert RunOptions().budget == {"total_timesteps": None, "total_tokens": None, "max_seconds": 45.0}
    assert RunOptions(total_tokens=5).budget["max_seconds"] is None
    assert RunOptions(total_tokens=5, max_seconds=3).budget["max_seconds"] == 3


def test_a_run_folder_can_be_trained_on(run_folder, tmp_path):
    words = [
        "--model",
        str(run_folder),
        "--out",
        str(tmp_path / "more"),
        "--total-tokens",
        "1",
        "--no-evaluate",
        *QUICK,
    ]
    assert main(["train", "grpo", *words]) == 0
    assert read_json(tmp_path / "more" / "config.json")["run"]["model"] == str(run_folder / "policy")


# --- eval -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoding", ["greedy", "sample", "best-of-n", "random"])
def test_eval_scores_every_way_of_decoding(tmp_path, capsys, decoding):
    result = tmp_path / "result.json"
    assert main(["eval", "--problems", "20", "--decoding", decoding, "--n", "3", "--json", str(result)]) == 0
    score = read_json(result)["score"]
    assert score["problems"] == 20
    assert score["n"] == (3 if decoding == "best-of-n" else 1)
    assert score["interval"][0] <= score["accuracy"] <= score["pass_at_n"]
    assert (score["accuracy"] == 0) == (decoding == "random")
    assert (score["counters"]["forward_passes"] == 0) == (decoding == "random")
    said = capsys.readouterr().out
    assert "tokens/s" in said
    assert ("pass@3" in said and "log-prob" in said) == (decoding == "best-of-n")


def test_eval_repeats_itself_by_seed(tmp_path):
    words = ["eval", "--problems", "30", "--decoding", "sample", "--json"]
    scores = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert main([*words, str(tmp_path / name), "--seed", str(seed)]) == 0
        scores.append(read_json(tmp_path / name)["score"]["counters"])
    assert scores[0] == scores[1] != scores[2]


def test_eval_takes_the_environment_a_policy_was_trained_on(run_folder, tmp_path):
    assert main(["eval", "--policy", str(run_folder), "--problems", "4", "--json", str(tmp_path / "a")]) == 0
    found = read_json(tmp_path / "a")
    assert found["policy"]["policy"] == str(run_folder / "policy")
    assert found["env"] == read_json(run_folder / "config.json")["env"]
    flags = ["--task", "copy", "--json", str(tmp_path / "b")]
    assert main(["eval", "--policy", str(run_folder / "policy"), "--problems", "4", *flags]) == 0
    assert read_json(tmp_path / "b")["env"] == read_json(tmp_path / "b")["env"] | {"task": "copy", "task_options": "{}"}


def test_stop_rules_and_bans_can_be_spelt(tmp_path, capsys):
    for stop in ("\\n", "</think>", "[2, 6]"):
        words = ["--env", "block", "--block-size", "8", "--stop", stop, "--banned-tokens", "<think>", "--json"]
        assert main(["eval", "--problems", "6", *words, str(tmp_path / "r")]) == 0
        assert read_json(tmp_path / "r")["score"]["mean_tokens"] < 10  # it cannot reason without its tag


# --- help -----------------------------------------------------------------------------------------------------------


def test_help_needs_no_torch():
    code = "import sys; from llmgym.cli import main; assert main(['--help']) == 0; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("train grpo", "train reinforce", "eval"):
        assert command in done.stdout


@pytest.mark.parametrize(
    ("command", "classes"),
    [
        (["train", "grpo"], [GRPOConfig, EnvOptions, RunOptions]),
        (["train", "reinforce"], [ReinforceConfig, EnvOptions, RunOptions]),
        (["eval"], [PolicyOptions, EnvOptions]),
    ],
)
def test_help_explains_every_field(command, classes, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert not end.value.code
    text = re.sub(r"[│╭╮╰╯─\s]+", " ", capsys.readouterr().out)
    for field in (field for options in classes for field in fields(options)):
        flag = "--" + field.name.replace("_", "-")
        after = text.split(f"{flag} ", 1) if f"{flag} " in text else text.split(f"{flag},", 1)
        assert len(after) == 2, f"{flag} is missing"
        explained = after[1].split("(default:")[0]
        assert len(explained.split()) >= 3, f"{flag} is not explained: {explained}"


def test_version_and_train_help(capsys):
    import llmgym as package

    assert main(["--version"]) == 0
    assert main(["train", "--help"]) == 0
    said = capsys.readouterr().out
    assert package.__version__ in said
    assert "train reinforce" in said


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.fixture
def bad(tmp_path, monkeypatch):
    """A working folder full of things that cannot be used."""
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/note.txt").write_text("mine")
    Path("broken").mkdir()
    Path("broken/config.json").write_text("{")
    Path("empty.jsonl").write_text("")
    Path("bad.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": \n')
    toy_tokenizer(eos_token=None).save_pretrained("no_eos")
    return tmp_path


COMMANDS = (
    "choose train, eval, pairs, label, rlhf, search-study, distillation-study, gtp, match or alphago (llmgym --help)"
)
BAD_INPUT = {
    "": f"a command is missing: {COMMANDS}",
    "fly": f"unknown command 'fly': {COMMANDS}",
    "train": "choose grpo, ppo, reinforce, mcts, sft, dpo or reward-model",
    "train ppo9": "unknown agent 'ppo9': choose grpo, ppo, reinforce, mcts, sft, dpo or reward-model",
    "train grpo --task nope": "unknown task 'nope': choose one of arithmetic",
    "train grpo --env nope": "unknown env 'nope': choose token, block, sequence",
    "train grpo --env CartPole-v1": "CartPole-v1",
    "train grpo --env block --block-size 99": "block_size must be in [1, 48] (max_new_tokens), got 99",
    "train grpo --env block --block-size 0": "block_size must be in [1, 48] (max_new_tokens), got 0",
    "train grpo --block-size 4": "block_size is an argument of llmgym/BlockMDP-v0 only",
    "train grpo --env block --stop [9,2]": "stop lengths need 1 <= low <= high",
    "train grpo --max-prompt-tokens 3": "max_prompt_tokens is 3",
    "train grpo --max-new-tokens 0": "max_new_tokens must be at least 1, got 0",
    "train grpo --task jsonl": "'path'",
    "train grpo --task jsonl --task-options {'path'}": "task_options must be a JSON object",
    "train grpo --task-options [1]": "task_options must be a JSON object",
    'train grpo --task-options {"digit":2}': "'digit'",
    'train grpo --task jsonl --task-options {"path":"empty.jsonl"}': "empty.jsonl is empty",
    'train grpo --task jsonl --task-options {"path":"bad.jsonl"}': "line 2 of bad.jsonl is not valid JSON",
    'train grpo --task jsonl --task-options {"path":"none.jsonl"}': "cannot read none.jsonl",
    "train grpo --model broken": "'broken'",
    "train grpo --model ./nowhere": "'./nowhere'",
    "train grpo --model no_eos": "has no EOS token",
    "train grpo --device cuda:99": "got 'cuda:99'",
    "train grpo --device abacus": "got 'abacus'",
    "train grpo --dtype float8": "dtype must be one of",
    "train grpo --samples 0": "samples must be at least 1, got 0",
    "train grpo --prompts -1": "prompts must be at least 1, got -1",
    "train grpo --max-seconds 0": "max_seconds must be above 0, got 0",
    "train grpo --max-seconds nan": "max_seconds must be above 0, got nan",
    "train grpo --total-tokens -5": "total_tokens must be above 0, got -5",
    "train grpo --eval-problems 0": "eval_problems must be above 0, got 0",
    "train grpo --threads 0": "threads must be above 0, got 0",
    "train grpo --learning-rate much": "--learning-rate",
    "train grpo --kl k7": "invalid choice 'k7' for argument '--kl'. Expected one of ('k1', 'k2', 'k3', 'exact')",
    "train grpo --verbos 1": "--verbos, 1, perhaps you meant --verbose",
    "train grpo --out full": "'full' is a folder with files in it",
    "train grpo --out bad.jsonl": "'bad.jsonl' is a file",
    "train reinforce --epochs 3": "REINFORCE is on-policy",
    "eval --policy broken": "'broken'",
    "eval --problems 0": "problems must be above 0, got 0",
    "eval --problems 2.5": "--problems",
    "eval --decoding best-of-n --n 0": "n must be above 0, got 0",
    "eval --decoding sample --temperature 0": "temperature must be above 0",
    "eval --top-p 2": "top_p must be in (0, 1]",
    "eval --top-k -1": "top_k must be at least 0",
    "eval --seed -1": "seed must be at least 0, got -1",
    "eval --split valid": "Expected one of ('train', 'test')",
    "eval --json nowhere/result.json": "json must name a file in an existing folder",
    "eval --task copy --max-prompt-tokens 2": "max_prompt_tokens is 2",
}


@pytest.mark.parametrize(("words", "sentence"), BAD_INPUT.items())
def test_bad_input_is_one_sentence_and_exit_code_2(bad, capsys, words, sentence):
    before = sorted(str(path) for path in bad.rglob("*"))
    assert main(words.split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("llmgym: ")
    assert said.err.count("\n") == 1
    assert sentence in said.err
    assert "Traceback" not in said.err
    assert sorted(str(path) for path in bad.rglob("*")) == before  # no folder is left behind


def test_a_prompt_too_long_in_training_loses_nothing(tmp_path, capsys):
    data = tmp_path / "words.jsonl"
    rows = [{"prompt": f"copy {'abcdefgh'[: 1 + i % 8]}=", "answer": "a"} for i in range(40)]
    data.write_text("\n".join(map(json.dumps, rows)))
    options = json.dumps({"path": str(data), "test_fraction": 0})
    words = ["--task", "jsonl", "--task-options", options, "--max-prompt-tokens", "12", "--no-evaluate"]
    assert main(["train", "grpo", "--out", str(tmp_path / "run"), *words, *QUICK]) == 2
    assert re.search(r"max_prompt_tokens is 12\n$", capsys.readouterr().err)
    assert (tmp_path / "run" / "policy" / "model.safetensors").is_file()


def test_bad_input_in_a_process_of_its_own():
    process = llmgym("train", "grpo", "--task", "nope")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert re.fullmatch(r"llmgym: unknown task 'nope': .*\n", err)


# --- Ctrl-C ---------------------------------------------------------------------------------------------------------


def interrupted(out, times):
    """Interrupt a run after its second update; returns exit code and output."""
    process = llmgym("train", "grpo", "--out", out, "--threads", "1", *QUICK)
    metrics, deadline = out / "metrics.jsonl", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_text().count("\n") >= 2:
            break
        time.sleep(0.02)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    said = process.communicate(timeout=120)
    return process.returncode, *said


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_leaves_a_complete_folder(tmp_path, times):
    code, out, err = interrupted(tmp_path / "run", times)
    assert code == 130, err
    assert "Traceback" not in err
    assert "no evaluation after training" in out
    assert {path.name for path in (tmp_path / "run").iterdir()} > RUN_FILES
    steps = len(lines_of(tmp_path / "run" / "metrics.jsonl"))
    assert f"interrupted after {steps} updates" in out
    assert "after" not in read_json(tmp_path / "run" / "evaluation.json")
    assert main(["eval", "--policy", str(tmp_path / "run"), "--problems", "4"]) == 0
    from llmgym.agents import GRPO

    agent = GRPO.load(tmp_path / "run" / "policy")
    assert agent.num_timesteps >= lines_of(tmp_path / "run" / "metrics.jsonl")[-1]["timesteps"]


@pytest.mark.parametrize("where", ["evaluate", "complete"])
def test_an_interrupted_evaluation_still_saves_the_policy(tmp_path, monkeypatch, capsys, where):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"llmgym.commands.train.{where}", interrupt)
    assert main(["train", "grpo", "--out", str(tmp_path / "run"), *QUICK]) == 130
    assert "interrupted after 0 updates" in capsys.readouterr().out
    assert (tmp_path / "run" / "policy" / "model.safetensors").is_file()


def test_ctrl_c_before_anything_is_written(monkeypatch, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("llmgym.commands.eval.evaluate", interrupt)
    assert main(["eval", "--problems", "4"]) == 130
    assert capsys.readouterr().err.endswith("llmgym: interrupted\n")
