"""The native vector form equals N single environments, step by step."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import (
    EOS,
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

import llmgym  # noqa: F401
from llmgym.mdp import NoLegalAction
from llmgym.tasks import Problem

SMALL: dict[str, Any] = {"task": Words(), "tokenizer": toy_tokenizer(), "max_prompt_tokens": 6, "max_new_tokens": 8}
N, STEPS = 3, 120

COMMON: dict[str, dict[str, Any]] = {
    "plain": {},
    "masks": {"min_new_tokens": 3, "banned_tokens": ["b"], "mask_in_info": True},
    "grammar": {"constraint": no_repeat, "mask_in_info": True},
    "replies": {"task": Replying()},
    "failing scorer": {"task": Failing()},
    "limit": {"max_episode_steps": 2},
    "limit with masks": {"max_episode_steps": 1, "mask_in_info": True},
    "all": {"task": ReplyingFailing(), "constraint": no_repeat, "banned_tokens": [TAG], "mask_in_info": True}
    | {"max_episode_steps": 4},
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
        states = [env.unwrapped.state for env in single.envs]
        assert native.unwrapped.states == states
        assert native.unwrapped.chosen.sum(axis=1).tolist() == [sum(state.chosen) for state in states]
        over = ours[2] | ours[3]
        ended += over.sum()
        if mode is AutoresetMode.DISABLED and over.any():
            options = {"reset_mask": over}
            assert_same(native.reset(options=dict(options)), single.reset(options=dict(options)), f"reset {step}")
    assert ended > 20


# --- resets ---------------------------------------------------------------------------------------------------------


def made(toy, id="llmgym/TokenMDP-v0", num_envs=N, **options):
    return gym.make_vec(id, num_envs=num_envs, **toy, **options)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("spell", [lambda m: m, lambda m: m.value, lambda m: m.name, lambda m: m.name.lower()])
def test_an_autoreset_mode_is_an_enum_or_a_string(spell, mode, toy):
    rows = made(toy, autoreset_mode=spell(mode))
    assert rows.metadata["autoreset_mode"] is mode and rows.unwrapped.autoreset_mode is mode
    assert made(toy).metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP  # the class keeps its own


@pytest.mark.parametrize("mode", ["later", None, 3])
def test_an_unknown_autoreset_mode_is_said(mode, toy):
    with pytest.raises(ValueError, match=r"autoreset_mode must be one of \['NextStep', 'SameStep', 'Disabled'\], got"):
        made(toy, autoreset_mode=mode)


def test_a_list_of_seeds_seeds_each_row_and_none_draws_anew(toy):
    rows = made(toy, num_envs=3)
    rows.reset(seed=[4, 9, 4])
    first, second, third = rows.unwrapped.states
    assert first == third != second
    rows.reset(seed=[4, None, 9])
    again = rows.unwrapped.states
    assert again[0] == first and again[2] == second and again[1] != second  # row 1 plays on with its generator
    with pytest.raises(ValueError, match="a list of seeds must have one a row: 3, got 2"):
        rows.reset(seed=[1, 2])


def test_resets_without_a_seed_go_on_drawing(toy):
    rows = made(toy)
    keys = set()
    for _ in range(5):
        rows.reset()
        keys |= {state.key for state in rows.unwrapped.states}
    assert len(keys) == 5 * N


def test_problems_can_be_given_one_a_row_or_one_for_all(toy):
    rows = made(toy, num_envs=3)
    one, two = Problem("a=", "a"), Problem("bb=", "bb")
    _, infos = rows.reset(seed=0, options={"problem": [one, None, two]})
    drawn = gym.make("llmgym/TokenMDP-v0", **toy).reset(seed=1)[1]["prompt"]
    assert infos["prompt"].tolist() == ["a=", drawn, "bb="]
    _, infos = rows.reset(options={"problem": one})
    assert infos["prompt"].tolist() == ["a="] * 3
    assert len({state.key for state in rows.unwrapped.states}) == 3
    single = gym.make("llmgym/TokenMDP-v0", **toy)
    single.reset(seed=6, options={"problem": two})
    rows.reset(seed=5, options={"problem": [two] * 3})
    assert rows.unwrapped.state(1) == single.unwrapped.state


@pytest.mark.parametrize(
    ("problems", "message"),
    [
        ([Problem("a=")] * 2, r"options\['problem'\] must hold 3 problems, one a row, got 2"),
        ("a=", r"options\['problem'\] must be a Problem or a list of 3 of them, got 'a='"),
        (5, r"options\['problem'\] must be a Problem or a list of 3 of them, got 5"),
        ([Problem("a="), "b=", None], r"options\['problem'\] must be a Problem, got 'b='"),
        (Problem("aaaaaaa"), "prompt 'aaaaaaa' has 7 tokens, max_prompt_tokens is 6"),
    ],
)
def test_problems_that_are_none_are_said(problems, message, toy):
    with pytest.raises(ValueError, match=message):
        made(toy, num_envs=3).reset(options={"problem": problems})


# --- disabled autoreset: a batch in lockstep ------------------------------------------------------------------------


def test_a_finished_row_ignores_its_action(toy):
    rows = made(toy, num_envs=3, autoreset_mode="disabled")
    rows.reset(seed=0, options={"problem": Problem("a=", "a")})
    observations, rewards, terminated, _, _ = rows.step(np.array([EOS, A, B]))
    assert rewards.tolist() == [0.25, 0, 0] and terminated.tolist() == [True, False, False]
    for action in (A, EOS, -5, V + 100):  # whatever it is
        after, rewards, terminated, truncated, infos = rows.step(np.array([action, C, C]))
        assert rewards[0] == 0 and terminated[0] and not truncated.any() and infos == {}
        assert_same({k: v[0] for k, v in after.items()}, {k: v[0] for k, v in observations.items()})
        assert not terminated[1:].any()
    assert after["n_tokens"].ravel().tolist() == [1, 5, 5]


def test_truncation_stays_too(toy):
    rows = made(toy, num_envs=2, autoreset_mode="disabled", max_episode_steps=2)
    rows.reset(seed=0)
    rows.step(np.array([EOS, A]))
    flags = [rows.step(np.array([A, A]))[2:4] for _ in range(3)]
    assert all(t.tolist() == [True, False] and u.tolist() == [False, True] for t, u in flags)


def test_a_reset_mask_starts_only_its_rows(toy):
    rows = made(toy, num_envs=3, autoreset_mode="disabled")
    rows.reset(seed=0)
    rows.step(np.array([EOS, A, EOS]))
    before = rows.unwrapped.states
    _, infos = rows.reset(seed=[7, 7, 7], options={"reset_mask": np.array([True, False, False])})
    states = rows.unwrapped.states
    assert states[1:] == before[1:] and infos["_prompt"].tolist() == [True, False, False]
    single = gym.make("llmgym/TokenMDP-v0", **toy)
    single.reset(seed=7)
    assert states[0] == single.unwrapped.state
    _, rewards, terminated, _, _ = rows.step(np.array([A, EOS, A]))
    assert terminated.tolist() == [False, True, True] and rewards[0] == rewards[2] == 0
    rows.reset()  # row 1 was not seeded by a mask that left it out
    single.reset(seed=1)
    single.reset()
    assert rows.unwrapped.state(1) == single.unwrapped.state


@pytest.mark.parametrize("mask", [np.zeros(3, bool), np.ones(2, bool), np.ones(3, int), [True, False, 2], True])
def test_a_reset_mask_is_bool_with_a_true(mask, toy):
    rows = made(toy, num_envs=3)
    with pytest.raises(ValueError, match=r"options\['reset_mask'\] must be bool \[3\] with at least one True"):
        rows.reset(options={"reset_mask": mask})


# --- limits and bad input -------------------------------------------------------------------------------------------


def test_minus_one_is_no_limit_as_in_gym_make(toy):
    rows = made(toy, num_envs=2, max_episode_steps=-1)
    rows.reset(seed=0)
    assert not any(rows.step(np.array([A, A]))[3].any() for _ in range(7))


def test_a_limit_below_one_is_said(toy):
    with pytest.raises(ValueError, match="max_episode_steps must be at least 1, or None, got 0"):
        made(toy, max_episode_steps=0)


@pytest.mark.parametrize("num_envs", [0, -2])
def test_there_is_at_least_one_row(num_envs, toy):
    with pytest.raises(ValueError, match=f"num_envs must be at least 1, got {num_envs}"):
        made(toy, num_envs=num_envs)


def test_a_render_mode_that_does_not_exist_is_said(toy):
    with pytest.raises(ValueError, match="render_mode must be None or one of"):
        made(toy, render_mode="rgb_array")


@pytest.mark.parametrize("id", ["llmgym/TokenMDP-v0", "llmgym/SequenceMDP-v0"])
@pytest.mark.parametrize("name", ["block_size", "stop"])
def test_only_blocks_have_a_size_or_a_stop_rule(id, name, toy):
    with pytest.raises(TypeError, match=f"{name} is an argument of llmgym/BlockMDP-v0 only"):
        made(toy, id, **{name: 2})


def test_actions_have_exactly_the_shape_and_kind_of_the_space(toy):
    rows = made(toy, "llmgym/BlockMDP-v0", num_envs=2, block_size=4)
    rows.reset(seed=0)
    before = rows.unwrapped.states
    for actions in (np.zeros((4, 2), int), np.zeros(8, int), np.zeros((2, 3), int), np.zeros((2, 4)), [[A] * 4]):
        with pytest.raises(ValueError, match=r"actions must be integers of shape \(2, 4\), got"):
            rows.step(actions)
    with pytest.raises(ValueError, match=r"token ids must lie in \[0, 8\), got 2 to 8"):
        rows.step(np.array([[A] * 4, [A, A, A, V]]))
    with pytest.raises(ValueError, match=r"token ids must lie in \[0, 8\), got -1 to 2"):
        rows.step(np.array([[A] * 4, [A, A, A, -1]]))
    assert rows.unwrapped.states == before
    rows.step([[A] * 4, [B] * 4])  # a list will do


def test_nothing_works_before_every_row_has_started(toy):
    rows = made(toy, num_envs=2, render_mode="ansi").unwrapped
    calls = (lambda: rows.step(np.array([A, A])), rows.action_masks, rows.get_state, rows.render)
    for _ in range(2):
        for call in calls:
            with pytest.raises(ResetNeeded, match=r"call reset\(\)"):
                call()
        rows.reset(options={"reset_mask": np.array([True, False])})
    rows.reset(options={"reset_mask": np.array([False, True])})
    rows.step(np.array([A, A]))


def test_no_legal_action_is_an_error(toy):
    rows = made(toy, constraint=lambda state, tokens: np.zeros(V, bool))
    rows.reset(seed=0)
    for call in (rows.unwrapped.action_masks, lambda: rows.step(np.full(N, A))):
        with pytest.raises(NoLegalAction, match="after 0 tokens"):
            call()


# --- what a batch-wise reader sees ----------------------------------------------------------------------------------


def test_arrays_are_the_states_of_all_rows(toy):
    rows = made(toy | {"task": Replying()}, "llmgym/BlockMDP-v0", stop=[1, 3], autoreset_mode="disabled").unwrapped
    singles = [gym.make("llmgym/BlockMDP-v0", **toy | {"task": Replying()}, stop=[1, 3]).unwrapped for _ in range(N)]
    rng = np.random.default_rng(2)
    rows.reset(seed=0)
    for i, env in enumerate(singles):
        env.reset(seed=i)
    for _ in range(6):
        actions = random_tokens(rng, (N, 4), eos=0.2)
        rows.step(actions)
        for i, env in enumerate(singles):
            if not env.get_state()["over"]:
                env.step(actions[i])
            state = env.state
            assert rows.state(i) == state and hash(rows.state(i)) == hash(state)
            n = len(state.tokens)
            assert (rows.lengths[i], rows.prompt_lengths[i]) == (n, state.n_prompt)
            assert rows.tokens[i].tolist() == list(state.tokens) + [PAD] * (rows.mdp.length - n)
            assert rows.chosen[i].tolist() == list(state.chosen) + [False] * (rows.mdp.length - n)
    assert rows.states == [env.state for env in singles] and not rows.chosen.all()


def test_masks_of_all_rows_are_those_of_each(toy):
    for id in ("llmgym/TokenMDP-v0", "llmgym/BlockMDP-v0"):
        for rules in ({}, {"constraint": no_repeat, "min_new_tokens": 2, "banned_tokens": [PAD]}):
            rows = made(toy, id, **rules).unwrapped
            rows.reset(seed=0)
            rows.step(np.full(rows.action_space.shape, C))
            masks = rows.action_masks()
            assert masks.dtype == bool and masks.shape == (N, rows.mdp.block_size * V)
            assert_same(masks, np.stack([rows.mdp.mask(state) for state in rows.states]))
            assert masks.all() == (not rules)


def test_what_was_returned_does_not_change_later(toy):
    rows = made(toy, mask_in_info=True)
    said = [rows.reset(seed=0)]
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(30):
        kept.append(copy.deepcopy(said[-1]))
        said.append(rows.step(random_tokens(rng, N)))
    for now, then in zip(said, kept, strict=False):
        assert_same(now, then)


def test_a_scorer_is_asked_once_an_episode(toy):
    class Counting(Words):
        calls = 0

        def score(self, problem, text):
            self.calls += 1
            return super().score(problem, text)

    task = Counting()
    rows = made(toy | {"task": task})
    rows.reset(seed=0)
    rng = np.random.default_rng(0)
    ended = sum(rows.step(random_tokens(rng, N, eos=0.2))[2].sum() for _ in range(40))
    assert task.calls == ended > 10


def test_rendering(toy, capsys):
    ansi, human, none = (made(toy, num_envs=2, render_mode=mode) for mode in ("ansi", "human", None))
    for rows in (ansi, human, none):
        rows.reset(seed=0, options={"problem": Problem("ab=")})
        rows.step(np.array([A, TAG]))
    assert ansi.render() == ("ab=a", "ab=<t>") and none.render() is None
    assert capsys.readouterr().out == "ab=\nab=\nab=a\nab=<t>\n"
    human.close()
    human.close()


def test_gymnasiums_vector_wrappers_work(toy):
    rows = gym.wrappers.vector.RecordEpisodeStatistics(made(toy, autoreset_mode="SameStep"))
    rows.reset(seed=0)
    rows.step(np.full(N, A))
    _, rewards, _, _, infos = rows.step(np.full(N, EOS))
    assert infos["episode"]["l"].tolist() == [2] * N
    assert_same(infos["episode"]["r"], rewards)


# --- state and copies -----------------------------------------------------------------------------------------------


def by_state(rows, make):
    fresh = make()
    fresh.unwrapped.set_state(pickle.loads(pickle.dumps(rows.unwrapped.get_state())))
    return fresh


COPIES = {
    "state": by_state,
    "pickle": lambda rows, make: pickle.loads(pickle.dumps(rows)),
    "deepcopy": lambda rows, make: copy.deepcopy(rows),
}


def test_a_snapshot_is_not_changed_by_playing_on(toy):
    rows = made(toy)
    rows.reset(seed=0)
    snapshot = rows.unwrapped.get_state()
    kept = copy.deepcopy(snapshot)
    for _ in range(2):
        rows.unwrapped.set_state(snapshot)
        run(rows, np.random.default_rng(0), 10)
        assert_same(snapshot["arrays"], kept["arrays"])
        assert snapshot["rngs"] == kept["rngs"] and snapshot["problems"] == kept["problems"]


def run(rows, rng, steps):
    return [rows.step(random_tokens(rng, rows.action_space.shape)) for _ in range(steps)] + [rows.reset()]


@pytest.mark.parametrize("way", COPIES)
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    before=st.integers(0, 12),
    mode=st.sampled_from(AutoresetMode),
    case=st.sampled_from([case for case in CASES if case[0] == "llmgym/BlockMDP-v0"]),
)
def test_a_copy_in_mid_episode_continues_identically(way, seed, before, mode, case):
    arguments = SMALL | (COMMON | BLOCKS)[case[1]]

    def make():
        return gym.make_vec(case[0], num_envs=2, autoreset_mode=mode, **arguments)

    rows = make()
    rows.reset(seed=seed)
    for _ in range(before):
        rows.step(random_tokens(np.random.default_rng(seed), rows.action_space.shape))
    other = COPIES[way](rows, make)
    assert other.unwrapped.states == rows.unwrapped.states
    after = run(rows, np.random.default_rng(seed + 1), 12)
    assert_same(run(other, np.random.default_rng(seed + 1), 12), after)
