"""Losses: small truths, gradients by hand and by autograd, exact enumeration of a four-letter language."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgym import losses

B, N = 4, 5
NORMALIZE = ("rows", "actions", "constant")


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ragged(lengths=(5, 3, 1, 0), n=N):
    return torch.arange(n) < torch.tensor(lengths)[:, None]


def gradient(loss, x):
    """d loss(x) / d x by autograd, on a fresh leaf."""
    x = x.detach().clone().requires_grad_()
    (g,) = torch.autograd.grad(loss(x), x)
    return g


def finite_differences(loss, x, h=1e-6):
    g = torch.zeros_like(x)
    for i in range(x.numel()):
        step = torch.zeros_like(x).view(-1)
        step[i] = h
        step = step.view_as(x)
        g.view(-1)[i] = (loss(x + step) - loss(x - step)) / (2 * h)
    return g


# Every [B, N] loss as a function of one tensor with a gradient and of the tensors that are data.
MASKED_LOSSES = {
    "reinforce": lambda x, a, b, mask, **kw: losses.reinforce_loss(x, a, mask, **kw),
    "ppo": lambda x, a, b, mask, **kw: losses.ppo_loss(x, b, a, mask, clip=0.2, **kw),
    "ppo clip-higher": lambda x, a, b, mask, **kw: losses.ppo_loss(x, b, a, mask, clip=0.2, clip_high=0.3, **kw),
    "gspo": lambda x, a, b, mask, **kw: losses.ppo_loss(x, b, a, mask, clip=0.2, n_tokens=1 + b.abs(), **kw),
    "grpo": lambda x, a, b, mask, **kw: losses.grpo_loss(
        x, b, a, mask, clip=0.2, beta=0.1, kl=losses.kl_estimate(x, b - 0.1, "k3", mask), **kw
    ),
    "value": lambda x, a, b, mask, **kw: losses.value_loss(x, a, mask, **kw),
    "value clipped": lambda x, a, b, mask, **kw: losses.value_loss(x, a, mask, old_values=b, clip=0.2, **kw),
}
each_loss = pytest.mark.parametrize("name", MASKED_LOSSES)
each_normalize = pytest.mark.parametrize("normalize", NORMALIZE)


def inputs(seed=0):
    """A policy near the old one (some ratios clipped, some not), and advantages of both signs."""
    old = draw(B, N, seed=seed)
    return old + 0.3 * draw(B, N, seed=seed + 1), draw(B, N, seed=seed + 2), old


# --- the mask ---


@each_loss
@each_normalize
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_garbage_in_masked_places_changes_nothing_bit_for_bit(name, normalize, garbage, dtype):
    mask = ragged()
    clean = [t.to(dtype) for t in inputs()]
    dirty = [torch.where(mask, t, garbage) for t in clean]
    results = []
    for x, a, b in (clean, dirty):
        x = x.clone().requires_grad_()
        loss = MASKED_LOSSES[name](x, a, b, mask, normalize=normalize, denominator=7)
        loss.backward()
        results.append((loss, x.grad))
    (loss, grad), (dirty_loss, dirty_grad) = results
    assert torch.equal(loss, dirty_loss) and torch.equal(grad, dirty_grad)
    assert loss.isfinite() and (grad[~mask] == 0).all() and (grad[mask] != 0).any()


@each_loss
@each_normalize
@pytest.mark.parametrize("denominator", [0, 3.0])
def test_an_all_masked_batch_gives_zero_and_zero_gradient(name, normalize, denominator):
    x = torch.full((B, N), math.nan, requires_grad=True)
    mask = torch.zeros(B, N, dtype=torch.bool)
    loss = MASKED_LOSSES[name](x, x, x, mask, normalize=normalize, denominator=denominator)
    loss.backward()
    assert loss == 0 and (x.grad == 0).all()


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=4))
def test_any_mask_is_finite_and_padding_changes_nothing(rows):
    mask = torch.tensor(rows)
    x, a, b = (draw(*mask.shape, seed=i) for i in range(3))
    padded = torch.nn.functional.pad(mask, (0, 2, 0, 1))
    x2, a2, b2 = (torch.nn.functional.pad(t, (0, 2, 0, 1), value=math.nan) for t in (x, a, b))
    for name, normalize in itertools.product(MASKED_LOSSES, NORMALIZE[:2]):
        loss = MASKED_LOSSES[name](x, a, b, mask, normalize=normalize)
        assert loss.isfinite()
        torch.testing.assert_close(loss, MASKED_LOSSES[name](x2, a2, b2, padded, normalize=normalize))


def test_masked_sum_and_mean():
    x = torch.tensor([[1.0, 2.0, math.nan], [math.inf, math.nan, math.nan]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert losses.masked_sum(x, mask) == 3 and losses.masked_mean(x, mask) == 1.5
    assert losses.masked_sum(x, mask, -1).tolist() == [3, 0]
    assert losses.masked_mean(x, mask, -1).tolist() == [1.5, 0]
    assert losses.masked_mean(x, torch.zeros_like(mask)) == 0


# --- normalisation ---


def test_three_normalisations_by_hand():
    x, mask = torch.tensor([[1.0, 2.0], [9.0, 0.0], [5.0, 5.0]]), ragged((2, 1, 0), n=2)
    assert losses.aggregate(x, mask, normalize="rows") == (1.5 + 9) / 2  # the empty row is no row
    assert losses.aggregate(x, mask, normalize="actions") == 12 / 3
    assert losses.aggregate(x, mask, 6, normalize="constant") == 12 / 6
    assert losses.aggregate(x, mask, 6, "actions") == 12 / 6


def partitions(rows):
    """Every way to split a list of rows into micro-batches."""
    if not rows:
        yield []
        return
    for rest in partitions(rows[1:]):
        yield [[rows[0]], *rest]
        for i, part in enumerate(rest):
            yield [*rest[:i], [rows[0], *part], *rest[i + 1 :]]


@each_loss
@each_normalize
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_every_partition_of_a_ragged_batch_gives_the_same_step(name, normalize, dtype, tolerance):
    mask, loss = ragged((5, 3, 1, 0)), MASKED_LOSSES[name]
    x, a, b = (t.to(dtype) for t in inputs())
    denominator = {"rows": 3, "actions": 9, "constant": 20}[normalize]
    whole = gradient(lambda x: loss(x, a, b, mask, denominator=denominator, normalize=normalize), x)
    if normalize != "constant":  # the default denominator is the count of the batch
        default = gradient(lambda x: loss(x, a, b, mask, normalize=normalize), x)
        torch.testing.assert_close(default, whole, atol=tolerance, rtol=0)
    all_partitions = list(partitions(list(range(B))))
    assert len(all_partitions) == 15  # Bell number of 4
    for partition in all_partitions:
        x = x.detach().clone().requires_grad_()
        for part in partition:
            kwargs = {"denominator": denominator, "normalize": normalize}
            loss(x[part], a[part], b[part], mask[part], **kwargs).backward()
        torch.testing.assert_close(x.grad, whole, atol=tolerance, rtol=0)


def test_micro_batches_of_pairs_add_up():
    pairs = [draw(5, seed=i) for i in range(4)]
    for loss, args in (
        (lambda *p, **kw: losses.dpo_loss(*p, beta=0.3, **kw), pairs),
        (losses.bradley_terry_loss, pairs[:2]),
    ):
        parts = [loss(*(p[s] for p in args), denominator=5) for s in (slice(0, 1), slice(1, 5))]
        torch.testing.assert_close(sum(parts), loss(*args))


# --- policy gradients ---


@each_loss
@each_normalize
def test_autograd_agrees_with_finite_differences(name, normalize):
    x, a, b = inputs(seed=3)
    mask = ragged()

    def loss(x):
        return MASKED_LOSSES[name](x, a, b, mask, normalize=normalize, denominator=7)

    torch.testing.assert_close(gradient(loss, x), finite_differences(loss, x), atol=1e-8, rtol=1e-6)


@each_normalize
@pytest.mark.parametrize("loss", [losses.ppo_loss, losses.grpo_loss])
def test_at_ratio_one_the_gradient_is_that_of_reinforce(loss, normalize):
    logp, advantages, _ = inputs()
    mask, kwargs = ragged(), {"normalize": normalize, "denominator": 7}
    ppo = gradient(lambda x: loss(x, logp, advantages, mask, clip=0.2, **kwargs), logp)
    reinforce = gradient(lambda x: losses.reinforce_loss(x, advantages, mask, **kwargs), logp)
    assert torch.equal(ppo, reinforce)
    torch.testing.assert_close(reinforce, torch.where(mask, -advantages, 0) / weights(normalize, mask))


def weights(normalize, mask):
    """What a denominator of 7 divides each action by."""
    return 7 * mask.sum(-1, keepdim=True).clamp(min=1) if normalize == "rows" else 7


@each_normalize
def test_gradient_coefficient_of_grpo(normalize):
    logp, advantages, ref_logp = inputs()
    mask, beta = ragged(), 0.3

    def loss(x):
        kl = losses.kl_estimate(x, ref_logp, "k3")
        kwargs = {"normalize": normalize, "denominator": 7, "kl": kl, "beta": beta}
        return losses.grpo_loss(x, logp, advantages, mask, clip=0.2, **kwargs)

    coefficient = advantages + beta * (torch.exp(ref_logp - logp) - 1)
    expected = torch.where(mask, -coefficient, 0) / weights(normalize, mask)
    torch.testing.assert_close(gradient(loss, logp), expected)


@pytest.mark.parametrize(
    "ratio, advantage, loss, slope",  # clip 0.2 below, 0.3 above; slope = d loss / d logp
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.25, 2.0, -2.5, -2.5),  # inside, thanks to clip_high
        (1.5, 2.0, -2.6, 0.0),  # a good action is already likelier: clipped
        (0.5, 2.0, -1.0, -1.0),  # a good action has become unlikelier: not clipped
        (1.5, -2.0, 3.0, 3.0),
        (0.5, -2.0, 1.6, 0.0),
    ],
)
def test_clipping(ratio, advantage, loss, slope):
    one = torch.ones(1, 1, dtype=torch.float64)

    def ppo(x):
        return losses.ppo_loss(x, 0 * one, advantage * one, one, clip=0.2, clip_high=0.3)

    logp = math.log(ratio) * one
    torch.testing.assert_close(ppo(logp), torch.tensor(loss, dtype=torch.float64))
    torch.testing.assert_close(gradient(ppo, logp), slope * one)


def test_length_normalised_ratio_of_gspo():
    logp, n_tokens = torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([[4]])
    loss = losses.ppo_loss(logp, 0 * logp, -torch.ones_like(logp), logp > 0, clip=0.1, n_tokens=n_tokens)
    assert loss.item() == pytest.approx(math.exp(0.25))


def test_extreme_log_ratios_stay_finite():
    old = torch.zeros(1, 4)
    logp = torch.tensor([[-1e4, -100.0, 100.0, 1e4]], requires_grad=True)
    advantages = torch.tensor([[-1.0, 1.0, -1.0, -1.0]])
    kl = losses.kl_estimate(logp, old, "k3")
    loss = losses.grpo_loss(logp, old, advantages, old == 0, clip=0.2, kl=kl, beta=0.1)
    loss.backward()
    assert loss.isfinite() and logp.grad.isfinite().all()


def test_data_carries_no_gradient():
    x, a, b = (t.requires_grad_() for t in inputs())
    for name in ("reinforce", "ppo", "value clipped"):
        grads = torch.autograd.grad(MASKED_LOSSES[name](x, a, b, ragged()), (x, a, b), materialize_grads=True)
        assert (grads[0] != 0).any() and (grads[1] == 0).all() and (grads[2] == 0).all()
    same = gradient(lambda x: losses.ppo_loss(x, x, a, ragged(), clip=0.2), x)
    assert torch.equal(same, gradient(lambda x: losses.reinforce_loss(x, a, ragged()), x))


def test_half_precision_is_computed_in_float32():
    x, a, b = (t.bfloat16() for t in inputs())
    loss = losses.ppo_loss(x, b, a, ragged(), clip=0.2)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, losses.ppo_loss(x.float(), b.float(), a.float(), ragged(), clip=0.2))
    assert losses.kl_estimate(x, b, "k3").dtype == losses.exact_kl(x, b).dtype == torch.float32


def test_value_loss_by_hand():
    values, targets = torch.tensor([[1.0, 5.0]]), torch.tensor([[3.0, 5.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert losses.value_loss(values, targets, mask) == (4 + 0) / 2
    old_values = torch.tensor([[1.0, 1.0]])  # the second value moved by 4, of which 0.5 is allowed
    assert losses.value_loss(values, targets, mask, old_values=old_values, clip=0.5) == (4 + 3.5**2) / 2


# --- preferences ---


def test_dpo_starts_at_log_two_and_mutates_nothing():
    chosen, rejected = draw(B), draw(B, seed=1)
    before = chosen.clone(), rejected.clone()
    for smoothing in (0.0, 0.1):
        loss = losses.dpo_loss(chosen, rejected, chosen, rejected, beta=0.1, label_smoothing=smoothing)
        assert loss.item() == pytest.approx(math.log(2), abs=1e-15)
    assert torch.equal(chosen, before[0]) and torch.equal(rejected, before[1])


@pytest.mark.parametrize("lengths", [None, torch.tensor([1, 2, 3, 7])])
def test_gradient_coefficient_of_dpo(lengths):
    chosen, rejected, ref_chosen, ref_rejected = (draw(B, seed=i) for i in range(4))
    beta, n = 0.7, 1.0 if lengths is None else lengths
    kwargs = {"beta": beta, "chosen_lengths": lengths, "rejected_lengths": lengths}
    z = beta * ((chosen - ref_chosen) - (rejected - ref_rejected)) / n
    expected = -beta * torch.sigmoid(-z) / n / B
    for_chosen = gradient(lambda x: losses.dpo_loss(x, rejected, ref_chosen, ref_rejected, **kwargs), chosen)
    for_rejected = gradient(lambda x: losses.dpo_loss(chosen, x, ref_chosen, ref_rejected, **kwargs), rejected)
    torch.testing.assert_close(for_chosen, expected)
    torch.testing.assert_close(for_rejected, -expected)


def test_label_smoothing_mixes_the_two_labels():
    p = [draw(B, seed=i) for i in range(4)]
    flipped = losses.dpo_loss(p[1], p[0], p[3], p[2], beta=0.7)
    mixed = losses.dpo_loss(*p, beta=0.7, label_smoothing=0.2)
    torch.testing.assert_close(mixed, 0.8 * losses.dpo_loss(*p, beta=0.7) + 0.2 * flipped)


def test_dpo_and_bradley_terry_are_one_formula():
    p = [draw(B, seed=i) for i in range(4)]
    implied = 0.7 * (p[0] - p[2]), 0.7 * (p[1] - p[3])
    torch.testing.assert_close(losses.dpo_loss(*p, beta=0.7), losses.bradley_terry_loss(*implied))
    margin = losses.bradley_terry_loss(torch.tensor([1e4]), torch.tensor([-1e4]))
    assert margin == 0 and losses.bradley_terry_loss(torch.tensor([-1e4]), torch.tensor([1e4])) == 2e4


# --- KL ---


@settings(deadline=None)
@given(st.floats(-60, 60), st.floats(-60, 60))
def test_k2_and_k3_are_never_negative(logp, ref_logp):
    for dtype in (torch.float32, torch.float64):
        x, y = torch.tensor([logp], dtype=dtype), torch.tensor([ref_logp], dtype=dtype)
        k1, k2, k3 = (losses.kl_estimate(x, y, k) for k in ("k1", "k2", "k3"))
        assert k1 == x - y and k2 >= 0 and k3 >= 0
        assert all(losses.kl_estimate(x, x, k) == 0 for k in ("k1", "k2", "k3"))


def test_k3_is_accurate_where_the_policies_nearly_agree():
    log_ratio = torch.tensor([1e-4])  # exp(x) - 1 - x in float32 would be 1e-8 or so of noise around 5e-9
    k3 = losses.kl_estimate(-log_ratio, torch.zeros(1), "k3")
    assert k3.item() == pytest.approx(5e-9, rel=1e-2)


def test_kl_estimate_ignores_masked_tokens():
    logp = torch.tensor([-1.0, math.nan, -math.inf], requires_grad=True)
    mask = torch.tensor([True, False, False])
    for kind in ("k1", "k2", "k3"):
        logp.grad = None
        kl = losses.kl_estimate(logp, torch.tensor([-2.0, -1.0, math.nan]), kind, mask)
        kl.sum().backward()
        assert kl.isfinite().all() and kl[1:].tolist() == logp.grad[1:].tolist() == [0, 0]


def test_exact_kl_with_forbidden_tokens():
    logits = torch.tensor([[0.0, 1.0, -math.inf]], requires_grad=True)
    ref = torch.tensor([[2.0, 1.0, -math.inf]])
    kl = losses.exact_kl(logits, ref)
    kl.sum().backward()
    torch.testing.assert_close(kl, losses.exact_kl(logits[:, :2], ref[:, :2]))
    assert logits.grad.isfinite().all() and losses.exact_kl(ref, ref) == 0
    torch.testing.assert_close(losses.exact_kl(logits.log_softmax(-1), ref + 3), kl)
    assert losses.exact_kl(torch.zeros(2), torch.tensor([0.0, -math.inf])) == math.inf


# --- exact enumeration: 4 letters, length 3, so an expectation has no sampling noise ---

V, T, EOS = 4, 3, 3
STATES = sum(V**t for t in range(T))  # 1 + 4 + 16 prefixes
SEQUENCES = torch.tensor(list(itertools.product(range(V), repeat=T)))  # [64, 3]


def state_index(prefix):
    return sum(V**t for t in range(len(prefix))) + int(sum(a * V**i for i, a in enumerate(prefix)))


INDEX = torch.tensor([[state_index(row[:t].tolist()) for t in range(T)] for row in SEQUENCES])


def token_logp(theta):
    """theta [STATES, V] logits -> log π of each token of each sequence, [64, 3]."""
    return theta.log_softmax(-1)[INDEX, SEQUENCES]


def expected(per_row, logp):
    """Σ over sequences of P(sequence) × per_row, with P held fixed: what on-policy sampling estimates."""
    return (logp.detach().sum(-1).exp() * per_row).sum()


THETA, REF, REWARD = draw(STATES, V), draw(STATES, V, seed=1), draw(V**T, seed=2)
ALL = torch.ones(V**T, T, dtype=torch.bool)


def test_enumeration_covers_everything():
    assert token_logp(THETA).sum(-1).exp().sum().item() == pytest.approx(1)


@pytest.mark.parametrize("as_one_action", [False, True])
@pytest.mark.parametrize("kind", ["reinforce", "ppo", "grpo"])
def test_expected_policy_gradient_is_the_gradient_of_the_expected_return(kind, as_one_action):
    """At token level and at sequence level alike, with the number of rows as the constant normaliser."""

    def loss(theta):
        logp = token_logp(theta)
        p = logp.detach().sum(-1).exp()
        logp = logp.sum(-1, keepdim=True) if as_one_action else logp
        # One row a sequence; its weight P(sequence) makes the batch the whole distribution.
        advantages = (p * (REWARD - 0.3))[:, None].expand_as(logp)  # a constant baseline changes nothing
        mask, kwargs = torch.ones_like(logp), {"normalize": "constant", "denominator": 1}
        if kind == "reinforce":
            return losses.reinforce_loss(logp, advantages, mask, **kwargs)
        loss = {"ppo": losses.ppo_loss, "grpo": losses.grpo_loss}[kind]
        return loss(logp, logp.detach(), advantages, mask, clip=0.2, **kwargs)

    exact = gradient(lambda theta: (token_logp(theta).sum(-1).exp() * REWARD).sum(), THETA)
    torch.testing.assert_close(-gradient(loss, THETA), exact)


def test_mean_over_actions_of_a_row_is_biased_when_the_policy_chooses_the_length():
    """The documented bias of "rows": EOS ends a sequence early, and short rows weigh more per action."""
    length = (SEQUENCES == EOS).int().cumsum(-1).eq(0).sum(-1).add(1).clamp(max=T)
    mask = torch.arange(T) < length[:, None]
    reward = REWARD * 0 + length  # of the episode, so the padding after EOS does not matter

    def expected_return(theta):
        return (token_logp(theta).sum(-1).exp() * reward).sum()

    def loss(normalize):
        def f(theta):
            logp = token_logp(theta)
            advantages = (logp.detach().sum(-1).exp() * reward)[:, None].expand_as(logp)
            return -losses.reinforce_loss(logp, advantages, mask, normalize=normalize, denominator=1)

        return gradient(f, THETA)

    exact = gradient(expected_return, THETA)
    torch.testing.assert_close(loss("constant"), exact)
    cosine = torch.nn.functional.cosine_similarity(loss("rows").flatten(), exact.flatten(), dim=0)
    assert cosine < 0.999


def kl_of_sequences(theta, ref, reverse=False):
    p, q = token_logp(theta).sum(-1), token_logp(ref).sum(-1)
    return (q.exp() * (q - p)).sum() if reverse else (p.exp() * (p - q)).sum()


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_gradient_of_each_kl_estimate_of_a_sequence(kind):
    """As a loss term, on-policy, with the sequence as the action: 0, ∇KL(π, π_ref), ∇KL(π_ref, π)."""

    def estimate(theta):
        logp = token_logp(theta)
        return expected(losses.kl_estimate(logp.sum(-1), token_logp(REF).sum(-1), kind), logp)

    forward = gradient(lambda theta: kl_of_sequences(theta, REF), THETA)
    backward = gradient(lambda theta: kl_of_sequences(theta, REF, reverse=True), THETA)
    exact = {"k1": 0 * THETA, "k2": forward, "k3": backward}[kind]
    torch.testing.assert_close(gradient(estimate, THETA), exact)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_gradient_of_each_kl_estimate_per_token(kind):
    """Per token: the same, state by state, with the chance of visiting the states held fixed."""

    def estimate(theta):
        logp = token_logp(theta)
        return expected(losses.kl_estimate(logp, token_logp(REF), kind).sum(-1), logp)

    def exact(theta):
        kl = {
            "k1": 0 * theta.sum(-1),
            "k2": losses.exact_kl(theta, REF),
            "k3": losses.exact_kl(REF, theta),
        }
        return expected(kl[kind][INDEX].sum(-1), token_logp(theta))

    torch.testing.assert_close(gradient(estimate, THETA), gradient(exact, THETA))


@pytest.mark.parametrize("kind, unbiased", [("k1", True), ("k2", False), ("k3", True)])
def test_value_of_each_kl_estimate(kind, unbiased):
    logp, ref_logp = token_logp(THETA), token_logp(REF)
    value = expected(losses.kl_estimate(logp, ref_logp, kind).sum(-1), logp)
    by_state = expected(losses.exact_kl(THETA, REF)[INDEX].sum(-1), logp)
    exact = kl_of_sequences(THETA, REF)
    torch.testing.assert_close(by_state, exact)  # the chain rule of KL
    assert math.isclose(value, exact, rel_tol=1e-12) == unbiased


def test_k1_as_a_reward_gives_the_gradient_of_kl():
    def loss(theta):
        logp = token_logp(theta)
        k1 = losses.kl_estimate(logp, token_logp(REF), "k1").detach()
        to_go = k1.flip(-1).cumsum(-1).flip(-1)  # what a token costs now and later
        advantages = logp.detach().sum(-1, keepdim=True).exp() * -to_go
        return losses.reinforce_loss(logp, advantages, ALL, normalize="constant", denominator=1)

    exact = gradient(lambda theta: kl_of_sequences(theta, REF), THETA)
    torch.testing.assert_close(gradient(loss, THETA), exact)


# --- the door ---

X, M = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
PAIR = torch.zeros(2)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: losses.reinforce_loss(X, X, M, normalize="tokens"), "normalize.*rows.*'tokens'"),
        (lambda: losses.reinforce_loss(X, X, M, normalize="constant"), "denominator"),
        (lambda: losses.reinforce_loss(X, X, M, denominator=0), "denominator must be > 0, got 0"),
        (lambda: losses.reinforce_loss(X, X[:, :1], M), r"advantages must have shape \(2, 3\), got \(2, 1\)"),
        (lambda: losses.reinforce_loss(X[0], X[0], M[0]), r"mask must be \[B, N\]"),
        (lambda: losses.ppo_loss(X, X, X, M, clip=0.0), "clip must be > 0, got 0.0"),
        (lambda: losses.ppo_loss(X, X, X, M, clip=0.2, clip_high=-1.0), "clip_high must be > 0, got -1.0"),
        (lambda: losses.ppo_loss(X, X[0], X, M, clip=0.2), "old_logp must have shape"),
        (lambda: losses.grpo_loss(X, X, X, M, clip=0.2, beta=0.1), "beta.*kl.*0.1"),
        (lambda: losses.grpo_loss(X, X, X, M, clip=0.2, beta=-0.1, kl=X), "beta.*-0.1"),
        (lambda: losses.grpo_loss(X, X, X, M, clip=0.2, beta=0.1, kl=X[0]), "kl must have shape"),
        (lambda: losses.value_loss(X, X, M, clip=0.2), "old_values"),
        (lambda: losses.value_loss(X, X, M, clip=0.0, old_values=X), "clip must be > 0"),
        (lambda: losses.dpo_loss(PAIR, PAIR, PAIR, PAIR, beta=0.0), "beta must be > 0, got 0.0"),
        (lambda: losses.dpo_loss(PAIR, PAIR, PAIR, PAIR, beta=1, label_smoothing=0.5), r"\[0, 0.5\).*0.5"),
        (lambda: losses.dpo_loss(PAIR, PAIR, PAIR, PAIR, beta=1, chosen_lengths=PAIR), "rejected_lengths"),
        (lambda: losses.bradley_terry_loss(PAIR, PAIR[:1]), r"rejected must have shape \(2,\), got \(1,\)"),
        (lambda: losses.bradley_terry_loss(X, X), r"chosen must be \[B\]"),
        (lambda: losses.kl_estimate(X, X, "k4"), "kind.*k1.*'k4'"),
        (lambda: losses.kl_estimate(X, X[0], "k1"), "ref_logp must have shape"),
        (lambda: losses.exact_kl(X, X[0]), "ref_logits must have shape"),
    ],
)
def test_errors_name_the_value_and_what_is_allowed(call, words):
    with pytest.raises(ValueError, match=words):
        call()
