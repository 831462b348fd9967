"""The native vector form equals N single environments, step by step."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from toys import A, B, C, EOS, Failing, Replying, ReplyingFailing, assert_same, newline_or_tag, no_repeat, random_tokens

import llmgym  # noqa: F401

N, STEPS = 4, 150

COMMON: dict[str, dict[str, Any]] = {
    "plain": {},
    "masks": {"min_new_tokens": 3, "banned_tokens": ["b"], "mask_in_info": True},
    "grammar": {"constraint": no_repeat, "mask_in_info": True},
    "replies": {"task": Replying()},
    "failing scorer": {"task": Failing()},
    "limit": {"max_episode_steps": 2},
    "limit with masks": {"max_episode_steps": 1, "mask_in_info": True},
    "all": {"task": ReplyingFailing(), "constraint": no_repeat, "banned_tokens": [7], "mask_in_info": True, "max_episode_steps": 4},
}
BLOCKS: dict[str, dict[str, Any]] = {
    "newline": {"stop": "\n"},
    "tag over tokens": {"stop": "<t>="},
    "random length": {"stop": [1, 3]},
    "function": {"stop": newline_or_tag, "task": ReplyingFailing(), "constraint": no_repeat, "max_episode_steps": 5},
}
CASES = [(f"llmgym/{name}-v0", case) for name in ("TokenMDP", "BlockMDP", "SequenceMDP") for case in COMMON]
CASES += [("llmgym/BlockMDP-v0", case) for case in BLOCKS]


def pair(id: str, mode: Any, arguments: dict[str, Any]):
    if id == "llmgym/BlockMDP-v0":
        arguments = {"block_size": 3} | arguments
    native = gym.make_vec(id, num_envs=N, autoreset_mode=mode, **arguments)
    return native, SyncVectorEnv([partial(gym.make, id, **arguments)] * N, autoreset_mode=mode)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize(("id", "case"), CASES)
def test_equals_single_environments_step_by_step(id, case, mode, toy):
    native, single = pair(id, mode, toy | (COMMON | BLOCKS)[case])
    rng = np.random.default_rng(7)
    assert_same(native.reset(seed=3), single.reset(seed=3), "reset")
    ended = 0
    for step in range(STEPS):
        actions = random_tokens(rng, native.action_space.shape)
        ours, theirs = native.step(actions), single.step(actions)
        assert_same(ours, theirs, f"step {step}")
        over = ours[2] | ours[3]
        ended += over.sum()
        if mode is AutoresetMode.DISABLED and over.any():
            options = {"reset_mask": over}
            assert_same(native.reset(options=dict(options)), single.reset(options=dict(options)), f"reset {step}")
    assert ended > 20
