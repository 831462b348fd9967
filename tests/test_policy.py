"""`LMPolicy`: what `act` records is what `evaluate` says, and nothing but the text decides it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from toys import EOS, A, B, C, V, no_repeat, toy_tokenizer
from transformers import AutoModelForCausalLM
from worlds import Bigram, Scripted, four_mdp, lm_policy, rows, tiny_model

from llmgym.losses import kl_estimate
from llmgym.mdp import NoLegalAction
from llmgym.oracle import Oracle
from llmgym.policy import LMPolicy
from llmgym.rollout import rollout
from llmgym.tasks import Problem
from llmgym.text import TextMDP

AB = Problem("ab=", "ab")
PROBLEMS = [AB, Problem("c=", "c"), Problem("abc=", "abc"), Problem("a=", "a"), Problem("bb=", "bb")]
TABLE = 2 * torch.randn(V, V, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def batch_of(mdp, streams, problems=None):
    """The texts that the environment makes of given tokens."""
    env = rows(mdp, len(streams))
    return rollout(env, Scripted(env, streams), problems or [AB] * len(streams))


def sampled(policy, n=5, seed=0):
    return rollout(rows(policy.mdp, n), policy, PROBLEMS[:n], seed=seed)


def largest(a, b):
    return float((a - b).abs().max().detach())


# --- what act records is what evaluate says -------------------------------------------------------------------------

LIMITS = [{}, {"top_k": 3}, {"top_p": 0.7}, {"top_k": 4, "top_p": 0.8}]
RULES = {
    "all": {},
    "short list": {"banned_tokens": [0, 5, 6, 7]},
    "grammar": {"constraint": no_repeat, "min_new_tokens": 2},
}


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_recorded_log_prob_is_the_one_evaluated(kind, rules, temperature, toy):
    for limits, size in zip(LIMITS, (1, 3, 8, 2), strict=True):
        mdp = TextMDP(**toy, block_size=size, **RULES[rules])
        policy = lm_policy(mdp, kind, temperature=temperature, **limits)
        batch = sampled(policy)
        assert largest(policy.evaluate(batch).logp, batch.logp) <= 1e-10
        assert (batch.logp[batch.mask] <= 0).all() and (batch.logp[~batch.mask] == 0).all()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_in_float32_they_differ_by_rounding_only(kind, toy):
    policy = lm_policy(TextMDP(**toy), kind, dtype="float32")
    batch = sampled(policy)
    assert largest(policy.evaluate(batch).logp, batch.logp) <= 2e-5


def test_a_short_list_is_normalised_over_what_is_listed(toy):
    """By hand, on a table: banned tokens have no probability mass to lose."""
    mdp = TextMDP(**toy, banned_tokens=[0, 5, 6, 7])
    policy = lm_policy(mdp, Bigram(TABLE), temperature=0.7)
    batch = batch_of(mdp, [[A, C, EOS]])
    listed = [EOS, A, B, C]
    steps = [(5, A), (A, C), (C, EOS)]
    expected = [(TABLE[a, listed] / 0.7).log_softmax(0)[listed.index(b)] for a, b in steps]
    assert largest(policy.evaluate(batch).logp[0], torch.stack(expected)) <= 1e-14


# --- where each number comes from -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 8])
def test_a_bigram_table_gives_every_log_prob_by_hand(size, toy):
    mdp = TextMDP(**toy, block_size=size)
    policy = lm_policy(mdp, Bigram(TABLE))
    batch = batch_of(mdp, [[A, C, EOS], [B, B, B, A, EOS], [EOS]])
    logp = TABLE.log_softmax(-1)
    evaluation, tokens = policy.evaluate(batch), policy.token_logp(batch)
    for row, stream in enumerate([[A, C, EOS], [B, B, B, A, EOS], [EOS]]):
        steps = list(itertools.pairwise([5, *stream]))
        by_token = [float(logp[a, b]) for a, b in steps]
        spread = [-float((logp[a].exp() * logp[a]).sum()) for a, _ in steps]
        blocks = [slice(i, i + size) for i in range(0, len(stream), size)]
        expected, entropy = (torch.tensor([sum(x[b]) for b in blocks], dtype=TABLE.dtype) for x in (by_token, spread))
        assert largest(evaluation.logp[row, : len(blocks)], expected) <= 1e-13
        assert largest(evaluation.entropy[row, : len(blocks)], entropy) <= 1e-13
        assert tokens[row, 3 : 3 + len(stream)].tolist() == pytest.approx(by_token, abs=1e-13)
    assert (tokens[:, :3] == 0).all()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_changing_a_token_changes_no_log_prob_before_it(kind, toy):
    policy = lm_policy(TextMDP(**toy), kind)
    batch = batch_of(policy.mdp, [[A, B, C, A, B, C, A, EOS]])
    logp = policy.token_logp(batch)
    for place in range(batch.tokens.shape[1]):
        tokens = batch.tokens.clone()
        tokens[0, place] = (tokens[0, place] + 1) % V
        changed = policy.token_logp(replace(batch, tokens=tokens))
        assert torch.equal(changed[:, :place], logp[:, :place])
        assert place < 3 or changed[0, place] != logp[0, place]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_alone_or_padded_beside_longer_rows_is_the_same(kind):
    mdp = four_mdp(tokenizer=toy_tokenizer(), max_prompt_tokens=6, max_new_tokens=24)
    policy = lm_policy(mdp, kind, value_head=True)
    with torch.no_grad():
        policy.value_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    short = [A, C, B, EOS]
    alone = policy.evaluate(batch_of(mdp, [short]))
    for k in range(17):
        together = policy.evaluate(batch_of(mdp, [[B] * (3 + k) + [EOS], short], [PROBLEMS[2], AB]))
        for name in ("logp", "entropy", "values"):
            one, two = getattr(alone, name)[0], getattr(together, name)[1]
            assert largest(one[:4], two[:4]) <= 1e-10


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_garbage_in_padding_changes_nothing_bit_for_bit(kind, toy):
    policy = lm_policy(TextMDP(**toy), kind, value_head=True)
    batch = batch_of(policy.mdp, [[A, C, EOS], [B, B, B, A, B, C, EOS], [EOS]])
    beyond = torch.arange(batch.tokens.shape[1]) >= batch.lengths[:, None]
    results = []
    for garbage in (0, 3, 7):
        evaluation = policy.evaluate(replace(batch, tokens=batch.tokens.masked_fill(beyond, garbage)))
        loss = (evaluation.logp + evaluation.entropy + evaluation.values).masked_fill(~batch.mask, 0).sum()
        gradient = torch.autograd.grad(loss, policy.parameters())
        results.append((evaluation.logp, evaluation.entropy, evaluation.values[batch.mask], *gradient))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("special", [{"pad_token": "<eos>"}, {"pad_token": None}, {"pad_token": "c"}])
def test_the_pad_id_does_not_matter_and_eos_is_learnt(special, toy):
    """Also when EOS pads: the one EOS that was chosen counts, what follows does not."""
    streams = [[A, EOS], [B, B, B, A, EOS]]
    plain = TextMDP(**toy)
    other = TextMDP(**(toy | {"tokenizer": toy_tokenizer(**special)}))
    one, two = (lm_policy(mdp).evaluate(batch_of(mdp, streams)) for mdp in (plain, other))
    assert torch.equal(one.logp, two.logp) and one.n_tokens.tolist() == two.n_tokens.tolist()
    assert two.n_tokens.sum(1).tolist() == [2, 5]
    policy = lm_policy(other, Bigram(TABLE))
    evaluation = policy.evaluate(batch_of(other, streams))
    (gradient,) = torch.autograd.grad(evaluation.logp.sum(), policy.model.table)
    assert gradient[A, EOS] > 0.1 and (gradient[EOS] == 0).all()  # nothing follows EOS


def test_no_token_chosen_is_no_error(toy):
    policy = lm_policy(TextMDP(**toy))
    batch = batch_of(policy.mdp, [[A, EOS]])
    empty = replace(batch, action_index=torch.full_like(batch.action_index, -1))
    assert policy.evaluate(empty).logp.tolist() == [[0.0, 0.0]]


# --- nothing else decides -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_dropout_is_off_and_the_first_ratio_is_exactly_one(kind, dtype, toy):
    model = tiny_model(kind, V)
    assert model.training
    policy = lm_policy(TextMDP(**toy), model, dtype=dtype)
    batch = sampled(policy)
    batch = batch.select(batch.lengths.argsort(descending=True, stable=True))  # the order in which rows are scored
    first, second = policy.evaluate(batch), policy.evaluate(batch)
    assert first.logp.requires_grad and torch.equal(first.logp, second.logp)
    old = torch.zeros_like(first.logp).scatter_add_(1, batch.action_index.clamp(min=0), policy.token_logp(batch))
    assert torch.equal((first.logp - old).exp(), torch.ones_like(old))  # scored without a gradient: the same


def test_bfloat16_models_are_normalised_in_float32(toy):
    policy = lm_policy(TextMDP(**toy), "llama", dtype="bfloat16")
    batch = sampled(policy)
    logits = policy.model(batch.tokens, use_cache=False).logits
    assert logits.dtype == torch.bfloat16
    exact = logits[:, :-1].float().log_softmax(-1).gather(-1, batch.tokens[:, 1:, None])[..., 0]
    ours = policy.token_logp(batch)[:, 1:]
    chosen = batch.action_index[:, 1:] >= 0
    assert ours.dtype == policy.evaluate(batch).logp.dtype == torch.float32
    assert largest(ours[chosen], exact[chosen]) <= 1e-6
    assert largest(policy.evaluate(batch).logp, batch.logp) < 0.2  # the cache differs in bfloat16, by no more


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_cache_never_changes_what_act_says(kind, toy):
    """Observations in any order, restored, repeated: a fresh policy says the same."""
    mdp = TextMDP(**toy, block_size=2)
    policy, rng = lm_policy(mdp, kind), np.random.default_rng(0)
    batch = sampled(policy)
    states = [mdp.start(p).extended(t[len(p.prompt) :]) for p, t in zip(PROBLEMS, batch.tokens.tolist(), strict=True)]
    for _ in range(8):
        picked = [states[i] for i in rng.integers(5, size=rng.integers(1, 5))]
        picked = [mdp.start(s.problem).extended(s.completion[: rng.integers(0, 6)]) for s in picked]
        observations = [mdp.observation(s) for s in picked]
        observation = {k: np.stack([o[k] for o in observations]) for k in observations[0]}
        one, two = (p.act(observation, deterministic=True) for p in (policy, lm_policy(mdp, kind)))
        assert np.array_equal(one.tokens, two.tokens) and np.abs(one.logp - two.logp).max() <= 1e-10


def test_inactive_rows_cost_nothing_and_get_nothing(toy):
    mdp = TextMDP(**toy)
    policy = lm_policy(mdp)
    observation, _ = rows(mdp, 3).reset(options={"problem": PROBLEMS[:3]})
    action = policy.act(observation, np.array([False, True, False]))
    assert policy.counters.as_dict() == {"sampled_tokens": 1, "forward_tokens": 2, "forward_passes": 1, "cache_hits": 0}
    assert action.logp[[0, 2]].tolist() == [[0], [0]] and action.logp[1] < 0 and action.for_env.shape == (3,)


def test_greedy_takes_the_most_probable_allowed_token(toy):
    mdp = TextMDP(**toy, block_size=3, banned_tokens=[int(TABLE[5].argmax())])
    action = lm_policy(mdp, Bigram(TABLE)).act(rows(mdp, 1).reset(seed=0)[0], deterministic=True)
    scores = TABLE.clone()
    scores[:, mdp.constraints.banned] = -torch.inf
    token = 5
    for j in range(3):
        token = int(scores[token].argmax())
        assert action.tokens[0, j] == token
        if token == EOS:
            break


def test_equal_seeds_sample_equal_texts(toy):
    policy = lm_policy(TextMDP(**toy))
    texts = []
    for seed in (1, 1, 2, None):
        policy.seed(seed)
        texts.append(sampled(policy).tokens.tolist())
    assert texts[0] == texts[1] != texts[2]


def test_no_legal_token_is_a_named_error(toy):
    def dead_end(state, tokens):
        return np.full(V, state.n_tokens + len(tokens) < 3)

    policy = lm_policy(TextMDP(**toy, constraint=dead_end, banned_tokens=["<eos>"], block_size=2))
    with pytest.raises(NoLegalAction, match="forbid every token after 3 tokens"):
        sampled(policy)


class RandomGrammar:
    """Allows each token with probability `share`, decided by the text so far alone."""

    def __init__(self, seed, share):
        self.seed, self.share = seed, share

    def __call__(self, state, tokens):
        text = (*state.tokens, *tokens)
        return np.random.default_rng([self.seed, *text]).random(V) < self.share


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31 - 1), st.sampled_from([0.2, 0.4, 0.9]), st.sampled_from([1, 2, 5]))
def test_any_masks_give_finite_numbers_or_the_named_error(seed, share, size):
    mdp = four_mdp(
        tokenizer=toy_tokenizer(),
        max_prompt_tokens=4,
        max_new_tokens=5,
        block_size=size,
        constraint=RandomGrammar(seed, share),
    )
    policy = lm_policy(mdp, Bigram(TABLE), value_head=True)
    try:
        batch = sampled(policy)
    except NoLegalAction as error:
        assert "the constraints forbid every token after" in str(error)
        return
    evaluation = policy.evaluate(batch)
    assert largest(evaluation.logp, batch.logp) <= 1e-10
    loss = evaluation.logp.sum() + evaluation.entropy.sum() + evaluation.values[batch.mask].sum()
    slopes = torch.autograd.grad(loss, policy.parameters())
    assert torch.isfinite(loss) and all(slope.isfinite().all() for slope in slopes)
    assert all(info["finish_reason"] != "illegal" for info in batch.infos)


# --- parts of a batch -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_micro_batches_give_what_the_whole_gives(kind, toy):
    policy = lm_policy(TextMDP(**toy, block_size=2), kind)
    batch = sampled(policy)
    whole, tokens = policy.evaluate(batch), policy.token_logp(batch)
    for size in range(1, 6):
        assert largest(policy.token_logp(batch, size), tokens) <= 1e-12
        for part in torch.arange(5).split(size):
            evaluation, n = policy.evaluate(batch.select(part)), int(batch.mask[part].sum(1).max())
            assert largest(evaluation.logp, whole.logp[part, :n]) <= 1e-12
            assert largest(evaluation.entropy, whole.entropy[part, :n]) <= 1e-12


@pytest.mark.parametrize("size", [1, 2, 8])
def test_values_are_those_of_the_state_before_each_action(size, toy):
    policy = lm_policy(TextMDP(**toy, block_size=size), "gpt2", value_head=True)
    batch = sampled(policy)
    assert (policy.evaluate(batch).values == 0).all()  # a value head starts at zero
    with torch.no_grad():
        policy.value_head.weight.normal_(generator=torch.Generator().manual_seed(1))
    values = policy.evaluate(batch).values
    assert values.dtype == torch.float64 and values.shape == batch.mask.shape
    for row, action in batch.mask.nonzero().tolist():
        end = (batch.action_index[row] == action).nonzero()[0, 0]
        output = policy.model(batch.tokens[row : row + 1, :end], output_hidden_states=True)
        assert largest(values[row, action], policy.value_head(output.hidden_states[-1][0, -1])[0]) <= 1e-10


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_the_divergence_is_formed_per_token_and_then_summed(kind, toy):
    mdp = TextMDP(**toy, block_size=3)
    policy, reference = lm_policy(mdp, "llama"), lm_policy(mdp, "llama", seed=1)
    batch = sampled(policy)
    ref_logp = reference.token_logp(batch)
    kl = policy.evaluate(batch, ref_logp=ref_logp, kl=kind).kl
    per_token = kl_estimate(policy.token_logp(batch), ref_logp, kind)
    for row, action in batch.mask.nonzero().tolist():
        assert largest(kl[row, action], per_token[row, batch.action_index[row] == action].sum()) <= 1e-12
    same = policy.evaluate(batch, ref_logp=policy.token_logp(batch), kl=kind).kl
    assert (same == 0).all()  # KL(π, π) = 0


def test_expected_entropy_is_the_entropy_of_the_completion():
    """The chain rule, by enumeration: conditional entropies on the sampled path sum to the whole on average."""
    mdp = four_mdp(block_size=2)
    policy = lm_policy(mdp)
    oracle = Oracle(mdp, AB, policy)
    batch = batch_of(mdp, [[t for s in e for t in s.tokens] for e in oracle.episodes])
    logp, evaluation = oracle.logp().detach(), policy.evaluate(batch)
    assert largest(evaluation.logp.sum(1), logp) <= 1e-12
    expected = float((logp.exp() * evaluation.entropy.sum(1)).sum().detach())
    assert expected == pytest.approx(float(-(logp.exp() * logp).sum()), rel=1e-12)


def test_entropy_can_be_left_out(toy):
    policy = lm_policy(TextMDP(**toy))
    evaluation = policy.evaluate(sampled(policy), entropy=False)
    assert evaluation.entropy is None and evaluation.values is None and evaluation.kl is None


def test_tokens_that_the_tokenizer_lacks_are_never_sampled_nor_counted(toy):
    """Many models embed more rows than their tokenizer has tokens."""
    mdp = TextMDP(**toy)
    policy = lm_policy(mdp, tiny_model("gpt2", V + 5))
    batch = sampled(policy)
    assert batch.tokens.max() < V and largest(policy.evaluate(batch).logp, batch.logp) <= 1e-10
    logits = policy.model(batch.tokens).logits[0, len(AB.prompt) - 1, :V]
    assert largest(policy.evaluate(batch).logp[0, 0], logits.log_softmax(-1)[batch.tokens[0, len(AB.prompt)]]) <= 1e-10


def test_scoring_is_counted(toy):
    policy = lm_policy(TextMDP(**toy))
    batch = batch_of(policy.mdp, [[A, EOS], [B, B, EOS]])
    policy.evaluate(batch)
    assert (policy.counters.forward_passes, policy.counters.forward_tokens) == (1, 9)


# --- files and bad input --------------------------------------------------------------------------------------------


def test_a_saved_policy_is_a_hugging_face_folder(toy, tmp_path):
    policy = lm_policy(TextMDP(**toy), "llama", value_head=True)
    with torch.no_grad():
        policy.value_head.bias.fill_(3.0)
    batch = sampled(policy)
    policy.save(tmp_path)
    again = LMPolicy(str(tmp_path), policy.mdp, value_head=True, device="cpu", dtype="float64")
    again.load_value_head(tmp_path)
    assert torch.equal(again.evaluate(batch).logp, policy.evaluate(batch).logp)
    assert torch.equal(again.evaluate(batch).values, policy.evaluate(batch).values)
    assert load_file(tmp_path / "value_head.safetensors")["bias"].tolist() == [3.0]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert plain.dtype == torch.float64 and (tmp_path / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"temperature": 0}, "temperature must be above 0"),
        ({"top_k": -2}, "top_k must be at least 0"),
        ({"top_p": 2.0}, r"top_p must be in \(0, 1\]"),
        ({"dtype": "float8"}, "dtype must be one of .* got 'float8'"),
        ({"device": "abacus"}, "device must be 'auto' .* got 'abacus'"),
    ],
)
def test_bad_settings_are_said(bad, sentence, toy):
    with pytest.raises(ValueError, match=sentence):
        lm_policy(TextMDP(**toy), **bad)


def test_a_model_too_small_for_the_tokenizer_is_said(toy):
    with pytest.raises(ValueError, match="the model embeds 4 tokens, but the tokenizer has 8"):
        lm_policy(TextMDP(**toy), tiny_model("gpt2", 4))


def test_the_given_tokenizer_stays_as_it_was(toy):
    tokenizer = toy_tokenizer(pad_token=None)
    policy = lm_policy(TextMDP(**(toy | {"tokenizer": tokenizer})))
    sampled(policy)
    assert tokenizer.pad_token is None and tokenizer.padding_side == "right"
