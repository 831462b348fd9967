"""GRPO: the expected gradient of every variant by enumeration, its options by hand, and the failures it reports."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import replace

import pytest
import torch
from worlds import assert_gradients, every_episode, expected_gradient, flat, four_mdp, lm_policy, rows

from llmgym.agents import GRPO
from llmgym.agents.part import Part
from llmgym.losses import exact_kl, ppo_loss
from llmgym.oracle import Oracle
from llmgym.policy import LMPolicy
from llmgym.tasks import Problem

AB = Problem("ab=", "ab")
TWO = {"max_new_tokens": 2}  # 13 completions: pairs of them are few
GRANULARITIES = [{"block_size": 1}, {"block_size": 2}, {"block_size": 2, "stop": "a"}]
each_granularity = pytest.mark.parametrize("world", GRANULARITIES, ids=["token", "sequence", "stop rule"])
UNBIASED = {"scale": "none", "baseline": "leave_one_out", "normalize": "constant"}


def agent_of(world, policy=None, **config):
    mdp = four_mdp(**(TWO | world))
    defaults = {"prompts": 2, "samples": 2, "beta": 0.0, "seed": 0}
    return GRPO(policy or lm_policy(mdp), rows(mdp, 1), **(defaults | config))


def expected(agent, size=2):
    oracle, batch = every_episode(agent, AB)
    return oracle, batch, expected_gradient(agent, oracle, batch, size)


# --- the expected gradient at ratio 1, by enumeration of all pairs ----------------------------------------------------


@each_granularity
def test_without_deviation_and_with_leave_one_out_it_is_that_of_the_expected_return(world):
    """Dr. GRPO's constant, rows times the most possible actions, is all that scales it."""
    agent = agent_of(world, **UNBIASED)
    oracle, _, gradient = expected(agent)
    most = 2 if world["block_size"] == 1 else 1
    assert_gradients(gradient, oracle.policy_gradient(agent.policy.parameters()), scale=-1 / most)


@each_granularity
def test_the_groups_own_mean_shrinks_it(world):
    agent = agent_of(world, **(UNBIASED | {"baseline": "mean"}))
    oracle, _, gradient = expected(agent)
    most = 2 if world["block_size"] == 1 else 1
    assert_gradients(gradient, oracle.policy_gradient(agent.policy.parameters()), scale=-(1 - 1 / 2) / most)


def test_on_sequences_the_mean_over_actions_is_no_bias():
    agent = agent_of({"block_size": 2}, **(UNBIASED | {"normalize": "rows"}))
    oracle, _, gradient = expected(agent)
    assert_gradients(gradient, oracle.policy_gradient(agent.policy.parameters()), scale=-1.0)


def pairs(agent, oracle, weights):
    """-Σ p_i p_j (w_i ∇log p_i + w_j ∇log p_j): the documented expectation, from weights of both rows of a pair."""
    logp = oracle.logp()
    p = logp.exp().detach()
    total = 0.0
    for i, j in itertools.product(range(len(p)), repeat=2):
        a, b = weights(i, j)
        total = total - p[i] * p[j] * (a * logp[i] + b * logp[j])
    return torch.autograd.grad(total, agent.policy.parameters())


def test_the_mean_over_actions_of_a_row_is_biased_on_tokens_as_documented():
    """Per-turn normalisation where the policy chooses when to stop: a token of a longer row weighs less."""
    agent = agent_of({}, **(UNBIASED | {"normalize": "rows"}))
    oracle, batch, gradient = expected(agent)
    r, n = batch.returns, batch.mask.sum(1)
    documented = pairs(agent, oracle, lambda i, j: ((r[i] - r[j]) / n[i] / 2, (r[j] - r[i]) / n[j] / 2))
    assert_gradients(gradient, documented)
    truth = flat(oracle.policy_gradient(agent.policy.parameters()))
    assert torch.cosine_similarity(-flat(gradient), truth, 0) < 0.999


def test_the_mean_over_all_actions_of_the_batch_is_biased_as_documented():
    agent = agent_of({}, **(UNBIASED | {"normalize": "actions"}))
    oracle, batch, gradient = expected(agent)
    r, n = batch.returns, batch.mask.sum(1)
    documented = pairs(agent, oracle, lambda i, j: ((r[i] - r[j]) / (n[i] + n[j]), (r[j] - r[i]) / (n[i] + n[j])))
    assert_gradients(gradient, documented)


@each_granularity
def test_division_by_the_deviation_is_biased_as_documented(world):
    """Of a pair only the winner matters: the advantage is ±1/√2, whatever the returns."""
    agent = agent_of(world, scale="std", baseline="mean", normalize="constant")
    oracle, batch, gradient = expected(agent)
    most = 2 if world["block_size"] == 1 else 1

    def weights(i, j):
        won = math.copysign(1 / math.sqrt(2), batch.returns[i] - batch.returns[j]) if i != j else 0.0
        return won / 2 / most, -won / 2 / most

    assert_gradients(gradient, pairs(agent, oracle, weights))
    truth = flat(oracle.policy_gradient(agent.policy.parameters()))
    assert torch.cosine_similarity(-flat(gradient), truth, 0) < 0.999


@each_granularity
def test_a_larger_group_is_unbiased_too(world):
    agent = agent_of(world | {"max_new_tokens": 1, "block_size": 1, "stop": None}, samples=3, **UNBIASED)
    oracle, _, gradient = expected(agent, size=3)
    assert_gradients(gradient, oracle.policy_gradient(agent.policy.parameters()), scale=-1.0)


@each_granularity
def test_ppo_at_ratio_one_is_the_gradient_of_the_expected_return(world):
    agent = agent_of(world)
    oracle, batch = every_episode(agent, AB)
    logp, p = agent.policy.evaluate(batch).logp, oracle.logp().exp().detach()
    advantages = (p * batch.returns)[:, None].expand(batch.mask.shape)  # weights take part like advantages
    loss = ppo_loss(logp, logp.detach(), advantages, batch.mask, clip=0.2, denominator=1.0, normalize="constant")
    gradient = torch.autograd.grad(loss, agent.policy.parameters())
    assert_gradients(gradient, oracle.policy_gradient(agent.policy.parameters()), scale=-1.0)


# --- the divergence from the reference, by enumeration ---------------------------------------------------------------


def visited_divergence(policy, reference, oracle, reverse):
    """Σ_s P(s) ∇KL at s, the chance of visiting s held fixed; P by the oracle, KL over the whole vocabulary."""
    p = oracle.logp().exp().detach()
    total = 0.0
    for state in oracle.states:
        visits = sum(p[i] for i, e in enumerate(oracle.episodes) if any(s.state == state for s in e))
        ours, theirs = (m.model(torch.tensor([state.tokens])).logits[0, -1] for m in (policy, reference))
        total = total + visits * (exact_kl(theirs.detach(), ours) if reverse else exact_kl(ours, theirs.detach()))
    return torch.autograd.grad(total, policy.parameters())


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_the_divergence_as_a_loss_term_has_the_documented_gradient(kind, size):
    """k1 none, k2 that of KL(π, π_ref), k3 that of KL(π_ref, π); through `evaluate`, at any granularity."""
    mdp = four_mdp(**TWO, block_size=size)
    policy, reference = lm_policy(mdp), lm_policy(mdp, seed=1)
    agent = GRPO(policy, rows(mdp, 1), prompts=1, samples=2, beta=0.0)
    _, batch = every_episode(agent, AB)
    oracle = Oracle(four_mdp(**TWO), AB, policy)
    kl = policy.evaluate(batch, ref_logp=reference.token_logp(batch), kl=kind).kl.sum(1)
    gradient = torch.autograd.grad((oracle.logp().exp().detach() * kl).sum(), policy.parameters())
    if kind == "k1":
        assert flat(gradient).abs().max() <= 1e-13
    else:
        assert_gradients(gradient, visited_divergence(policy, reference, oracle, reverse=kind == "k3"))


def test_the_divergence_in_the_reward_gives_the_gradient_of_the_whole_divergence():
    mdp = four_mdp(**TWO)
    policy, reference = lm_policy(mdp), lm_policy(mdp, seed=1)
    oracle = Oracle(mdp, AB, policy)
    logp, ref_logp = oracle.logp(), oracle.logp(reference)
    score = (logp.exp() * (logp - ref_logp)).detach() * logp  # E[∇log p · k1]
    gradient = torch.autograd.grad(score.sum(), policy.parameters())
    assert_gradients(gradient, torch.autograd.grad(oracle.kl(reference), policy.parameters()))


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_beta_adds_the_divergence_to_the_policy_gradient(kind):
    mdp = four_mdp(**TWO)
    policy, reference = lm_policy(mdp), lm_policy(mdp, seed=1)
    agent = agent_of({}, policy, **UNBIASED, beta=0.3, kl=kind, reference=reference)
    oracle, _, gradient = expected(agent)
    ascent = oracle.policy_gradient(policy.parameters())
    divergence = visited_divergence(policy, reference, oracle, reverse=kind == "k3")
    assert_gradients(gradient, [(0.3 * d - a) / 2 for a, d in zip(ascent, divergence, strict=True)])


# --- the options, by hand --------------------------------------------------------------------------------------------


def ragged(agent, rows_of=(0, 2, 7, 11)):
    """Four rows in two groups, and the log-probs of a policy that has moved since."""
    _, batch = every_episode(agent, AB)
    batch = replace(batch.select(torch.tensor(rows_of)), groups=torch.tensor([0, 0, 1, 1]))
    logp = agent.policy.evaluate(batch).logp.detach()
    return batch, logp


def slopes(agent, batch, logp, old_logp, advantages):
    """d loss / d log π of each action."""
    x = logp.clone().requires_grad_()
    said = replace(agent.policy.evaluate(batch), logp=x)
    loss, metrics = agent.loss(Part(batch, advantages, None, None), said, old_logp, agent.denominator(batch))
    return torch.autograd.grad(loss, x)[0], metrics


@pytest.mark.parametrize("normalize", ["rows", "actions", "constant"])
def test_each_normalisation_by_its_formula(normalize):
    """GRPO: 1/(rows · actions of the row); DAPO: 1/actions of all rows; Dr. GRPO: 1/(rows · most possible)."""
    agent = agent_of({"max_new_tokens": 3}, normalize=normalize)
    batch, logp = ragged(agent)
    n = batch.mask.sum(1, keepdim=True).double()
    advantages = agent.advantages(batch, {})
    weight = {"rows": 1 / (4 * n), "actions": 1 / n.sum(), "constant": 1 / (4 * 3)}[normalize]
    slope, _ = slopes(agent, batch, logp, logp, advantages)
    assert (slope - torch.where(batch.mask, -advantages * weight, 0.0)).abs().max() <= 1e-14
    assert len(n.unique()) > 1


def test_advantages_of_each_variant_by_its_formula():
    for scale, baseline in itertools.product(["std", "none"], ["mean", "leave_one_out"]):
        agent = agent_of({"block_size": 2}, scale=scale, baseline=baseline)
        batch, _ = ragged(agent)
        r = batch.returns.view(2, 2)
        by_hand = r - r.mean(1, keepdim=True) if baseline == "mean" else r - r.flip(1)
        by_hand = by_hand / r.std(1, keepdim=True) if scale == "std" else by_hand
        assert (agent.advantages(batch, {})[:, 0] - by_hand.flatten()).abs().max() <= 1e-12


@pytest.mark.parametrize(
    ("ratio", "advantage", "config", "moves"),
    [
        (1.25, 1.0, {}, False),
        (1.25, 1.0, {"clip_high": 0.28}, True),  # DAPO: clip-higher lets good tokens rise further
        (1.25, 1.0, {"clip": 0.3}, True),
        (1.29, 1.0, {"clip_high": 0.28}, False),
        (1.25, -1.0, {}, True),
        (0.75, 1.0, {}, True),
        (0.75, -1.0, {"clip_high": 0.28}, False),
        (0.75, -1.0, {"clip": 0.3}, True),
    ],
)
def test_clipping(ratio, advantage, config, moves):
    agent = agent_of({}, **config)
    batch, logp = ragged(agent)
    advantages = torch.full_like(logp, advantage)
    slope, metrics = slopes(agent, batch, logp, logp - math.log(ratio), advantages)
    assert (slope[batch.mask].abs() > 1e-9).all() if moves else (slope == 0).all()
    low, high = 1 - agent.config.clip, 1 + (agent.config.clip_high or agent.config.clip)
    assert metrics["clip_fraction"] == float(not low <= ratio <= high)


def test_the_length_normalised_ratio_is_gspos():
    """(π(y)/π_old(y))^(1/|y|): the gradient of an action's log-prob is divided by its tokens."""
    agent = agent_of({"block_size": 3, "max_new_tokens": 3}, length_normalized_ratio=True, clip=0.5)
    batch, logp = ragged(agent, (0, 2, 14, 30))
    n, advantages = batch.n_tokens.double(), torch.ones_like(logp)
    old = logp - 0.3 * n
    slope, metrics = slopes(agent, batch, logp, old, advantages)
    assert (slope - torch.where(batch.mask, -math.exp(0.3) / (n * 4), 0.0)).abs().max() <= 1e-14
    assert len(n.unique()) > 1 and metrics["clip_fraction"] == 0.0
    _, metrics = slopes(agent, batch, logp, logp - 0.5 * n, advantages)
    assert metrics["clip_fraction"] == 1.0


@pytest.mark.parametrize("normalize", ["rows", "actions", "constant"])
def test_the_entropy_bonus_is_averaged_like_the_rest(normalize):
    agent = agent_of({"max_new_tokens": 3}, entropy=0.1, normalize=normalize)
    batch, logp = ragged(agent)
    evaluation = agent.policy.evaluate(batch)
    given = Part(batch, torch.zeros_like(logp), None, None)
    loss, _ = agent.loss(given, evaluation, logp, agent.denominator(batch))
    entropy, n = evaluation.entropy.detach(), batch.mask.sum(1)
    by_hand = {
        "rows": (entropy.sum(1) / n).mean(),
        "actions": entropy.sum() / n.sum(),
        "constant": entropy.sum() / (4 * 3),
    }
    assert float(loss.detach()) == pytest.approx(-0.1 * float(by_hand[normalize]), rel=1e-10)


OPTIONS = [
    {"normalize": "constant", "scale": "none"},
    {"normalize": "actions", "clip_high": 0.28, "beta": 0.0},
    {"baseline": "leave_one_out", "scale": "none"},
    {"length_normalized_ratio": True, "clip": 3e-4},
    {"kl": "k2"},
    {"kl": "k1", "beta": 0.2},
    {"entropy": 0.01, "temperature": 0.7},
    {"epochs": 2, "minibatches": 2, "micro_batch_rows": 1},
    {"max_grad_norm": 0.0},
]


@pytest.mark.filterwarnings("ignore:all rewards:RuntimeWarning", "ignore:every completion:RuntimeWarning")
@pytest.mark.parametrize("config", OPTIONS, ids=str)
@pytest.mark.parametrize("size", [1, 2])
def test_every_option_trains(config, size):
    mdp = four_mdp(block_size=size, max_prompt_tokens=5)
    seen = []
    agent = GRPO(
        lm_policy(mdp, temperature=config.get("temperature", 1.0)),
        rows(mdp, 1),
        **({"prompts": 2, "samples": 4, "seed": 0} | config),
    )
    before = flat(agent.policy.parameters())
    agent.learn(total_tokens=30, callback=lambda agent, metrics, batch: seen.append(metrics))
    assert all(math.isfinite(x) for metrics in seen for x in metrics.values())
    assert (flat(agent.policy.parameters()) - before).abs().max() > 0


@pytest.mark.filterwarnings("ignore:every completion:RuntimeWarning", "ignore:all rewards:RuntimeWarning")
@pytest.mark.parametrize("size", [1, 3])
def test_it_climbs_the_exact_expected_return(size):
    mdp = four_mdp(
        block_size=size, max_prompt_tokens=5, reward=lambda problem, text, tokens: float(text.startswith("b"))
    )
    policy = lm_policy(mdp, "llama")
    oracle = Oracle(mdp, AB, policy)
    before = float(oracle.expected_return().detach())
    GRPO(policy, rows(mdp, 1), prompts=4, samples=8, learning_rate=0.01, seed=0).learn(total_tokens=2000)
    assert before < 0.6 and float(oracle.expected_return().detach()) > before + 0.3


# --- ratios ----------------------------------------------------------------------------------------------------------


def steps_of(agent):
    """The (log-prob, old log-prob) pairs that the loss sees in one update."""
    seen, loss = [], agent.loss

    def watched(part, evaluation, old_logp, denominator):
        seen.append((evaluation.logp.detach(), old_logp))
        return loss(part, evaluation, old_logp, denominator)

    agent.loss = watched
    agent.update(agent.collect())
    return seen


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("config", [{}, {"epochs": 2}, {"epochs": 2, "micro_batch_rows": 3}], ids=str)
def test_the_first_ratio_is_exactly_one_and_later_ones_are_not(config, dtype):
    mdp = four_mdp(max_prompt_tokens=5)
    agent = GRPO(lm_policy(mdp, "llama", dtype=dtype), rows(mdp, 1), prompts=2, samples=4, seed=0, **config)
    seen = steps_of(agent)
    first = seen[: len(seen) // config.get("epochs", 1)]
    assert all(torch.equal(logp, old) for logp, old in first)
    assert len(first) == len(seen) or not any(torch.equal(logp, old) for logp, old in seen[len(first) :])


def test_minibatches_see_the_old_log_probs_of_their_rows():
    mdp = four_mdp(max_prompt_tokens=5)
    agent = GRPO(lm_policy(mdp), rows(mdp, 1), prompts=2, samples=4, seed=0, minibatches=4, learning_rate=1e-9)
    for logp, old in steps_of(agent):
        assert (logp - old).abs().max() <= 1e-6


def test_behaviour_and_evaluation_agree_in_the_metrics():
    mdp = four_mdp(max_prompt_tokens=5)
    agent = GRPO(lm_policy(mdp), rows(mdp, 1), prompts=2, samples=4, seed=0)
    metrics = agent.update(agent.collect())
    assert metrics["ratio"] == 1.0 and metrics["behaviour_gap"] <= 1e-12 and metrics["clip_fraction"] == 0.0
    assert metrics["kl"] == 0.0  # the reference is the policy so far


# --- failures that the user sees --------------------------------------------------------------------------------------


def constant_agent(reward=1.0, **config):
    mdp = four_mdp(max_prompt_tokens=5, reward=lambda problem, text, tokens: reward)
    return GRPO(lm_policy(mdp), rows(mdp, 1), **({"prompts": 2, "samples": 4, "seed": 0} | config))


@pytest.mark.parametrize("reward", [1.0, 0.1, 1e9 + 0.1])
def test_groups_of_equal_reward_give_no_gradient_at_all_and_warn_once(reward):
    agent = constant_agent(reward, beta=0.0)
    before = flat(agent.policy.parameters())
    with pytest.warns(RuntimeWarning, match="all rewards of every group are equal"):
        metrics = agent.update(agent.collect())
    assert metrics["grad_norm"] == 0.0 and metrics["equal_groups"] == 1.0
    assert torch.equal(flat(agent.policy.parameters()), before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent.update(agent.collect())


def test_with_a_reference_only_the_divergence_is_left():
    agent = constant_agent(beta=0.5)
    with pytest.warns(RuntimeWarning, match="all rewards of every group are equal"):
        metrics = agent.update(agent.collect())
    assert metrics["grad_norm"] <= 1e-12 and metrics["loss"] == 0.0


@pytest.mark.parametrize(("banned", "warned"), [(["<eos>"], True), ([], False)])
def test_completions_that_never_end_warn_once(banned, warned):
    mdp = four_mdp(max_prompt_tokens=5, banned_tokens=banned, max_new_tokens=5)
    agent = GRPO(lm_policy(mdp), rows(mdp, 1), prompts=2, samples=4, seed=0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        shares = [agent.update(agent.collect())["truncated"] for _ in range(2)]
    sentences = [str(w.message) for w in said]
    assert sentences == ["every completion ran into max_new_tokens: none ended by itself"] * warned
    assert (shares == [1.0, 1.0]) == warned


@pytest.mark.parametrize("given", ["policy", "model", "another policy over the same model"])
def test_a_reference_that_is_the_policy_becomes_a_frozen_copy(given):
    mdp = four_mdp(max_prompt_tokens=5)
    policy = lm_policy(mdp)
    reference = {"policy": policy, "model": policy.model}.get(given) or LMPolicy(policy.model, mdp, dtype="float64")
    with pytest.warns(RuntimeWarning, match="its KL would always be 0, a frozen copy is used"):
        agent = GRPO(policy, rows(mdp, 1), prompts=2, samples=4, seed=0, reference=reference)
    before = flat(policy.parameters())
    agent.update(agent.collect())
    assert agent.reference.model is not policy.model
    assert torch.equal(flat(list(agent.reference.model.parameters())), before)
    assert agent.update(agent.collect())["kl"] > 0


def test_the_default_reference_is_a_frozen_copy_at_the_same_temperature():
    mdp = four_mdp(max_prompt_tokens=5)
    agent = GRPO(lm_policy(mdp, temperature=0.7), rows(mdp, 1), prompts=1, samples=2)
    assert agent.reference.temperature == 0.7 and agent.reference.dtype == torch.float64
    assert not any(p.requires_grad for p in agent.reference.model.parameters())
    assert agent.reference.counters is agent.policy.counters
    assert GRPO(lm_policy(mdp), rows(mdp, 1), prompts=1, samples=2, beta=0.0).reference is None


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"samples": 1}, "samples must be at least 2: a group of one has no advantage, got 1"),
        ({"beta": -0.1}, "beta must be at least 0, got -0.1"),
        ({"clip": 0.0}, "clip must be above 0, got 0.0"),
        ({"clip_high": -0.2}, "clip_high must be above 0, got -0.2"),
        ({"kl": "k4"}, "kl must be one of 'k1', 'k2', 'k3', 'exact', got 'k4'"),
        ({"scale": "mad"}, "scale must be one of 'std', 'none', got 'mad'"),
        ({"baseline": "value"}, "baseline must be one of 'mean', 'leave_one_out', got 'value'"),
        ({"normalize": None}, "normalize must be one of 'rows', 'actions', 'constant', got None"),
    ],
)
def test_bad_settings_are_said(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        agent_of({}, **config)
