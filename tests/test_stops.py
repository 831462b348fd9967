"""Stop rules: where a block ends before its cap."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from toys import EQUALS, NEWLINE, TAG, A, B, C, newline_or_tag, random_tokens

from llmgym.stops import RandomLength, StopAtText, make_stop
from llmgym.tasks import Problem
from llmgym.text import TextMDP, TextState

START = TextState(Problem("a="), (A, EQUALS), 2, (False, False), key=5)


def test_a_string_ends_the_block_with_the_token_that_completes_it(tokenizer):
    stop = StopAtText("<t>=", tokenizer)
    assert [stop(START, block) for block in ([TAG], [TAG, A], [TAG, EQUALS], [B, TAG, EQUALS])] == [0, 0, 1, 1]


def test_a_string_looks_only_at_the_tokens_of_the_block(tokenizer):
    assert not StopAtText("=", tokenizer)(START, [A])  # the "=" of the prompt does not count


def test_a_special_token_can_be_stopped_at(tokenizer):
    assert StopAtText("<pad>", tokenizer)(START, [A, 0])


def test_random_lengths_are_uniform_and_a_pure_function_of_key_and_position():
    stop = RandomLength(2, 4)

    def length(state):
        return next(n for n in range(1, 10) if stop(state, [A] * n))

    states = [replace(START, key=key) for key in range(600)]
    lengths = [length(state) for state in states]
    assert lengths == [length(state) for state in states]
    counts = Counter(lengths)
    assert set(counts) == {2, 3, 4} and min(counts.values()) > 150  # 200 expected, standard deviation 12
    along = [length(START.extended([A] * n)) for n in range(30)]
    assert set(along) == {2, 3, 4}  # each block of an episode has a length of its own


def test_a_state_without_a_key_never_stops_at_random():
    assert not RandomLength(1, 1)(replace(START, key=None), [A] * 9)


def test_spellings(tokenizer):
    assert make_stop(None, tokenizer, 4) is None
    assert make_stop("\n", tokenizer, 4) == StopAtText("\n", tokenizer)
    assert make_stop([1, 4], tokenizer, 4) == make_stop((1, 4), tokenizer, 4) == RandomLength(1, 4)
    assert make_stop(newline_or_tag, tokenizer, 4) is newline_or_tag


@pytest.mark.parametrize("stop", ["", 3, [2], [1, 2, 3], ["a", "b"], [1.5, 2], {1, 2}])
def test_what_is_no_stop_rule_is_said(stop, tokenizer):
    with pytest.raises(ValueError, match=r"stop must be a non-empty string, \[low, high\] or a function, got"):
        make_stop(stop, tokenizer, 4)


@pytest.mark.parametrize("stop", [[0, 2], [3, 2], [1, 5], [-1, -1]])
def test_lengths_out_of_range_are_said(stop, tokenizer):
    with pytest.raises(ValueError, match="stop lengths need 1 <= low <= high <= block_size = 4, got"):
        make_stop(stop, tokenizer, 4)


@pytest.mark.parametrize("stop", ["\n", [1, 3], newline_or_tag])
def test_a_block_ends_where_its_rule_first_says_so(stop, toy):
    mdp = TextMDP(**toy, block_size=5, stop=stop)
    rng = np.random.default_rng(0)
    lengths = Counter()
    for _ in range(100):
        state = mdp.initial(rng)
        block = random_tokens(rng, 5, eos=0.0)
        taken = mdp.transition(state, block).n_tokens
        ends = [mdp.stop(state, block[:n].tolist()) for n in range(1, 6)]
        assert taken == (ends.index(True) + 1 if any(ends) else 5)
        lengths[taken] += 1
    assert lengths[1] > 5 and len(lengths) >= 3


def test_the_cap_is_the_block_size(toy):
    mdp = TextMDP(**toy, block_size=3, stop="\n")
    state = mdp.initial(np.random.default_rng(0))
    assert mdp.transition(state, [A, B, C]).completion == (A, B, C)
    assert mdp.transition(state, [A, NEWLINE, C]).completion == (A, NEWLINE)
