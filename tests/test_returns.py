"""Returns, GAE, group advantages: sums by hand, a naive reference on thousands of random flag patterns."""

import doctest
import importlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgym.returns import discounted_returns, gae, group_advantages


def test_doctests():
    module = importlib.import_module("llmgym.returns")
    assert doctest.testmod(module).failed == 0


def t64(x):
    return torch.tensor(x, dtype=torch.float64)


# --- returns ---


def test_returns_by_hand_on_a_ragged_batch():
    rewards = t64([[1.0, 2.0, 4.0], [3.0, 5.0, math.nan], [math.inf, 7.0, 7.0]])
    mask = torch.arange(3) < torch.tensor([3, 2, 0])[:, None]
    assert discounted_returns(rewards, mask).tolist() == [[7, 6, 4], [8, 5, 0], [0, 0, 0]]
    assert discounted_returns(rewards, mask, gamma=0.5).tolist() == [[3, 4, 4], [5.5, 5, 0], [0, 0, 0]]
    bootstrap = t64([0.0, 8.0, math.nan])  # after the last action that counts, not after the padding
    assert discounted_returns(rewards, mask, gamma=0.5, bootstrap=bootstrap)[1].tolist() == [7.5, 9, 0]


def test_a_masked_place_is_as_if_it_were_not_there():
    rewards, mask = t64([[1.0, 99.0, 2.0, 99.0]]), torch.tensor([[True, False, True, False]])
    assert discounted_returns(rewards, mask, gamma=0.5).tolist() == [[2, 0, 2, 0]]


def test_zero_sum_play_is_a_discount_of_minus_one():
    assert discounted_returns(t64([[0, 0, 1.0]]), torch.ones(1, 3), gamma=-1.0).tolist() == [[1, -1, 1]]


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.floats(0.1, 1.0))
def test_discounting_by_tokens_is_the_same_in_tokens_blocks_and_one_sequence(lengths, gamma):
    n = sum(lengths)
    tokens = t64([[0.0] * (n - 1) + [1.0]])  # the reward falls on the last token
    by_token = discounted_returns(tokens, torch.ones(1, n), gamma=gamma)[0]
    starts = np.cumsum([0, *lengths[:-1]])
    blocks = t64([[0.0] * (len(lengths) - 1) + [1.0]])
    by_block = discounted_returns(blocks, torch.ones_like(blocks), gamma=gamma, durations=torch.tensor([lengths]))[0]
    one = discounted_returns(t64([[1.0]]), torch.ones(1, 1), gamma=gamma, durations=torch.tensor([[n]]))[0]
    torch.testing.assert_close(by_block, by_token[starts])
    torch.testing.assert_close(one, by_token[:1])


# --- GAE ---


def naive_gae(rewards, values, mask, gamma, lam, bootstrap, durations, terminated, truncated, final_values):
    """O(N²), from the definition: A_t = Σ_l (Π γ^d λ) δ_{t+l} up to the end of the episode; all rows at once."""
    rows, n = mask.shape
    advantages = np.zeros((rows, n))
    for start in range(n):
        weight = np.where(mask[:, start], 1.0, 0.0)
        for t in range(start, n):
            next_value = bootstrap
            for later in reversed(range(t + 1, n)):
                next_value = np.where(mask[:, later], values[:, later], next_value)
            next_value = np.where(truncated[:, t], final_values[:, t], next_value)
            next_value = np.where(terminated[:, t], 0.0, next_value)
            discount, reward = gamma ** durations[:, t], gamma ** (durations[:, t] - 1) * rewards[:, t]
            delta = reward + discount * next_value - values[:, t]
            advantages[:, start] += np.where(mask[:, t], weight * delta, 0.0)
            weight = np.where(mask[:, t], weight * discount * lam, weight)
            weight = np.where(mask[:, t] & (terminated | truncated)[:, t], 0.0, weight)
    return advantages


SETTINGS = [(1.0, 1.0), (0.9, 0.95), (0.99, 0.0), (0.0, 0.5), (1.0, 0.5), (-1.0, 0.9)]  # γ and λ


@pytest.mark.parametrize("by_tokens", [False, True])
@pytest.mark.parametrize("seed", range(len(SETTINGS)))
def test_gae_agrees_with_the_naive_reference_on_random_flags(seed, by_tokens):
    """12 x 2,000 rows, more than 10,000 of which differ in padding, holes, terminations, truncations or bootstrap."""
    rng = np.random.default_rng([seed, by_tokens])
    rows, n = 2_000, 10
    rewards, values, final_values = rng.normal(size=(3, rows, n))
    bootstrap = rng.normal(size=rows) * (rng.random(rows) < 0.5)
    durations = rng.integers(1, 5, size=(rows, n)) if by_tokens else np.ones((rows, n), int)
    terminated, truncated = rng.random((2, rows, n)) < rng.random((2, rows, 1)) ** 2
    mask = np.arange(n) < rng.integers(0, n + 1, size=(rows, 1))
    mask &= rng.random((rows, n)) < rng.choice([0.7, 1.0], size=(rows, 1))
    gamma, lam = SETTINGS[seed]
    patterns = np.hstack([mask, mask & terminated, mask & truncated & ~terminated, bootstrap[:, None] != 0])
    assert len(np.unique(patterns, axis=0)) >= 10_000 / (2 * len(SETTINGS))

    def garbage(x, keep):
        return torch.tensor(np.where(keep, x, rng.choice([math.nan, math.inf, 1e30], size=x.shape)))

    advantages, returns = gae(
        garbage(rewards, mask),
        garbage(values, mask),
        torch.tensor(mask),
        gamma=gamma,
        lam=lam,
        bootstrap=garbage(bootstrap, mask.any(-1)),
        durations=torch.tensor(durations) if by_tokens else None,
        terminated=torch.tensor(terminated),
        truncated=torch.tensor(truncated),
        final_values=garbage(final_values, mask & truncated & ~terminated),
    )
    naive = naive_gae(rewards, values, mask, gamma, lam, bootstrap, durations, terminated, truncated, final_values)
    np.testing.assert_allclose(advantages.numpy(), naive, atol=1e-12)
    np.testing.assert_allclose(returns.numpy(), np.where(mask, naive + values, 0), atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (1, 1)])
def test_the_smallest_batches(shape):
    advantages, returns = gae(torch.ones(shape), torch.ones(shape), torch.ones(shape), gamma=0.5)
    assert advantages.tolist() == torch.zeros(shape).tolist() and returns.tolist() == torch.ones(shape).tolist()


def test_mixed_types_are_computed_in_the_wider_one():
    rewards, values, mask, bootstrap = random_batch()
    options = {"gamma": 0.9, "lam": 0.9, "bootstrap": bootstrap}
    for r, v in ((rewards, values.float()), (rewards.float(), values)):
        for mixed, wide in zip(gae(r, v, mask, **options), gae(r.double(), v.double(), mask, **options), strict=True):
            assert mixed.dtype == torch.float64
            torch.testing.assert_close(mixed, wide, atol=1e-14, rtol=0)


def random_batch(seed=0, rows=6, n=5):
    g = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, rows, n, dtype=torch.float64, generator=g)
    bootstrap = torch.randn(rows, dtype=torch.float64, generator=g)
    mask = torch.arange(n) < torch.randint(0, n + 1, (rows, 1), generator=g)
    return rewards, values, mask, bootstrap


def test_gae_with_lambda_one_is_returns_minus_values():
    rewards, values, mask, bootstrap = random_batch()
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=1.0, bootstrap=bootstrap)
    expected = discounted_returns(rewards, mask, gamma=0.9, bootstrap=bootstrap)
    torch.testing.assert_close(returns, expected)
    torch.testing.assert_close(advantages, torch.where(mask, expected - values, 0.0))


def test_gae_with_lambda_zero_is_the_one_step_error():
    rewards, values, _, bootstrap = random_batch()
    advantages, _ = gae(rewards, values, torch.ones_like(rewards), gamma=0.9, lam=0.0, bootstrap=bootstrap)
    next_values = torch.cat([values[:, 1:], bootstrap[:, None]], -1)
    torch.testing.assert_close(advantages, rewards + 0.9 * next_values - values)


def test_a_fragment_is_its_episodes_laid_end_to_end():
    """Termination bootstraps with 0, truncation with the value of the last state, the end with bootstrap."""
    rewards, values = t64([[1.0, 1.0, 1.0, 1.0, 1.0]]), t64([[0.5, 0.5, 0.5, 0.5, 0.5]])
    terminated = torch.tensor([[False, True, False, False, False]])
    truncated = torch.tensor([[False, False, False, True, False]])
    options = {"gamma": 0.5, "bootstrap": t64([16.0])}
    returns = discounted_returns(
        rewards, rewards, terminated=terminated, truncated=truncated, final_values=8 * rewards, **options
    )
    assert returns.tolist() == [[1.5, 1, 3.5, 5, 9]]
    _, same = gae(
        rewards,
        values,
        rewards,
        terminated=terminated,
        truncated=truncated,
        final_values=8 * rewards,
        **options,
    )
    torch.testing.assert_close(same, returns)


def test_exact_values_have_advantage_zero_for_every_lambda():
    rewards = t64([[0.0, 0.0, 1.0]])
    values = discounted_returns(rewards, torch.ones(1, 3), gamma=0.9)
    for lam in (0.0, 0.5, 1.0):
        advantages, _ = gae(rewards, values, torch.ones(1, 3), gamma=0.9, lam=lam)
        torch.testing.assert_close(advantages, torch.zeros_like(rewards))


def test_nothing_carries_a_gradient_and_nothing_is_mutated():
    rewards, values, mask, bootstrap = random_batch()
    before = [x.clone() for x in (rewards, values, mask, bootstrap)]
    advantages, returns = gae(rewards, values.requires_grad_(), mask, bootstrap=bootstrap)
    assert not advantages.requires_grad and not returns.requires_grad
    assert all(torch.equal(x, y) for x, y in zip((rewards, values, mask, bootstrap), before, strict=True))


def test_dtypes():
    ones = torch.ones(1, 2)
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.int64, torch.float32)):
        advantages, returns = gae(ones.to(dtype), ones.to(dtype), ones, gamma=0.5)
        assert advantages.dtype == returns.dtype == expected
        assert group_advantages(torch.tensor([[0, 1]]).to(dtype)).dtype == expected
    third = discounted_returns(ones.double(), ones, gamma=1 / 3, durations=torch.tensor([[3, 3]]))
    assert third[0, 0].item() == pytest.approx(3**-2 + 3**-5, rel=1e-15)


# --- groups ---


def test_group_advantages_by_hand():
    assert group_advantages(t64([[1.0, 2.0, 3.0]])).tolist() == [[-1, 0, 1]]
    assert group_advantages(t64([[1.0, 2.0, 6.0]]), normalize="none").tolist() == [[-2, -1, 3]]
    leave_one_out = group_advantages(t64([[1.0, 2.0, 6.0]]), normalize="none", baseline="leave_one_out")
    torch.testing.assert_close(leave_one_out, t64([[1 - 4, 2 - 3.5, 6 - 1.5]]))


def test_a_group_of_one_is_zero():
    for baseline in ("mean", "leave_one_out"):
        for normalize in ("std", "none"):
            assert group_advantages(t64([[5.0]]), baseline=baseline, normalize=normalize).tolist() == [[0]]


@settings(deadline=None)
@given(st.floats(-1e6, 1e6, width=32), st.integers(1, 33), st.sampled_from([torch.float32, torch.float64]))
def test_groups_of_equal_returns_are_exactly_zero(value, size, dtype):
    for baseline in ("mean", "leave_one_out"):
        for normalize in ("std", "none"):
            returns = torch.full((2, size), value, dtype=dtype)
            advantages = group_advantages(returns, baseline=baseline, normalize=normalize)
            assert torch.equal(advantages, torch.zeros_like(returns))


def test_returns_that_differ_by_rounding_are_equal():
    assert group_advantages(t64([[0.1 + 0.2, 0.3, 0.3, 0.3]])).tolist() == [[0, 0, 0, 0]]
    assert group_advantages(t64([[1e-9, 0.0]])).abs().min() > 0.7  # but a scale is no rounding


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3, width=32) | st.sampled_from([0.0, 1.0]), min_size=2, max_size=16),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_standardised_advantages_are_bounded_centred_and_of_unit_deviation(returns, dtype):
    advantages = group_advantages(torch.tensor([returns], dtype=dtype))[0].double()
    size = len(returns)
    assert advantages.abs().max() <= (size - 1) / math.sqrt(size) * (1 + 1e-6)
    assert abs(advantages.sum()) < 1e-5
    assert (advantages == 0).all() or abs(advantages.std() - 1) < 1e-5


def test_one_success_in_a_group_reaches_the_bound():
    returns = torch.zeros(1, 16, dtype=torch.float64)
    returns[0, 3] = 1.0
    assert group_advantages(returns).max().item() == pytest.approx(15 / 4)


def test_leave_one_out_is_the_return_minus_the_mean_of_the_others_to_double_precision():
    returns = torch.randn(1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    others = (returns.sum() - returns) / 3
    advantages = group_advantages(returns, normalize="none", baseline="leave_one_out")
    torch.testing.assert_close(advantages, returns - others, rtol=1e-13, atol=1e-13)


def test_small_differences_of_large_returns_are_not_lost():
    returns = 2.0**20 + t64([[0, 0, 2.0**-29]])  # eight units in the last place
    torch.testing.assert_close(group_advantages(returns), group_advantages(t64([[0, 0, 1.0]])))


def test_shifting_or_scaling_the_returns_changes_nothing():
    returns = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(group_advantages(7 * returns - 3), group_advantages(returns))


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("normalize", ["std", "none"])
def test_a_dropped_row_is_as_if_it_were_not_there(baseline, normalize):
    returns = t64([[1.0, math.nan, 2.0, 6.0], [math.inf, 1.0, math.nan, 5.0], [math.nan] * 4])
    mask = torch.tensor([[True, False, True, True], [False, True, False, True], [False] * 4])
    options = {"baseline": baseline, "normalize": normalize}
    advantages = group_advantages(returns, mask=mask, **options)
    assert (advantages[~mask] == 0).all()
    for row in range(2):
        torch.testing.assert_close(
            advantages[row][mask[row]], group_advantages(returns[row][mask[row]][None], **options)[0]
        )


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("normalize", ["std", "none"])
def test_groups_by_index_in_any_order_and_of_any_size(baseline, normalize):
    returns = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    groups, mask = torch.tensor([7, 2, 7, 2, 7, 5, 2, 7, 7]), torch.arange(9) != 4
    options = {"baseline": baseline, "normalize": normalize}
    advantages = group_advantages(returns, groups, mask=mask, **options)
    for group in (2, 5, 7):
        rows = (groups == group) & mask
        torch.testing.assert_close(advantages[rows], group_advantages(returns[rows][None], **options)[0])
    assert advantages[4] == 0
    table = returns.view(3, 3)
    by_index = group_advantages(returns, torch.arange(3).repeat_interleave(3), **options)
    torch.testing.assert_close(by_index.view(3, 3), group_advantages(table, **options))


@pytest.mark.parametrize("baseline, scale", [("mean", 2 / 3), ("leave_one_out", 1.0)])
def test_expected_policy_gradient_of_a_group_by_enumeration(baseline, scale):
    """All 4³ groups of three samples of four arms: leave-one-out is unbiased, the mean shrinks by (G-1)/G."""
    theta = t64([0.3, -0.5, 1.0, 0.2]).requires_grad_()
    reward, arms = t64([1.0, 0.0, 0.5, -2.0]), torch.cartesian_prod(*[torch.arange(4)] * 3)
    logp = theta.log_softmax(-1)
    advantages = group_advantages(reward[arms], normalize="none", baseline=baseline)
    chance = logp.detach()[arms].sum(-1).exp()
    estimate = (chance * (advantages * logp[arms]).mean(-1)).sum()
    (gradient,) = torch.autograd.grad(estimate, theta, retain_graph=True)
    (exact,) = torch.autograd.grad((logp.exp() * reward).sum(), theta)
    torch.testing.assert_close(gradient, scale * exact)


# --- the door ---

X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: gae(X, X, X, gamma=1.1), r"gamma must be in \[-1, 1\], got 1.1"),
        (lambda: gae(X, X, X, lam=-0.1), r"lam must be in \[0, 1\], got -0.1"),
        (lambda: gae(X, X[:, :2], X), r"values must have shape \(2, 3\), got \(2, 2\)"),
        (lambda: gae(X, X, X, bootstrap=X), r"bootstrap must have shape \(2,\), got \(2, 3\)"),
        (lambda: gae(X, X, X, truncated=X), "final_values"),
        (lambda: gae(X, X, X, terminated=X[0]), r"terminated must have shape \(2, 3\), got \(3,\)"),
        (lambda: discounted_returns(X, X, durations=X[:1]), "durations must have shape"),
        (lambda: group_advantages(X, normalize="max"), "normalize must be one of .*std.*'max'"),
        (lambda: group_advantages(X, baseline="value"), "baseline must be one of .*mean.*'value'"),
        (lambda: group_advantages(X[0]), r"\[P, G\], or \[B\] with groups"),
        (lambda: group_advantages(X[0], X), "groups and returns"),
        (lambda: group_advantages(X, mask=X[0]), "must have shape"),
        (lambda: group_advantages(X / 0), "finite"),
    ],
)
def test_errors_name_the_value_and_what_is_allowed(call, words):
    with pytest.raises(ValueError, match=words):
        call()
