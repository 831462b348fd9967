"""`Batch`: rows, actions and tokens kept apart."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgym.batch import TextBatch, by_length, first_token, sum_by_action

# Three episodes: two blocks, one block, three blocks; the prompt has two tokens, -1 marks what nobody chose.
INDEX = torch.tensor([[-1, -1, 0, 0, 1, -1, -1], [-1, -1, 0, -1, -1, -1, -1], [-1, -1, 0, 1, 1, -1, 2]])
LENGTHS = torch.tensor([5, 3, 7])
MASK = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])


def batch(**changes):
    parts = {
        "mask": MASK,
        "rewards": torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.5, 3.0]]),
        "logp": -torch.arange(9.0).view(3, 3).double(),
        "n_tokens": torch.tensor([[2, 1, 0], [1, 0, 0], [1, 2, 1]]),
        "tokens": torch.arange(21).view(3, 7),
        "lengths": LENGTHS,
        "action_index": INDEX,
        "valid": torch.tensor([True, False, True]),
        "groups": torch.tensor([0, 1, 1]),
        "token_mask": torch.arange(21 * 4).view(3, 7, 4) % 3 > 0,
        "infos": [{"row": i} for i in range(3)],
    }
    return TextBatch(**(parts | changes))


def test_returns_are_the_hand_sums_of_a_ragged_batch():
    assert batch().returns.tolist() == [2.0, 1.0, 3.5] and len(batch()) == 3


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_garbage_in_padding_does_not_reach_the_returns(garbage):
    dirty = batch(rewards=torch.where(MASK, batch().rewards, garbage))
    assert torch.equal(dirty.returns, batch().returns)


@pytest.mark.parametrize("rows", [torch.tensor([1]), torch.tensor([False, True, False])])
def test_a_selection_is_trimmed_to_its_longest_row(rows):
    part = batch().select(rows)
    assert part.tokens.tolist() == [[7, 8, 9]] and part.mask.tolist() == [[True]]
    assert part.token_mask.shape == (1, 3, 4) and part.logp.shape == part.rewards.shape == part.n_tokens.shape == (1, 1)
    assert part.infos == [{"row": 1}] and part.groups.tolist() == [1] and part.lengths.tolist() == [3]


def test_a_selection_may_reorder_and_repeat():
    part = batch().select(torch.tensor([2, 0, 2]))
    assert part.infos == [{"row": 2}, {"row": 0}, {"row": 2}] and part.returns.tolist() == [3.5, 2.0, 3.5]
    assert torch.equal(part.action_index, INDEX[[2, 0, 2]])


def test_nothing_may_be_selected():
    part = batch().select(torch.zeros(3, dtype=torch.bool))
    assert len(part) == 0 and part.infos == [] and part.returns.tolist() == []


def test_selecting_all_changes_nothing_and_mutates_nothing():
    whole = batch()
    part = whole.select(torch.arange(3))
    for f in fields(TextBatch):
        one, two = getattr(whole, f.name), getattr(part, f.name)
        assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two
    assert torch.equal(whole.tokens, batch().tokens)


def test_moving_keeps_everything():
    moved = batch(token_mask=None).to("cpu")
    assert moved.token_mask is None and moved.infos == batch().infos and torch.equal(moved.tokens, batch().tokens)
    assert batch().to("meta").logp.device.type == "meta"


def test_sums_by_action_by_hand():
    x = torch.tensor([[9.0, 9, 1, 2, 4, 9, 9], [9, 9, 8, 9, 9, 9, 9], [9, 9, 1, 2, 4, 9, 8]])
    assert sum_by_action(x, INDEX, 3).tolist() == [[3, 4, 0], [8, 0, 0], [1, 6, 8]]
    assert first_token(INDEX, 3).tolist() == [[2, 4, 1], [2, 1, 1], [2, 3, 6]]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_sums_and_first_tokens_agree_with_loops(seed):
    rng = np.random.default_rng(seed)
    n, (b, t) = int(rng.integers(1, 5)), rng.integers(1, 8, size=2)
    index = torch.as_tensor(rng.integers(-1, n, size=(b, t)))
    x = torch.as_tensor(rng.normal(size=(b, t))).requires_grad_()
    sums, first = sum_by_action(x, index, n), first_token(index, n)
    for row in range(b):
        for action in range(n):
            places = [i for i in range(t) if index[row, i] == action]
            assert float(sums[row, action].detach()) == pytest.approx(sum(float(x[row, i].detach()) for i in places))
            assert int(first[row, action]) == (places[0] if places else 1)
    (gradient,) = torch.autograd.grad(sums.sum(), x)
    assert torch.equal(gradient, (index >= 0).double())


def test_rows_of_similar_length_are_scored_together():
    lengths = torch.tensor([10] * 9 + [30] * 8 + [29, 9])
    parts = by_length(lengths, torch.arange(19))
    assert [sorted(part.tolist()) for part in parts] == [[*range(9, 18)], [*range(9), 18]]
    assert [len(part) for part in by_length(lengths, torch.arange(19), 4)] == [4, 4, 4, 4, 3]
    assert by_length(lengths, torch.tensor([], dtype=torch.int64)) == []
