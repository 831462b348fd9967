"""The fused residual tower says what the plain one says."""

from __future__ import annotations

import copy

import pytest
import torch

from llmgym.envs.go.mdp import GoMDP
from llmgym.fused_residual import FusedResNet, fused
from llmgym.nets import NetPolicy
from llmgym.search.evaluators import NetEvaluator

BFLOAT16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def policy(size, **named):
    """With weights that are nowhere zero."""
    made = NetPolicy("ResNetPolicy", GoMDP(size), **{"hidden": (16, 16), "device": "cpu", "seed": 0, **named})
    generator = torch.Generator().manual_seed(1)
    for weights in made.net.parameters():
        torch.nn.init.normal_(weights, std=0.1, generator=generator)
    return made


@pytest.mark.skipif(not BFLOAT16, reason="this processor has no bfloat16")
@pytest.mark.parametrize(("size", "width"), [(3, 16), (9, 48), ((4, 5), 32)])
def test_outputs_are_those_of_the_network(size, width):
    """Whatever the width: channels of zeros fill it up."""
    net = policy(size, hidden=(width, width)).net
    plain = copy.deepcopy(net).to(torch.bfloat16, memory_format=torch.channels_last)
    quick, rows = fused(plain), plain.stem.weight.shape[1]
    assert isinstance(quick, FusedResNet)
    for n in (1, 7, 16, 3):
        sides = size if isinstance(size, tuple) else (size, size)
        x = torch.randint(0, 2, (n, rows, *sides), generator=torch.Generator().manual_seed(n)).float()
        half = x.to(torch.bfloat16, memory_format=torch.channels_last)
        with torch.inference_mode():
            for found, exact, same in zip(quick(half), net(x), plain(half), strict=True):
                assert found.shape == exact.shape and found.dtype == torch.bfloat16
                error = (same.float() - exact).abs().max()
                assert (found.float() - exact).abs().max() <= 2 * error + 0.01 * exact.abs().max()
                assert n == 1 or exact.std() > 0.01


def test_what_cannot_be_fused_stays_as_it_is():
    for named in ({}, {"activation": "silu"}, {"value_head": False}):
        net = policy(3, **named).net
        assert fused(net) is net
        if named:
            assert fused(half := net.to(torch.bfloat16)) is half


@pytest.mark.skipif(not BFLOAT16, reason="this processor has no bfloat16")
def test_an_evaluator_takes_over_what_is_learnt():
    mdp, learning = GoMDP(3), policy(3)
    evaluator, states = NetEvaluator(mdp, learning, bfloat16=True), [mdp.initial()]
    before = evaluator(states)
    with torch.no_grad():
        learning.net.stem.weight.mul_(-1.0)
    assert (evaluator(states).logits == before.logits).all()
    evaluator.refresh()
    assert (evaluator(states).logits != before.logits).any()
    exact = NetEvaluator(mdp, learning)(states)
    assert abs(evaluator(states).logits - exact.logits).max() < 0.05 * abs(exact.logits).max()
