"""SFT: the loss by hand, prompts not learnt, packing and resuming exact, filling in the middle."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from toys import Words, toy_tokenizer
from worlds import flat, tiny_model

from llmgym.agents import SFT
from llmgym.demonstrations import read_demonstrations
from llmgym.fim import Filling, find_marks
from llmgym.packing import PackedForward, pack
from llmgym.text import TextMDP
from llmgym.tiny.tokenizer import build_tokenizer

ROWS = [{"prompt": f"{word}=", "completion": word} for word in ("a", "ab", "abc", "ba", "cc", "bcab", "c")]


def world(**changes):
    return TextMDP(task=Words(), tokenizer=toy_tokenizer(), max_prompt_tokens=6, max_new_tokens=8, **changes)


def sft(kind="gpt2", rows=ROWS, **config):
    settings = {"seed": 0, "dtype": "float64", "device": "cpu", "learning_rate": 0.01, "batch_size": 3}
    return SFT(tiny_model(kind, 8), world(), rows, **(settings | config))


def hand_loss(agent, rows):
    """-mean log-prob of the tokens of the completions and of EOS, text by text."""
    total, count = 0.0, 0
    for row in rows:
        prompt, completion = (agent.mdp.codec.encode_text(row[k]) for k in ("prompt", "completion"))
        tokens = torch.tensor([[*prompt, *completion, agent.mdp.eos_id]])
        logp = agent.policy.model(tokens).logits[0].log_softmax(-1)
        places = torch.arange(len(prompt), tokens.shape[1])
        total = total - logp[places - 1, tokens[0, places]].sum()
        count += len(places)
    return total / count


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_loss_and_gradient_are_those_of_the_completions_alone(kind):
    agent = sft(kind, batch_size=7)
    loss = hand_loss(agent, ROWS)
    by_hand = torch.autograd.grad(loss, agent.policy.parameters(), allow_unused=True, materialize_grads=True)
    assert agent.evaluate(ROWS)["loss"] == pytest.approx(float(loss.detach()), abs=1e-10)
    agent.optimizer = torch.optim.SGD(agent.policy.parameters(), lr=1.0)
    before = flat(agent.policy.parameters())
    assert agent.update(range(7))["loss"] == pytest.approx(float(loss.detach()), abs=1e-10)
    moved = before - flat(agent.policy.parameters())
    norm = flat(by_hand).norm()
    assert (moved - flat(by_hand) / max(float(norm), 1.0)).abs().max() <= 1e-7  # the norm is clipped to 1


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_packing_changes_neither_loss_nor_gradient(kind):
    plain, packed = sft(kind, batch_size=7), sft(kind, batch_size=7, packing=True)
    assert isinstance(packed._packed, PackedForward) and plain._packed is None
    for agent in (plain, packed):
        agent.optimizer = torch.optim.SGD(agent.policy.parameters(), lr=1.0)
    one, two = (agent.update(range(7))["loss"] for agent in (plain, packed))
    assert abs(one - two) <= 1e-10
    assert (flat(plain.policy.parameters()) - flat(packed.policy.parameters())).abs().max() <= 1e-10


def test_rows_are_filled_first_fit():
    row, start = pack([3, 2, 5, 1, 4], 5)
    for text, length in enumerate([3, 2, 5, 1, 4]):
        assert start[text] + length <= 5
    taken = [(row[i], place) for i, n in enumerate([3, 2, 5, 1, 4]) for place in range(start[i], start[i] + n)]
    assert len(taken) == len(set(taken)) == 15 and row.max() == 2
    with pytest.raises(ValueError, match="width must be at least the longest text's, 5, got 4"):
        pack([5], 4)


@pytest.mark.parametrize("micro", [1, 2, 5])
def test_micro_batches_add_up(micro):
    whole, parts = sft(batch_size=7), sft(batch_size=7, micro_batch_rows=micro)
    assert whole.update(range(7))["loss"] == pytest.approx(parts.update(range(7))["loss"], abs=1e-12)
    # AdamW's first step divides a gradient by itself, so rounding may show where a gradient is nearly 0.
    assert (flat(whole.policy.parameters()) - flat(parts.policy.parameters())).abs().max() <= 1e-6


def test_it_learns_what_it_is_shown():
    agent = sft("llama", epochs=60)
    before = agent.evaluate(ROWS)
    after = agent.learn().evaluate(ROWS)
    assert after["loss"] < 0.3 * before["loss"] and after["token_accuracy"] > 0.8
    assert after["perplexity"] == pytest.approx(math.exp(after["loss"]))


@pytest.mark.parametrize("at", [1, 2, 4])
def test_training_goes_on_from_a_folder(tmp_path, at):
    whole = sft("llama", epochs=3).learn()
    steps = []
    part = sft("llama", epochs=3).learn(callback=lambda *_: steps.append(1) or len(steps) < at)
    part.save(tmp_path / "a")
    again = SFT.load(tmp_path / "a", world(), ROWS).learn()
    assert again.num_timesteps == whole.num_timesteps == 21
    # Loaded weights may lie elsewhere in memory, and products round otherwise there.
    assert (flat(whole.policy.parameters()) - flat(again.policy.parameters())).abs().max() <= 1e-6


def test_the_same_seed_gives_the_same_parameters():
    one, two, three = (flat(sft(seed=s).learn().policy.parameters()) for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, three)


def test_budgets():
    assert sft().learn(total_timesteps=4).num_timesteps == 6  # two batches of three
    assert sft().learn(epochs=2).num_timesteps == 14
    with pytest.raises(ValueError, match="there is nothing to learn from"):
        SFT(tiny_model("gpt2", 8), world(), dtype="float64").learn()


def test_filling_in_the_middle_learns_the_middle_after_prefix_and_suffix():
    tokenizer = build_tokenizer()
    marks, rng = find_marks(tokenizer), np.random.default_rng(0)
    seen = set()
    for _ in range(50):
        tokens, n_prompt = Filling(tokenizer)("147+268=<answer>415</answer>", rng)
        text, middle = tokenizer.decode(tokens[:n_prompt]), tokenizer.decode(tokens[n_prompt:])
        prefix, suffix = text.split(marks.prefix)[1].removesuffix(marks.middle).split(marks.suffix)
        assert prefix + middle.removesuffix("<eos>") + suffix == "147+268=<answer>415</answer>"
        assert middle.endswith("<eos>")
        seen.add(prefix)
    assert len(seen) > 10


def test_a_tokenizer_without_marks_is_refused():
    with pytest.raises(ValueError, match="no known fill-in-the-middle marks"):
        sft(fim=0.5)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": "a=", "completion": ""}, "row 1.*completion must be a non-empty string"),
        ({"prompt": "a="}, "row 1 has no key 'completion'"),
        ({"prompt": "abcabcabc=", "completion": "a"}, "row 1.*max_prompt_tokens is 6"),
        ({"prompt": "a=", "completion": "abcabcabc"}, "row 1.*max_new_tokens"),
        ({"prompt": 3, "completion": "a"}, "row 1.*prompt must be a non-empty string"),
    ],
)
def test_a_bad_row_is_named_before_any_training(row, sentence):
    with pytest.raises(ValueError, match=sentence):
        sft(rows=[ROWS[0], row])


def test_a_bad_line_of_a_file_is_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROWS[0]) + "\n{broken\n")
    with pytest.raises(ValueError, match="line 2 of"):
        read_demonstrations(file, world())
