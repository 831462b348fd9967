"""Rows that end together are judged in one call where the scorer can, and come out as if each had been judged alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from toys import EOS, A, B, C, Failing, ReplyingFailing, Words, assert_same, no_repeat, random_tokens
from worlds import four_mdp

from llmgym.mdp import ScorerFailed
from llmgym.tasks import Problem
from llmgym.text import Outcome, TextMDP

N = 4


class Batched:
    """A reward that is asked for many rows at once, and remembers by how many."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, problem: Problem, text: str, tokens: tuple[int, ...]) -> Any:
        return {"long": float(len(text)), "eos": float(tokens[-1] == EOS)}

    def many(self, problems, texts, tokens) -> list[Any]:
        """One value a row."""
        assert len(problems) == len(texts) == len(tokens)
        self.sizes.append(len(texts))
        return [self(*row) for row in zip(problems, texts, tokens, strict=True)]


class BatchedTask(Words):
    """The same as a task."""

    def terms_many(self, problems, texts, tokens):
        return [self.terms(*row) for row in zip(problems, texts, tokens, strict=True)]


class Marking(Failing):
    """Every row that fails stands as its exception among the others."""

    def terms_many(self, problems, texts, tokens):
        found: list[Any] = []
        for row in zip(problems, texts, tokens, strict=True):
            try:
                found.append(self.terms(*row))
            except Exception as error:
                found.append(error)
        return found


CASES: dict[str, dict[str, Any]] = {
    "function": {"reward": Batched()},
    "task": {"task": BatchedTask()},
    "marked failures": {"task": Marking()},
    "one by one": {"task": ReplyingFailing(), "constraint": no_repeat},
    "illegal tokens": {"reward": Batched(), "constraint": no_repeat, "task": Words()},
}


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("case", CASES)
def test_a_vector_equals_single_environments(case, mode, toy):
    arguments = toy | CASES[case]
    native = gym.make_vec("llmgym/TokenMDP-v0", num_envs=N, autoreset_mode=mode, **arguments)
    single = SyncVectorEnv([partial(gym.make, "llmgym/TokenMDP-v0", **arguments)] * N, autoreset_mode=mode)
    rng = np.random.default_rng(3)
    assert_same(native.reset(seed=1), single.reset(seed=1))
    for step in range(60):
        actions = random_tokens(rng, native.action_space.shape, eos=0.25)
        ours, theirs = native.step(actions), single.step(actions)
        assert_same(ours, theirs, f"step {step}")
        if mode is AutoresetMode.DISABLED and (over := ours[2] | ours[3]).any():
            assert_same(native.reset(options={"reset_mask": over}), single.reset(options={"reset_mask": over.copy()}))


def test_one_call_for_all_rows_that_end_together(toy):
    reward = Batched()
    rows = gym.make_vec("llmgym/TokenMDP-v0", num_envs=N, autoreset_mode="Disabled", reward=reward, **toy)
    rows.reset(seed=0)
    rows.step(np.array([EOS, A, EOS, B]))
    assert reward.sizes == [2]
    rows.step(np.array([A, EOS, A, A]))
    assert reward.sizes == [2, 1]
    for _ in range(7):
        rows.step(np.full(N, C))
    assert reward.sizes == [2, 1, 1]  # the budget of the last row


def states_of(mdp, texts):
    """A finished state for each text."""
    start = mdp.start(Problem("ab=", "ab"))
    return [start.extended((*mdp.codec.encode_text(text), EOS), finish_reason="eos") for text in texts]


def test_outcomes_are_what_outcome_returns_or_raises(toy):
    for task in (Words(), Failing(), Marking()):
        mdp = TextMDP(**toy | {"task": task})
        states = states_of(mdp, ["", "a", "ab", "abc", "aaaa", "bbbbb", "aaaaaa"])
        for state, judged in zip(states, mdp.outcomes(states), strict=True):
            if isinstance(judged, Outcome):
                assert mdp.outcome(state) == judged
            else:
                with pytest.raises(ScorerFailed) as raised:
                    mdp.outcome(state)
                assert str(raised.value) == str(judged)
    assert mdp.outcomes([]) == []


def test_an_illegal_row_is_not_scored(toy):
    reward = Batched()
    mdp = TextMDP(**toy, reward=reward, banned_tokens=[C])
    good, bad = states_of(mdp, ["ab"])[0], mdp.transition(mdp.start(Problem("ab=")), C)
    assert [outcome.reward for outcome in mdp.outcomes([bad, good, bad])] == [-1.0, 3.0, -1.0]
    assert [outcome.reward for outcome in mdp.outcomes([bad])] == [-1.0]
    assert reward.sizes == [1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "good", {"x": "1"}, KeyError("no test")])
def test_one_bad_row_costs_no_other(value, toy):
    class Bad(Batched):
        def __call__(self, problem, text, tokens):
            if text == "c" and isinstance(value, Exception):
                raise value
            return value if text == "c" else float(len(text))

        def many(self, problems, texts, tokens):
            return [self(*row) for row in zip(problems, texts, tokens, strict=True)]

    rows = gym.make_vec("llmgym/SequenceMDP-v0", num_envs=3, autoreset_mode="Disabled", reward=Bad(), **toy)
    rows.reset(seed=0)
    actions = np.full((3, 8), EOS)
    actions[:, 0] = [A, C, B]
    if isinstance(value, Exception):
        with pytest.warns(RuntimeWarning, match="3 completions are scored one by one: KeyError: 'no test'"):
            _, rewards, terminated, truncated, info = rows.step(actions)
    else:
        _, rewards, terminated, truncated, info = rows.step(actions)
    assert rewards.tolist() == [1.0, 0.0, 1.0]
    assert terminated.tolist() == [True, False, True] and truncated.tolist() == [False, True, False]
    assert info["_scorer_failed"].tolist() == [False, True, False] and info["scorer_failed"][1]


@pytest.mark.parametrize("answer", [[1.0], [1.0] * 3, None, 5])
def test_a_wrong_number_of_values_is_told_and_rows_are_scored_one_by_one(answer, toy):
    class Short(Batched):
        def many(self, problems, texts, tokens):
            return answer

    mdp = TextMDP(**toy, reward=Short())
    with pytest.warns(RuntimeWarning, match="2 completions are scored one by one"):
        assert [outcome.reward for outcome in mdp.outcomes(states_of(mdp, ["a", "abc"]))] == [2.0, 4.0]


def test_ctrl_c_in_a_batched_scorer_is_no_failing_scorer(toy):
    class Slow(Batched):
        def many(self, problems, texts, tokens):
            raise KeyboardInterrupt

    mdp = TextMDP(**toy, reward=Slow())
    with pytest.raises(KeyboardInterrupt):
        mdp.outcomes(states_of(mdp, ["a"]))


@pytest.mark.parametrize("reward", [3, Words(), ["f"], 0.5, object()])
def test_a_reward_that_is_none_is_said(reward):
    with pytest.raises(ValueError, match="reward must be a function, a reward model or the folder of one, got"):
        four_mdp(reward=reward)
