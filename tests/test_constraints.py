"""Masks: banned tokens, a minimum length and a user's function, combined by "and"."""

from __future__ import annotations

import numpy as np
import pytest
from toys import EOS, EQUALS, PAD, TAG, A, B, C, V, no_repeat

from llmgym.constraints import Constraints, token_ids
from llmgym.mdp import NoLegalAction
from llmgym.tasks import Problem
from llmgym.text import ILLEGAL, TextMDP, TextState

START = TextState(Problem("a="), (A, EQUALS), 2, (False, False), key=5)


def forbidden(mask):
    assert mask.dtype == bool and mask.shape == (V,)
    return set(np.flatnonzero(~mask).tolist())


def test_no_constraint_is_none(toy):
    mdp = TextMDP(**toy)
    assert not mdp.constraints and mdp.token_mask(START) is None


def test_banned_tokens_are_never_allowed():
    constraints = Constraints(V, EOS, banned=(B, TAG))
    assert constraints and all(forbidden(constraints.static(n)) == {B, TAG} for n in range(4))


def test_eos_is_forbidden_below_the_minimum_length():
    constraints = Constraints(V, EOS, min_new_tokens=2)
    assert [forbidden(constraints.mask(START, [A] * n)) for n in range(4)] == [{EOS}, {EOS}, set(), set()]
    longer = START.extended([B])  # tokens of the state and of the block count together
    assert [forbidden(constraints.mask(longer, [A] * n)) for n in range(2)] == [{EOS}, set()]


def test_a_function_sees_state_and_block_and_is_combined_by_and():
    constraints = Constraints(V, EOS, banned=(TAG,), min_new_tokens=1, function=no_repeat)
    assert forbidden(constraints.mask(START, [])) == {TAG, EOS}  # after "=" the grammar has nothing to say: None
    assert forbidden(constraints.mask(START, [B])) == {TAG, B}
    assert forbidden(constraints.mask(START.extended([C]), [])) == {TAG, C}


def test_a_mask_of_zeros_and_ones_is_read_as_bool():
    constraints = Constraints(V, EOS, function=lambda state, tokens: np.arange(V) % 2)
    assert forbidden(constraints.mask(START, [])) == {0, 2, 4, 6}


def test_a_mask_of_another_shape_is_said():
    constraints = Constraints(V, EOS, function=lambda state, tokens: np.ones(V + 1, bool))
    with pytest.raises(ValueError, match=r"must return bool \[8\], got shape \(9,\)"):
        constraints.mask(START, [])


def test_nothing_left_to_choose_is_an_error_that_says_where(toy):
    constraints = Constraints(V, EOS, function=lambda state, tokens: np.zeros(V, bool))
    with pytest.raises(NoLegalAction, match="the constraints forbid every token after 1 tokens"):
        constraints.mask(START, [A])
    with pytest.raises(ValueError, match="banned_tokens leave no token to begin with"):
        TextMDP(**toy, banned_tokens=[t for t in range(V) if t != EOS], min_new_tokens=1)


def test_tokens_by_id_or_by_string(tokenizer):
    assert token_ids([A, np.int64(3), "<t>", "<eos>", "\n"], tokenizer) == (A, 3, TAG, EOS, 6)
    assert all(type(t) is int for t in token_ids([np.int64(3)], tokenizer))
    assert token_ids((), tokenizer) == ()


def test_a_string_of_several_tokens_is_refused(tokenizer):
    with pytest.raises(ValueError, match="'ab' is 2 tokens of this tokenizer, it must be exactly one"):
        token_ids(["ab"], tokenizer)


def test_a_lone_string_is_refused_rather_than_read_letter_by_letter(tokenizer):
    with pytest.raises(ValueError, match=r"banned_tokens must be a list of ids or strings, got '<t>': write \['<t>'\]"):
        token_ids("<t>", tokenizer)


@pytest.mark.parametrize("token", [-1, V])
def test_a_banned_id_outside_the_vocabulary_is_said(token, toy):
    with pytest.raises(ValueError, match=rf"banned_tokens must lie in \[0, 8\), got {token}"):
        TextMDP(**toy, banned_tokens=[A, token])


@pytest.mark.parametrize("block_size", [1, 3])
def test_the_mask_of_an_action_is_exact_where_it_can_be(block_size, toy):
    mdp = TextMDP(**toy, block_size=block_size, banned_tokens=[PAD], min_new_tokens=2, constraint=no_repeat)
    state = mdp.initial(np.random.default_rng(0)).extended([B])
    mask = mdp.mask(state)
    assert mask.dtype == bool and mask.shape == (block_size * V,)
    first, *rest = mask.reshape(block_size, V)
    assert forbidden(first) == {PAD, EOS, B}
    # Position 1 follows two tokens: EOS is legal; the grammar depends on earlier tokens of the block.
    assert [forbidden(row) for row in rest] == [{PAD}] * (block_size - 1)


def test_the_mask_says_legal_exactly_when_the_transition_does(toy):
    mdp = TextMDP(**toy, banned_tokens=[TAG], min_new_tokens=2, constraint=no_repeat)
    rng = np.random.default_rng(3)
    for _ in range(20):
        state = mdp.initial(rng)
        while not mdp.terminal(state):
            legal = mdp.mask(state)
            for token in range(V):
                assert (mdp.transition(state, token).finish_reason == ILLEGAL) == (not legal[token])
            state = mdp.transition(state, rng.choice(np.flatnonzero(legal)))


def test_the_mask_of_a_terminal_state_asks_no_function(toy):
    def only_once(state, tokens):
        assert state.finish_reason is None
        return None

    mdp = TextMDP(**toy, constraint=only_once)
    over = mdp.transition(mdp.initial(np.random.default_rng(0)), EOS)
    assert mdp.mask(over).all()
