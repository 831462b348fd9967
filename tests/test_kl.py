"""KL: numerics, and by enumeration what the gradient of each estimator is in the loss and in the reward."""

import doctest
import importlib
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgym.kl import adapt_beta, exact_kl, kl_estimate
from llmgym.losses import reinforce_loss

KINDS = ("k1", "k2", "k3")


def test_doctests():
    assert doctest.testmod(importlib.import_module("llmgym.kl")).failed == 0


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(f, x):
    """∇f at x by autograd, on a fresh leaf."""
    x = x.detach().clone().requires_grad_()
    (g,) = torch.autograd.grad(f(x), x)
    return g


# --- numerics ---


@settings(deadline=None)
@given(st.floats(-60, 60), st.floats(-60, 60))
def test_k2_and_k3_are_never_negative(logp, ref_logp):
    for dtype in (torch.float32, torch.float64):
        x, y = torch.tensor([logp], dtype=dtype), torch.tensor([ref_logp], dtype=dtype)
        k1, k2, k3 = (kl_estimate(x, y, k) for k in KINDS)
        assert k1 == x - y and k2 >= 0 and k3 >= 0
        assert all(kl_estimate(x, x, k) == 0 for k in KINDS)


def test_k3_is_accurate_where_the_policies_nearly_agree():
    log_ratio = torch.tensor([1e-4])  # exp(x) - 1 - x in float32 would be 1e-8 or so of noise around 5e-9
    k3 = kl_estimate(-log_ratio, torch.zeros(1), "k3")
    assert k3.item() == pytest.approx(5e-9, rel=1e-2)


def test_masked_tokens_are_ignored():
    logp = torch.tensor([-1.0, math.nan, -math.inf], requires_grad=True)
    mask = torch.tensor([True, False, False])
    for kind in KINDS:
        logp.grad = None
        kl = kl_estimate(logp, torch.tensor([-2.0, -1.0, math.nan]), kind, mask)
        kl.sum().backward()
        assert kl.isfinite().all() and kl[1:].tolist() == logp.grad[1:].tolist() == [0, 0]


def test_the_reference_carries_no_gradient():
    logp, ref_logp = draw(4).requires_grad_(), draw(4, seed=1).requires_grad_()
    for kind in KINDS:
        kl_estimate(logp, ref_logp, kind).sum().backward()
    assert ref_logp.grad is None


def test_half_precision_is_computed_in_float32():
    x, y = draw(5).bfloat16(), draw(5, seed=1).bfloat16()
    assert kl_estimate(x, y, "k3").dtype == exact_kl(x, y).dtype == torch.float32


def test_exact_kl_with_forbidden_tokens():
    logits = torch.tensor([[0.0, 1.0, -math.inf]], requires_grad=True)
    ref = torch.tensor([[2.0, 1.0, -math.inf]])
    kl = exact_kl(logits, ref)
    kl.sum().backward()
    torch.testing.assert_close(kl, exact_kl(logits[:, :2], ref[:, :2]))
    assert logits.grad.isfinite().all() and exact_kl(ref, ref) == 0
    torch.testing.assert_close(exact_kl(logits.log_softmax(-1), ref + 3), kl)
    assert exact_kl(torch.zeros(2), torch.tensor([0.0, -math.inf])) == math.inf


# --- enumeration: two letters and EOS, at most three tokens, so that the policy decides the length ---

V, T, EOS = 3, 3, 2
PREFIXES = [p for n in range(T) for p in itertools.product(range(EOS), repeat=n)]  # the 7 states
ENDED = [(*p, EOS) for p in PREFIXES]
TEXTS = [*ENDED, *itertools.product(range(EOS), repeat=T)]  # 7 that end with EOS and 8 that are cut
MASK = torch.tensor([[t < len(text) for t in range(T)] for text in TEXTS])
TOKENS = torch.tensor([(*text, *[0] * (T - len(text))) for text in TEXTS])
STATE = torch.tensor([[PREFIXES.index(text[:t]) if t < len(text) else 0 for t in range(T)] for text in TEXTS])
THETA, REF = draw(len(PREFIXES), V), draw(len(PREFIXES), V, seed=1)  # logits of the next token in each state


def token_logp(theta):
    """log π of each token of each text, [15, 3]; 0 behind the end."""
    return torch.where(MASK, theta.log_softmax(-1)[STATE, TOKENS], 0.0)


def chance(theta):
    """P(text), [15]."""
    return token_logp(theta).sum(-1).exp()


def visits(theta):
    """d(s) = P(the text begins with s), [7]: from the next-token tables, without the list of texts."""
    p = theta.softmax(-1)
    d = {(): torch.ones((), dtype=theta.dtype)}
    for prefix in PREFIXES[1:]:
        d[prefix] = d[prefix[:-1]] * p[PREFIXES.index(prefix[:-1]), prefix[-1]]
    return torch.stack([d[prefix] for prefix in PREFIXES])


def per_token(theta, kind):
    """The estimate, or the exact KL of the state, at each token, [15, 3]."""
    if kind == "exact":
        return torch.where(MASK, exact_kl(theta, REF)[STATE], 0.0)
    return kl_estimate(token_logp(theta), token_logp(REF), kind, MASK)


def kl_of_texts(theta):
    p, q = token_logp(theta).sum(-1), token_logp(REF).sum(-1)
    return (p.exp() * (p - q)).sum()


def value(theta, kind):
    """E[Σ_t k_t], as a function of the policy that samples and that is compared."""
    return (chance(theta) * per_token(theta, kind).sum(-1)).sum()


def at_visited_states(theta, reverse):
    """Σ_s d(s) KL(π(·|s), π_ref(·|s)) with d fixed, or with the two swapped."""
    kl = exact_kl(REF, theta) if reverse else exact_kl(theta, REF)
    return (visits(THETA) * kl).sum()


def in_the_loss(kind):
    """What the docstring says of the gradient as a loss term."""
    if kind == "k1":
        return torch.zeros_like(THETA)
    return gradient(lambda theta: at_visited_states(theta, reverse=kind == "k3"), THETA)


def in_the_reward(kind):
    """What the docstring says of the gradient as a penalty."""
    if kind == "k1":
        return gradient(kl_of_texts, THETA)
    if kind == "k2":
        return gradient(lambda theta: value(theta, "k2"), THETA) - in_the_loss("k2")
    return gradient(kl_of_texts, THETA) - in_the_loss(kind)


each_kind = pytest.mark.parametrize("kind", [*KINDS, "exact"])


def assert_equal(ours, expected):
    torch.testing.assert_close(ours, expected, atol=1e-14, rtol=1e-12)


def test_the_enumeration_is_complete():
    assert len(TEXTS) == len(set(TEXTS)) == 15 and chance(THETA).sum().item() == pytest.approx(1, abs=1e-14)
    assert_equal(visits(THETA).sum(), (chance(THETA) * MASK.sum(-1)).sum())  # both are E[length]


@each_kind
def test_value(kind):
    """All but k2 are unbiased for the KL of whole texts; k3 of a sum is not the sum of k3."""
    exact = kl_of_texts(THETA)
    assert math.isclose(value(THETA, kind), exact, rel_tol=1e-12) == (kind != "k2")
    assert_equal(at_visited_states(THETA, reverse=False), exact)  # the chain rule of KL


@each_kind
def test_gradient_in_the_loss(kind):
    """E[Σ_t ∇k_t]: the texts are given, the estimate is differentiated."""
    p = chance(THETA)
    ours = gradient(lambda theta: (p * per_token(theta, kind).sum(-1)).sum(), THETA)
    assert_equal(ours, in_the_loss(kind))


@each_kind
@pytest.mark.parametrize("whole_episode", [False, True])
def test_gradient_in_the_reward(kind, whole_episode):
    """REINFORCE with reward -k_t: with what a token costs from now on, or with what the whole text costs."""
    reward = -per_token(THETA, kind)
    to_go = reward.flip(-1).cumsum(-1).flip(-1)
    returns = reward.sum(-1, keepdim=True).expand_as(reward) if whole_episode else to_go
    weighted = chance(THETA)[:, None] * returns  # a batch that is the whole distribution

    def loss(theta):
        return reinforce_loss(token_logp(theta), weighted, MASK, normalize="constant", denominator=1)

    assert_equal(gradient(loss, THETA), in_the_reward(kind))


@each_kind
def test_both_places_together_are_the_gradient_of_the_value(kind):
    assert_equal(in_the_loss(kind) + in_the_reward(kind), gradient(lambda theta: value(theta, kind), THETA))


def test_no_two_of_the_gradients_are_the_same():
    """So that none of the equalities above holds by accident."""
    different = [in_the_loss(k) for k in ("k1", "k2", "k3")] + [in_the_reward(k) for k in (*KINDS, "exact")]
    for one, two in itertools.combinations(different, 2):
        assert (one - two).abs().max() > 1e-3
    assert torch.equal(in_the_loss("k2"), in_the_loss("exact"))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_in_the_loss_with_the_whole_text_as_one_action(kind):
    """The same, with a single state: 0, ∇KL(π, π_ref), ∇KL(π_ref, π) of texts."""
    p = chance(THETA)

    def estimate(theta):
        return (p * kl_estimate(token_logp(theta).sum(-1), token_logp(REF).sum(-1), kind)).sum()

    def reverse(theta):
        q, ref = token_logp(theta).sum(-1), token_logp(REF).sum(-1)
        return (ref.exp() * (ref - q)).sum()

    exact = {"k1": lambda theta: 0 * theta.sum(), "k2": kl_of_texts, "k3": reverse}[kind]
    assert_equal(gradient(estimate, THETA), gradient(exact, THETA))


# --- the weight ---


@pytest.mark.parametrize(
    "kl, factor",
    [(6.0, 1.0), (6.6, 1.01), (5.4, 0.99), (7.2, 1.02), (100.0, 1.02), (0.0, 0.98), (-1.0, 0.98)],
)
def test_the_weight_follows_the_error_up_to_a_fifth(kl, factor):
    assert adapt_beta(0.3, kl, 6.0, horizon=10_000, n=1_000) == pytest.approx(0.3 * factor, rel=1e-12)


def test_the_weight_settles_where_the_kl_is_the_target():
    """A policy whose KL falls with the weight, kl = 1/β: the controller finds β = 1/target from either side."""
    for beta in (0.01, 10.0):
        for _ in range(1_000):
            beta = adapt_beta(beta, 1 / beta, 4.0, horizon=10, n=1)
        assert beta == pytest.approx(0.25, rel=1e-3)


# --- the door ---

X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: kl_estimate(X, X, "k4"), "kind.*k1.*'k4'"),
        (lambda: kl_estimate(X, X[0], "k1"), "ref_logp must have shape"),
        (lambda: exact_kl(X, X[0]), "ref_logits must have shape"),
        (lambda: adapt_beta(0.0, 1.0, 1.0, horizon=10, n=1), "beta must be above 0 and finite, got 0.0"),
        (lambda: adapt_beta(1.0, 1.0, -1.0, horizon=10, n=1), "target must be above 0 and finite, got -1.0"),
        (lambda: adapt_beta(1.0, math.nan, 1.0, horizon=10, n=1), "kl must be finite, got nan"),
        (lambda: adapt_beta(1.0, 1.0, 1.0, horizon=math.inf, n=1), "horizon must be above 0 and finite, got inf"),
        (lambda: adapt_beta(1.0, 1.0, 1.0, horizon=10, n=11), r"n must be in \[0, horizon = 10\], got 11"),
    ],
)
def test_errors_name_the_value_and_what_is_allowed(call, words):
    with pytest.raises(ValueError, match=words):
        call()
