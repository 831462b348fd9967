"""REINFORCE: its expected gradient is ∇E[R], exactly."""

from __future__ import annotations

import pytest
import torch
from toys import Words
from worlds import assert_gradients, every_episode, expected_gradient, flat, four_mdp, lm_policy, rows

from llmgym.agents import REINFORCE
from llmgym.agents.part import Part
from llmgym.oracle import Oracle
from llmgym.tasks import Problem

AB = Problem("ab=", "ab")
GRANULARITIES = [{"block_size": 1}, {"block_size": 2}, {"block_size": 3}, {"block_size": 3, "stop": "a"}]
each_granularity = pytest.mark.parametrize("world", GRANULARITIES, ids=["token", "block", "sequence", "stop rule"])


def agent_of(world, policy=None, **config):
    mdp = four_mdp(**world)
    policy = policy or lm_policy(mdp, value_head=config.get("baseline") == "value")
    return REINFORCE(policy, rows(mdp, 1), **({"prompts": 4, "seed": 0} | config))


def value_head_of_anything(agent):
    """Random values: a baseline may be wrong without biasing anything."""
    with torch.no_grad():
        agent.policy.value_head.weight.normal_(generator=torch.Generator().manual_seed(0))


# --- the expected gradient, by enumeration ---------------------------------------------------------------------------


@each_granularity
def test_without_a_baseline_the_expected_gradient_is_that_of_the_expected_return(world):
    agent = agent_of(world, baseline="none")
    oracle, batch = every_episode(agent, AB)
    gradient = expected_gradient(agent, oracle, batch, size=1)
    assert_gradients(gradient, oracle.policy_gradient(agent.policy.parameters()), scale=-1.0)


@each_granularity
def test_the_mean_of_the_other_rows_does_not_bias_it(world):
    agent = agent_of(world | {"max_new_tokens": 2, "block_size": min(world["block_size"], 2)}, baseline="mean")
    oracle, batch = every_episode(agent, AB)
    gradient = expected_gradient(agent, oracle, batch, size=2)
    assert_gradients(gradient, oracle.policy_gradient(agent.policy.parameters()), scale=-1.0)


@each_granularity
def test_a_wrong_value_does_not_bias_it(world):
    agent = agent_of(world, baseline="value", value_weight=0.0)
    value_head_of_anything(agent)
    oracle, batch = every_episode(agent, AB)
    gradient = expected_gradient(agent, oracle, batch, size=1)
    assert_gradients(gradient, oracle.policy_gradient(agent.policy.parameters()), scale=-1.0)


@pytest.mark.parametrize("normalize", ["rows", "actions"])
def test_the_mean_over_actions_of_a_row_is_biased_where_the_policy_chooses_the_length(normalize):
    """The documented bias, by hand: an episode of N tokens weighs 1/N (one row: both normalisations agree)."""
    agent = agent_of({}, baseline="none", normalize=normalize)
    oracle, batch = every_episode(agent, AB)
    gradient = expected_gradient(agent, oracle, batch, size=1)
    logp = oracle.logp()
    lengths = torch.tensor([len(e) for e in oracle.episodes])
    expected = torch.autograd.grad(
        (logp.exp().detach() * oracle.returns / lengths * logp).sum(), agent.policy.parameters()
    )
    assert_gradients(gradient, expected, scale=-1.0)
    cosine = torch.cosine_similarity(flat(gradient), -flat(oracle.policy_gradient(agent.policy.parameters())), 0)
    assert cosine < 0.99


def test_the_spread_of_its_estimate_is_the_oracles_variance():
    agent = agent_of({"max_new_tokens": 2}, baseline="none")
    oracle, batch = every_episode(agent, AB)
    p, parameters = oracle.logp().exp().tolist(), agent.policy.parameters()
    estimates = []
    for row in range(len(batch)):
        part = batch.select(torch.tensor([row]))
        evaluation = agent.policy.evaluate(part)
        given = Part(part, agent.advantages(part, {}), None, None)
        loss, _ = agent.loss(given, evaluation, evaluation.logp.detach(), agent.denominator(part))
        estimates.append(flat(torch.autograd.grad(loss, parameters)))
    mean = sum(w * g for w, g in zip(p, estimates, strict=True))
    variance = sum(w * float((g - mean).square().sum()) for w, g in zip(p, estimates, strict=True))
    assert oracle.gradient_variance(parameters) == pytest.approx(variance, rel=1e-9)
    assert oracle.gradient_variance(parameters, oracle.values().__getitem__) < variance


# --- granularity ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", ["none", "mean"])
def test_without_discounting_the_gradient_of_a_batch_is_the_same_at_every_granularity(baseline):
    gradients = []
    for size in (1, 2, 3):
        agent = agent_of({"block_size": size}, baseline=baseline)
        _, batch = every_episode(agent, AB)
        evaluation = agent.policy.evaluate(batch)
        given = Part(batch, agent.advantages(batch, {}), None, None)
        loss, _ = agent.loss(given, evaluation, evaluation.logp.detach(), agent.denominator(batch))
        gradients.append(torch.autograd.grad(loss, agent.policy.parameters()))
    for other in gradients[1:]:
        assert_gradients(other, gradients[0])


# --- advantages and losses by hand ----------------------------------------------------------------------------------


def test_returns_to_go_are_discounted_by_actions():
    agent = agent_of({}, baseline="none", gamma=0.5)
    _, batch = every_episode(agent, AB)
    advantages = agent.advantages(batch, {})
    for row, n in enumerate(batch.mask.sum(1).tolist()):
        expected = [float(batch.returns[row]) * 0.5 ** (n - 1 - i) for i in range(n)]
        assert advantages[row, :n].tolist() == pytest.approx(expected, rel=1e-6)


def test_the_mean_baseline_leaves_the_row_itself_out():
    agent = agent_of({"block_size": 3}, baseline="mean")
    _, batch = every_episode(agent, AB)
    part = batch.select(torch.tensor([0, 5, 9]))
    r = part.returns.tolist()
    expected = [r[0] - (r[1] + r[2]) / 2, r[1] - (r[0] + r[2]) / 2, r[2] - (r[0] + r[1]) / 2]
    assert agent.advantages(part, {})[:, 0].tolist() == pytest.approx(expected, rel=1e-5)


def test_a_row_alone_has_no_other_rows_to_compare_with():
    agent = agent_of({"block_size": 3}, baseline="mean")
    _, batch = every_episode(agent, AB)
    part = batch.select(torch.tensor([3]))
    assert agent.advantages(part, {}).tolist() == part.rewards.tolist() != [[0.0]]


def test_the_value_learns_the_return_and_the_policy_learns_the_rest():
    agent = agent_of({}, baseline="value", value_weight=0.25)
    value_head_of_anything(agent)
    _, batch = every_episode(agent, AB)
    evaluation = agent.policy.evaluate(batch)
    returns = agent.advantages(batch, {})
    loss, metrics = agent.loss(Part(batch, returns, None, None), evaluation, evaluation.logp, torch.tensor(40))
    mask, error = batch.mask, returns - evaluation.values
    by_hand = 0.25 * error.square()[mask].sum() / 40 - (evaluation.logp * error.detach())[mask].sum() / 40
    assert float(loss.detach()) == pytest.approx(float(by_hand.detach()), rel=1e-10)
    assert metrics["value_loss"] == pytest.approx(float(error.square()[mask].sum().detach()) / 40, rel=1e-6)


@pytest.mark.parametrize("normalize", ["rows", "actions", "constant"])
def test_the_entropy_bonus_is_averaged_like_the_rest(normalize):
    agent = agent_of({}, baseline="none", entropy=0.1, normalize=normalize)
    _, batch = every_episode(agent, AB)
    evaluation = agent.policy.evaluate(batch)
    given = Part(batch, torch.zeros_like(batch.rewards), None, None)
    loss, _ = agent.loss(given, evaluation, evaluation.logp, agent.denominator(batch))
    entropy, n = evaluation.entropy.detach(), batch.mask.sum(1)
    mean = {
        "rows": (entropy.sum(1) / n).mean(),
        "actions": entropy.sum() / n.sum(),
        "constant": entropy.sum() / len(batch),
    }
    assert float(loss.detach()) == pytest.approx(-0.1 * float(mean[normalize]), rel=1e-10)


# --- learning -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:every completion ran")  # it learns to
@pytest.mark.parametrize(("size", "baseline"), [(1, "none"), (3, "mean"), (1, "value")])
def test_it_climbs_the_exact_expected_return(size, baseline):
    mdp = four_mdp(
        block_size=size, max_prompt_tokens=5, reward=lambda problem, text, tokens: float(text.startswith("b"))
    )
    policy = lm_policy(mdp, "llama", value_head=baseline == "value")
    oracle = Oracle(mdp, AB, policy)
    before = float(oracle.expected_return().detach())
    agent = REINFORCE(policy, rows(mdp, 1), prompts=32, learning_rate=0.01, seed=0, baseline=baseline)
    agent.learn(total_tokens=2500)
    assert before < 0.6 and float(oracle.expected_return().detach()) > before + 0.3


@pytest.mark.filterwarnings("ignore:every completion ran")
def test_values_come_near_the_exact_ones():
    mdp = four_mdp(max_prompt_tokens=5, reward=lambda problem, text, tokens: float(len(text)))
    agent = REINFORCE(
        lm_policy(mdp, "llama", value_head=True), rows(mdp, 1), baseline="value", prompts=64, learning_rate=0.01, seed=0
    )
    agent.learn(total_tokens=10_000)
    oracle, batch = every_episode(agent, Problem("ab="))
    values, exact = agent.policy.evaluate(batch).values, oracle.values()
    errors = [
        abs(float(values[i, n].detach()) - exact[s.state])
        for i, e in enumerate(oracle.episodes)
        for n, s in enumerate(e)
    ]
    assert sum(errors) / len(errors) < 0.35


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"epochs": 2}, "REINFORCE is on-policy: epochs and minibatches must be 1, got 2 and 1"),
        ({"minibatches": 4}, "epochs and minibatches must be 1, got 1 and 4"),
        ({"gamma": 1.5}, r"gamma must be in \[0, 1\], got 1.5"),
        ({"baseline": "median"}, "baseline must be one of 'none', 'mean', 'value', got 'median'"),
        ({"normalize": "tokens"}, "normalize must be one of 'rows', 'actions', 'constant', got 'tokens'"),
    ],
)
def test_bad_settings_are_said(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        agent_of({}, **config)


def test_a_ready_policy_without_a_value_head_cannot_give_values():
    mdp = four_mdp(task=Words())
    with pytest.raises(ValueError, match="needs a policy with a value head"):
        REINFORCE(lm_policy(mdp), rows(mdp, 1), baseline="value")
