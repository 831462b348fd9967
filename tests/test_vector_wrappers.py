"""The vector twins equal N single wrappers, step by step and in every autoreset mode, at one batched pass a step."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from toys import EOS, A, B, Failing, Replying, V, no_repeat, random_tokens
from worlds import tiny_model

import llmgym  # noqa: F401
from llmgym.envs import (
    HiddenStateObservation,
    ReferenceLogProb,
    TopKActions,
    VectorHiddenStateObservation,
    VectorReferenceLogProb,
    VectorTopKActions,
)
from llmgym.tasks import Problem

N = 4
TWINS: dict[type, Any] = {
    TopKActions: VectorTopKActions,
    HiddenStateObservation: VectorHiddenStateObservation,
    ReferenceLogProb: VectorReferenceLogProb,
}
IDS = {1: "llmgym/TokenMDP-v0", 3: "llmgym/BlockMDP-v0", 8: "llmgym/SequenceMDP-v0"}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "grammar": {"constraint": no_repeat, "banned_tokens": [7], "mask_in_info": True},
    "minimum": {"min_new_tokens": 3},
    "replies": {"task": Replying(), "max_new_tokens": 12},
    "failing scorer": {"task": Failing()},
    "limit": {"max_episode_steps": 2, "mask_in_info": True},
    "one token": {"max_new_tokens": 1},
}
STACKS: dict[str, list[tuple[type, dict[str, Any]]]] = {
    "short-list": [(TopKActions, {"k": V})],
    "hidden": [(HiddenStateObservation, {})],
    "reference": [(ReferenceLogProb, {})],
    "all": [(TopKActions, {"k": 5}), (ReferenceLogProb, {}), (HiddenStateObservation, {"candidate_logp": True})],
    "all, reference first": [
        (ReferenceLogProb, {}),
        (TopKActions, {"k": 5, "min_prob": 0.1}),
        (HiddenStateObservation, {}),
    ],
    "all, short-list last": [(ReferenceLogProb, {}), (HiddenStateObservation, {}), (TopKActions, {"k": 3})],
}
COMBINED = [("all", case) for case in CASES] + [(stack, "plain") for stack in STACKS if stack != "all"]
COMBINED += [
    (stack, case) for stack in ("all, reference first", "all, short-list last") for case in ("grammar", "replies")
]
ON_BLOCKS = {"hidden": STACKS["hidden"], "reference": STACKS["reference"]}
ON_BLOCKS |= {"both": STACKS["reference"] + STACKS["hidden"]}


@pytest.fixture
def model() -> Any:
    return tiny_model("llama", V)


def wrap(env: Any, model: Any, stack: list[tuple[type, dict[str, Any]]]) -> Any:
    for wrapper, arguments in stack:
        kind = TWINS[wrapper] if isinstance(env, gym.vector.VectorEnv) else wrapper
        env = kind(env, model, **arguments)
    return env


def pair(model: Any, stack: Any, mode: Any, block: int, arguments: dict[str, Any]):
    arguments = arguments | ({"block_size": 3} if block == 3 else {})
    native = wrap(gym.make_vec(IDS[block], num_envs=N, autoreset_mode=mode, **arguments), model, stack)
    single = SyncVectorEnv([partial(_single, model, stack, block, arguments)] * N, autoreset_mode=mode)
    return native, single


def _single(model: Any, stack: Any, block: int, arguments: dict[str, Any]) -> gym.Env:
    return wrap(gym.make(IDS[block], disable_env_checker=True, **arguments), model, stack)


def assert_close(a: Any, b: Any, where: str) -> None:
    """Equality of nested infos and observations; floats to 1e-10, or to float32's rounding."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), f"{where}: keys {sorted(a)} and {sorted(b)}"
        for key in a:
            assert_close(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, tuple | list) or (isinstance(a, np.ndarray) and a.dtype == object):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_close(x, y, f"{where}[{i}]")
    elif isinstance(a, np.ndarray) and a.dtype.kind == "f":
        assert (a.dtype, a.shape) == (b.dtype, b.shape), f"{where}: {a.dtype}{a.shape} and {b.dtype}{b.shape}"
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 if a.dtype == np.float64 else 2e-6, err_msg=where)
    else:
        np.testing.assert_array_equal(a, b, where)


def same_steps(native: Any, single: Any, steps: int = 30) -> None:
    rng = np.random.default_rng(7)
    assert native.single_observation_space == single.single_observation_space
    assert native.action_space == single.action_space and native.observation_space == single.observation_space
    assert_close(native.reset(seed=3), single.reset(seed=3), "reset")
    short, ended = native.single_action_space, 0
    for step in range(steps):
        whole = not isinstance(short, gym.spaces.Discrete) or short.n == V
        shape = native.action_space.shape
        actions = random_tokens(rng, shape) if whole else rng.integers(short.n, size=shape)
        ours, theirs = native.step(actions), single.step(actions)
        assert_close(ours, theirs, f"step {step}")
        assert ours[0] in native.observation_space
        over = ours[2] | ours[3]
        ended += over.sum()
        if native.metadata["autoreset_mode"] is AutoresetMode.DISABLED and over.any():
            options = {"reset_mask": over}
            assert_close(native.reset(options=dict(options)), single.reset(options=dict(options)), f"reset {step}")
    assert ended > 5


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize(("stack", "case"), COMBINED)
def test_equals_single_wrappers_on_tokens(stack, case, mode, toy, model):
    same_steps(*pair(model, STACKS[stack], mode, 1, toy | CASES[case]))


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize(
    ("block", "stack", "case"),
    [
        (3, "reference", "plain"),
        (3, "both", "grammar"),
        (3, "both", "replies"),
        (3, "hidden", "limit"),
        (8, "both", "plain"),
    ],
)
def test_equals_single_wrappers_on_blocks(block, stack, case, mode, toy, model):
    same_steps(*pair(model, ON_BLOCKS[stack], mode, block, toy | CASES[case]))


@pytest.mark.parametrize("kind", ["gpt2", "sliding"])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_equals_single_wrappers_with_other_models(mode, kind, toy):
    same_steps(*pair(tiny_model(kind, V), STACKS["all"], mode, 1, toy))


def make(toy: dict[str, Any], model: Any, stack: str = "all", mode: str = "SameStep", **changes: Any) -> Any:
    return wrap(gym.make_vec(IDS[1], num_envs=N, autoreset_mode=mode, **(toy | changes)), model, STACKS[stack])


def test_all_rows_take_one_pass_a_step(toy, model):
    env = make(toy, model, min_new_tokens=7)
    env.reset(seed=0)
    counters = env.lookahead.decoder.counters
    assert counters.forward_passes == 1
    for step in range(1, 7):
        before = counters.forward_tokens
        env.step(np.zeros(N, int))
        env.unwrapped.action_masks()
        assert (counters.forward_passes, counters.forward_tokens) == (1 + step, before + N)


def test_a_row_that_starts_anew_costs_its_prompt_and_the_others_one_token(toy, model):
    env = make(toy, model)
    env.reset(seed=0)
    counters = env.lookahead.decoder.counters
    for _ in range(30):
        lengths, tokens, passes = env.unwrapped.lengths.copy(), counters.forward_tokens, counters.forward_passes
        _, _, terminated, _, _ = env.step(np.arange(N))
        ended = terminated.sum()
        prompts = env.unwrapped.lengths[terminated].sum()
        # One token of every text that went on or ended; equal prompts are read once.
        assert counters.forward_tokens - tokens <= N + prompts, lengths
        assert counters.forward_passes - passes == (1 if not ended else 2)


def test_rows_that_are_over_cost_nothing(toy, model):
    env = make(toy, model, "hidden", "Disabled")
    env.reset(seed=0)
    tokens = env.lookahead.decoder.counters
    env.step(np.array([EOS, A, A, A]))
    for _ in range(3):
        before = tokens.forward_tokens
        env.step(np.array([A, B, A, B]))
        assert tokens.forward_tokens == before + 3


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_a_state_restored_beneath_replays_the_same(mode, toy, model):
    env, fresh = (make(toy, model, mode=mode, constraint=no_repeat) for _ in range(2))
    rng = np.random.default_rng(0)
    actions = rng.integers(2, size=(9, N))
    env.reset(seed=1)
    for action in actions[:4]:
        env.step(action)
    snapshot = env.unwrapped.get_state()
    expected = [env.step(action) for action in actions[4:]]
    for target in (env, fresh):
        target.reset(seed=8)
        target.unwrapped.set_state(snapshot)
        for action, step in zip(actions[4:], expected, strict=True):
            assert_close(target.step(action), step, "step")


def test_new_parameters_are_seen_at_once(toy, model):
    env = make(toy, model, "short-list")
    env.reset(seed=0)
    before = env.shortlist.logp
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    assert not np.allclose(env.shortlist.logp, before)
    np.testing.assert_array_equal(env.shortlist.logp, make(toy, model, "short-list").reset(seed=0)[1]["candidate_logp"])


def test_an_interrupted_pass_leaves_nothing_that_looks_finished(toy, model, monkeypatch):
    env = make(toy, model, "short-list")
    env.reset(seed=0)
    before = env.unwrapped.get_state()
    expected = env.step(np.array([0, 1, 2, 3]))
    env.unwrapped.set_state(before)
    with monkeypatch.context() as patch:
        patch.setattr(env.lookahead.decoder, "predict", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            env.step(np.array([0, 1, 2, 3]))
    env.unwrapped.set_state(before)
    assert_close(env.step(np.array([0, 1, 2, 3])), expected, "step")


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_same_problem_again_is_no_reason_to_miss_a_final_observation(toy, model):
    stack = [*STACKS["all"][:1], *STACKS["hidden"]]
    env = wrap(gym.make_vec(IDS[1], num_envs=2, autoreset_mode="SameStep", **(toy | {"task": One()})), model, stack)
    observations, _ = env.reset(seed=0)
    seen = set()
    for action in range(5):
        again, _, terminated, _, infos = env.step(np.array([action, action]))
        if terminated.all():
            np.testing.assert_allclose(again, observations, atol=1e-6)
            seen.add(infos["final_obs"][0].tobytes())
            np.testing.assert_allclose(*infos["final_obs"], atol=1e-6)
    assert seen


class One(Replying):
    """A task of a single problem."""

    def problem(self, rng: np.random.Generator, split: str = "train") -> Problem:
        return Problem("ab=", "ab")

    def reply(self, problem: Problem, text: str) -> None:
        return None


def test_bad_use_is_named(toy, model):
    env = make(toy, model)
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(N, int))
    env.reset(seed=0)
    for actions in (np.full(N, 5), np.zeros(N - 1, int), np.full(N, -1)):
        with pytest.raises(ValueError, match=r"actions must be 4 integers in \[0, 5\)"):
            env.step(actions)
    with pytest.raises(ValueError, match="before VectorHiddenStateObservation"):
        VectorReferenceLogProb(env, model)
    with pytest.raises(ValueError, match="native form"):
        VectorHiddenStateObservation(SyncVectorEnv([partial(gym.make, IDS[1], **toy)]), model)
    with pytest.raises(ValueError, match="VectorTopKActions beneath"):
        VectorHiddenStateObservation(env.unwrapped, model, candidate_logp=True)
