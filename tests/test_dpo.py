"""DPO: starts at log 2, the gradient by hand, the reference asked once, LoRA, resuming, bad rows."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from toys import Words, toy_tokenizer
from worlds import flat, tiny_model

from llmgym.agents import DPO
from llmgym.policy import LMPolicy
from llmgym.text import TextMDP

PAIRS = [
    {"prompt": f"{word}=", "chosen": word, "rejected": wrong}
    for word, wrong in (("a", "b"), ("ab", "ba"), ("abc", "a"), ("ba", "bb"), ("cc", "ccc"), ("bc", "cb"))
]


def world():
    return TextMDP(task=Words(), tokenizer=toy_tokenizer(), max_prompt_tokens=6, max_new_tokens=8)


def dpo(kind="gpt2", pairs=PAIRS, **config):
    settings = {"seed": 0, "dtype": "float64", "device": "cpu", "learning_rate": 0.01, "batch_size": 2}
    return DPO(tiny_model(kind, 8), world(), pairs, **(settings | config))


def sequence_logp(agent, key, model=None):
    """Σ log π of the completions and their EOS, text by text."""
    found = []
    for row in PAIRS:
        prompt, completion = (agent.mdp.codec.encode_text(row[k]) for k in ("prompt", key))
        tokens = torch.tensor([[*prompt, *completion, agent.mdp.eos_id]])
        logp = (model or agent.policy.model)(tokens).logits[0].log_softmax(-1)
        places = torch.arange(len(prompt), tokens.shape[1])
        found.append(logp[places - 1, tokens[0, places]].sum())
    return torch.stack(found)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("config", [{}, {"length_normalized": True}, {"label_smoothing": 0.2}])
def test_the_first_loss_is_log_two(kind, config):
    agent = dpo(kind, batch_size=6, **config)
    metrics = agent.update(range(6))
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-12)
    assert metrics["margin"] == pytest.approx(0.0, abs=1e-12)


def test_loss_and_gradient_are_the_formula_after_some_steps():
    agent = dpo("llama", beta=0.3, batch_size=6)
    start = tiny_model("llama", 8).eval()
    agent.learn(total_timesteps=12)
    z = 0.3 * (sequence_logp(agent, "chosen") - sequence_logp(agent, "rejected"))
    z = z - 0.3 * (sequence_logp(agent, "chosen", start) - sequence_logp(agent, "rejected", start)).detach()
    loss = -F.logsigmoid(z).mean()
    by_hand = flat(torch.autograd.grad(loss, agent.policy.parameters()))
    agent.optimizer = torch.optim.SGD(agent.policy.parameters(), lr=1.0)
    before = flat(agent.policy.parameters())
    assert agent.update(range(6))["loss"] == pytest.approx(float(loss.detach()), abs=1e-10)
    moved = before - flat(agent.policy.parameters())
    assert (moved - by_hand / max(float(by_hand.norm()), 1.0)).abs().max() <= 1e-7


def test_it_learns_the_preferences():
    agent = dpo("llama", epochs=20)
    before, after = agent.evaluate(PAIRS), agent.learn().evaluate(PAIRS)
    assert after["accuracy"] == 1.0 and after["loss"] < before["loss"] and after["margin"] > 0.1


def test_the_reference_is_asked_once_and_is_what_is_given():
    reference = LMPolicy(tiny_model("llama", 8, seed=3), world(), dtype="float64", device="cpu")
    agent = dpo("llama", batch_size=6)
    other = DPO(tiny_model("llama", 8), world(), PAIRS, reference=reference, dtype="float64", device="cpu", seed=0)
    assert torch.allclose(other.ref_logp[:, 0], sequence_logp(other, "chosen", reference.model).detach(), atol=1e-10)
    kept = agent.ref_logp.clone()
    agent.learn(total_timesteps=12)
    assert torch.equal(agent.ref_logp, kept)


def test_without_a_reference_the_loss_is_of_the_policy_alone():
    agent = dpo("llama", reference_free=True, batch_size=6, beta=0.5)
    z = 0.5 * (sequence_logp(agent, "chosen") - sequence_logp(agent, "rejected"))
    assert agent.ref_logp is None
    assert agent.update(range(6))["loss"] == pytest.approx(float(-F.logsigmoid(z).mean().detach()), abs=1e-10)


@pytest.mark.parametrize("at", [1, 4])
def test_training_goes_on_from_a_folder(tmp_path, at):
    whole, steps = dpo("llama", epochs=2).learn(), []
    part = dpo("llama", epochs=2).learn(callback=lambda *_: steps.append(1) or len(steps) < at)
    part.save(tmp_path / "a")
    again = DPO.load(tmp_path / "a", world(), PAIRS).learn()
    assert again.num_timesteps == whole.num_timesteps == 12
    assert (flat(whole.policy.parameters()) - flat(again.policy.parameters())).abs().max() <= 1e-6


@pytest.mark.parametrize("micro", [1, 2, 5])
def test_micro_batches_add_up(micro):
    agents = [dpo(batch_size=6), dpo(batch_size=6, micro_batch_rows=micro)]
    for agent in agents:
        agent.optimizer = torch.optim.SGD(agent.policy.parameters(), lr=1.0)
        agent.update(range(6))
    assert (flat(agents[0].policy.parameters()) - flat(agents[1].policy.parameters())).abs().max() <= 1e-10


def test_with_lora_the_reference_is_the_base_and_only_adapters_move():
    pytest.importorskip("peft")
    agent = dpo("llama", lora=2, batch_size=6)
    base = {n: p.clone() for n, p in agent.policy.model.named_parameters() if "lora" not in n}
    assert agent.update(range(6))["loss"] == pytest.approx(math.log(2), abs=1e-12)
    agent.learn(total_timesteps=12)
    assert all(torch.equal(p, base[n]) for n, p in agent.policy.model.named_parameters() if n in base)
    assert agent.evaluate(PAIRS)["loss"] < math.log(2)  # the base is still at hand


def test_held_out_pairs_need_the_reference_of_before():
    agent = dpo("llama")
    agent.learn(total_timesteps=2)
    with pytest.raises(ValueError, match="pass reference="):
        agent.evaluate(PAIRS[:3])


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": "a=", "chosen": "a", "rejected": "a"}, "row 1.*the same text"),
        ({"prompt": "a=", "chosen": "", "rejected": "a"}, "row 1.*chosen must be a non-empty string"),
        ({"prompt": "abcabcabc=", "chosen": "a", "rejected": "b"}, "row 1.*max_prompt_tokens is 6"),
        ({"prompt": "a=", "chosen": "abcabcabc", "rejected": "b"}, "row 1.*max_new_tokens"),
        ({"prompt": "a=", "first": "a", "second": "b", "label": "better"}, "row 1.*label must be one of"),
    ],
)
def test_a_bad_row_is_named_before_any_training(row, sentence):
    with pytest.raises(ValueError, match=sentence):
        dpo(pairs=[PAIRS[0], row])


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"beta": 0.0}, "beta must be > 0, got 0.0"),
        ({"kind": "hinge"}, "kind must be one of"),
        ({"label_smoothing": 0.5}, "label_smoothing must be in"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_said(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        DPO.config_class(**config)
