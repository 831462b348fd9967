"""Distributions over actions: torch's own numbers, in float64, and masks that hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions as torch_distributions

from llmgym.distributions import Bernoulli, Categorical, Gaussian, MultiCategorical, make_head
from llmgym.mdp import NoLegalAction

N = 7
SIZES = [3, 2, 4]


def outputs(*shape, seed=0, scale=2.0):
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()).requires_grad_()


def multi(logits):
    """torch has no such distribution: the sum of its categoricals."""
    return [torch_distributions.Categorical(logits=part) for part in logits.split(SIZES, -1)]


def pairs():
    """Each of ours, what it is made of, and log-prob and entropy by torch."""
    logits, log_std = outputs(N, 9), outputs(9, seed=1)
    plain = torch_distributions.Categorical(logits=logits)
    bits = torch_distributions.Independent(torch_distributions.Bernoulli(logits=logits), 1)
    normal = torch_distributions.Independent(torch_distributions.Normal(logits, log_std.exp()), 1)
    parts = multi(logits)
    return {
        "categorical": (Categorical(logits), [logits], plain.log_prob, plain.entropy),
        "multi": (
            MultiCategorical(logits, SIZES),
            [logits],
            lambda a: sum(part.log_prob(a[:, i]) for i, part in enumerate(parts)),
            lambda: sum(part.entropy() for part in parts),
        ),
        "bernoulli": (Bernoulli(logits), [logits], lambda a: bits.log_prob(a.double()), bits.entropy),
        "gaussian": (Gaussian(logits, log_std), [logits, log_std], normal.log_prob, normal.entropy),
    }


@pytest.mark.parametrize("name", pairs())
def test_log_probs_entropies_and_their_gradients_are_those_of_torch(name):
    ours, leaves, logp, entropy = pairs()[name]
    actions = ours.sample(torch.Generator().manual_seed(3))
    weights = torch.arange(1.0, N + 1).double()
    for one, two in ((ours.logp(actions), logp(actions)), (ours.entropy(), entropy())):
        assert one.shape == (N,) and one.dtype == torch.float64
        assert torch.allclose(one, two, rtol=1e-13, atol=1e-13)
        slopes = [
            torch.autograd.grad(
                (weights * x).sum(), leaves, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for x in (one, two)
        ]
        for a, b in zip(*slopes, strict=True):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", pairs())
def test_the_mode_is_the_most_probable_and_sampling_follows_its_generator(name):
    ours = pairs()[name][0]
    samples = [ours.sample(torch.Generator().manual_seed(seed)) for seed in (0, 0, *range(1, 40))]
    assert torch.equal(samples[0], samples[1]) and not torch.equal(samples[1], samples[2])
    best = ours.logp(ours.mode())
    assert all((ours.logp(actions) <= best + 1e-12).all() for actions in samples)


@pytest.mark.parametrize("name", ["categorical", "multi", "bernoulli"])
def test_samples_are_as_frequent_as_their_probabilities(name):
    n, k = 40_000, 3
    logits = torch.tensor([[0.5, -1.0, 1.5]]).expand(n, k)
    ours = {
        "categorical": Categorical(logits),
        "multi": MultiCategorical(torch.cat([logits, logits[:, :2]], -1), [3, 2]),
        "bernoulli": Bernoulli(logits),
    }[name]
    kinds, counts = torch.unique(ours.sample(torch.Generator().manual_seed(0)), dim=0, return_counts=True)
    p = ours.logp(kinds[torch.arange(n) % len(kinds)])[: len(kinds)].exp()
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-6)
    assert (((counts / n) - p).abs() < 4 * (p * (1 - p) / n).sqrt()).all()


def test_gaussian_samples_have_the_mean_and_the_deviation():
    ours = Gaussian(torch.tensor([[1.0, -2.0]]).expand(40_000, 2), torch.tensor([0.5, -1.0]))
    samples = ours.sample(torch.Generator().manual_seed(0))
    assert torch.allclose(samples.mean(0), torch.tensor([1.0, -2.0]), atol=0.03)
    assert torch.allclose(samples.std(0).log(), torch.tensor([0.5, -1.0]), atol=0.02)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_masks_renormalise_and_leave_no_nan(seed):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, 6))
    mask = torch.as_tensor(rng.random((N, k)) < 0.5)
    mask[torch.arange(N), torch.as_tensor(rng.integers(k, size=N))] = True
    logits = outputs(N, k, seed=seed % 1000, scale=30.0)
    ours = Categorical(logits, mask)
    p = torch.where(mask, (logits - logits.amax()).double().exp(), 0.0)
    p = p / p.sum(-1, keepdim=True)
    assert torch.allclose(ours.all_logp.exp(), p, atol=1e-12)
    assert torch.allclose(ours.entropy(), -torch.xlogy(p, p).sum(-1), atol=1e-12)
    actions = ours.sample(torch.Generator().manual_seed(seed))
    assert mask[torch.arange(N), actions].all() and mask[torch.arange(N), ours.mode()].all()
    (slope,) = torch.autograd.grad((ours.logp(actions) + ours.entropy()).sum(), logits)
    assert slope.isfinite().all() and (slope[~mask] == 0).all()
    assert (ours.all_logp[~mask] == -torch.inf).all()


def test_masks_of_several_choices_are_side_by_side():
    logits = outputs(2, 5)
    mask = torch.tensor([[True, False, True, False, True], [False, True, False, True, True]])
    ours = MultiCategorical(logits, [3, 2], mask)
    first, second = Categorical(logits[:, :3], mask[:, :3]), Categorical(logits[:, 3:], mask[:, 3:])
    actions = torch.tensor([[2, 1], [1, 0]])
    assert torch.equal(ours.logp(actions), first.logp(actions[:, 0]) + second.logp(actions[:, 1]))
    assert torch.equal(ours.entropy(), first.entropy() + second.entropy())
    for seed in range(20):
        drawn = ours.sample(torch.Generator().manual_seed(seed))
        assert mask[:, :3].gather(1, drawn[:, :1]).all() and mask[:, 3:].gather(1, drawn[:, 1:]).all()


@pytest.mark.parametrize("sizes", [[5], [3, 2]])
def test_no_legal_action_is_an_error_with_a_name(sizes):
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 5 - sizes[-1] :] = False
    with pytest.raises(NoLegalAction, match="a row of the action masks allows no action"):
        MultiCategorical(torch.zeros(2, 5), sizes, mask)


@pytest.mark.parametrize(("kind", "entropy"), [(Categorical, 0.0), (Bernoulli, math.log(2))])
def test_extreme_outputs_stay_finite(kind, entropy):
    far = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    ours = kind(far)
    assert float(ours.entropy().detach()) == pytest.approx(entropy, abs=1e-6)
    (slope,) = torch.autograd.grad((ours.entropy() + ours.logp(ours.mode())).sum(), far)
    assert slope.isfinite().all()


@pytest.mark.parametrize(
    ("space", "size", "masks"),
    [
        (spaces.Discrete(4), 4, True),
        (spaces.Discrete(4, start=-2), 4, True),
        (spaces.MultiDiscrete([3, 2]), 5, True),
        (spaces.MultiDiscrete([[3, 2], [2, 2]], start=[[1, 0], [0, -1]]), 9, True),
        (spaces.MultiBinary(3), 3, False),
        (spaces.MultiBinary([2, 2]), 4, False),
        (spaces.Box(-1, 1, (2,), np.float32), 2, False),
        (spaces.Box(np.float64([0.1, -0.1]), np.float64([0.2, 0.0]), dtype=np.float64), 2, False),
        (spaces.Box(-np.inf, 1, (2, 2), np.float32), 4, False),
    ],
    ids=str,
)
def test_a_head_makes_actions_of_its_space(space, size, masks):
    head = make_head(space)
    assert (head.size, head.takes_masks) == (size, masks)
    distribution = head.distribution(outputs(50, size).detach())
    for actions in (distribution.sample(torch.Generator().manual_seed(0)), distribution.mode()):
        assert all(space.contains(action) for action in head.for_env(actions.detach().numpy()))


def test_box_actions_are_clipped_for_the_environment_only():
    head = make_head(spaces.Box(-0.5, 0.5, (2,), np.float32))
    actions = np.float32([[0.4, 3.0], [-2.0, 0.0]])
    assert head.for_env(actions).tolist() == [[pytest.approx(0.4), 0.5], [-0.5, 0.0]]
    assert actions[0, 1] == 3.0  # what is scored stays
    assert head.log_std is not None and head.log_std.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("space", [spaces.Box(0, 3, (2,), np.int64), spaces.Text(3), spaces.Dict(a=spaces.Discrete(2))])
def test_other_spaces_are_refused_by_name(space):
    with pytest.raises(ValueError, match=r"actions must be Discrete, .* got " + type(space).__name__):
        make_head(space)
