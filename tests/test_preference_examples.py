"""The claims of the examples on preferences and on reward hacking, at reduced budgets."""

from __future__ import annotations

import json

import pytest
from test_examples import run


@pytest.mark.slow
def test_both_roads_from_the_same_pairs_beat_sft_which_beats_the_base(tmp_path):
    run(
        "08_preferences.py",
        "--seeds",
        "2",
        "--dpo-betas",
        "0.5",
        "--ppo-betas",
        "0.2",
        "--out",
        str(tmp_path),
        timeout=900,
    )
    found = json.loads((tmp_path / "preferences.json").read_text())
    base, sft, dpo, ppo = found["policies"]
    assert [base["method"], sft["method"], dpo["method"], ppo["method"]] == ["base", "SFT", "DPO", "PPO"]
    assert sft["true"] > base["true"] + 0.02
    for row in (dpo, ppo):
        assert row["true"] > sft["true"] + 0.2 and row["won"] > 3 * row["lost"]
        assert row["kl"] > 0.3 and row["proxy"] > sft["proxy"] + 0.3
    assert all(seed["accuracy"] > 0.9 for seed in found["prepared"])


@pytest.mark.slow
def test_a_learned_reward_is_hacked_and_a_rule_is_not(tmp_path):
    quick = ["--seeds", "1", "--tokens", "60000", "--every", "10000", "--many", "60"]
    run("09_reward_hacking.py", *quick, "--out", str(tmp_path), timeout=900)
    found = json.loads((tmp_path / "reward_hacking.json").read_text())
    rule, few, _, restrained = (runs[0]["curve"] for runs in found.values())
    hacked, best = few[-1], max(few, key=lambda point: point["true"])
    assert hacked["true"] < best["true"] - 0.3 and hacked["true"] < few[0]["true"] - 0.2
    assert hacked["proxy"] > best["proxy"] + 0.2 and hacked["kl"] > best["kl"] + 5
    assert rule[-1]["true"] > rule[0]["true"] + 0.2
    assert rule[-1]["true"] > max(point["true"] for point in rule) - 0.15
    assert restrained[-1]["true"] > hacked["true"] + 0.2 and restrained[-1]["kl"] < 10
    assert found["reward model of 30 pairs"][0]["reward_model_accuracy"] > 0.85
