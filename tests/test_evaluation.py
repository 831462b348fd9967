"""Scores and their intervals, on a world of eight tokens with policies whose every answer is known."""

import math

import gymnasium as gym
import numpy as np
import pytest
from toys import EOS, EQUALS, A, B, C, Failing, V, Words, no_repeat

from llmgym.baselines import RandomPolicy
from llmgym.counters import Counters
from llmgym.evaluation import Completion, Score, complete, draw_problems, evaluate
from llmgym.intervals import wilson
from llmgym.policy import Action
from llmgym.tasks import Problem
from llmgym.text import TextMDP

LETTERS = {"a": A, "b": B, "c": C}


class Copyist:
    """Writes the word of the prompt, and gets every `wrong`-th completion wrong; log-prob -1 or -2 a token."""

    def __init__(self, mdp, wrong=0):
        self.mdp, self.wrong, self.counters, self.seen = mdp, wrong, Counters(), 0

    def act(self, observation, active=None, *, states=None, deterministic=False):
        rows, size = len(observation["input_ids"]), self.mdp.block_size
        tokens = np.zeros((rows, size), np.int64)
        logp = np.zeros((rows, size))
        for row in np.flatnonzero(active):
            self.seen += observation["n_tokens"][row, 0] == 0
            bad = self.wrong and self.seen % self.wrong == 0
            state = self.mdp.state_of({key: value[row] for key, value in observation.items()})
            word = [t for t in state.tokens[: state.n_prompt] if t not in (EQUALS,)] + [EOS]
            word = [EQUALS, EOS] if bad else word
            written = word[state.n_tokens :][:size]
            tokens[row, : len(written)], logp[row, : len(written)] = written, -2.0 if bad else -1.0
            self.counters.sampled_tokens += len(written)
        return Action(tokens, logp)


@pytest.fixture
def sequence(toy):
    """The toy world with the whole completion as one action."""
    return TextMDP(**toy, block_size=toy["max_new_tokens"])


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [(0, 10, 0.0, 0.27754), (10, 10, 0.72246, 1.0), (5, 10, 0.23659, 0.76341), (950, 1000, 0.93471, 0.96186)],
)
def test_wilson_interval_has_the_published_values(successes, total, low, high):
    assert wilson(successes, total) == pytest.approx((low, high), abs=1e-4)


def test_wilson_interval_without_an_observation_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def test_drawn_problems_are_distinct_reproducible_and_held_out(toy):
    mdp = TextMDP(**toy)
    problems = draw_problems(mdp, 50, seed=3)
    assert len(set(problems)) == 50
    assert problems == draw_problems(mdp, 50, seed=3) != draw_problems(mdp, 50, seed=4)
    assert all(problem.prompt.startswith("=") for problem in problems)  # the toy's mark of the test split


def test_a_small_split_gives_all_it_has(toy):
    # Words of one to four letters out of three: 3 + 9 + 27 + 81.
    assert len(draw_problems(TextMDP(**toy), 1000)) == 120


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_sampled(toy):
    with pytest.raises(ValueError, match="max_prompt_tokens is 3"):
        draw_problems(TextMDP(**toy | {"max_prompt_tokens": 3}), 20)


def test_a_right_answer_is_a_success_and_tokens_are_counted(sequence):
    problems = [Problem("abc=", "abc"), Problem("a=", "a")]
    score = evaluate(Copyist(sequence), sequence, problems)
    assert (score.problems, score.successes, score.accuracy, score.scorer_failures) == (2, 2, 1.0, 0)
    assert score.mean_tokens == (4 + 2) / 2
    assert score.counters["sampled_tokens"] == 6
    assert score.tokens_per_second == pytest.approx(6 / score.seconds)
    assert score.well_formed == 1.0


def test_accuracy_is_the_share_of_right_answers(sequence):
    score = evaluate(Copyist(sequence, wrong=4), sequence, 40)
    assert (score.successes, score.accuracy) == (30, 0.75)
    assert score.interval == wilson(30, 40)
    assert score.well_formed == 0.75  # the wrong answers hold a "=", which costs the toy's format term


@pytest.mark.parametrize("block_size", [1, 3, 8])
@pytest.mark.parametrize("rows", [1, 7, 250])
def test_neither_granularity_nor_batching_changes_a_score(toy, block_size, rows):
    mdp = TextMDP(**toy, block_size=block_size)
    problems = draw_problems(mdp, 15)
    done = complete(Copyist(mdp), mdp, problems, rows=rows)
    assert [c.problem for c in done] == problems
    assert all(c.is_success and c.finish_reason == "eos" for c in done)
    assert [c.logp for c in done] == [-c.n_tokens for c in done]


def test_best_of_n_counts_any_success_and_the_most_probable(sequence):
    # Of the three completions of each problem the third is wrong and the least probable.
    score = evaluate(Copyist(sequence, wrong=3), sequence, 10, deterministic=False, n=3)
    assert (score.pass_at_n, score.n, score.problems) == (1.0, 3, 10)
    # A right one has -1 a token, so -5 for a word of four letters; a wrong one has -4.
    assert score.successes == sum(len(problem.answer) <= 3 for problem in draw_problems(sequence, 10)) < 10


def test_the_chosen_completion_is_the_one_of_highest_log_prob():
    from llmgym.evaluation import _score

    def made(logp, success, failed=False):
        return Completion(Problem("a=", "a"), "a", "eos", 2, logp, success, None, failed)

    spent = Counters().as_dict()
    score = _score([[made(-3, True), made(-1, False)], [made(-1, True), made(-3, False)]], 1.0, spent)
    assert (score.successes, score.any_successes) == (1, 2)
    failed = _score([[made(0, True, True), made(-3, True)], [made(0, True, True)] * 2], 1.0, spent)
    assert (failed.problems, failed.successes, failed.scorer_failures) == (1, 1, 3)
    assert math.isnan(failed.well_formed)
    nothing = _score([[made(0, True, True)]], 1.0, spent)
    assert math.isnan(nothing.accuracy)
    assert nothing.interval == (0.0, 1.0)


def test_scorer_failures_are_counted_and_left_out(toy):
    mdp = TextMDP(**toy | {"task": Failing()}, block_size=8)
    problems = [Problem(f"{word}=", word) for word in ("a", "ab", "abc", "abca", "abcab")]
    score = evaluate(Copyist(mdp), mdp, problems)  # Failing judges texts of five letters only
    assert (score.problems, score.successes, score.scorer_failures) == (1, 1, 4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"n": 2}, "n > 1 needs sampling"),
        ({"problems": 0}, "problems must be at least 1, got 0"),
        ({"rows": 0}, "rows must be at least 1, got 0"),
        ({"split": "valid"}, "split"),
    ],
)
def test_bad_arguments_give_a_sentence(arguments, sentence):
    env = gym.make("llmgym/TokenMDP-v0")
    with pytest.raises(ValueError, match=sentence):
        evaluate(RandomPolicy(env), env, **{"problems": 4} | arguments)


def test_an_environment_without_text_is_refused():
    with pytest.raises(ValueError, match="env must be a text environment"):
        RandomPolicy(gym.make("CartPole-v1"))


def test_random_policy_is_uniform_over_what_is_legal(toy):
    mdp = TextMDP(**toy, banned_tokens=[A], min_new_tokens=1)
    done = complete(RandomPolicy(mdp, seed=0), mdp, [Problem("b=", "b")] * 2000)
    first = [c.text[:1] for c in done]
    assert not any("a" in c.text for c in done)
    counts = [first.count(letter) for letter in "bc=\n"]
    assert all(abs(count - 2000 / (V - 2)) < 100 for count in counts)  # all but `a` and, at first, EOS; 6 deviations


def test_random_policy_obeys_a_grammar_inside_blocks_and_repeats_itself_by_seed(toy):
    mdp = TextMDP(**toy, block_size=4, constraint=no_repeat)
    problems = draw_problems(mdp, 100)
    once, again = (complete(RandomPolicy(mdp, seed=1), mdp, problems) for _ in range(2))
    assert once == again
    assert {c.finish_reason for c in once} == {"eos", "length"}  # never "illegal"


def test_score_as_dict_holds_fields_and_properties():
    score = Score(10, 1, 5, 5, 0.5, 3.0, 0, 2.0, Counters(sampled_tokens=30).as_dict())
    table = score.as_dict()
    assert (table["accuracy"], table["tokens_per_second"], table["mean_tokens"]) == (0.5, 15.0, 3.0)
    assert table["interval"] == wilson(5, 10)


def test_a_language_model_scores_alike_in_single_and_vector_form_and_at_any_granularity():
    from llmgym.policy import LMPolicy

    single = gym.make("llmgym/TokenMDP-v0")
    vector = gym.make_vec("llmgym/SequenceMDP-v0", num_envs=3)
    scores = [evaluate(LMPolicy("tiny", env, seed=0), env, 40, rows=16) for env in (single, vector)]
    assert scores[0].successes == scores[1].successes
    assert scores[0].mean_tokens == scores[1].mean_tokens
    assert scores[0].well_formed >= 0.9


def test_words_of_the_toy_world_split_by_their_mark():
    # The tests above rely on it.
    rng = np.random.default_rng(0)
    assert Words().problem(rng, "test").prompt.startswith("=")
