"""`llmgym alphago`: the whole chain on a board of nine points, what each stage leaves, and bad input."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tyro
from test_examples import load

from llmgym.agents.alphago.player import AlphaGoSettings
from llmgym.cli import main
from llmgym.commands.alphago_match import MixOptions
from llmgym.commands.alphago_records import PolicyOptions, RolloutOptions
from llmgym.commands.alphago_selfplay import ReinforceOptions, ValueOptions
from llmgym.commands.alphago_stage import Watch
from llmgym.commands.options import parse
from llmgym.envs.go.fast_policy import FEATURES, NEAR, FastPolicy
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.replay import new_game, record_of
from llmgym.envs.go.sgf import save_sgf
from llmgym.files import read_json

STAGES = ("policy", "reinforce", "value", "rollout", "match")


def keep_games(folder: Path, games: int) -> None:
    """Records of a policy that likes to play beside the last move."""
    weights = np.zeros(FEATURES)
    weights[NEAR : NEAR + 2] = 3.0
    fast, mdp, rng = FastPolicy(weights), GoMDP(3, komi=0.5), np.random.default_rng(0)
    folder.mkdir()
    for number in range(games):
        game = new_game(mdp)
        while not mdp.terminal(game.state):
            action = fast.move(game.state, rng)
            game = game._replace(moves=(*game.moves, action), state=mdp.transition(game.state, action))
        save_sgf(record_of(game), folder / f"{number}.sgf")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """All five stages, each of them tiny."""
    root = tmp_path_factory.mktemp("chain")
    keep_games(root / "records", 30)
    at = {stage: str(root / stage) for stage in STAGES}
    nets = ["--policy", at["policy"], "--value", at["value"], "--rollout", at["rollout"]]
    words = {
        "policy": [str(root / "records"), "--epochs", "3", "--hidden", "8", "8", "--batch-size", "32"],
        "reinforce": [
            "--updates",
            "4",
            "--games",
            "8",
            "--snapshot-every",
            "2",
            "--match-every",
            "2",
            "--match-games",
            "4",
        ],
        "value": ["--opening", at["policy"], "--games", "60", "--epochs", "2"],
        "rollout": [str(root / "records"), "--epochs", "3"],
        "match": [*nets, "--games", "2", "--simulations", "6", "--mix", "0", "0.5", "1"],
    }
    words["reinforce"] += ["--policy", at["policy"]]
    words["value"] += ["--policy", at["reinforce"]]
    for stage in STAGES:
        assert main(["alphago", stage, *words[stage], "--out", at[stage], "--seed", "3"]) == 0
    return root


def test_every_stage_leaves_its_results_and_a_picture(chain):
    for stage in STAGES:
        told = read_json(chain / stage / "results.json")
        assert told["stage"] == stage and told["options"]["stage"]["seed"] == 3 and "torch" in told["versions"]
        assert (chain / stage / f"{stage}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("stage", ["policy", "rollout"])
def test_held_out_games_are_predicted_better_than_by_chance(chain, stage):
    results = read_json(chain / stage / "results.json")["results"]
    ours, uniform = results["rows"].values()
    assert ours["held_out_loss"] < uniform["held_out_loss"] and 0 < results["held_out_moves"] < results["moves"]
    curve = read_json(chain / stage / "results.json")["curve"]
    assert [record["epoch"] for record in curve] == [1, 2, 3]
    assert ours["held_out_loss"] == pytest.approx(curve[-1]["held_out_loss"])
    if stage == "rollout":
        assert 0 < results["playouts_per_second"] < results["light_playouts_per_second"]


def test_reinforce_keeps_its_pool_and_says_how_it_scores(chain):
    told = read_json(chain / "reinforce" / "results.json")
    names = sorted(path.name for path in (chain / "reinforce" / "pool").iterdir())
    assert names == [f"update-{number:04}.safetensors" for number in (0, 2, 4)]
    last = told["results"]["against_the_first"]
    assert last["games"] == 20 and last["interval"][0] <= last["score"] <= last["interval"][1]
    assert [record["update"] for record in told["curve"]] == [1, 2, 3, 4]


def test_a_value_is_told_beside_a_constant(chain):
    results = read_json(chain / "value" / "results.json")["results"]
    assert set(results["rows"]) == {"value network", "constant"}
    assert results["held_out"] < results["positions"] <= 60
    assert all(0 <= row["mse"] <= 4 and 0 <= row["right"] <= 1 for row in results["rows"].values())


def test_the_match_plays_each_against_each(chain):
    results = read_json(chain / "match" / "results.json")["results"]
    assert [pair["name"] for pair in results["pairs"]] == ["λ = 0 : λ = 0.5", "λ = 0 : λ = 1", "λ = 0.5 : λ = 1"]
    assert all(pair["games"] == 2 and sum(pair["wins"]) + pair["draws"] == 2 for pair in results["pairs"])
    assert [player["games"] for player in results["players"]] == [4, 4, 4]
    assert sum(player["score"] * 4 for player in results["players"]) == pytest.approx(6)
    assert len(list((chain / "match").glob("*.sgf"))) == 6


def test_an_opponent_is_played_by_each(chain, tmp_path, capsys):
    nets = ["--policy", str(chain / "policy"), "--value", str(chain / "value")]
    words = [*nets, "--mix", "0", "1", "--opponent", "light", "--games", "2", "--simulations", "4"]
    assert main(["alphago", "match", *words, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"λ = 0 : light +2 ", said) and re.search(r"λ = 1 : light +2 ", said) and "λ = 0 : λ" not in said


def test_what_stages_leave_are_players(chain, tmp_path, capsys):
    search = f"alphago:policy={chain / 'policy'},value={chain / 'value'},rollout={chain / 'rollout'},simulations=4"
    for number, (a, b) in enumerate(
        ((str(chain / "policy"), str(chain / "rollout")), (search, str(chain / "reinforce")))
    ):
        words = ["match", a, b, "--games", "2", "--komi", "0.5", "--opening-moves", "1"]
        assert main([*words, "--out", str(tmp_path / str(number))]) == 0
        assert "2 of 2 games" in capsys.readouterr().out  # on the board of 3x3 that the networks know


def test_the_same_seed_learns_the_same(chain, tmp_path):
    words = [str(chain / "records"), "--epochs", "3", "--hidden", "8", "8", "--batch-size", "32", "--seed", "3"]
    assert main(["alphago", "policy", *words, "--out", str(tmp_path / "again")]) == 0
    first, again = ((folder / "policy.safetensors").read_bytes() for folder in (chain / "policy", tmp_path / "again"))
    assert first == again


BAD = {
    "": "llmgym alphago needs a stage: choose policy, reinforce, value, rollout or match",
    "fly": "unknown stage 'fly': choose policy",
    "policy": "records are missing: name SGF files or folders of them",
    "policy nowhere": "records must be SGF files or folders with some, got 'nowhere'",
    "policy RECORDS --held-out 0": "held_out must be a share in (0, 1) that leaves games, got 0.0 of",
    "policy RECORDS --skip -1": "skip must be at least 0, got -1",
    "policy RECORDS --skip 999": "games in RECORDS can be learnt from",
    "policy RECORDS --planes stars": "planes must be some of stones, history, liberties, ko, colour, got 'stars'",
    "policy RECORDS --hidden 8 16": "hidden of 'ResNetPolicy' must be equal numbers of channels",
    "policy RECORDS --out POLICY": "is a folder with files in it: name a new or an empty folder",
    "policy RECORDS --epochs 0": "epochs must be at least 1, got 0",
    "rollout RECORDS --penalty -1": "penalty must be at least 0, got -1",
    "reinforce": "Missing from llmgym alphago reinforce: --policy",
    "reinforce --policy nowhere": "the folder 'nowhere' holds no policy for Go: policy.json is missing",
    "reinforce --policy POLICY --games 2": "games must be at least 4, got 2",
    "value --policy ROLLOUT": "holds no policy for Go",
    "value --policy POLICY --opening nowhere": "the folder 'nowhere' holds no policy",
    "value --policy POLICY --threads 0": "threads must be above 0, got 0",
    "match --policy POLICY": "alphago with mix=0 needs value=DIR",
    "match --policy POLICY --mix 1": "mix must be two different numbers or more, or one and an opponent, got (1.0,)",
    "match --policy POLICY --mix 1 3": "mix must be in [0, 1], got 3",
    "match --policy POLICY --mix 1 --opponent nobody": "unknown player 'nobody'",
    "match --policy POLICY --mix 1 --opponent light --rollout nowhere": "rollout.json is missing",
    "match --policy POLICY --mix 1 --opponent light --seed -1": "seed must be at least 0, got -1",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_one_sentence(chain, words, capsys):
    named = {"RECORDS": chain / "records", "POLICY": chain / "policy", "ROLLOUT": chain / "rollout"}
    asked = [str(named.get(word, word)) for word in words.split()]
    assert main(["alphago", *asked]) == 2
    said = capsys.readouterr().err.replace(str(chain / "records"), "RECORDS")
    assert BAD[words] in said and said.startswith("llmgym: ") and said.count("\n") == 1


def test_help_names_every_stage(capsys):
    assert main(["alphago", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(re.search(rf"^  {stage}\b", said, re.M) for stage in STAGES)


def test_ctrl_c_ends_a_stage_after_its_step(capsys):
    with Watch("steps", 3, {"loss": ".1f"}) as watch:
        assert watch({"loss": 1.0})
        watch.ctrl_c._handle(2, None)
        assert not watch({"loss": 0.5}) and watch.stopped
        with pytest.raises(KeyboardInterrupt):
            watch.moved(1)
    assert [record["loss"] for record in watch.records] == [1.0, 0.5] and "loss 0.5" in capsys.readouterr().err


OPTIONS = {
    "policy": PolicyOptions,
    "reinforce": ReinforceOptions,
    "value": ValueOptions,
    "rollout": RolloutOptions,
    "match": MixOptions,
}


def test_every_command_line_of_the_page_can_be_parsed():
    page = (Path(__file__).parent.parent / "docs" / "alphago.md").read_text("utf-8")
    lines = re.findall(r"^ *llmgym alphago (\w+) (.*)$", page, re.M)
    assert {stage for stage, _ in lines} == set(STAGES)
    for stage, words in lines:
        parse(OPTIONS[stage], shlex.split(words), prog="llmgym", default=OPTIONS[stage](tyro.MISSING))
    players = re.findall(r"\"(alphago:[^\"]+)\"", page)
    assert len(players) >= 2 and all(AlphaGoSettings.parse(player).policy == "policy" for player in players)


def test_the_example_goes_through_all_stages(tmp_path, capsys):
    example = load("12_alphago.py")
    few = {"records": 6, "simulations": 8, "epochs": 1, "updates": 1, "positions": 30, "games": 2}
    scores = example.main(example.Config(out=tmp_path / "all", board_size=4, **few))
    assert list(scores) == ["λ = 0", "λ = 0.5", "λ = 1"] and sum(scores.values()) == pytest.approx(1.5)
    assert capsys.readouterr().out.count("$ llmgym") == 6
