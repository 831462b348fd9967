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
    "sft": lambda x, a, b, mask, **kw: losses.sft_loss(x, mask, **kw),
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


@pytest.mark.parametrize("clip", [1.0, 1.5])
def test_a_clip_of_one_or_more_has_no_lower_end(clip):
    logp, advantages = torch.full((1, 1), -5.0), torch.tensor([[-2.0]])
    slope = gradient(lambda x: losses.ppo_loss(x, 0 * x, advantages, logp < 0, clip=clip), logp)
    torch.testing.assert_close(slope, torch.full((1, 1), 2 * math.exp(-5)))


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


def test_sft_is_the_cross_entropy_of_the_tokens_that_count():
    logits, tokens, mask = draw(B, N, 7), torch.arange(B * N).view(B, N) % 7, ragged()
    logp = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    expected = torch.nn.functional.cross_entropy(logits[mask], tokens[mask])
    torch.testing.assert_close(losses.sft_loss(logp, mask), expected)
    assert torch.equal(losses.sft_loss(logp, mask), losses.reinforce_loss(logp, torch.ones_like(logp), mask))


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


def test_ipo_draws_the_log_ratio_to_half_of_one_over_beta():
    zero = torch.zeros(2, dtype=torch.float64)
    sums = torch.tensor([3.0, 10.0], dtype=torch.float64)  # h, in nats
    loss = losses.dpo_loss(sums, zero, zero, zero, beta=0.05, kind="ipo")
    assert loss.item() == pytest.approx(((3 - 10) ** 2 + 0) / 2)
    lengths = torch.tensor([2, 5]), torch.tensor([1, 9])
    by_token = {"chosen_lengths": lengths[0], "rejected_lengths": lengths[1]}
    loss = losses.dpo_loss(sums, sums, zero, zero, beta=0.25, kind="ipo", **by_token)
    assert loss.item() == pytest.approx(((3 / 2 - 3 / 1 - 2) ** 2 + (10 / 5 - 10 / 9 - 2) ** 2) / 2)


def test_without_a_reference_its_log_probs_are_zero():
    p, zero = [draw(B, seed=i) for i in range(2)], torch.zeros(B, dtype=torch.float64)
    for kind in ("sigmoid", "ipo"):
        free = losses.dpo_loss(*p, None, None, beta=0.7, kind=kind)
        assert torch.equal(free, losses.dpo_loss(*p, zero, zero, beta=0.7, kind=kind))


def test_simpo_by_hand():
    chosen, rejected = torch.tensor([-6.0]), torch.tensor([-20.0])
    lengths = {"chosen_lengths": torch.tensor([3]), "rejected_lengths": torch.tensor([4])}
    loss = losses.dpo_loss(chosen, rejected, None, None, beta=2.0, margin=1.5, **lengths)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-(2 * (-2 - -5) - 1.5))))


def test_a_completion_of_no_token_counts_as_one():
    zero, lengths = torch.zeros(1), torch.zeros(1)
    loss = losses.dpo_loss(zero, zero, zero, zero, beta=1.0, chosen_lengths=lengths, rejected_lengths=lengths)
    assert loss.item() == pytest.approx(math.log(2))


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


THETA, REWARD = draw(STATES, V), draw(V**T, seed=2)


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


# --- the door ---

X, M = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
PAIR = torch.zeros(2)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: losses.reinforce_loss(X, X, M, normalize="tokens"), "normalize.*rows.*'tokens'"),
        (lambda: losses.reinforce_loss(X, X, M, normalize="constant"), "denominator"),
        (lambda: losses.reinforce_loss(X, X, M, denominator=0), "denominator must be > 0, got 0"),
        (lambda: losses.reinforce_loss(X, X, M, denominator=math.nan), "denominator must be > 0, got nan"),
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
        (lambda: losses.dpo_loss(PAIR, PAIR, PAIR, None, beta=1), "ref_rejected_logp must be given together"),
        (lambda: losses.dpo_loss(PAIR, PAIR, PAIR, PAIR, beta=1, kind="hinge"), "kind.*sigmoid.*'hinge'"),
        (lambda: losses.dpo_loss(PAIR, PAIR, PAIR, PAIR, beta=1, margin=-1.0), "margin must be >= 0, got -1.0"),
        (lambda: losses.dpo_loss(PAIR, PAIR, PAIR, PAIR, beta=1, kind="ipo", margin=1.0), "kind='ipo'.*1.0"),
        (lambda: losses.dpo_loss(PAIR, PAIR, PAIR, PAIR, beta=1, kind="ipo", label_smoothing=0.1), "'ipo'.*0.1"),
        (lambda: losses.bradley_terry_loss(PAIR, PAIR[:1]), r"rejected must have shape \(2,\), got \(1,\)"),
        (lambda: losses.bradley_terry_loss(X, X), r"chosen must be \[B\]"),
    ],
)
def test_errors_name_the_value_and_what_is_allowed(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_every_name_of_the_contract_is_here():
    names = "reinforce_loss ppo_loss grpo_loss value_loss sft_loss dpo_loss bradley_terry_loss kl_estimate exact_kl"
    assert set(names.split()) <= set(losses.__all__)
    assert all(hasattr(losses, name) for name in losses.__all__)
