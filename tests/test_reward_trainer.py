"""`RewardTrainer`: loss and gradient by hand, probabilities of a world that can be enumerated, the four verbs."""

from __future__ import annotations

import itertools
import math
import re
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from toys import EOS, A, B
from worlds import assert_gradients, four_mdp, irregular, lm_policy, tiny_model

from llmgym.agents import RewardTrainer, RewardTrainerConfig
from llmgym.calibration import score_pairs
from llmgym.labellers import RuleLabeller, label
from llmgym.pair_sampling import sample_pairs
from llmgym.pairs import Pair
from llmgym.policy import LMPolicy
from llmgym.preferences import Preference
from llmgym.reward_model import RewardModel
from llmgym.tasks import Problem
from llmgym.text import TextMDP

ROWS = [
    Preference("ab=", "ab", "b"),
    Preference("a=", "a", "ccc", rejected_finished=False),
    Preference("cb=", "cb", "cbcb"),
    Preference("abc=", "abc", "a"),
    Preference("ab=", "b", "abab"),
]


@pytest.fixture
def mdp(toy):
    return TextMDP(**toy)


def trainer_of(mdp, data=ROWS, kind="gpt2", head=True, **config):
    """A float64 trainer whose head is not 0."""
    made = RewardModel(tiny_model(kind, mdp.codec.vocab_size), mdp, dtype="float64", device="cpu")
    if head:
        with torch.no_grad():
            made.head.weight.copy_(torch.randn(made.head.weight.shape, generator=torch.Generator().manual_seed(1)))
    return RewardTrainer(made, mdp, data, **{"seed": 0, "batch_size": 5} | config)


def loss_of(trainer, rows=range(5)):
    places = torch.tensor(list(rows))
    return trainer.loss(trainer._batch(places), places, len(places))


def scores_of(trainer, rows=ROWS):
    """r of the chosen and of the rejected completions, one at a time."""
    encoded = trainer.policy.encode(rows)
    scores = [float(trainer.policy.raw_scores([row])[0]) for row in encoded]
    return np.array(scores[: len(rows)]), np.array(scores[len(rows) :])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# --- the loss -------------------------------------------------------------------------------------------------------


def test_the_first_loss_is_log_2(mdp):
    loss, metrics = loss_of(trainer_of(mdp, head=False))
    assert float(loss.detach()) == pytest.approx(math.log(2), abs=1e-15)
    assert metrics["accuracy"] == 0.5 and metrics["margin"] == 0.0  # ties count half


def test_loss_and_metrics_by_hand(mdp):
    trainer = trainer_of(mdp)
    chosen, rejected = scores_of(trainer)
    loss, metrics = loss_of(trainer)
    assert float(loss.detach()) == pytest.approx(-np.log(sigmoid(chosen - rejected)).mean())
    assert metrics["loss"] == loss.detach() and float(metrics["margin"]) == pytest.approx((chosen - rejected).mean())
    assert float(metrics["accuracy"]) == pytest.approx((chosen > rejected).mean())
    assert 0 < float(metrics["accuracy"]) < 1


def test_the_gradient_by_hand(mdp):
    """dL/dr_chosen = -σ(r_rejected - r_chosen) / B, and the opposite for the rejected completion."""
    trainer = trainer_of(mdp)
    parameters, encoded = trainer.policy.parameters(), trainer.policy.encode(ROWS)
    chosen, rejected = scores_of(trainer)
    expected = [torch.zeros_like(p) for p in parameters]
    for i, weight in enumerate(sigmoid(rejected - chosen) / 5):
        for row, sign in ((encoded[i], -1.0), (encoded[5 + i], 1.0)):
            score = trainer.policy.evaluate(torch.tensor([row]), torch.tensor([len(row)]))[0]
            slopes = torch.autograd.grad(score, parameters, allow_unused=True, materialize_grads=True)
            expected = [e + sign * weight * s for e, s in zip(expected, slopes, strict=True)]
    slopes = torch.autograd.grad(loss_of(trainer)[0], parameters, allow_unused=True, materialize_grads=True)
    assert_gradients(slopes, expected)


def test_swapping_the_order_of_a_pair_changes_the_sign(mdp):
    swapped = [Preference(p.prompt, p.rejected, p.chosen, p.rejected_finished, p.chosen_finished) for p in ROWS]
    one, two = loss_of(trainer_of(mdp)), loss_of(trainer_of(mdp, swapped))
    assert float(one[1]["margin"]) == pytest.approx(-float(two[1]["margin"]))
    assert float(one[1]["accuracy"]) == pytest.approx(1 - float(two[1]["accuracy"]))
    chosen, rejected = scores_of(trainer_of(mdp))
    assert float((one[0] - two[0]).detach()) == pytest.approx(-(chosen - rejected).mean())  # log σ(z) - log σ(-z) = z


def test_label_smoothing_and_centring_by_hand(mdp):
    chosen, rejected = scores_of(trainer_of(mdp))
    z = chosen - rejected
    smooth = -(0.9 * np.log(sigmoid(z)) + 0.1 * np.log(sigmoid(-z))).mean()
    assert float(loss_of(trainer_of(mdp, label_smoothing=0.1))[0].detach()) == pytest.approx(smooth)
    centred = -np.log(sigmoid(z)).mean() + 0.3 * ((chosen + rejected) ** 2).mean()
    assert float(loss_of(trainer_of(mdp, centring=0.3))[0].detach()) == pytest.approx(centred)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_micro_batches_do_not_change_the_step(rows, mdp):
    config = {"centring": 0.1, "label_smoothing": 0.05, "learning_rate": 0.01}
    whole, parts = trainer_of(mdp, **config), trainer_of(mdp, micro_batch_rows=rows, **config)
    one, two = whole.update(range(5)), parts.update(range(5))
    assert one == pytest.approx(two, abs=1e-12)
    for ours, theirs in zip(parts.policy.parameters(), whole.policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_both_completions_share_one_forward_pass(mdp):
    trainer = trainer_of(mdp)
    trainer.update(range(5))
    assert trainer.policy.counters.forward_passes == 1


def test_centring_draws_the_sum_of_each_pair_to_0(mdp):
    sizes = {}
    for centring in (0.0, 1.0):
        chosen, rejected = scores_of(trainer_of(mdp, centring=centring, learning_rate=3e-3).learn(epochs=60))
        sizes[centring] = np.abs(chosen + rejected).mean()
    assert sizes[1.0] < 0.1 * sizes[0.0]


# --- what is learnt -------------------------------------------------------------------------------------------------


def test_probabilities_approach_those_of_the_labeller():
    """All pairs of six completions, each labelled ten times as a Bradley-Terry labeller would on average."""
    mdp, problem = four_mdp(reward=None, max_new_tokens=2), Problem("a=")
    texts = [("a", True), ("=", True), ("ab", False), ("ba", False), ("bb", False), ("=b", False)]
    score = lambda problem, text, tokens: 2 * irregular(problem, text, tokens)  # noqa: E731
    labeller = RuleLabeller(score, temperature=1.0, tokenizer=mdp.codec.tokenizer)
    pairs = [Pair(problem, a[0], b[0], a[1], b[1]) for a, b in itertools.combinations(texts, 2)]
    wanted, data = np.array([labeller.probability(pair) for pair in pairs]), []
    for pair, p in zip(pairs, wanted, strict=True):
        data += [pair.preference("first" if i < round(10 * p) else "second") for i in range(10)]
    trainer = trainer_of(mdp, data, batch_size=len(data), learning_rate=0.02, schedule="linear")
    margins = lambda: trainer.policy.margins([pair.preference("first") for pair in pairs]).numpy()  # noqa: E731
    assert np.abs(sigmoid(margins()) - wanted).max() > 0.3
    trainer.learn(epochs=100)
    assert np.abs(sigmoid(margins()) - wanted).max() < 0.06
    labels = np.round(10 * wanted) / 10
    best = -(labels * np.log(wanted) + (1 - labels) * np.log(1 - wanted)).mean()
    assert trainer.evaluate(data)["log_loss"] == pytest.approx(best, rel=0.02)


def test_what_is_learnt_from_pairs_carries_over_to_others(mdp):
    """Shorter is better: five words in training, another one when tested."""

    def pairs(words):
        return [Preference(f"{w}=", w[:i], w[:j]) for w in words for i in (1, 2) for j in (3, 4)]

    trainer = trainer_of(mdp, pairs(["abca", "bcab", "cabb", "aacb", "bbac"]), learning_rate=0.01, head=False)
    assert trainer.evaluate(pairs(["ccba"]))["accuracy"] == 0.5
    trainer.learn(epochs=15)
    assert trainer.evaluate(pairs(["ccba", "acbc"]))["accuracy"] == 1.0


def test_evaluate_reports_the_margins_of_held_out_pairs(mdp):
    trainer = trainer_of(mdp)
    assert trainer.evaluate(ROWS) == score_pairs(trainer.policy.margins(ROWS).numpy())
    rows = [{"prompt": "ab=", "chosen": "ab", "rejected": "b"}]
    assert trainer.evaluate(rows)["pairs"] == 1


# --- the four verbs, and what they are given ------------------------------------------------------------------------


def test_a_given_reward_model_is_the_one_that_is_trained(mdp):
    made = RewardModel(tiny_model("llama", 8, dtype=torch.float32), mdp, device="cpu")
    trainer = RewardTrainer(made, mdp, ROWS, seed=0).learn(epochs=3)
    assert trainer.policy is made and made.head.weight.abs().sum() > 0
    assert trainer.config.dtype == "float32" and trainer.num_timesteps == 15


def test_a_policy_that_is_given_stays_as_it_was(mdp):
    policy = lm_policy(mdp)
    before = [p.clone() for p in policy.model.parameters()]
    RewardTrainer(policy, mdp, ROWS, seed=0, dtype="float64", device="cpu").learn(epochs=2)
    assert all(torch.equal(p, q) for p, q in zip(before, policy.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lora": 4}, "lora is a setting of the reward model that was given: got 4 here"),
        ({"dtype": "bfloat16"}, "dtype is a setting of the policy that was given, 'float64': got 'bfloat16'"),
        ({"label_smoothing": 0.5}, r"label_smoothing must be in \[0, 0.5\), got 0.5"),
        ({"label_smoothing": -0.1}, r"label_smoothing must be in \[0, 0.5\), got -0.1"),
        ({"centring": -1.0}, "centring must be at least 0, got -1.0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be_meant_are_said(config, message, mdp):
    with pytest.raises(ValueError, match=message):
        trainer_of(mdp, **config)


def test_a_setting_that_does_not_exist_is_an_error():
    with pytest.raises(TypeError, match="beta"):
        RewardTrainerConfig(beta=0.1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "ab=", "chosen": "ab"}, "row 1 has no key 'rejected'"),
        ({"prompt": "ab=", "chosen": "ab", "rejected": "ab"}, "row 1: chosen and rejected are the same text"),
        ({"prompt": "ab=", "chosen": float("nan"), "rejected": "b"}, "row 1: chosen must be a non-empty string"),
        ({"prompt": "aaaaaaa", "chosen": "ab", "rejected": "b"}, "row 1: chosen follows a prompt of 7 tokens"),
        ({"prompt": "ab=", "chosen": "ab", "rejected": "b" * 8}, "row 1: rejected has 9 tokens"),
    ],
)
def test_a_bad_row_is_named_before_any_training(row, message, mdp):
    with pytest.raises(ValueError, match=message):
        trainer_of(mdp, [{"prompt": "ab=", "chosen": "ab", "rejected": "b"}, row])


def test_without_preferences_nothing_can_be_learnt(mdp):
    trainer = trainer_of(mdp, None)
    with pytest.raises(ValueError, match="there is nothing to learn from: pass preferences= to RewardTrainer"):
        trainer.learn()
    assert trainer.evaluate(ROWS)["pairs"] == 5


def test_predict_gives_the_reward_of_what_an_observation_holds(mdp, toy):
    trainer = trainer_of(mdp)
    trainer.policy.normalise(ROWS)
    rows = gym.make_vec("llmgym/SequenceMDP-v0", num_envs=2, autoreset_mode="Disabled", **toy)
    rows.reset(seed=0, options={"problem": Problem("ab=")})
    observation, *_ = rows.step(np.array([[A, B] + [EOS] * 6, [B] + [EOS] * 7]))
    rewards, state = trainer.predict(observation)
    assert rewards.tolist() == pytest.approx(trainer.policy.score([Problem("ab=")] * 2, ["ab", "b"]).tolist())
    one, state = trainer.predict({name: x[0] for name, x in observation.items()}, "mine")
    assert float(one) == pytest.approx(rewards[0]) and np.shape(one) == () and state == "mine"


@pytest.mark.parametrize("lora", [0, 2])
def test_stopped_saved_and_loaded_training_goes_on_as_if_it_had_not(lora, mdp, toy, tmp_path):
    if lora:
        pytest.importorskip("peft")

    def make():
        return RewardTrainer(
            tiny_model("llama", 8, dtype=torch.float64),
            mdp,
            ROWS,
            seed=3,
            batch_size=2,
            lora=lora,
            dtype="float64",
            device="cpu",
            learning_rate=0.01,
            epochs=4,
            schedule="linear",
        )

    whole = make().learn()
    first = make().learn(callback=lambda trainer, metrics, rows: trainer.num_timesteps < 7)
    first.policy.normalise(ROWS)
    first.save(tmp_path / "trainer")
    second = RewardTrainer.load(tmp_path / "trainer", mdp, ROWS)
    assert second.policy.mean == first.policy.mean and second.num_timesteps == 7
    second.learn()
    assert second.num_timesteps == whole.num_timesteps == 20
    for ours, theirs in zip(second.policy.parameters(), whole.policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_a_trainers_folder_is_a_reward(mdp, toy, tmp_path):
    trainer = trainer_of(mdp).learn(epochs=1)
    trainer.save(tmp_path / "trainer")
    env = gym.make("llmgym/SequenceMDP-v0", **toy, reward=str(tmp_path / "trainer"))
    env.reset(options={"problem": Problem("ab=")})
    reward = env.step(np.array([A, B] + [EOS] * 6))[1]
    assert reward == pytest.approx(float(trainer.policy.score([Problem("ab=")], ["ab"])[0]))


def test_the_same_seed_is_the_same_run(mdp):
    one, two = (trainer_of(mdp, batch_size=2).learn(epochs=2) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(one.policy.parameters(), two.policy.parameters(), strict=True))


def test_every_metric_is_documented_and_none_else(mdp):
    logged, text = {}, (Path(__file__).parent.parent / "docs" / "reward_model.md").read_text("utf-8")
    trainer_of(mdp).learn(epochs=1, callback=lambda trainer, metrics, rows: logged.update(metrics))
    table = text.split("### What is logged")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(logged)


# --- the embedded model ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_embedded_model_learns_to_tell_right_sums_from_wrong_ones():
    env = gym.make("llmgym/TokenMDP-v0")
    policy = LMPolicy("tiny", env, seed=0, device="cpu")
    rule = RuleLabeller(env.unwrapped.mdp.task)
    train = label(sample_pairs(policy, env, 1200, seed=0), rule)
    test = label(sample_pairs(policy, env, 800, seed=1, split="test"), rule)
    trainer = RewardTrainer(policy, env, train, seed=0, epochs=3, schedule="linear", device="cpu")
    assert trainer.evaluate(test)["log_loss"] == pytest.approx(math.log(2))
    found = trainer.learn().evaluate(test)
    assert found["accuracy_low"] > 0.85 and found["ece"] < 0.1 and found["log_loss"] < 0.25
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.policy.normalise(train, unit=True)
    rewards = trainer.policy.score([p.problem for p in test] * 2, [p.chosen for p in test] + [p.rejected for p in test])
    assert float(rewards[: len(test)].mean()) > 0.5 > -0.5 > float(rewards[len(test) :].mean())
