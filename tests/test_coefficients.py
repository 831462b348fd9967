"""Gradient coefficients: d loss / d logp is -GC times the weight of the action, by autograd, to 1e-10 in float64."""

import itertools
import math

import pytest
import torch

from llmgym import losses
from llmgym.coefficients import gradient_coefficients

B, N = 12, 9
NORMALIZE = ("rows", "actions", "constant")


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch(seed):
    """log-probs around the old ones, ratios from 0.3 to 3 and a few beyond e^20; a ragged mask, garbage behind it."""
    old = draw(B, N, seed=seed)
    logp = old + 0.4 * draw(B, N, seed=seed + 100)
    logp[0, 0], logp[1, 0] = old[0, 0] + 25, old[1, 0] - 25
    ref, advantages = logp + draw(B, N, seed=seed + 200), draw(B, N, seed=seed + 300)
    ref[0, 1] = logp[0, 1] + 25
    advantages[2] = 0
    mask = torch.arange(N) < torch.randint(0, N + 1, (B, 1), generator=torch.Generator().manual_seed(seed))
    mask[:3, :2] = True
    return *(torch.where(mask, x, math.nan) for x in (logp, old, ref, advantages)), mask


def assert_coefficients(loss, logp, mask, coefficients, normalize, denominator):
    """Autograd of `loss(logp)` against -GC · w, w being the slope of the mean itself."""
    logp = logp.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(logp), logp)
    ones = torch.ones_like(logp).requires_grad_()
    (weight,) = torch.autograd.grad(losses.aggregate(ones, mask, denominator, normalize), ones)
    assert (coefficients[~mask] == 0).all() and not coefficients.requires_grad
    torch.testing.assert_close(slope, -coefficients * weight, atol=1e-10, rtol=0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("normalize", NORMALIZE)
def test_sft_and_reinforce(seed, normalize):
    logp, _, _, advantages, mask = batch(seed)
    how = {"normalize": normalize, "denominator": 7}
    ours = gradient_coefficients("sft", logp, mask)
    assert_coefficients(lambda x: losses.sft_loss(x, mask, **how), logp, mask, ours, **how)
    assert torch.equal(ours, mask.double())
    ours = gradient_coefficients("reinforce", logp, advantages, mask)
    assert_coefficients(lambda x: losses.reinforce_loss(x, advantages, mask, **how), logp, mask, ours, **how)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("clip, clip_high", [(0.2, None), (0.2, 0.28), (1.5, 0.1)])
@pytest.mark.parametrize("by_length", [False, True])
def test_ppo(seed, normalize, clip, clip_high, by_length):
    logp, old, _, advantages, mask = batch(seed)
    settings = {"clip": clip, "clip_high": clip_high}
    settings["n_tokens"] = torch.arange(B * N).view(B, N) % 4 if by_length else None
    how = {"normalize": normalize, "denominator": 7}
    ours = gradient_coefficients("ppo", logp, old, advantages, mask, **settings)
    assert_coefficients(lambda x: losses.ppo_loss(x, old, advantages, mask, **settings, **how), logp, mask, ours, **how)
    acts = mask & (advantages != 0)
    assert (ours[acts] == 0).any() and (ours[acts] != 0).any()  # some are clipped, some are not


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_grpo(seed, normalize, kind):
    logp, old, ref, advantages, mask = batch(seed)
    how, clip = {"normalize": normalize, "denominator": 7}, {"clip": 0.2, "clip_high": 0.3}

    def loss(x):
        kl = losses.kl_estimate(x, ref, kind, mask)
        return losses.grpo_loss(x, old, advantages, mask, kl=kl, beta=0.3, **clip, **how)

    ours = gradient_coefficients("grpo", logp, old, advantages, mask, ref_logp=ref, kind=kind, beta=0.3, **clip)
    assert_coefficients(loss, logp, mask, ours, **how)
    assert_coefficients(
        lambda x: losses.aggregate(losses.kl_estimate(x, ref, kind, mask), mask, **how),
        logp,
        mask,
        gradient_coefficients("kl", logp, ref, kind, mask),
        **how,
    )
    without = gradient_coefficients("grpo", logp, old, advantages, mask, **clip)
    assert torch.equal(without, gradient_coefficients("ppo", logp, old, advantages, mask, **clip))


def test_blocks_have_the_coefficient_of_their_action_and_the_kl_of_each_token():
    """Three actions of two tokens: what the docstring says of actions that are no single tokens."""
    tokens, ref, old = draw(2, 6), draw(2, 6, seed=1), draw(2, 3, seed=2)
    advantages, mask = draw(2, 3, seed=3), torch.ones(2, 3, dtype=torch.bool)
    old = tokens.view(2, 3, 2).sum(-1) + 0.1 * old

    def loss(x):
        kl = losses.kl_estimate(x, ref, "k3").view(2, 3, 2).sum(-1)
        return losses.grpo_loss(x.view(2, 3, 2).sum(-1), old, advantages, mask, clip=0.2, kl=kl, beta=0.3)

    action = gradient_coefficients("ppo", tokens.view(2, 3, 2).sum(-1), old, advantages, mask, clip=0.2)
    ours = action.repeat_interleave(2, -1) + 0.3 * gradient_coefficients("kl", tokens, ref, "k3")
    x = tokens.requires_grad_()
    (slope,) = torch.autograd.grad(loss(x), x)
    torch.testing.assert_close(slope, -ours / 6, atol=1e-10, rtol=0)


PREFERENCES = [
    {"beta": beta} | variant
    for beta in (0.1, 2.5)
    for variant in (
        {},
        {"kind": "ipo"},
        {"label_smoothing": 0.2},
        {"margin": 0.5},
        {"label_smoothing": 0.1, "margin": 1.0},
    )
]


@pytest.mark.parametrize("settings", PREFERENCES)
@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("reference", [False, True])
def test_dpo(settings, by_length, reference):
    chosen, rejected, *refs = (5 * draw(B, seed=i) for i in range(4))
    refs = refs if reference else [None, None]
    lengths = {"chosen_lengths": torch.arange(B), "rejected_lengths": 3 + torch.arange(B)} if by_length else {}
    x, y = chosen.clone().requires_grad_(), rejected.clone().requires_grad_()
    loss = losses.dpo_loss(x, y, *refs, denominator=7, **settings, **lengths)
    slopes = torch.autograd.grad(loss, (x, y))
    ours = gradient_coefficients("dpo", chosen, rejected, *refs, **settings, **lengths)
    for slope, coefficients in zip(slopes, ours, strict=True):
        torch.testing.assert_close(slope, -coefficients / 7, atol=1e-10, rtol=0)


@pytest.mark.parametrize("by_length", [False, True])
def test_dpo_token_by_token(by_length):
    """Every token of a completion has the coefficient of its completion."""
    lengths = torch.tensor([[2, 3], [4, 1]])  # of the chosen and of the rejected, of two pairs
    mask = torch.arange(4) < lengths[..., None]
    tokens = (draw(2, 2, 4) * mask).requires_grad_()
    ref = draw(2, 2, seed=1)
    how = {"beta": 0.4} | ({"chosen_lengths": lengths[0], "rejected_lengths": lengths[1]} if by_length else {})
    sums = (tokens * mask).sum(-1)
    (slope,) = torch.autograd.grad(losses.dpo_loss(*sums, *ref, **how), tokens)
    ours = torch.stack(gradient_coefficients("dpo", *sums, *ref, **how))
    torch.testing.assert_close(slope, -ours[..., None] * mask / 2, atol=1e-10, rtol=0)


def test_bradley_terry():
    chosen, rejected = draw(B).requires_grad_(), draw(B, seed=1).requires_grad_()
    slopes = torch.autograd.grad(losses.bradley_terry_loss(chosen, rejected), (chosen, rejected))
    for slope, coefficients in zip(slopes, gradient_coefficients("bradley_terry", chosen, rejected), strict=True):
        torch.testing.assert_close(slope, -coefficients / B, atol=1e-10, rtol=0)


# --- the formulas of the literature ---


def test_the_formulas_as_they_are_written():
    """PPO at ratio 1: A. GRPO at ratio 1: Â + β(π_ref/π - 1). DPO: σ(β log π(o-)/π_ref(o-) - β log π(o+)/π_ref(o+))."""
    logp, ref, advantages = draw(3, 4), draw(3, 4, seed=1), draw(3, 4, seed=2)
    mask, beta = torch.ones(3, 4, dtype=torch.bool), 0.3
    ppo = gradient_coefficients("ppo", logp, logp, advantages, mask, clip=0.2)
    assert torch.equal(ppo, advantages)
    grpo = gradient_coefficients("grpo", logp, logp, advantages, mask, clip=0.2, ref_logp=ref, beta=beta)
    torch.testing.assert_close(grpo, advantages + beta * (ref.exp() / logp.exp() - 1), atol=1e-12, rtol=0)
    good, bad, ref_good, ref_bad = (draw(5, seed=i) for i in range(4))
    chosen, rejected = gradient_coefficients("dpo", good, bad, ref_good, ref_bad, beta=beta)
    s9 = torch.sigmoid(beta * (bad - ref_bad) - beta * (good - ref_good))
    torch.testing.assert_close(chosen / beta, s9, atol=1e-12, rtol=0)
    torch.testing.assert_close(rejected / beta, -s9, atol=1e-12, rtol=0)


def test_dpo_and_bradley_terry_are_one_formula():
    p = [draw(B, seed=i) for i in range(4)]
    dpo = gradient_coefficients("dpo", *p, beta=0.7)
    implied = gradient_coefficients("bradley_terry", 0.7 * (p[0] - p[2]), 0.7 * (p[1] - p[3]))
    for one, two in zip(dpo, implied, strict=True):
        torch.testing.assert_close(one, 0.7 * two)


# --- the door ---

X, M, PAIR = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.zeros(2)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: gradient_coefficients("dqn", X, M), "loss must be one of .*'ppo'.*'dqn'"),
        (lambda: gradient_coefficients("ppo", X, X, X, M, clip=0.0), "clip must be > 0, got 0.0"),
        (lambda: gradient_coefficients("ppo", X, X[:1], X, M, clip=0.2), "old_logp must have shape"),
        (lambda: gradient_coefficients("grpo", X, X, X, M, clip=0.2, beta=0.1), "ref_logp given, got beta=0.1"),
        (lambda: gradient_coefficients("kl", X, X, "k4"), "kind.*k1.*'k4'"),
        (lambda: gradient_coefficients("dpo", PAIR, PAIR, PAIR, PAIR, beta=0.0), "beta must be > 0, got 0.0"),
        (lambda: gradient_coefficients("bradley_terry", X, X), r"chosen must be \[B\]"),
    ],
)
def test_errors_name_the_value_and_what_is_allowed(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_typo_is_no_setting():
    for name, wrong in itertools.product(("ppo", "grpo"), ("clp", "normalize")):
        with pytest.raises(TypeError, match=wrong):
            gradient_coefficients(name, X, X, X, M, clip=0.2, **{wrong: "rows"})
