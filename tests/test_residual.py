"""`ResNetPolicy`: what its heads say, and weights that fit boards of any size."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from llmgym.envs.go.mdp import GoMDP
from llmgym.nets import NetPolicy


def boards(size, n=4, **settings):
    mdp = GoMDP(size)
    policy = NetPolicy("ResNetPolicy", mdp, **({"hidden": (16, 16, 16), "seed": 0, "device": "cpu"} | settings))
    return policy, torch.rand(n, *mdp.observation_space.shape, generator=torch.Generator().manual_seed(1))


def test_a_point_is_read_off_at_that_point():
    """Far from a changed corner only what the whole board says changes, by the same for all points with equal input."""
    policy, x = boards(19, n=1, hidden=(8,))
    x[:] = 0
    other = x.clone()
    other[0, :, 0, 0] = 1
    with torch.inference_mode():
        one, two = (policy.net(planes)[0][0, :-1].view(19, 19) for planes in (x, other))
    far = (two - one)[8:15, 8:15]
    near = (two - one)[0, 0]
    assert torch.allclose(far, far[0, 0].expand_as(far), atol=1e-7) and not torch.isclose(near, far[0, 0], atol=1e-6)


def test_blocks_begin_as_the_identity_and_learn():
    policy, x = boards(5)
    net, tower = policy.net, policy.net.stem(x)
    assert all(torch.equal(block(tower), tower) for block in net.blocks)
    for _ in range(2):  # the first convolution has a gradient as soon as the second is not 0
        net.zero_grad()
        outputs, values = net(x)
        (outputs.square().sum() + values.sum()).backward()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter -= 0.01 * parameter.grad
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_heads_agree_and_seeds_count():
    policy, x = boards(7)
    outputs, values = policy.net(x)
    assert outputs.shape == (4, 50) and values.shape == (4,)
    assert torch.equal(policy.net.outputs(x), outputs)
    assert boards(7, value_head=False)[0].net(x)[1] is None
    same, other = boards(7)[0], boards(7, seed=1)[0]
    assert torch.equal(same.net(x)[0], outputs) and not torch.equal(other.net(x)[0], outputs)


def test_weights_of_a_smaller_board(tmp_path):
    small, _ = boards(5)
    small.save(tmp_path)
    large, x = boards(7, seed=3)
    with pytest.raises(ValueError, match="observation space"):
        large.load_weights(tmp_path)
    large.load_weights(tmp_path, any_size=True)
    assert all(torch.equal(one, two) for one, two in zip(small.parameters(), large.parameters(), strict=True))
    assert np.isfinite(large.net(x)[0].detach().numpy()).all()
    with pytest.raises(ValueError, match="hidden"):
        boards(7, hidden=(16, 16))[0].load_weights(tmp_path, any_size=True)
    other = NetPolicy("CnnPolicy", GoMDP(7), hidden=(16, 16, 16))
    with pytest.raises(ValueError, match="the kind ResNetPolicy, this one has CnnPolicy"):
        other.load_weights(tmp_path, any_size=True)


def test_what_it_refuses():
    env = SimpleNamespace(observation_space=spaces.Box(0, 1, (3, 5, 5), np.float32), action_space=spaces.Discrete(25))
    with pytest.raises(ValueError, match=re.escape("26 actions on 5x5 points, got 25")):
        NetPolicy("ResNetPolicy", env)
    with pytest.raises(ValueError, match=re.escape("equal numbers of channels, got (16, 8)")):
        boards(5, hidden=(16, 8))
    with pytest.raises(ValueError, match="three axes"):
        vector = SimpleNamespace(observation_space=spaces.Box(0, 1, (3,)), action_space=spaces.Discrete(2))
        NetPolicy("ResNetPolicy", vector)
