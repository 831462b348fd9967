"""One token stream through token, block and sequence environments: the same return, Σ log π and Σ KL."""

from __future__ import annotations

from functools import cache

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import Replying, Words, newline_or_tag, no_repeat, toy_tokenizer
from worlds import Scripted, lm_policy, rows, tiny_model

import llmgym  # noqa: F401
from llmgym.rollout import rollout
from llmgym.text import TextMDP

N, BUDGET = 4, 9
RULES = {
    "plain": {},
    "masks": {"banned_tokens": ["c"], "min_new_tokens": 3},
    "grammar": {"constraint": no_repeat},
    "replies": {"task": Replying()},
    "replies under a grammar": {"task": Replying(), "constraint": no_repeat, "min_new_tokens": 2},
}
STOPS = [None, "\n", "<t>", newline_or_tag, "random length"]


@cache
def models():
    """A policy's and a reference's model; both take part with any rules."""
    return tiny_model("gpt2", 8, seed=0), tiny_model("gpt2", 8, seed=1)


def mdp_of(rules, size, stop=None):
    stop = [1, max(size - 1, 1)] if stop == "random length" else stop
    world = {"task": Words(), "tokenizer": toy_tokenizer(), "max_prompt_tokens": 6, "max_new_tokens": BUDGET}
    return TextMDP(**(world | RULES[rules]), block_size=size, stop=stop)


def streams_of(rules, seed):
    """Tokens that a policy wrote one by one, so that they obey the rules."""
    mdp = mdp_of(rules, 1)
    batch = rollout(rows(mdp, N), lm_policy(mdp, models()[0], seed=seed), seed=seed)
    chosen = batch.action_index >= 0
    return [t[c].tolist() for t, c in zip(batch.tokens, chosen, strict=True)], batch


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31 - 1),
    rules=st.sampled_from(list(RULES)),
    size=st.integers(1, BUDGET),
    stop=st.sampled_from(STOPS),
    kl=st.sampled_from(["k1", "k2", "k3"]),
    temperature=st.sampled_from([0.7, 1.0]),
)
def test_the_same_stream_has_the_same_return_log_prob_and_divergence(seed, rules, size, stop, kl, temperature):
    streams, played = streams_of(rules, seed)
    results = []
    for mdp in (mdp_of(rules, 1), mdp_of(rules, size, stop), mdp_of(rules, BUDGET)):
        env = rows(mdp, N)
        batch = rollout(env, Scripted(env, streams), seed=seed)
        assert torch.equal(batch.tokens, played.tokens) and torch.equal(batch.returns, played.returns)
        assert batch.infos == played.infos
        policy, reference = (lm_policy(mdp, model, temperature=temperature) for model in models())
        evaluation = policy.evaluate(batch, ref_logp=reference.token_logp(batch), kl=kl)
        sums = [x.sum(1) for x in (evaluation.logp, evaluation.entropy, evaluation.kl, evaluation.n_tokens)]
        results.append(torch.stack(sums).detach())
    for other in results[1:]:
        assert (other - results[0]).abs().max() <= 1e-10


@pytest.mark.parametrize("size", [1, 2, 4, BUDGET])
@pytest.mark.parametrize("seed", range(5))
def test_equal_seeds_sample_equal_texts_at_every_granularity(seed, size):
    """One random number a token and row still writing: without stop rules blocks do not change their order."""
    _, token = streams_of("masks", seed)
    mdp = mdp_of("masks", size)
    batch = rollout(rows(mdp, N), lm_policy(mdp, models()[0], seed=seed), seed=seed)
    assert torch.equal(batch.tokens, token.tokens) and torch.equal(batch.returns, token.returns)
    assert (batch.logp.sum(1) - token.logp.sum(1)).abs().max() <= 1e-10


@pytest.mark.parametrize("size", [2, 4, BUDGET])
def test_fewer_actions_the_same_number_of_tokens(size):
    streams, token = streams_of("plain", 0)
    env = rows(mdp_of("plain", size), N)
    batch = rollout(env, Scripted(env, streams), seed=0)
    assert batch.n_tokens.sum(1).tolist() == token.mask.sum(1).tolist()
    assert batch.mask.sum(1).tolist() == [-(-len(s) // size) for s in streams]


@pytest.mark.parametrize("seed", range(10))
def test_the_registered_environments_agree_on_a_stream_given_to_step(seed):
    """Through `gym.make` and `step`, without any of our rollouts."""
    rng = np.random.default_rng(seed)
    stream = rng.choice([2, 3, 4, 5, 6, 1], size=BUDGET, p=[0.2, 0.2, 0.2, 0.1, 0.15, 0.15])
    outcomes = []
    world = {"task": Words(), "tokenizer": toy_tokenizer(), "max_prompt_tokens": 6, "max_new_tokens": BUDGET}
    for id, size in (("TokenMDP", 1), ("BlockMDP", 2), ("BlockMDP", 4), ("SequenceMDP", BUDGET)):
        env = gym.make(f"llmgym/{id}-v0", **world, **({"block_size": size} if id == "BlockMDP" else {}))
        env.reset(seed=seed)
        total, place, over = 0.0, 0, False
        while not over:
            block = np.resize(stream[place : place + size], size)
            _, reward, over, _, info = env.step(block if size > 1 else block[0])
            total, place = total + reward, place + size
        outcomes.append((total, info["text"], info["n_tokens"], info["finish_reason"], info["reward_terms"]))
    assert all(outcome == outcomes[0] for outcome in outcomes)
