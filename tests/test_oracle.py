"""The oracle: against definitions written another way, and against sampling."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from toys import Failing, Replying, Words, no_repeat
from worlds import A4, B4, EOS4, Bigram, four_mdp, lm_policy, rows

from llmgym.mdp import ScorerFailed
from llmgym.oracle import Oracle
from llmgym.rollout import rollout
from llmgym.tasks import Problem
from llmgym.text import TextMDP

PROBLEM = Problem("ab=", "ab")
TABLE = torch.tensor([[0.1, 1.0, -0.5, 0.3], [0.7, -1.0, 0.2, 0.0], [-0.2, 0.4, 1.5, -1.0], [0.6, 0.1, 0.9, -0.7]])
TABLE = TABLE.double()


def table(prefixes):
    return TABLE[[p[-1] for p in prefixes]]


def completions(vocab=4, length=3):
    """Every completion of the world of four tokens, by definition."""
    ends = (t for n in range(length) for t in itertools.product(range(1, vocab), repeat=n))
    return [(*t, EOS4) for t in ends] + list(itertools.product(range(1, vocab), repeat=length))


def probability(tokens, first=3):
    p = TABLE.softmax(-1)
    return math.prod(float(p[a, b]) for a, b in zip((first, *tokens), tokens, strict=False))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_completion_once_with_its_probability_and_return(size):
    oracle = Oracle(four_mdp(block_size=size), PROBLEM, table)
    found = {sum((step.tokens for step in e), ()): i for i, e in enumerate(oracle.episodes)}
    assert set(found) == set(completions()) and len(oracle.episodes) == 40
    assert list(found) == sorted(found)  # lexicographic
    p, returns = oracle.logp().exp(), oracle.returns
    torch.testing.assert_close(p.sum(), torch.tensor(1.0).double(), rtol=0, atol=1e-14)
    for tokens, i in found.items():
        assert float(p[i]) == pytest.approx(probability(tokens), rel=1e-12)
        assert float(returns[i]) == oracle.mdp.task.function(PROBLEM, "", tokens)


def test_values_of_a_two_token_world_by_hand():
    """Reward 1 for the completion "b" alone: V and Q are products of two table entries."""
    mdp = four_mdp(max_new_tokens=2, reward=lambda problem, text, tokens: float(tokens == (B4, EOS4)))
    oracle, p = Oracle(mdp, PROBLEM, table), TABLE.softmax(-1)
    start = oracle.start
    after_b = mdp.transition(start, B4)
    assert oracle.value(after_b) == pytest.approx(float(p[B4, EOS4]), rel=1e-12)
    assert oracle.q(start, B4) == pytest.approx(float(p[B4, EOS4]), rel=1e-12) and oracle.q(start, A4) == 0
    assert oracle.value(start) == pytest.approx(float(p[3, B4] * p[B4, EOS4]), rel=1e-12)
    assert oracle.q(after_b, EOS4) == 1 and oracle.value(mdp.transition(after_b, EOS4)) == 0


@pytest.mark.parametrize("size", [1, 2, 3])
def test_bellman_equations_hold_in_every_state(size):
    oracle = Oracle(four_mdp(block_size=size), PROBLEM, table)
    values, p = oracle.values(), oracle.logp().exp()
    assert list(values)[-1] == oracle.start and set(values) == set(oracle.states)
    assert oracle.value(oracle.start) == pytest.approx(float(oracle.expected_return().detach()), rel=1e-12)
    for state in oracle.states:
        through = [i for i, e in enumerate(oracle.episodes) if any(s.state == state for s in e)]
        expected = (p[through] * oracle.returns[through]).sum() / p[through].sum()  # E[R | state]: no reward before
        assert values[state] == pytest.approx(float(expected), rel=1e-10)


def test_the_value_of_a_state_does_not_depend_on_the_block_size():
    token, block = (Oracle(four_mdp(block_size=k), PROBLEM, table).values() for k in (1, 2))
    assert len(block) < len(token)
    for state, value in block.items():
        assert token[state] == pytest.approx(value, rel=1e-12)


def test_an_illegal_action_is_worth_the_failing_reward():
    oracle = Oracle(four_mdp(banned_tokens=["b"], reward=None), PROBLEM, table)
    assert oracle.q(oracle.start, B4) == Words.failing_reward


def test_a_state_outside_the_tree_is_said():
    oracle, other = Oracle(four_mdp(), PROBLEM, table), four_mdp()
    with pytest.raises(ValueError, match="no action leads from the start to the state with tokens"):
        oracle.value(other.start(Problem("b=")))


def test_kl_by_definition():
    oracle = Oracle(four_mdp(), PROBLEM, table)

    def reference(prefixes):
        return -0.5 * table(prefixes)

    logp, ref_logp = oracle.logp(), oracle.logp(reference)
    expected = sum(float(p) * float(a - b) for p, a, b in zip(logp.exp(), logp, ref_logp, strict=True))
    assert float(oracle.kl(reference)) == pytest.approx(expected, rel=1e-12) and expected > 0.1
    assert float(oracle.kl(table)) == 0.0


def test_kl_ignores_what_the_policy_never_does():
    oracle = Oracle(
        four_mdp(), PROBLEM, lambda prefixes: table(prefixes).index_fill(-1, torch.tensor([B4]), -torch.inf)
    )
    assert 0 < float(oracle.kl(table)) < math.inf
    assert float(Oracle(four_mdp(), PROBLEM, table).kl(oracle.policy)) == math.inf


@pytest.mark.parametrize(
    "rules",
    [
        {"banned_tokens": ["="]},
        {"min_new_tokens": 2},
        {"block_size": 2, "stop": "a"},
        {"block_size": 3, "stop": [1, 2]},
        {"block_size": 2, "constraint": lambda state, tokens: np.arange(4) != ((*state.tokens, *tokens)[-1] or 9)},
    ],
    ids=["banned", "minimum", "stop", "random length", "grammar"],
)
def test_masks_and_stop_rules_are_the_environments(rules):
    """The tree is what random play of the real environment finds: legal actions only, the same rewards."""
    mdp = four_mdp(**rules)
    start = mdp.start(PROBLEM, key=3)
    oracle = Oracle(mdp, start, table)
    tree = {(s.state, s.tokens): (s.reward, s.next_state) for e in oracle.episodes for s in e}
    seen = set()
    rng = np.random.default_rng(0)
    for _ in range(1000):
        state = start
        while not mdp.terminal(state):
            action = rng.choice(4, size=mdp.block_size, p=[0.1, 0.3, 0.3, 0.3]).tolist()
            following = mdp.transition(state, action)
            if following.finish_reason == "illegal":
                break
            step = (state, following.tokens[len(state.tokens) :])
            assert tree[step] == (mdp.reward(state, action, following), following)
            seen.add(step)
            state = following
    assert float(oracle.logp().exp().sum()) == pytest.approx(1, abs=1e-12)
    assert seen == set(tree)


def test_what_the_task_replies_is_state_not_choice():
    mdp = four_mdp(task=Replying(), reward=None, max_new_tokens=5)
    oracle = Oracle(mdp, Problem("b="), table)
    assert float(oracle.logp().exp().sum()) == pytest.approx(1, abs=1e-12)
    replied = next(s for e in oracle.episodes for s in e if not all(s.next_state.chosen[2:]))
    assert replied.tokens == (EOS4,)
    tokens = [t for s in oracle.episodes[0] for t in s.tokens]
    assert len(tokens) == sum(oracle.episodes[0][-1].next_state.chosen)


# --- gradients ------------------------------------------------------------------------------------------------------


def test_policy_gradient_is_the_slope_of_the_expected_return():
    mdp = four_mdp()
    policy = lm_policy(mdp)
    oracle, weight = Oracle(mdp, PROBLEM, policy), policy.model.lm_head.weight
    (gradient,) = oracle.policy_gradient([weight])
    direction = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = []
    for h in (1e-5, -1e-5):
        with torch.no_grad():
            weight += h * direction
            ends.append(float(oracle.expected_return()))
            weight -= h * direction
    assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float((gradient * direction).sum()), rel=1e-6)


def test_the_gradient_of_what_plays_no_part_is_zero():
    theta, unused = TABLE.clone().requires_grad_(), torch.ones(2, requires_grad=True)
    oracle = Oracle(four_mdp(), PROBLEM, lambda prefixes: theta[[p[-1] for p in prefixes]])
    gradient, zero = oracle.policy_gradient([theta, unused])
    assert gradient.abs().max() > 1e-3 and torch.equal(zero, torch.zeros(2))
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(4).double(), rtol=0, atol=1e-14)  # softmax


@pytest.mark.parametrize("size", [1, 2, 3])
def test_variance_by_definition_and_what_a_baseline_does_to_it(size):
    theta = TABLE.clone().requires_grad_()
    oracle = Oracle(four_mdp(block_size=size), PROBLEM, lambda prefixes: theta[[p[-1] for p in prefixes]])

    def by_definition(baseline):
        logp, p = oracle.logp(), oracle.logp().exp().detach()
        g = torch.stack([torch.autograd.grad(x, theta, retain_graph=True)[0].flatten() for x in logp])
        g = g * (oracle.returns - baseline)[:, None]  # one reward at the end: every action has the same return to go
        centred = g - (p[:, None] * g).sum(0)
        return float((p * centred.square().sum(1)).sum())

    plain, mean = (oracle.gradient_variance([theta], b) for b in (0.0, 0.3))
    assert plain == pytest.approx(by_definition(0.0), rel=1e-9) and mean == pytest.approx(by_definition(0.3), rel=1e-9)
    value = oracle.gradient_variance([theta], oracle.values().__getitem__)
    assert value < plain
    if size == 3:  # one state: V(s) is a number
        assert value == pytest.approx(by_definition(oracle.value(oracle.start)), rel=1e-9)


# --- with a language model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7}, {"top_k": 2}, {"top_p": 0.8}])
def test_a_language_model_policy_has_its_own_distribution(settings):
    """Sampling agrees: 4,000 episodes, frequencies within five standard errors."""
    mdp = four_mdp(max_new_tokens=2)
    policy = lm_policy(mdp, **settings)
    oracle = Oracle(mdp, PROBLEM, policy)
    batch = rollout(rows(mdp, 4000), policy, [PROBLEM] * 4000)
    texts = [tuple(t[3:n].tolist()) for t, n in zip(batch.tokens, batch.lengths, strict=True)]
    for episode, logp in zip(oracle.episodes, oracle.logp().tolist(), strict=True):
        tokens, p = sum((step.tokens for step in episode), ()), math.exp(logp)
        assert abs(texts.count(tokens) / 4000 - p) <= 5 * math.sqrt(p * (1 - p) / 4000), tokens
    assert abs(float(batch.returns.mean()) - oracle.value(oracle.start)) < 0.06


def test_an_environment_a_bigram_model_and_current_parameters():
    env = rows(four_mdp(), 1)
    policy = lm_policy(env, Bigram(TABLE))
    oracle = Oracle(env, PROBLEM, policy)
    torch.testing.assert_close(oracle.logp(), Oracle(env.mdp, PROBLEM, table).logp())
    policy.model.table.data.zero_()
    assert float(oracle.logp()[0].detach()) == pytest.approx(math.log(1 / 4))


# --- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3])
def test_too_large_a_tree_is_refused_with_its_size(size):
    with pytest.raises(ValueError, match=r"more than max_actions = 20 actions: 4 tokens .* allow up to 40 texts"):
        Oracle(four_mdp(block_size=size), PROBLEM, table, max_actions=20)
    Oracle(four_mdp(block_size=size), PROBLEM, table, max_actions=52 if size == 1 else 40)


def test_a_hopeless_size_is_refused_at_once(tokenizer):
    mdp = TextMDP(Words(), tokenizer=tokenizer, max_new_tokens=4096, max_prompt_tokens=6)
    with pytest.raises(ValueError, match=r"max_new_tokens = 4096 allow some 7\^4096 texts"):
        Oracle(mdp, PROBLEM, table, max_actions=500)


def test_a_finished_start_and_a_scorer_that_fails_are_errors():
    mdp = four_mdp()
    with pytest.raises(ValueError, match="the start is a terminal state"):
        Oracle(mdp, mdp.transition(mdp.start(PROBLEM), EOS4), table)
    with pytest.raises(ScorerFailed):
        Oracle(four_mdp(task=Failing(), reward=None), PROBLEM, table)


def test_a_state_in_mid_episode_is_a_start(tokenizer):
    mdp = TextMDP(Words(), tokenizer=tokenizer, max_new_tokens=3, max_prompt_tokens=6, constraint=no_repeat)
    state = mdp.transition(mdp.start(PROBLEM), 2)
    oracle = Oracle(mdp, state, lambda prefixes: torch.zeros(len(prefixes), 8))
    assert all(e[0].state == state for e in oracle.episodes)
    assert float(oracle.logp().exp().sum()) == pytest.approx(1, abs=1e-6)
