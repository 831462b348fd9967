"""From logits to tokens: one distribution, written by others in another way, and its corners."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from llmgym.mdp import NoLegalAction
from llmgym.sampling import check_sampling, sample, sampling_logp


def logits(*shape, seed=0, scale=2.0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.8), (4, 0.7), (1, 1.0), (100, 0.999)])
def test_it_is_the_distribution_of_transformers(temperature, top_k, top_p):
    x = logits(20, 9)
    warped = TemperatureLogitsWarper(temperature)(None, x) if temperature != 1 else x
    warped = TopKLogitsWarper(top_k)(None, warped) if top_k else warped
    warped = TopPLogitsWarper(top_p)(None, warped) if top_p < 1 else warped
    ours = sampling_logp(x, temperature=temperature, top_k=top_k, top_p=top_p)
    torch.testing.assert_close(ours, warped.log_softmax(-1), rtol=1e-12, atol=1e-12)


def test_the_nucleus_by_hand():
    x = torch.tensor([0.5, 0.3, 0.15, 0.05]).double().log()
    for top_p, kept in ((0.4, 1), (0.6, 2), (0.79, 2), (0.81, 3), (0.96, 4), (1e-6, 1)):
        p = sampling_logp(x, top_p=top_p).exp()
        assert int((p > 0).sum()) == kept, top_p
        torch.testing.assert_close(p[:kept], x.exp()[:kept] / x.exp()[:kept].sum())


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.0])
def test_a_short_list_is_a_mask_and_normalised_over_what_is_listed(temperature):
    x, listed = logits(5, 9), [1, 4, 7]
    mask = torch.zeros(9, dtype=torch.bool)
    mask[listed] = True
    logp = sampling_logp(x, temperature=temperature, mask=mask.expand(5, 9))
    torch.testing.assert_close(logp[:, listed], (x[:, listed] / temperature).log_softmax(-1), rtol=0, atol=1e-14)
    assert (logp[:, ~mask] == -torch.inf).all()


def test_top_k_and_the_nucleus_choose_among_what_the_mask_allows():
    x = torch.tensor([5.0, 4.0, 1.0, 0.9])
    mask = torch.tensor([False, False, True, True])
    assert sampling_logp(x, top_k=1, mask=mask).exp().tolist() == [0, 0, 1, 0]
    assert (sampling_logp(x, top_p=0.99, mask=mask).exp() > 0).tolist() == mask.tolist()


SHAPES = hnp.array_shapes(min_dims=1, max_dims=2, min_side=1, max_side=6)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_mask_gives_a_distribution_over_it_or_a_named_error_never_nan(data):
    shape = data.draw(SHAPES)
    x = torch.from_numpy(data.draw(hnp.arrays(np.float32, shape, elements=st.floats(-1e4, 1e4, width=32))))
    mask = torch.from_numpy(data.draw(hnp.arrays(bool, shape)))
    limits = {"top_k": data.draw(st.integers(0, 7)), "top_p": data.draw(st.floats(0.01, 1.0))}
    temperature = data.draw(st.sampled_from([0.1, 1.0, 10.0]))
    x = x.requires_grad_()
    if not bool(mask.any(-1).all()):
        with pytest.raises(NoLegalAction, match="allows no token"):
            sampling_logp(x, temperature=temperature, mask=mask, **limits)
        return
    logp = sampling_logp(x, temperature=temperature, mask=mask, **limits)
    torch.testing.assert_close(logp.exp().sum(-1), torch.ones(shape[:-1]), rtol=0, atol=1e-5)
    assert not logp.isnan().any() and (logp[~mask] == -torch.inf).all() and (logp.exp().amax(-1) > 0).all()
    (gradient,) = torch.autograd.grad(logp[logp > -torch.inf].sum(), x)
    assert gradient.isfinite().all() and (gradient[~mask] == 0).all()


def test_half_precision_is_normalised_in_float32():
    x = logits(4, 64).to(torch.bfloat16)
    logp = sampling_logp(x, temperature=0.7)
    assert logp.dtype == torch.float32
    assert torch.equal(logp, (x.float() / 0.7).log_softmax(-1))
    assert sampling_logp(x.double()).dtype == torch.float64


# --- drawing --------------------------------------------------------------------------------------------------------


def test_frequencies_are_the_probabilities():
    p = torch.tensor([0.05, 0.0, 0.4, 0.25, 0.0, 0.3])
    n = 40_000
    drawn = sample(p.log().expand(n, -1), torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=6)
    assert counts[p == 0].tolist() == [0, 0]
    positive = p > 0
    chi2 = ((counts - n * p)[positive].square() / (n * p[positive])).sum()
    assert float(chi2) < 16.3  # 99.9 % point with three degrees of freedom


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("u", [0.0, 0.5, 1.0])
def test_the_ends_of_the_unit_interval_draw_possible_tokens(u, dtype, monkeypatch):
    """u = 1 cannot be drawn, but a product may round up to the total."""
    possible = torch.tensor([[False, True, False], [True, False, False], [False, False, True], [False, True, True]])
    logp = sampling_logp(logits(4, 3).to(dtype), mask=possible)
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, u, dtype=dtype))
    assert possible.gather(1, sample(logp)[:, None]).all()


def test_the_generator_decides_alone():
    logp = logits(50, 7).log_softmax(-1)
    one, two = (sample(logp, torch.Generator().manual_seed(1)) for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(one, two) and not torch.equal(one, sample(logp, torch.Generator().manual_seed(2)))


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"temperature": 0.0}, r"temperature must be above 0 \(use deterministic=True for greedy\), got 0.0"),
        ({"temperature": -1.0}, "temperature must be above 0"),
        ({"temperature": float("nan")}, "temperature must be above 0"),
        ({"top_k": -1}, r"top_k must be at least 0 \(0 keeps all\), got -1"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
    ],
)
def test_settings_out_of_range_are_said(setting, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_sampling(**({"temperature": 1.0, "top_k": 0, "top_p": 1.0} | setting))
    check_sampling(0.3, 5, 0.5)
