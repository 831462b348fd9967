"""SFT: its gradient by hand, what carries loss and what does not, packing and filling in the middle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from toys import Words, no_repeat, toy_tokenizer
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from worlds import A4, B4, EOS4, EQUALS4, Bigram, assert_gradients, flat, four_mdp, lm_policy, tiny_model

from llmgym.agents import SFT
from llmgym.demonstrations import Demonstration
from llmgym.fused import FusedLlama
from llmgym.packing import PackedForward, pack
from llmgym.tasks import Problem
from llmgym.text import TextMDP
from llmgym.texts import batch_of, completion_logp, text_of

TABLE = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
ROWS = [
    Demonstration("ab=", "ba"),
    Demonstration("b=", "a"),
    Demonstration("a=", "bb", finished=False),
    Demonstration("aab=", "bab"),
    Demonstration("b=", "abba", finished=False),
]


def world(**changes):
    return four_mdp(**({"max_prompt_tokens": 5, "max_new_tokens": 4} | changes))


def sft(model="gpt2", data=ROWS, mdp=None, **config):
    mdp = mdp or world()
    model = tiny_model(model, mdp.codec.vocab_size) if isinstance(model, str) else model
    return SFT(model, mdp, data, **({"seed": 0, "dtype": "float64", "device": "cpu"} | config))


def step_of(agent):
    """Loss and gradient of all rows of an agent at once."""
    places = torch.arange(len(agent.data))
    batch = agent._batch(places)
    loss, _ = agent.loss(batch, places, agent.denominator(batch, places))
    return loss.item(), torch.autograd.grad(loss, agent.policy.parameters())


@pytest.fixture
def exact_norms(monkeypatch):
    """Hugging Face's norms round to float32 even in a float64 model; these do not."""
    for norm in (LlamaRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm):
        exact = lambda self, x: F.rms_norm(x, self.weight.shape, self.weight, self.variance_epsilon)  # noqa: E731
        monkeypatch.setattr(norm, "forward", exact)


# --- loss and gradient ------------------------------------------------------------------------------------------------


def test_loss_and_gradient_are_those_of_a_hand_computation():
    """A table of scores: d loss / d scores[s] = Σ over places after s of (softmax(scores[s]) - onehot(token)) / N."""
    # (token before, token learnt) in every row; the prompt's own tokens are not among the learnt.
    pairs = [(EQUALS4, B4), (B4, A4), (A4, EOS4), (EQUALS4, A4), (A4, EOS4), (EQUALS4, B4), (B4, B4)]
    p, gradient, loss = TABLE.softmax(-1), torch.zeros(4, 4, dtype=torch.float64), 0.0
    for before, learnt in pairs:
        loss -= math.log(p[before, learnt]) / len(pairs)
        gradient[before] += (p[before] - F.one_hot(torch.tensor(learnt), 4)) / len(pairs)
    ours, (slope,) = step_of(sft(Bigram(TABLE), ROWS[:3]))
    assert ours == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(slope, gradient, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "sliding"])
def test_the_loss_is_the_mean_over_the_learnt_tokens_of_hugging_faces_logits(kind):
    agent, total, count = sft(kind), 0.0, 0
    for ((text,),) in zip(agent.texts, strict=True):
        tokens = torch.as_tensor(text.tokens.astype(np.int64))[None]
        logp = agent.policy.model(tokens).logits[0].log_softmax(-1)
        for place in range(text.n_prompt, tokens.shape[1]):
            total, count = total - logp[place - 1, tokens[0, place]], count + 1
    loss, gradient = step_of(agent)
    assert loss == pytest.approx((total / count).item(), abs=1e-7)
    if kind == "gpt2":
        assert_gradients(gradient, torch.autograd.grad(total / count, agent.policy.parameters()))


def test_prompts_carry_no_loss():
    """With a table for a model nothing learnt depends on the prompt but through its last token."""
    (one, _), (two, _) = (step_of(sft(Bigram(TABLE), [Demonstration(p, "ba")])) for p in ("ab=", "bbb="))
    assert one == two
    _, (slope,) = step_of(sft(Bigram(TABLE), [Demonstration("aab=", "a")]))
    assert slope[[B4, EOS4]].abs().max() == 0 and slope[EQUALS4].abs().min() > 0


@pytest.mark.parametrize("kind", ["gpt2", "llama", "sliding"])
def test_a_later_token_never_changes_what_stands_before_it(kind):
    mdp = world()
    policy = lm_policy(mdp, kind)
    completion = "abba"
    for place in range(1, 4):
        other = completion[:place] + "b" * (completion[place] == "a") + "a" * (completion[place] == "b") + "ab"
        texts = [text_of(mdp, Problem("b="), text[:4], finished=False) for text in (completion, other)]
        one, two = policy.token_logp(batch_of(texts, mdp))
        same = (one - two).abs() < 1e-14
        assert same[: 2 + place].all() and not same[2 + place :].any()


def test_eos_is_learnt_where_a_completion_is_finished_only():
    _, (slope,) = step_of(sft(Bigram(TABLE), [Demonstration("a=", "ab", finished=False)]))
    assert slope[B4].abs().max() == 0
    _, (slope,) = step_of(sft(Bigram(TABLE), [Demonstration("a=", "ab")]))
    assert slope[B4, EOS4] < 0


def test_masks_of_the_environment_count():
    """A token that was forbidden takes no part in the distribution that is learnt."""
    mdp = TextMDP(
        Words(), tokenizer=toy_tokenizer(), max_prompt_tokens=4, max_new_tokens=4, constraint=no_repeat,
        min_new_tokens=1,
    )  # fmt: skip
    table = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loss, _ = step_of(sft(Bigram(table), [Demonstration("ab=", "ab")], mdp))
    allowed = {5: [0, 2, 3, 4, 5, 6, 7], 2: [0, 1, 3, 4, 5, 6, 7], 3: [0, 1, 2, 4, 5, 6, 7]}
    rows = {s: dict(zip(a, table[s, a].log_softmax(-1).tolist(), strict=True)) for s, a in allowed.items()}
    assert loss == pytest.approx(-(rows[5][2] + rows[2][3] + rows[3][1]) / 3, rel=1e-12)


def test_training_learns_the_demonstrations_by_heart():
    agent = sft("llama", dtype="float32", learning_rate=3e-3, epochs=60)
    first = agent.evaluate(ROWS[:2])
    agent.learn()
    last = agent.evaluate(ROWS[:2])
    assert last["loss"] < 0.4 < first["loss"] and last["token_accuracy"] >= first["token_accuracy"]


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_evaluation_is_the_hand_computation_and_moves_nothing():
    agent = sft(Bigram(TABLE))
    before = flat(agent.policy.parameters())
    scores = agent.evaluate([ROWS[0], {"prompt": "b=", "completion": "a"}])
    pairs = [(EQUALS4, B4), (B4, A4), (A4, EOS4), (EQUALS4, A4), (A4, EOS4)]
    logp = TABLE.log_softmax(-1)
    loss = -sum(float(logp[pair]) for pair in pairs) / 5
    right = sum(int(TABLE[before].argmax()) == learnt for before, learnt in pairs) / 5
    assert scores == pytest.approx({"loss": loss, "perplexity": math.exp(loss), "token_accuracy": right}, rel=1e-12)
    assert torch.equal(flat(agent.policy.parameters()), before) and agent.num_timesteps == 0
    with pytest.raises(ValueError, match="row 0: completion must be a non-empty string"):
        agent.evaluate([{"prompt": "b=", "completion": ""}])


def test_the_logged_loss_is_that_of_the_evaluation():
    agent, log = sft(batch_size=5), []
    expected = agent.evaluate(ROWS)
    agent.learn(callback=lambda agent, metrics, rows: log.append(metrics))
    assert log[0]["loss"] == pytest.approx(expected["loss"], rel=1e-12)
    assert log[0]["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-12)


# --- packing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "qwen3", "neox"])
def test_packed_loss_and_gradients_are_the_unpacked_ones(kind, attention, exact_norms):
    plain, packed = (sft(kind, packing=packing) for packing in (False, True))
    assert packed._packed is not None
    for agent in (plain, packed):
        agent.policy.model.config._attn_implementation = attention
    (one, slopes), (two, packed_slopes) = step_of(plain), step_of(packed)
    assert one == pytest.approx(two, abs=1e-10)
    for a, b in zip(slopes, packed_slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_texts_share_rows_and_none_sees_another(kind, exact_norms, monkeypatch):
    mdp, shapes = world(), []
    policy = lm_policy(mdp, kind)
    forward, inner = PackedForward(policy.model), policy.model.forward
    monkeypatch.setattr(policy.model, "forward", lambda ids, **k: shapes.append(ids.shape) or inner(ids, **k))
    prompts, results = ["b=", "a=", "ab=", "aab="], []
    for others in ("a", "b"):
        texts = [text_of(mdp, Problem(p), t) for p, t in zip(prompts, ["a", others, others, others * 3], strict=True)]
        results.append(completion_logp(policy, batch_of(texts, mdp), forward))
    assert shapes == [(3, 7)] * 2  # places that are read: 3, 3, 4 and 7
    assert results[0][0] == results[1][0] and not (results[0][1:] == results[1][1:]).any()


def test_packed_training_is_unpacked_training():
    runs = []
    for packing in (False, True):
        agent = sft("gpt2", packing=packing, batch_size=3, epochs=2).learn()
        runs.append((flat(agent.policy.parameters()), agent.policy.counters.forward_tokens))
    assert runs[0][1] == runs[1][1] and (runs[0][0] - runs[1][0]).abs().max() < 1e-6


def test_models_that_cannot_be_packed_are_refused():
    with pytest.raises(ValueError, match="packing needs full attention in every layer, which MistralForCausalLM has"):
        sft("sliding", packing=True)
    model = tiny_model("gpt2")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="packing needs attn_implementation 'sdpa' or 'eager', the model has 'flash"):
        sft(model, packing=True)


def test_the_fused_form_needs_no_packing():
    agent = sft("llama", dtype="float32", packing=True)
    assert isinstance(agent.policy.decoder.forward, FusedLlama) and agent._packed is None


lengths = st.lists(st.integers(0, 30), min_size=1, max_size=40)


@given(lengths)
def test_packed_texts_do_not_overlap_and_waste_little(lengths):
    width = max(*lengths, 1)
    row, start = pack(lengths, width)
    taken = [(r, s + i) for r, s, n in zip(row.tolist(), start.tolist(), lengths, strict=True) for i in range(n)]
    assert len(set(taken)) == len(taken) == sum(lengths) and all(place < width for _, place in taken)
    used = len({r for r, _ in taken})
    assert used <= 1 or used * width < 2 * sum(lengths)  # all rows but the last are over half full, and more


def test_a_text_wider_than_the_rows_is_refused():
    with pytest.raises(ValueError, match="width must be at least the longest text's, 5, got 4"):
        pack([3, 5], 4)


# --- filling in the middle --------------------------------------------------------------------------------------------

SUMS = [Demonstration(f"{a}+{a}=", f"<answer>{2 * a}</answer>") for a in range(100, 140)]


def filling(**config):
    mdp = TextMDP("arithmetic", max_prompt_tokens=16, max_new_tokens=16)
    return SFT("tiny", mdp, SUMS, **({"seed": 0, "device": "cpu", "fim": 0.5} | config))


def cut_rows(agent):
    """Which rows of the running pass are cut, with their tokens."""
    batch = agent._batch(torch.arange(len(SUMS)))
    tokens = agent.mdp.codec.tokenizer
    texts = [tokens.decode(row[:n]) for row, n in zip(batch.tokens, batch.lengths, strict=True)]
    return {i: text for i, text in enumerate(texts) if "<|fim_prefix|>" in text}, batch


def test_middle_and_eos_are_learnt_and_the_parts_are_the_text():
    agent = filling(fim=1.0)
    texts, batch = cut_rows(agent)
    assert len(texts) == len(SUMS)
    for i, text in texts.items():
        prefix, rest = text.removeprefix("<bos><|fim_prefix|>").split("<|fim_suffix|>")
        suffix, middle = rest.split("<|fim_middle|>")
        middle = middle.removesuffix("<eos>")
        assert prefix + middle + suffix == SUMS[i].prompt + SUMS[i].completion
        learnt = batch.tokens[i][batch.action_index[i] >= 0]
        assert agent.mdp.codec.tokenizer.decode(learnt) == f"{middle}<eos>"


def test_a_share_is_cut_anew_in_every_pass_and_not_by_the_batch():
    agent = filling()
    first, _ = cut_rows(agent)
    assert 0.25 < len(first) / len(SUMS) < 0.75
    part = agent._batch(torch.tensor(sorted(first)[:2]))
    assert agent.mdp.codec.tokenizer.decode(part.tokens[1][: part.lengths[1]]) == first[sorted(first)[1]]
    agent.learn(epochs=1)
    second, _ = cut_rows(agent)
    assert second != first
    again = filling(batch_size=7, micro_batch_rows=3).learn(epochs=1)
    assert cut_rows(again)[0] == second


def test_no_share_is_no_cut_and_evaluation_never_cuts():
    assert not cut_rows(filling(fim=0.0))[0]
    assert filling(fim=1.0).evaluate(SUMS[:5]) == filling(fim=0.0).evaluate(SUMS[:5])


def test_a_row_that_would_grow_too_long_stays_whole():
    mdp = TextMDP("arithmetic", max_prompt_tokens=9, max_new_tokens=6)
    agent = SFT("tiny", mdp, [Demonstration("100+100=", "<answer>200")], fim=1.0, seed=0, device="cpu")
    assert agent._batch(torch.tensor([0])).tokens.tolist() == [agent.texts[0][0].tokens.tolist()]


def test_training_with_cuts_goes_on_bit_for_bit(tmp_path):
    straight = filling(epochs=2, batch_size=16).learn()
    stopped = filling(epochs=2, batch_size=16).learn(total_timesteps=20)
    stopped.save(tmp_path / "agent")
    loaded = SFT.load(tmp_path / "agent", stopped.mdp, SUMS).learn()
    assert torch.equal(flat(loaded.policy.parameters()), flat(straight.policy.parameters()))


def test_marks_are_settings_and_their_absence_is_one_sentence(tmp_path):
    marks = ("<tool>", "<think>", "</tool>")
    agent = filling(fim=1.0, fim_marks=marks)
    batch = agent._batch(torch.tensor([0]))
    assert agent.mdp.codec.tokenizer.decode(batch.tokens[0]).startswith("<bos><tool>")
    agent.save(tmp_path / "agent")
    assert SFT.load(tmp_path / "agent", agent.mdp).config.fim_marks == marks
    with pytest.raises(ValueError, match="the tokenizer has no known fill-in-the-middle marks"):
        sft(fim=0.1)
    with pytest.raises(ValueError, match=r"fim must be in \[0, 1\], got 1.5"):
        sft(fim=1.5)
