"""`MDPEnv` and the three text environments, one episode at a time."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import (
    EOS,
    EQUALS,
    PAD,
    TAG,
    A,
    B,
    C,
    Failing,
    Replying,
    ReplyingFailing,
    V,
    Words,
    assert_same,
    newline_or_tag,
    no_repeat,
    random_tokens,
    toy_tokenizer,
)

import llmgym
from llmgym.env import MDPEnv
from llmgym.envs import BlockMDP, SequenceMDP, TextEnv, TokenMDP
from llmgym.mdp import MDP, NoLegalAction
from llmgym.tasks import Problem

TOKENIZER = toy_tokenizer()
SMALL: dict[str, Any] = {"tokenizer": TOKENIZER, "max_prompt_tokens": 6, "max_new_tokens": 8}
PROBLEM = {"problem": Problem("ab=", "ab")}
assert llmgym.__version__


# --- the shell around any MDP ---------------------------------------------------------------------------------------


class Walk(MDP[int, int]):
    """From a random place in 0..4 step by step to 5."""

    observation_space, action_space = gym.spaces.Discrete(6), gym.spaces.Discrete(2)

    def initial(self, rng, options=None):
        return int(rng.integers(5))

    def transition(self, state, action):
        return min(5, state + int(action))

    def reward(self, state, action, next_state):
        return float(next_state == 5)

    def terminal(self, state):
        return state == 5

    def observation(self, state):
        return state

    def mask(self, state):
        return np.array([state > 0, True])


def test_any_one_player_mdp_becomes_an_environment():
    env = MDPEnv(Walk(), mask_in_info=True)
    observation, info = env.reset(seed=1)
    assert observation == env.state == int(gym.utils.seeding.np_random(1)[0].integers(5))
    assert info["action_mask"].tolist() == [observation > 0, True]
    steps = [env.step(1)[:4] for _ in range(5 - observation)]
    assert steps[-1] == (5, 1.0, True, False) and all(step[1:] == (0.0, False, False) for step in steps[:-1])


def test_a_render_mode_that_does_not_exist_is_said(toy):
    with pytest.raises(ValueError, match="render_mode must be None or one of \\[\\], got 'ansi'"):
        MDPEnv(Walk(), render_mode="ansi")
    with pytest.raises(ValueError, match="render_mode must be None or one of \\['ansi', 'human'\\], got 'rgb_array'"):
        TokenMDP(**toy, render_mode="rgb_array")


def test_nothing_works_before_the_first_reset(toy):
    env = TokenMDP(**toy, render_mode="ansi")
    for call in (lambda: env.step(A), lambda: env.state, env.action_masks, env.get_state, env.render):
        with pytest.raises(ResetNeeded, match=r"call reset\(\)"):
            call()


def test_no_step_after_the_end(toy):
    env = TokenMDP(**toy)
    env.reset(seed=0)
    env.step(EOS)
    with pytest.raises(ResetNeeded, match=r"the episode has ended: call reset\(\)"):
        env.step(A)
    env.reset()
    env.step(A)


# --- steps ----------------------------------------------------------------------------------------------------------


def test_rewards_are_floats_and_flags_are_bools(toy):
    env = TokenMDP(**toy)
    env.reset(seed=0, options=PROBLEM)
    for action, expected in ((A, 0.0), (B, 0.0), (EOS, 1.375)):
        observation, reward, terminated, truncated, info = env.step(action)
        assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
        assert reward == expected and terminated == (action == EOS) and truncated is False
        assert observation in env.observation_space and set(info) == (set() if action != EOS else set(END))
    assert info["is_success"] is True and info["text"] == "ab"


END = ("text", "finish_reason", "n_tokens", "reward_terms", "is_success")


def test_the_spent_budget_terminates(toy):
    env = SequenceMDP(**toy)
    env.reset(seed=0)
    _, _, terminated, truncated, info = env.step([A] * 8)
    assert terminated is True and truncated is False and info["finish_reason"] == "length" and info["n_tokens"] == 8


def test_an_illegal_token_ends_with_the_failing_reward(toy):
    env = BlockMDP(**toy, banned_tokens=["c"])
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step([A, C, A, A])
    assert (reward, terminated, truncated) == (-1.0, True, False)
    assert info["illegal"] is True and info["text"] == "a" and info["finish_reason"] == "illegal"


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4])  # raises, NaN, a None term, a str term, no dict
def test_a_scorer_that_fails_truncates_with_reward_zero(length, toy):
    env = SequenceMDP(**toy | {"task": Failing()})
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step([A] * length + [EOS] * (8 - length))
    assert (type(reward), reward, terminated, truncated) == (float, 0.0, False, True)
    assert isinstance(info["scorer_failed"], str) and info["scorer_failed"]
    assert info["reward_terms"] == {} and info["is_success"] is False and info["finish_reason"] == "eos"
    with pytest.raises(ResetNeeded):
        env.step([A] * 8)


def test_a_scorer_that_works_is_not_told_to_have_failed(toy):
    env = SequenceMDP(**toy | {"task": Failing()})
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step([A] * 5 + [EOS] * 3)
    assert reward == 0.25 + 5 / 16 and terminated and not truncated and "scorer_failed" not in info


def test_no_legal_action_is_an_error(toy):
    env = TokenMDP(**toy, constraint=lambda state, tokens: np.zeros(V, bool))
    env.reset(seed=0)
    for call in (env.action_masks, lambda: env.step(A)):
        with pytest.raises(NoLegalAction, match="after 0 tokens"):
            call()


@pytest.mark.parametrize(("cls", "size"), [(TokenMDP, 1), (BlockMDP, 4), (SequenceMDP, 8)])
def test_block_size_is_the_only_difference(cls, size, toy):
    env = cls(**toy)
    assert isinstance(env, TextEnv) and env.mdp.block_size == size and env.action_masks is not None
    space = env.action_space
    assert space == (gym.spaces.Discrete(V) if size == 1 else gym.spaces.MultiDiscrete([V] * size))


def test_the_block_size_is_the_one_asked_for(toy):
    assert [BlockMDP(**toy, block_size=k).mdp.block_size for k in (1, 3, 8)] == [1, 3, 8]


def test_a_sequence_follows_the_budget(toy):
    assert SequenceMDP(**toy | {"max_new_tokens": 3}).mdp.block_size == 3
    assert SequenceMDP(**{k: v for k, v in toy.items() if k != "max_new_tokens"}).mdp.block_size == 48


@pytest.mark.parametrize("cls", [TokenMDP, SequenceMDP])
@pytest.mark.parametrize("name", ["block_size", "stop"])
def test_only_blocks_have_a_size_or_a_stop_rule(cls, name, toy):
    with pytest.raises(TypeError, match=f"{name} is an argument of llmgym/BlockMDP-v0 only, got {name}=2"):
        cls(**toy, **{name: 2})


# --- one token stream, three environments ---------------------------------------------------------------------------

TASKS = (Words(), Replying(), Failing(), ReplyingFailing())
RULES: tuple[dict[str, Any], ...] = (
    {},
    {"banned_tokens": ["c"]},
    {"min_new_tokens": 3},
    {"constraint": no_repeat},
    {"constraint": no_repeat, "banned_tokens": [TAG], "min_new_tokens": 5},
)
STOPS = (None, "\n", "<t>=", [1, 2], newline_or_tag)
streams = st.lists(st.sampled_from([PAD, EOS, A, B, C, EQUALS, 6, TAG]), min_size=8, max_size=8)


def play(env: TextEnv, stream: list[int], seed: int):
    """Return, final state, info and flags of feeding the policy's tokens block by block."""
    env.reset(seed=seed)
    used, total, over = 0, 0.0, False
    while not over:
        block = (stream[used:] + [EQUALS] * 8)[: env.mdp.block_size]
        before = sum(env.state.chosen)
        _, reward, terminated, truncated, info = env.step(block[0] if env.mdp.block_size == 1 else block)
        used, total, over = used + sum(env.state.chosen) - before, total + reward, terminated or truncated
    return total, env.state, info, terminated, truncated


@settings(max_examples=300, deadline=None)
@given(
    stream=streams,
    seed=st.integers(0, 2**31),
    size=st.integers(1, 8),
    task=st.sampled_from(TASKS),
    rules=st.sampled_from(RULES),
    stop=st.sampled_from(STOPS),
)
def test_the_same_tokens_give_the_same_return_state_and_info_at_any_granularity(stream, seed, size, task, rules, stop):
    arguments = SMALL | {"task": task} | rules
    token = play(TokenMDP(**arguments), stream, seed)
    stop = [1, min(2, size)] if isinstance(stop, list) else stop
    assert_same(play(BlockMDP(**arguments, block_size=size, stop=stop), stream, seed), token)
    assert_same(play(SequenceMDP(**arguments), stream, seed), token)


# --- masks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "size"), [(TokenMDP, 1), (BlockMDP, 4), (SequenceMDP, 8)])
def test_action_masks_are_flat_bools_and_in_info_on_request(cls, size, toy):
    env = cls(**toy, banned_tokens=["b"], min_new_tokens=2, mask_in_info=True)
    _, info = env.reset(seed=0)
    expected = np.ones((size, V), bool)
    expected[:, B], expected[:2, EOS] = False, False
    for mask in (env.action_masks(), info["action_mask"]):
        assert_same(mask, expected.ravel())
    _, _, _, _, info = env.step([A, C, A, C, A, C, A, C][:size] if size > 1 else A)
    assert_same(info["action_mask"], env.action_masks())
    assert "action_mask" not in cls(**toy, banned_tokens=["b"]).reset(seed=0)[1]


def test_maskable_ppo_finds_the_masks(toy):
    from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
    from stable_baselines3.common.vec_env import DummyVecEnv

    for id in ("llmgym/TokenMDP-v0", "llmgym/BlockMDP-v0", "llmgym/SequenceMDP-v0"):
        env = gym.make(id, **toy, banned_tokens=["b"])
        env.reset(seed=0)
        assert is_masking_supported(env) and not get_action_masks(env).all()
        rows = DummyVecEnv([lambda id=id: gym.make(id, **toy, banned_tokens=["b"])] * 2)
        rows.reset()
        masks = get_action_masks(rows)
        assert is_masking_supported(rows) and masks.shape == (2, env.unwrapped.mdp.block_size * V)
        assert masks[:, B].sum() == 0 and masks[:, A].all()


# --- state, copies, limits ------------------------------------------------------------------------------------------

OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("llmgym/TokenMDP-v0", {"constraint": no_repeat, "task": ReplyingFailing()}),
    ("llmgym/BlockMDP-v0", {"block_size": 2, "stop": [1, 2], "task": Replying()}),
    ("llmgym/SequenceMDP-v0", {"mask_in_info": True, "min_new_tokens": 2}),
)


def run(env: gym.Env, rng: np.random.Generator, steps: int) -> list[Any]:
    """Everything `env` says in `steps` random steps, through the ends of its episodes."""
    said: list[Any] = []
    for _ in range(steps):
        if env.unwrapped.get_state()["over"]:
            said.append(env.reset())
        said.append(env.step(random_tokens(rng, env.action_space.shape)))
    return said


def by_state(env: gym.Env, make) -> gym.Env:
    fresh = make()
    fresh.unwrapped.set_state(pickle.loads(pickle.dumps(env.unwrapped.get_state())))
    return fresh


COPIES = {
    "state": by_state,
    "pickle": lambda env, make: pickle.loads(pickle.dumps(env)),
    "deepcopy": lambda env, make: copy.deepcopy(env),
}


@pytest.mark.parametrize("way", COPIES)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31), before=st.integers(0, 12), which=st.sampled_from(OPTIONS))
def test_a_copy_in_mid_episode_continues_identically(way, seed, before, which):
    id, options = which
    arguments = SMALL | {"task": Words()} | options

    def make() -> gym.Env:
        return gym.make(id, **arguments)

    env = make()
    env.reset(seed=seed)
    run(env, np.random.default_rng(seed), before)
    other = COPIES[way](env, make)
    assert other.unwrapped.state == env.unwrapped.state
    after = run(env, np.random.default_rng(seed + 1), 12)  # the first must not disturb the copy
    assert_same(run(other, np.random.default_rng(seed + 1), 12), after)


def test_a_snapshot_is_not_changed_by_playing_on(toy):
    env = TokenMDP(**toy)
    env.reset(seed=0)
    snapshot = env.get_state()
    kept = copy.deepcopy(snapshot)
    run(env, np.random.default_rng(0), 10)
    assert snapshot == kept


def test_a_time_limit_truncates_and_leaves_termination_alone(toy):
    env = gym.make("llmgym/TokenMDP-v0", **toy, max_episode_steps=2)
    env.reset(seed=0)
    assert env.step(A)[2:4] == (False, False) and env.step(A)[2:4] == (False, True)
    env.reset()
    env.step(A)
    assert env.step(EOS)[2:4] == (True, True)


def test_own_methods_are_reached_through_the_wrappers(toy):
    env = gym.make("llmgym/TokenMDP-v0", **toy)
    env.reset(seed=0)
    assert_same(env.get_wrapper_attr("action_masks")(), env.unwrapped.action_masks())
    assert env.unwrapped.mdp.terminal(env.unwrapped.state) is False


# --- rendering ------------------------------------------------------------------------------------------------------


def test_ansi_returns_text_human_prints_every_step_and_none_is_silent(toy, capsys):
    ansi, human, none = (TokenMDP(**toy, render_mode=mode) for mode in ("ansi", "human", None))
    for env in (ansi, human, none):
        env.reset(seed=0, options=PROBLEM)
        env.step(TAG)
    assert ansi.render() == "ab=<t>" and human.render() is None and none.render() is None
    assert capsys.readouterr().out == "ab=\nab=<t>\nab=<t>\n"  # reset, step, render of the human one


def test_close_twice_is_safe(toy):
    env = TokenMDP(**toy)
    env.close()
    env.close()
