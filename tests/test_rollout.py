"""`rollout`: what the environment did, kept action by action."""

from __future__ import annotations

import pytest
import torch
from gymnasium.vector import AutoresetMode
from toys import EOS, EQUALS, A, B, C, Failing, Replying, newline_or_tag, no_repeat
from worlds import Scripted, lm_policy, rows

from llmgym.envs import VectorTextEnv
from llmgym.rollout import rollout
from llmgym.tasks import Problem
from llmgym.text import TextMDP

AB = Problem("ab=", "ab")
PROBLEM = [AB, Problem("c=", "c"), Problem("abc=", "abc"), Problem("a=", "a")]


def play(mdp, streams, **arguments):
    env = rows(mdp, len(streams))
    return rollout(env, Scripted(env, streams), [AB] * len(streams), **arguments), env


def sampled(mdp, n=4, **settings):
    policy = lm_policy(mdp, "llama", **settings)
    return rollout(rows(mdp, n), policy, PROBLEM[:n], seed=0), policy


def test_a_ragged_batch_by_hand(toy):
    """Rewards lie on the last action of each row, tokens on the action that wrote them."""
    mdp = TextMDP(**toy, block_size=2)
    batch, _ = play(mdp, [[A, B, EOS], [B, EOS], [C] * 8, [A, EOS]])
    assert batch.mask.tolist() == [[True, True, False, False], [True] + [False] * 3, [True] * 4, [True] + [False] * 3]
    assert batch.n_tokens.tolist() == [[2, 1, 0, 0], [2, 0, 0, 0], [2, 2, 2, 2], [2, 0, 0, 0]]
    assert batch.rewards.tolist() == [[0, 1.375, 0, 0], [0.3125, 0, 0, 0], [0, 0, 0, 0.75], [0.3125, 0, 0, 0]]
    assert batch.returns.tolist() == [1.375, 0.3125, 0.75, 0.3125]
    assert batch.tokens[0].tolist()[:6] == [A, B, EQUALS, A, B, EOS] and batch.lengths.tolist() == [6, 5, 11, 5]
    assert batch.action_index[0].tolist() == [-1, -1, -1, 0, 0, 1, -1, -1, -1, -1, -1]
    assert [info["finish_reason"] for info in batch.infos] == ["eos", "eos", "length", "eos"]
    assert [info["is_success"] for info in batch.infos] == [True, False, False, False]
    assert type(batch.infos[0]["is_success"]) is bool and type(batch.infos[0]["n_tokens"]) is int
    assert batch.valid.all() and batch.groups.tolist() == [0, 1, 2, 3] and batch.token_mask is None


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"min_new_tokens": 3, "banned_tokens": ["c"]},
        {"constraint": no_repeat},
        {"task": Replying()},
        {"task": Replying(), "stop": newline_or_tag, "constraint": no_repeat},
    ],
    ids=["plain", "static masks", "grammar", "replies", "all"],
)
def test_flags_tokens_and_log_probs_belong_together(size, rules, toy):
    mdp = TextMDP(**(toy | rules | {"max_new_tokens": 12}), block_size=size)
    batch, policy = sampled(mdp)
    assert torch.equal(batch.n_tokens.sum(1), (batch.action_index >= 0).sum(1))
    assert ((batch.n_tokens > 0) == batch.mask).all() and (batch.n_tokens <= size).all()
    assert batch.tokens.shape[1] == int(batch.lengths.max()) and batch.mask.shape[1] == int(batch.mask.sum(1).max())
    for row, length in enumerate(batch.lengths.tolist()):
        index = batch.action_index[row]
        assert (index[length:] == -1).all() and (index[: len(PROBLEM[row].prompt)] == -1).all()
        chosen = index[index >= 0]
        assert (chosen.diff() >= 0).all() and chosen.unique().tolist() == list(range(int(batch.mask[row].sum())))
    assert (policy.evaluate(batch).logp - batch.logp).abs().max() <= 1e-10
    assert policy.counters.sampled_tokens == int(batch.n_tokens.sum())


def test_what_the_task_replies_belongs_to_no_action(toy):
    mdp = TextMDP(**(toy | {"task": Replying(), "max_new_tokens": 16}))
    batch, _ = play(mdp, [[A, EOS, B, EOS, EOS]])
    text = [A, B, EQUALS, A, EOS, EQUALS, C, B, EOS, EQUALS, C, EOS]
    assert batch.tokens[0].tolist() == text
    assert batch.action_index[0].tolist() == [-1, -1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4]


@pytest.mark.parametrize("size", [1, 3])
def test_token_masks_are_those_the_tokens_were_chosen_from(size, toy):
    mdp = TextMDP(**toy, block_size=size, constraint=no_repeat, min_new_tokens=2, banned_tokens=["="])
    batch, _ = sampled(mdp)
    for row, length in enumerate(batch.lengths.tolist()):
        n_prompt = len(PROBLEM[row].prompt)
        for place in range(n_prompt, length):
            n_block = int((batch.action_index[row, :place] == batch.action_index[row, place]).sum())
            text = batch.tokens[row, :place].tolist()
            state = mdp.start(PROBLEM[row]).extended(text[n_prompt : place - n_block])
            expected = mdp.token_mask(state, text[place - n_block :])
            assert batch.token_mask[row, place].tolist() == expected.tolist()
            assert batch.token_mask[row, place, batch.tokens[row, place]]


def test_a_row_whose_scorer_failed_is_marked(toy):
    batch, _ = play(TextMDP(**(toy | {"task": Failing()})), [[A, EOS], [A, B, A, B, A, EOS], [EOS]])
    assert batch.valid.tolist() == [False, True, False] and batch.rewards[~batch.valid].abs().sum() == 0
    assert "KeyError" in batch.infos[2]["scorer_failed"] and batch.infos[0]["finish_reason"] == "eos"


def test_an_outer_limit_cuts_rows(toy):
    mdp = TextMDP(**toy)
    env = rows(mdp, 2, max_episode_steps=3)
    batch = rollout(env, Scripted(env, [[A] * 8, [A, EOS]]), [AB, AB])
    assert batch.mask.sum(1).tolist() == [3, 2] and batch.valid.all() and "finish_reason" not in batch.infos[0]


def test_equal_seeds_draw_equal_problems_and_random_lengths(toy):
    mdp = TextMDP(**toy, block_size=4, stop=[1, 4])
    env, policy = rows(mdp, 3), lm_policy(mdp)

    def once(seed):
        policy.seed(0)
        batch = rollout(env, policy, seed=seed)
        return batch.tokens.tolist(), batch.action_index.tolist()

    assert once(5) == once(5) != once(6)


def test_greedy_play_is_deterministic_and_reports_progress(toy):
    mdp = TextMDP(**toy)
    policy, finished = lm_policy(mdp), []
    one = rollout(rows(mdp, 4), policy, PROBLEM, deterministic=True, progress=finished.append, groups=[0, 0, 1, 1])
    policy.seed(123)
    two = rollout(rows(mdp, 4), policy, PROBLEM, deterministic=True)
    assert torch.equal(one.tokens, two.tokens) and sum(finished) == 4 and one.groups.tolist() == [0, 0, 1, 1]


def test_finished_rows_cost_nothing(toy):
    mdp = TextMDP(**toy)
    batch, policy = sampled(mdp)
    assert policy.counters.forward_tokens == int(batch.lengths.sum()) - 4  # every token but the last of each row, once
    assert policy.counters.forward_passes == int(batch.n_tokens.sum(1).max())


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_rows_that_start_anew_by_themselves_are_refused(mode, toy):
    env = VectorTextEnv(TextMDP(**toy), 2, autoreset_mode=mode)
    with pytest.raises(ValueError, match=f"autoreset_mode 'Disabled', got '{mode.value}'"):
        rollout(env, Scripted(env, [[EOS]] * 2))


def test_log_probs_are_kept_in_double_precision(toy):
    batch, _ = sampled(TextMDP(**toy))
    assert batch.logp.dtype == torch.float64 and (batch.logp[batch.mask] < 0).all()
