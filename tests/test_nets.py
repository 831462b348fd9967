"""`NetPolicy`: what it reads, what it says of a batch, and its way to disk and back."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from llmgym.batch import Fragments, Steps
from llmgym.mdp import NoLegalAction
from llmgym.nets import NetPolicy
from llmgym.spaces import channels_last, describe, is_8_bit, make_encoder

VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
FLOAT = np.dtype(np.float32)


def env_of(observation_space=VECTOR, action_space=None):
    return SimpleNamespace(observation_space=observation_space, action_space=action_space or spaces.Discrete(4))


def policy_of(observation_space=VECTOR, action_space=None, kind="MlpPolicy", **settings):
    return NetPolicy(kind, env_of(observation_space, action_space), **({"seed": 0} | settings))


def seen(space, n, seed=0):
    """n observations as a vector environment shows them."""
    batched = batch_space(space, n)
    batched.seed(seed)
    return batched.sample()


def fragments(policy, b=3, n=4, seed=0, **changes):
    """A batch that a policy may have played."""
    x = policy.encode(seen(policy.observation_space, b * n + b + 2, seed))
    action = policy.act(x[: b * n])
    flags = {"terminated": torch.zeros(b, n, dtype=torch.bool), "truncated": torch.zeros(b, n, dtype=torch.bool)}
    parts = {
        "mask": torch.ones(b, n, dtype=torch.bool),
        "rewards": torch.zeros(b, n).double(),
        "logp": torch.from_numpy(policy.logp(action.outputs, action.actions)).view(b, n),
        "n_tokens": torch.ones(b, n, dtype=torch.int64),
        "valid": torch.ones(b, dtype=torch.bool),
        "groups": torch.arange(b),
        "observations": torch.from_numpy(x[: b * n]).unflatten(0, (b, n)),
        "actions": torch.from_numpy(action.actions).unflatten(0, (b, n)),
        "final_observations": torch.from_numpy(x[:0]),
        "last_observations": torch.from_numpy(x[b * n : b * n + b]),
        "episode_returns": torch.zeros(0),
        "episode_lengths": torch.zeros(0),
    }
    return Fragments(**(parts | flags | changes)), torch.from_numpy(x[-2:])


OBSERVATIONS = {
    "box": spaces.Box(-1, 1, (2, 3), np.float64),
    "integers": spaces.Box(-5, 5, (2,), np.int64),
    "scalar": spaces.Box(-1, 1, (), np.float32),
    "bytes": spaces.Box(0, 255, (4,), np.uint8),
    "discrete": spaces.Discrete(5, start=-1),
    "multi": spaces.MultiDiscrete([[2, 3], [1, 4]], start=[[0, 5], [1, -2]]),
    "bits": spaces.MultiBinary(6),
    "dict": spaces.Dict(b=spaces.Discrete(3), a=spaces.Box(0, 255, (2, 2), np.uint8), c=spaces.MultiBinary([2, 2])),
}
ACTIONS = [
    spaces.Discrete(3),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(3),
    spaces.Box(-1, 1, (2, 2), np.float32),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_encoding_is_flattening_as_gymnasium_flattens(name, dtype):
    space = OBSERVATIONS[name]
    encode = make_encoder(space, "MlpPolicy", np.dtype(dtype))
    observations = seen(space, 5)
    x = encode(observations)
    assert x.shape == (5, *encode.shape) and x.dtype == dtype
    for row, single in zip(x, singles(space, observations), strict=True):
        assert np.allclose(row, by_hand(space, single))


def singles(space, observations):
    if isinstance(space, spaces.Dict):
        return [{key: x[i] for key, x in observations.items()} for i in range(5)]
    return list(observations)


def by_hand(space, x):
    if isinstance(space, spaces.Dict):
        return np.concatenate([by_hand(space[key], x[key]) for key in sorted(x)])
    return spaces.flatten(space, x) / (255.0 if is_8_bit(space) else 1.0)


@pytest.mark.parametrize("name", OBSERVATIONS)
@pytest.mark.parametrize("actions", ACTIONS, ids=str)
def test_one_observation_or_a_batch_of_them(name, actions):
    space = OBSERVATIONS[name]
    policy = policy_of(space, actions)
    observations = seen(space, 5)
    batch = policy.predict(observations, deterministic=True)
    assert len(batch) == 5
    for action, observation in zip(batch, singles(space, observations), strict=True):
        one = policy.predict(observation, deterministic=True)
        assert actions.contains(one) and np.allclose(one, action, atol=1e-6)


def test_observations_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"must have shape \(3,\), or \(n, \*\(3,\)\) for n of them, got \(4,\)"):
        policy_of().predict(np.zeros(4))
    policy = policy_of(OBSERVATIONS["dict"])
    with pytest.raises(ValueError, match=r"with the keys \['a', 'b', 'c'\], got \['a', 'b'\]"):
        policy.predict({"a": np.zeros((2, 2)), "b": 1})
    mixed = {"a": np.zeros((2, 2)), "b": np.zeros(1, int), "c": np.zeros((2, 2))}
    with pytest.raises(ValueError, match="one or a batch in all its parts"):
        policy.predict(mixed)


@pytest.mark.parametrize(
    ("shape", "space", "planes"),
    [
        ((3, 5, 5), {}, (3, 5, 5)),
        ((17, 5, 5), {}, (17, 5, 5)),
        ((5, 5, 17), {}, (17, 5, 5)),
        ((5, 5, 5), {}, (5, 5, 5)),
        ((17, 5, 7), {}, (17, 5, 7)),
        ((4, 19, 19), {"dtype": np.int8}, (4, 19, 19)),
        ((84, 84, 3), {"low": 0, "high": 255, "dtype": np.uint8}, (3, 84, 84)),
        ((4, 84, 84), {"low": 0, "high": 255, "dtype": np.uint8}, (4, 84, 84)),
        ((60, 80, 3), {"low": 0, "high": 255, "dtype": np.uint8}, (3, 60, 80)),
        ((3, 60, 80), {"low": 0, "high": 255, "dtype": np.uint8}, (3, 60, 80)),
        ((1, 1, 9), {}, (9, 1, 1)),
    ],
)
def test_planes_of_every_size(shape, space, planes):
    box = spaces.Box(**({"low": 0, "high": 1, "dtype": np.float32} | space), shape=shape)
    policy = policy_of(box, kind="CnnPolicy", hidden=(8, 8))
    observations = seen(box, 2)
    x = policy.encode(observations)
    assert policy.encode.shape == planes == x.shape[1:] and channels_last(box) == (planes != shape)
    assert np.array_equal(x, np.moveaxis(observations, -1, 1) if planes != shape else observations)
    assert x.dtype == box.dtype  # pixels are stored as bytes and scaled in the network
    evaluation = policy.evaluate(fragments(policy, 2, 2)[0])
    assert evaluation.logp.shape == evaluation.values.shape == (2, 2)
    assert policy.predict(observations[0]) in policy.action_space


def test_pixels_are_divided_by_255():
    shape = (3, 6, 6)
    pixels, floats = spaces.Box(0, 255, shape, np.uint8), spaces.Box(0, 1, shape, np.float32)
    x = seen(pixels, 4)
    one, two = (policy_of(space, kind="CnnPolicy") for space in (pixels, floats))
    outputs = two.act(two.encode(x / np.float32(255))).outputs
    assert np.allclose(one.act(one.encode(x)).outputs, outputs, atol=1e-7) and np.abs(outputs).max() > 1e-4


def test_a_board_keeps_its_points_apart():
    """One stone moved by a point changes what the network says, in every corner of the board."""
    policy = policy_of(spaces.Box(0, 1, (2, 19, 19), np.float32), spaces.Discrete(362), kind="CnnPolicy")
    boards = np.zeros((361, 2, 19, 19), np.float32)
    boards[np.arange(361), 0, np.arange(361) // 19, np.arange(361) % 19] = 1
    assert len(np.unique(policy.act(boards).outputs, axis=0)) == 361


@pytest.mark.parametrize(
    ("kind", "space", "sentence"),
    [
        ("MlpPolicy", spaces.Text(4), "'MlpPolicy' reads Box, .* got Text"),
        ("MlpPolicy", spaces.Dict(a=spaces.Dict(b=spaces.Discrete(2))), "a flat Dict of them, got Dict"),
        ("MlpPolicy", spaces.Tuple([spaces.Discrete(2)]), "got Tuple"),
        ("CnnPolicy", spaces.Box(0, 1, (4,)), r"'CnnPolicy' reads a Box of three axes, .* got Box"),
        ("CnnPolicy", spaces.Discrete(4), r"got Discrete\(4\)"),
    ],
)
def test_spaces_that_cannot_be_read_are_refused_by_name(kind, space, sentence):
    with pytest.raises(ValueError, match=sentence):
        policy_of(space, kind=kind)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kind": "MLPPolicy"}, "kind must be one of 'MlpPolicy', 'CnnPolicy', 'ResNetPolicy', got 'MLPPolicy'"),
        ({"activation": "sine"}, "activation must be one of 'tanh', .* got 'sine'"),
        ({"dtype": "bfloat16"}, "dtype must be one of 'float32', 'float64', got 'bfloat16'"),
        ({"hidden": (64, 0)}, r"hidden must hold whole numbers of at least 1, got \(64, 0\)"),
        ({"device": "tpu9"}, "device must be 'auto'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        policy_of(**settings)


def test_the_network_is_the_one_of_stable_baselines3():
    """Two trunks of 64-64 with tanh, orthogonal weights of gain √2, heads of 0.01 and 1, biases 0."""
    policy = policy_of()
    shapes = [tuple(p.shape) for p in policy.parameters()]
    trunk = [(64, 3), (64,), (64, 64), (64,)]
    assert shapes == [*trunk, (4, 64), (4,), *trunk, (1, 64), (1,)]
    for layers, gain in ((policy.net.actor.layers, 0.01), (policy.net.critic.layers, 1.0)):
        for layer, g in zip(layers, (math.sqrt(2), math.sqrt(2), gain), strict=True):
            w = layer.weight.detach().double()
            square = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
            assert torch.allclose(square, g**2 * torch.eye(len(square)).double(), atol=1e-5 * g)
            assert not layer.bias.any()
    x = torch.randn(5, 3)
    hidden = torch.nn.Sequential(*[m for layer in list(policy.net.actor.layers)[:-1] for m in (layer, torch.nn.Tanh())])
    assert torch.equal(policy.net.outputs(x), policy.net.actor.layers[-1](hidden(x)))


def test_a_seed_gives_weights_and_samples_and_leaves_the_global_generator_alone():
    x = seen(VECTOR, 64)
    state = torch.get_rng_state()
    one, two, other = policy_of(seed=3), policy_of(seed=3), policy_of(seed=4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.parameters()[0], other.parameters()[0])
    first, second = one.act(x), one.act(x)
    assert np.array_equal(first.actions, two.act(x).actions) and not np.array_equal(first.actions, second.actions)
    one.seed(3)
    assert np.array_equal(one.act(x).actions, first.actions)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(policy_of(seed=None).parameters()[0], policy_of(seed=None).parameters()[0])


def test_float64_has_the_same_weights():
    one, two = policy_of(), policy_of(dtype="float64")
    assert two.dtype == torch.float64 and all(p.dtype == torch.float64 for p in two.parameters())
    assert all(torch.equal(a.double(), b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert two.evaluate(fragments(two)[0]).logp.dtype == torch.float64


@pytest.mark.parametrize("kind", ["MlpPolicy", "CnnPolicy"])
@pytest.mark.parametrize("actions", ACTIONS, ids=str)
def test_evaluate_score_and_act_say_the_same(kind, actions):
    space = spaces.Box(-1, 1, (2, 4, 4), np.float64)
    policy = policy_of(space, actions, kind, dtype="float64", hidden=(5, 5))
    batch, _ = fragments(policy)
    evaluation, scored = policy.evaluate(batch), policy.score(batch)
    assert torch.allclose(evaluation.logp, batch.logp, atol=1e-12) and torch.equal(evaluation.logp, scored.logp)
    assert torch.equal(evaluation.values, scored.values) and evaluation.values.requires_grad
    assert not scored.logp.requires_grad and not scored.logp.is_inference()
    assert evaluation.kl is None and evaluation.n_tokens is batch.n_tokens
    assert policy.evaluate(batch, entropy=False).entropy is None
    loss = evaluation.logp.sum() + evaluation.values.sum() + evaluation.entropy.sum()
    slopes = torch.autograd.grad(loss, policy.parameters())  # all of them are used
    assert all(slope.isfinite().all() for slope in slopes)
    steps = policy.evaluate(batch.steps())
    assert torch.allclose(steps.logp.flatten(), evaluation.logp.flatten(), atol=1e-14)


@pytest.mark.parametrize("rows_at_once", [0, 1, 5])
def test_values_of_what_follows_stand_where_it_belongs(rows_at_once):
    """Rows: one that runs on, one cut in the middle and at its end, one that terminates at its end."""
    policy = policy_of(dtype="float64")
    truncated, terminated = torch.zeros(2, 3, 4, dtype=torch.bool)
    truncated[1, 1] = truncated[1, 3] = terminated[2, 3] = True
    batch, final = fragments(policy, truncated=truncated, terminated=terminated)
    batch = replace(batch, final_observations=final)
    scored = policy.score(batch, rows_at_once)
    value = lambda x: policy.net(x)[1].detach()  # noqa: E731
    expected = torch.zeros(3, 4).double()
    expected[1, 1], expected[1, 3] = value(final)
    assert torch.allclose(scored.final_values, expected, atol=1e-14)
    assert scored.bootstrap[1:].tolist() == [0.0, 0.0]
    assert torch.allclose(scored.bootstrap[0], value(batch.last_observations)[0], atol=1e-14)
    assert torch.allclose(scored.values.flatten(), value(batch.observations.flatten(0, 1)), atol=1e-14)


def test_a_row_that_has_ended_has_no_bootstrap():
    """Its mask is False at the end: there it only resets, or its one episode is over."""
    policy = policy_of()
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[0, -1] = mask[1, 2:] = False
    batch, _ = fragments(policy, mask=mask)
    assert [bool(x) for x in policy.score(batch).bootstrap] == [False, False, True]


def test_without_a_critic_there_are_no_values():
    for kind, space in (("MlpPolicy", VECTOR), ("CnnPolicy", spaces.Box(0, 1, (2, 5, 5)))):
        policy = policy_of(space, kind=kind, value_head=False)
        batch, _ = fragments(policy)
        scored = policy.score(batch)
        assert policy.value_head is None and policy.evaluate(batch).values is None
        assert scored.values is None and scored.bootstrap is None and scored.final_values is None
        with_critic = policy_of(space, kind=kind)
        assert with_critic.value_head is not None and len(with_critic.parameters()) > len(policy.parameters())


def test_masks_hold_in_act_predict_and_evaluate():
    policy = policy_of(dtype="float64")
    x, rng = seen(VECTOR, 200).astype(np.float64), np.random.default_rng(0)
    masks = rng.random((200, 4)) < 0.4
    masks[np.arange(200), rng.integers(4, size=200)] = True
    for deterministic in (False, True):
        action = policy.act(x, masks, deterministic=deterministic)
        assert masks[np.arange(200), action.for_env].all()
        assert masks[np.arange(200), policy.predict(x, action_masks=masks, deterministic=deterministic)].all()
    batch = steps_of(policy, x, policy.act(x, masks), masks)
    logp = torch.from_numpy(action.outputs).masked_fill(~torch.from_numpy(masks), -torch.inf).log_softmax(-1)
    evaluation = policy.evaluate(batch)
    assert torch.allclose(evaluation.logp, logp.gather(1, batch.actions), atol=1e-12)
    assert torch.allclose(evaluation.logp, batch.logp, atol=1e-12) and torch.equal(
        policy.score(batch).logp, evaluation.logp
    )
    assert policy.predict(x[0], action_masks=[False, False, True, False]) == 2
    with pytest.raises(NoLegalAction):
        policy.predict(x[0], action_masks=[False] * 4)


def steps_of(policy, x, action, masks):
    n = len(x)
    logp = torch.from_numpy(policy.logp(action.outputs, action.actions, masks))[:, None]
    ones = torch.ones(n, 1, dtype=torch.bool)
    return Steps(
        mask=ones,
        rewards=torch.zeros(n, 1),
        logp=logp,
        n_tokens=ones.long(),
        valid=ones[:, 0],
        groups=torch.arange(n),
        observations=torch.from_numpy(x)[:, None],
        actions=torch.from_numpy(action.actions)[:, None],
        action_masks=torch.from_numpy(masks)[:, None],
    )


def test_forward_passes_are_counted():
    policy = policy_of()
    policy.act(policy.encode(seen(VECTOR, 2)))
    policy.predict(np.zeros(3, np.float32))
    batch, _ = fragments(policy)
    policy.evaluate(batch)
    policy.score(batch)
    assert policy.counters.as_dict() == {
        "sampled_tokens": 0,
        "forward_tokens": 0,
        "forward_passes": 5,
        "cache_hits": 0,
    }
    policy.score(batch, rows_at_once=5)  # 12 steps and 3 states after them
    assert policy.counters.forward_passes == 8


@pytest.mark.parametrize("kind", ["MlpPolicy", "CnnPolicy"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_saved_and_loaded_bit_for_bit(kind, dtype, tmp_path):
    env = env_of(spaces.Box(-1, 1, (2, 5, 5), np.float32), ACTIONS[-1])
    settings = {"hidden": (6,), "activation": "silu", "dtype": dtype}
    policy = NetPolicy(kind, env, **settings, seed=0)
    torch.nn.init.normal_(policy.head.log_std)
    policy.save(tmp_path / "policy")
    same, again = NetPolicy(kind, env, **settings, seed=1), NetPolicy.load(tmp_path / "policy", env, dtype=dtype)
    parameters = same.parameters()
    same.load_weights(tmp_path / "policy")
    assert all(a is b for a, b in zip(parameters, same.parameters(), strict=True))  # an optimiser still holds them
    batch, _ = fragments(policy)
    for other in (same, again):
        assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), other.parameters(), strict=True))
        assert torch.equal(policy.evaluate(batch).logp, other.evaluate(batch).logp)
        assert other.head.log_std is other.net.log_std
    assert sorted(path.name for path in (tmp_path / "policy").iterdir()) == ["policy.json", "policy.safetensors"]


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"observation_space": spaces.Box(-1, 1, (4,), np.float32)}, r"observation space Box\(3, float32\), this one"),
        ({"action_space": spaces.Discrete(5)}, r"action space Discrete\(4, start=0\), this one has Discrete\(5"),
        ({"action_space": spaces.MultiDiscrete([2, 2])}, "this one has MultiDiscrete"),
        ({"hidden": (32,)}, r"has the hidden \[64, 64\], this one has \[32\]"),
        ({"activation": "relu"}, "has the activation tanh, this one has relu"),
        ({"value_head": False}, "has the value head True, this one has False"),
    ],
)
def test_what_does_not_fit_is_refused(other, sentence, tmp_path):
    policy_of().save(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        policy_of(**other).load_weights(tmp_path)


def test_a_folder_without_a_policy_is_refused(tmp_path):
    for load in (policy_of().load_weights, lambda folder: NetPolicy.load(folder, env_of())):
        with pytest.raises(ValueError, match="is no folder that a NetPolicy was saved in"):
            load(tmp_path)


def test_descriptions_tell_spaces_apart():
    different = [
        *OBSERVATIONS.values(),
        *ACTIONS,
        spaces.Box(0, 254, (4,), np.uint8),
        spaces.Box(0, 255, (2, 2), np.uint8),
        spaces.Discrete(5),
        spaces.MultiDiscrete([3, 2]),
    ]
    described = [describe(space) for space in different]
    assert all(one not in described[:i] for i, one in enumerate(described))
    assert describe(spaces.Box(-1, 1, (2,))) == describe(spaces.Box(-9, np.inf, (2,)))  # bounds do not matter


def test_a_copy_is_a_policy_of_its_own():
    policy = policy_of(action_space=ACTIONS[-1])
    twin = copy.deepcopy(policy)
    with torch.no_grad():
        for p in twin.parameters():
            p += 1.0
    x = policy.encode(seen(VECTOR, 3))
    assert not np.allclose(twin.act(x).outputs, policy.act(x).outputs)
    assert policy.head.log_std.sum() == 0 and twin.head.log_std is twin.net.log_std and twin.head.log_std.sum() == 4


def test_vector_environments_give_the_spaces_of_a_row():
    vector = SimpleNamespace(
        observation_space=batch_space(VECTOR, 7),
        action_space=batch_space(spaces.Discrete(4), 7),
        single_observation_space=VECTOR,
        single_action_space=spaces.Discrete(4),
    )
    assert NetPolicy("MlpPolicy", vector).observation_space == VECTOR


def test_no_language_model_library_is_loaded():
    code = "import sys, llmgym.nets, llmgym.play; print({'transformers', 'peft', 'llmgym.agents'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.stdout.strip(), done.returncode) == ("set()", 0), done.stderr
