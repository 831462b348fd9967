"""DPO: its first loss, its gradient by enumeration, a reference that is asked once, and what is logged."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from worlds import Bigram, assert_gradients, flat, four_mdp, lm_policy, tiny_model

from llmgym.agents import DPO, DPOConfig
from llmgym.oracle import Oracle
from llmgym.pair_sampling import sample_pairs
from llmgym.preferences import Preference
from llmgym.text import TextMDP
from llmgym.texts import batch_of, completion_logp, text_of

PAIRS = [
    Preference("ab=", "ba", "b"),
    Preference("b=", "a", "bb", rejected_finished=False),
    Preference("ab=", "bab", "aa", chosen_finished=False),
    Preference("a=", "aa", "a"),
    Preference("b=", "ab", "ba"),
]
SUMS = [Preference(f"{a}+5=", f"<answer>{a + 5}</answer>", f"<answer>{a}</answer>") for a in range(100, 164)]


def world(**changes):
    return four_mdp(**({"max_prompt_tokens": 3, "max_new_tokens": 3} | changes))


def dpo(model="gpt2", data=PAIRS, mdp=None, **config):
    mdp = mdp or world()
    model = tiny_model(model, mdp.codec.vocab_size) if isinstance(model, str) else model
    return DPO(model, mdp, data, **({"seed": 0, "dtype": "float64", "device": "cpu", "learning_rate": 0.01} | config))


def moved(agent, steps=3):
    """The agent after some steps: its policy is no longer the reference."""
    for _ in range(steps):
        agent.update(range(len(agent.data)))
    return agent


def step_of(agent):
    """Loss, metrics and gradient of all pairs at once."""
    places = torch.arange(len(agent.data))
    batch = agent._batch(places)
    loss, metrics = agent.loss(batch, places, agent.denominator(batch, places))
    gradient = torch.autograd.grad(loss, agent.policy.parameters(), allow_unused=True, materialize_grads=True)
    return loss.item(), {name: x.item() for name, x in metrics.items()}, gradient


def tiny(**config):
    mdp = TextMDP("arithmetic", max_new_tokens=16)
    return DPO("tiny", mdp, SUMS, **({"seed": 0, "device": "cpu"} | config))


# --- the first loss ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{}, {"micro_batch_rows": 5}, {"lora": 4}, {"batch_size": 7}], ids=str)
def test_the_first_loss_is_log_2(config):
    log = []
    tiny(**config).learn(total_timesteps=1, callback=lambda agent, metrics, rows: log.append(metrics))
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert log[0]["margin"] == pytest.approx(0, abs=1e-5) and log[0]["drift"] < 1e-5


def test_the_first_loss_of_ipo_is_that_of_no_difference():
    assert step_of(dpo(kind="ipo", beta=0.2))[0] == pytest.approx((0.5 / 0.2) ** 2, rel=1e-12)


def test_with_adapters_the_base_model_is_the_reference_and_stays():
    agent = dpo("llama", lora=2)
    assert step_of(agent)[0] == pytest.approx(math.log(2), rel=1e-12)
    base = {n: p.clone() for n, p in agent.policy.model.named_parameters() if "lora_" not in n}
    moved(agent)
    assert all(torch.equal(base[n], p) for n, p in agent.policy.model.named_parameters() if n in base)
    assert step_of(agent)[0] < math.log(2) - 0.01
    with agent.policy.model.disable_adapter():
        places = torch.arange(len(PAIRS))
        loss, _ = agent.loss(agent._batch(places), places, len(PAIRS))
    assert loss.item() == pytest.approx(math.log(2), rel=1e-12)


# --- gradients by enumeration -----------------------------------------------------------------------------------------


def enumerated_logp(agent, policy):
    """log π of the chosen and the rejected completion of every pair, read off the tree of all completions; [n, 2]."""
    rows = []
    for pair in agent.texts:
        oracle = Oracle(agent.mdp, pair[0].problem, policy)
        episodes = [tuple(t for step in episode for t in step.tokens) for episode in oracle.episodes]
        logp = oracle.logp()
        completions = [tuple(text.tokens[text.n_prompt :].tolist()) for text in pair]
        # A cut completion is what all the episodes that begin with it have in common.
        begun = [[i for i, e in enumerate(episodes) if e[: len(c)] == c] for c in completions]
        rows.append(torch.stack([logp[i].logsumexp(0) for i in begun]))
    return torch.stack(rows)


@pytest.mark.parametrize("size", [1, 3])
def test_the_gradient_is_the_formula_on_enumerated_completions(size):
    """∇L = -β mean σ(-z) (∇ log π(y_w) - ∇ log π(y_l)), Rafailov et al. 2023, section 4."""
    agent = moved(dpo("gpt2", mdp=world(block_size=size), beta=0.5))
    ref = enumerated_logp(agent, lm_policy(agent.mdp, "gpt2"))
    torch.testing.assert_close(agent.ref_logp, ref.detach(), rtol=0, atol=1e-12)
    logp = enumerated_logp(agent, agent.policy)
    z = 0.5 * ((logp[:, 0] - ref[:, 0]) - (logp[:, 1] - ref[:, 1])).detach()
    weights = -0.5 * torch.sigmoid(-z) / len(PAIRS)
    expected = torch.autograd.grad((weights * (logp[:, 0] - logp[:, 1])).sum(), agent.policy.parameters())
    loss, _, gradient = step_of(agent)
    assert loss == pytest.approx(F.softplus(-z).mean().item(), rel=1e-12) and z.abs().min() > 1e-3
    assert_gradients(gradient, expected)


VARIANTS = [
    {"beta": 0.3},
    {"label_smoothing": 0.2},
    {"length_normalized": True},
    {"kind": "ipo"},
    {"kind": "ipo", "length_normalized": True},
    {"reference_free": True},
    {"reference_free": True, "length_normalized": True, "margin": 0.5, "beta": 2.0},
    {"sft_weight": 0.7},
]


@pytest.mark.parametrize("config", VARIANTS, ids=str)
def test_every_variant_is_its_formula(config):
    agent = moved(dpo(**config))
    c, ref = agent.config, enumerated_logp(agent, lm_policy(agent.mdp, "gpt2")).detach()
    logp = enumerated_logp(agent, agent.policy)
    lengths = torch.tensor([[text.n_completion for text in pair] for pair in agent.texts])
    ratio = (logp if c.reference_free else logp - ref) / (lengths if c.length_normalized else 1)
    h = ratio[:, 0] - ratio[:, 1]
    if c.kind == "ipo":
        expected = ((h - 1 / (2 * c.beta)) ** 2).mean()
    else:
        z, e = c.beta * h - c.margin, c.label_smoothing
        expected = ((1 - e) * F.softplus(-z) + e * F.softplus(z)).mean()
    expected = expected - c.sft_weight * (logp[:, 0] / lengths[:, 0]).mean()
    loss, metrics, gradient = step_of(agent)
    assert loss == metrics["loss"] == pytest.approx(expected.item(), rel=1e-12)
    assert_gradients(gradient, torch.autograd.grad(expected, agent.policy.parameters()))


def test_the_gradient_is_zero_where_labels_follow_the_implied_reward():
    """Expected labels: σ(β log-ratio difference) is what Bradley and Terry say of rewards β log π/π_ref."""
    agent = moved(dpo(beta=0.8))
    swapped = dpo(data=[Preference(p.prompt, p.rejected, p.chosen, *_flags(p)) for p in PAIRS], beta=0.8)
    swapped.policy.model.load_state_dict(agent.policy.model.state_dict())
    places, total = torch.arange(len(PAIRS)), []
    ratio = (enumerated_logp(agent, agent.policy) - agent.ref_logp).detach()
    p = torch.sigmoid(0.8 * (ratio[:, 0] - ratio[:, 1]))
    for one, weights in ((agent, p), (swapped, 1 - p)):
        for i in places:
            loss, _ = one.loss(one._batch(places[i : i + 1]), places[i : i + 1], 1)
            gradient = torch.autograd.grad(loss, one.policy.parameters())
            total.append(weights[i] * torch.cat([g.flatten() for g in gradient]))
    assert torch.stack(total).abs().max() > 1e-2 and torch.stack(total).sum(0).abs().max() < 1e-12


def _flags(pair):
    return pair.rejected_finished, pair.chosen_finished


# --- the reference ----------------------------------------------------------------------------------------------------


def test_the_reference_is_asked_once_and_a_step_is_one_forward_pass():
    agent = dpo(batch_size=5)
    asked = agent.policy.counters.forward_passes
    tokens = sum(len(text.tokens) - 1 for pair in agent.texts for text in pair)
    assert (asked, agent.policy.counters.forward_tokens) == (1, tokens)
    agent.learn(epochs=4)
    assert agent.policy.counters.forward_passes == asked + 4
    assert agent.policy.counters.forward_tokens == 5 * tokens


def test_the_reference_is_the_policy_as_it_was():
    agent = dpo()
    before = agent.ref_logp.clone()
    moved(agent)
    assert torch.equal(agent.ref_logp, before)
    expected = completion_logp(lm_policy(agent.mdp, "gpt2"), agent._batch(torch.arange(5))).view(2, 5).t()
    assert torch.equal(before, expected.detach())


def test_another_reference_is_taken_and_left_alone():
    other = tiny_model("gpt2", seed=5)
    before = flat(list(other.parameters())).clone()
    agent = moved(dpo(reference=other))
    expected = completion_logp(lm_policy(agent.mdp, "gpt2", seed=5), agent._batch(torch.arange(5))).view(2, 5).t()
    torch.testing.assert_close(agent.ref_logp, expected.detach(), rtol=0, atol=1e-12)
    assert torch.equal(flat(list(other.parameters())), before)
    assert all(p.requires_grad for p in other.parameters())
    model = tiny_model("gpt2")
    same = dpo(model, reference=model)
    assert step_of(same)[0] == pytest.approx(math.log(2)) and moved(same).num_timesteps == 15


def test_adapters_may_be_part_of_the_reference():
    """By default the reference of a policy with adapters is its base; the policy itself may be named instead."""
    trained = moved(dpo("llama", lora=2)).policy
    base, whole = (DPO(trained, trained.mdp, PAIRS, reference=reference) for reference in (None, trained))
    assert step_of(base)[0] < math.log(2) - 0.01
    assert step_of(whole)[0] == pytest.approx(math.log(2), rel=1e-12)


def test_without_a_reference_none_is_asked():
    agent = dpo(reference_free=True)
    assert agent.ref_logp is None and agent.policy.counters.forward_passes == 0


def test_the_reference_survives_saving(tmp_path):
    agent = moved(dpo())
    agent.save(tmp_path / "agent")
    again = DPO.load(tmp_path / "agent", world(), PAIRS)
    assert torch.equal(again.ref_logp, agent.ref_logp) and step_of(again)[0] == step_of(agent)[0]
    assert again.policy.counters == agent.policy.counters


def test_new_pairs_need_a_reference_once_the_policy_has_moved(tmp_path):
    untrained, trained = tmp_path / "untrained", tmp_path / "trained"
    agent = dpo()
    agent.save(untrained)
    moved(agent).save(trained)
    assert step_of(DPO.load(untrained, world(), PAIRS[:3]))[0] == pytest.approx(math.log(2))
    with pytest.raises(ValueError, match="these preferences are new and the policy has been trained already: pass ref"):
        DPO.load(trained, world(), PAIRS[:3])
    given = DPO.load(trained, world(), PAIRS[:3], reference=tiny_model("gpt2"))
    torch.testing.assert_close(given.ref_logp, agent.ref_logp[:3], rtol=0, atol=1e-12)
    lora = moved(dpo("llama", lora=2))
    lora.save(trained)
    torch.testing.assert_close(DPO.load(trained, world(), PAIRS[:3]).ref_logp, lora.ref_logp[:3], rtol=0, atol=1e-12)


# --- metrics and evaluation -------------------------------------------------------------------------------------------


def test_metrics_are_what_they_say():
    agent = moved(dpo(beta=0.5))
    logp, n = completion_logp(agent.policy, agent._batch(torch.arange(5))).view(2, 5).detach(), 5
    rewards = 0.5 * (logp - agent.ref_logp.t())
    lengths = torch.tensor([[text.n_completion for text in pair] for pair in agent.texts]).t()
    _, metrics, _ = step_of(agent)
    assert metrics["chosen_reward"] == pytest.approx(rewards[0].sum().item() / n)
    assert metrics["rejected_reward"] == pytest.approx(rewards[1].sum().item() / n)
    assert metrics["margin"] == pytest.approx(metrics["chosen_reward"] - metrics["rejected_reward"])
    assert metrics["accuracy"] == (rewards[0] > rewards[1]).double().mean().item()
    assert metrics["chosen_logp"] == pytest.approx(logp[0].mean().item())
    assert metrics["rejected_logp"] == pytest.approx(logp[1].mean().item())
    assert metrics["drift"] == pytest.approx((rewards / 0.5 / lengths).abs().mean().item())


def test_a_tie_counts_half():
    table = torch.zeros(4, 4, dtype=torch.float64)
    agent = dpo(Bigram(table), [Preference("b=", "ab", "ba")])
    assert step_of(agent)[1]["accuracy"] == 0.5


def test_held_out_pairs_are_measured_against_the_reference_and_not_learnt_from():
    held_out = [Preference("a=", "b", "bb"), Preference("b=", "aab", "a", chosen_finished=False)]
    agent = dpo()
    assert agent.evaluate(held_out)["loss"] == pytest.approx(math.log(2), rel=1e-12)
    moved(agent)
    direct = dpo(data=held_out)
    direct.policy.model.load_state_dict(agent.policy.model.state_dict())
    expected = step_of(direct)[1]
    before = flat(agent.policy.parameters())
    assert agent.evaluate(held_out) == pytest.approx(expected, rel=1e-10)
    assert torch.equal(flat(agent.policy.parameters()), before) and agent.data == PAIRS
    assert agent.evaluate(PAIRS) == pytest.approx(step_of(agent)[1], rel=1e-10)
    with pytest.raises(ValueError, match="these preferences are new"):
        agent.evaluate(held_out[:1])


# --- data and settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": "b=", "chosen": "a", "rejected": "a"}, "row 5: chosen and rejected are the same text, 'a'"),
        ({"prompt": "b=", "chosen": "", "rejected": "a"}, "row 5: chosen must be a non-empty string"),
        ({"prompt": "abab=", "chosen": "a", "rejected": "b"}, "row 5: chosen follows a prompt of 5 tokens, max_prompt"),
        ({"prompt": "b=", "chosen": "a", "rejected": "abb"}, "row 5: rejected has 4 tokens, end-of-text included"),
        ({"prompt": "b=", "first": "a", "second": "b", "label": "x"}, "row 5: label must be one of"),
    ],
)
def test_bad_rows_are_refused_before_any_training(row, sentence):
    with pytest.raises(ValueError, match=sentence):
        dpo(data=[*PAIRS, row])


def test_labelled_rows_and_sampled_pairs_are_read():
    agent = dpo(data=[{"prompt": "b=", "first": "a", "second": "b", "label": "second"}])
    assert agent.data == [Preference("b=", "b", "a")]
    mdp = world(max_prompt_tokens=5)
    pairs = sample_pairs(lm_policy(mdp, "gpt2"), mdp, 4)
    preferences = [pair.preference("first") for pair in pairs]
    assert dpo(data=preferences, mdp=mdp).data == preferences


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"beta": 0.0}, "beta must be > 0, got 0.0"),
        ({"kind": "hinge"}, "kind must be one of 'sigmoid', 'ipo', got 'hinge'"),
        ({"label_smoothing": 0.5}, r"label_smoothing must be in \[0, 0.5\), got 0.5"),
        ({"kind": "ipo", "margin": 1.0}, "kind='ipo' takes label_smoothing=0 and margin=0"),
        ({"sft_weight": -1.0}, "sft_weight must be at least 0, got -1.0"),
    ],
)
def test_bad_settings_are_one_sentence(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        DPOConfig(**config)


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{}, {"kind": "ipo"}, {"lora": 8, "learning_rate": 1e-3}], ids=str)
def test_the_embedded_model_learns_to_prefer(config):
    agent = tiny(**({"learning_rate": 1e-4, "epochs": 6} | config))
    held_out = [Preference(f"{a}+7=", f"<answer>{a + 7}</answer>", f"<answer>{a}</answer>") for a in range(200, 220)]
    before = agent.evaluate(held_out)
    agent.learn()
    after = agent.evaluate(held_out)
    assert after["accuracy"] >= 0.75 and after["margin"] > 0.1 and after["loss"] < before["loss"]


def test_chosen_and_rejected_share_their_prompt_in_the_fused_form():
    """One pass over both texts of a pair costs the prompt once; the values are those of two passes."""
    agent = tiny()
    pair = [text_of(agent.mdp, SUMS[0].problem, text) for text in (SUMS[0].chosen, SUMS[0].rejected)]
    together = completion_logp(agent.policy, batch_of(pair, agent.mdp))
    apart = torch.cat([completion_logp(agent.policy, batch_of([text], agent.mdp)) for text in pair])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
