"""`llmgym train mcts`: a run folder that can be gone on from, and what the command refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from llmgym.agents import MCTS
from llmgym.cli import main
from llmgym.self_play_plots import self_play_picture

SMALL = "--board-size 3 --blocks 1 --channels 8 --games 8 --moves 6 --simulations 4 --considered 4 --batch-size 32"
SMALL += " --match-every 2 --match-games 2 --verbose 0"


def train(*words):
    return main(["train", "mcts", *SMALL.split(), "--device", "cpu", *map(str, words)])


def size(path):
    with Image.open(path) as picture:
        return picture.size


def test_a_run_and_its_continuation(tmp_path, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    assert train("--out", one, "--total-timesteps", 400, "--komi", 2.5, "--random-moves", 2) == 0
    said = capsys.readouterr().out
    assert "3x3, 6,907 parameters" in said and "run folder" in said
    records = [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["timesteps"] >= 400 and np.isfinite(records[-1]["loss"])
    assert size(one / "learning_curve.png")[0] > 500
    agent = MCTS.load(one / "policy")
    assert agent.mdp.rules.komi == 2.5 and agent.config.random_moves == 2 and agent.policy.hidden == (8,)
    assert main(["train", "mcts", "--resume", str(one), "--out", str(two), "--total-timesteps", "100"]) == 0
    config = json.loads((two / "config.json").read_text())
    assert config["agent"]["simulations"] == 4 and config["board"]["komi"] == 2.5  # settings go on too
    assert MCTS.load(two / "policy").num_timesteps > agent.num_timesteps


def test_a_larger_board_begins_with_what_a_smaller_one_has_taught(tmp_path):
    assert train("--out", tmp_path / "one", "--total-timesteps", 100) == 0
    assert train("--out", tmp_path / "two", "--total-timesteps", 50, "--board-size", 4, "--init", tmp_path / "one") == 0


def test_the_same_seed_gives_the_same_run(tmp_path):
    for name in ("one", "two"):
        assert train("--out", tmp_path / name, "--total-timesteps", 200, "--workers", 2, "--seed", 5) == 0
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    timed = {name for name in one[0] if "second" in name}
    assert [{k: v for k, v in row.items() if k not in timed} for row in one] == [
        {k: v for k, v in row.items() if k not in timed} for row in two
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--blocks", "0"), "blocks must be above 0, got 0"),
        (("--komi", "much"), "--komi"),
        (("--resume", "nowhere"), "the folder 'nowhere' holds no policy for Go: policy.json is missing"),
        (("--init", "nowhere"), "the folder 'nowhere' holds no policy for Go: policy.json is missing"),
        (("--opponent", "strong"), "opponent must be light, random or mcts:…, got 'strong'"),
        (("--planes", "colour", "smell"), "planes must be some of stones"),
        (("--board-size", "40"), "board_size"),
        (("--checkpoint-seconds", "0"), "checkpoint_seconds must be above 0, got 0.0"),
    ],
)
def test_bad_input_ends_in_one_sentence(tmp_path, capsys, words, sentence):
    assert train("--out", tmp_path / "run", *words) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and sentence in said[0]
    assert not (tmp_path / "run").exists()


def test_the_picture_has_room_for_what_was_not_measured(tmp_path):
    row = {"games": 1, "policy_loss": np.nan, "value_loss": np.nan, "length": np.nan, "strength": np.nan}
    self_play_picture([row, row | {"games": 2, "policy_loss": 1.0}], tmp_path / "x.png", title="a run")
    assert size(tmp_path / "x.png")[1] > 300
