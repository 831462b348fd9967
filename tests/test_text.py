"""`TextMDP`: pure rules on frozen states."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from toys import (
    CHAT_TEMPLATE,
    EOS,
    EQUALS,
    NEWLINE,
    PAD,
    TAG,
    A,
    B,
    C,
    Replying,
    V,
    Words,
    assert_same,
    no_repeat,
    random_tokens,
    toy_tokenizer,
)

from llmgym.mdp import MDP, ScorerFailed
from llmgym.tasks import Problem
from llmgym.text import TextMDP, TextState
from llmgym.tokenization import Codec, load_tokenizer

RNG = np.random.default_rng


def start(mdp, prompt="ab=", answer="ab"):
    return mdp.start(Problem(prompt, answer), key=1)


# --- first states ---------------------------------------------------------------------------------------------------


def test_an_episode_starts_with_a_drawn_prompt_nobody_chose(toy):
    mdp = TextMDP(**toy)
    state = mdp.initial(RNG(0))
    assert mdp.codec.decode(state.tokens) == state.problem.prompt and state.problem.prompt.endswith("=")
    assert state.n_tokens == 0 and state.completion == () and not any(state.chosen)
    assert state == mdp.initial(RNG(0)) and state.key != mdp.initial(RNG(1)).key
    assert mdp.info(state) == {"prompt": state.problem.prompt}


def test_the_split_is_the_tasks(toy):
    train, test = TextMDP(**toy), TextMDP(**toy, split="test")
    assert test.initial(RNG(0)).problem.prompt == "=" + train.initial(RNG(0)).problem.prompt


def test_a_given_problem_is_played(toy):
    problem = Problem("cab=", "cab", {"of": "the user"})
    assert TextMDP(**toy).initial(RNG(0), {"problem": problem}).problem is problem


def test_no_more_than_the_prompt_may_be_as_long_as_allowed(toy):
    mdp = TextMDP(**toy)
    assert start(mdp, "a" * 6).n_prompt == 6
    with pytest.raises(ValueError, match="prompt 'aaaaaaa' has 7 tokens, max_prompt_tokens is 6"):
        start(mdp, "a" * 7)


def test_an_empty_prompt_is_refused(toy):
    with pytest.raises(ValueError, match="prompt '' encodes to no token"):
        start(TextMDP(**toy), "")


def test_a_problem_must_be_one(toy):
    with pytest.raises(ValueError, match=r"options\['problem'\] must be a Problem, got 'ab='"):
        TextMDP(**toy).initial(RNG(0), {"problem": "ab="})


# --- transitions ----------------------------------------------------------------------------------------------------


def test_transition_is_pure_on_hashable_states(toy):
    mdp = TextMDP(**toy)
    state = start(mdp)
    twin = copy.deepcopy(state)
    one, two = mdp.transition(state, B), mdp.transition(state, np.int64(B))
    assert one == two and hash(one) == hash(two) and len({one, two, state}) == 2
    assert state == twin and one.completion == (B,) and one.chosen == (False, False, False, True)


def test_eos_ends_and_what_follows_it_is_ignored(toy):
    mdp = TextMDP(**toy, block_size=4)
    over = mdp.transition(start(mdp), [A, EOS, B, EOS])
    assert (over.completion, over.finish_reason) == ((A, EOS), "eos") and over.chosen[-2:] == (True, True)


def test_the_budget_ends_and_what_exceeds_it_is_ignored(toy):
    mdp = TextMDP(**toy, block_size=5)
    state = mdp.transition(start(mdp), [A] * 5)
    assert state.finish_reason is None and not mdp.terminal(state)
    over = mdp.transition(state, [B] * 5)
    assert (over.completion, over.finish_reason) == ((A,) * 5 + (B,) * 3, "length") and mdp.terminal(over)


def test_eos_as_the_last_token_of_the_budget_is_eos(toy):
    mdp = TextMDP(**toy, block_size=8)
    assert mdp.transition(start(mdp), [A] * 7 + [EOS]).finish_reason == "eos"
    assert mdp.transition(start(mdp), [A] * 8).finish_reason == "length"


def test_eos_in_the_prompt_is_no_end(toy):
    mdp = TextMDP(**toy)
    state = start(mdp, "a<eos>b=")
    assert state.tokens == (A, EOS, B, EQUALS)
    after = mdp.transition(state, C)
    assert after.finish_reason is None and mdp.text(after) == "c"


def test_a_terminal_state_leads_nowhere(toy):
    mdp = TextMDP(**toy)
    over = mdp.transition(start(mdp), EOS)
    with pytest.raises(ValueError, match="the state is terminal"):
        mdp.transition(over, A)


def test_an_illegal_token_ends_with_the_failing_reward_and_is_not_written(toy):
    mdp = TextMDP(**toy, block_size=3, banned_tokens=[C])
    state = start(mdp)
    over = mdp.transition(state, [B, C, A])
    assert (over.completion, over.finish_reason) == ((B,), "illegal")
    assert mdp.reward(state, [B, C, A], over) == -1.0
    info = mdp.info(over)
    assert info["illegal"] is True and info["reward_terms"] == {} and info["is_success"] is False


@pytest.mark.parametrize("action", [[A, B], [A] * 4, A, [[A, B, C]], [1.0, 2.0, 3.0], ["a", "b", "c"], [True] * 3])
def test_an_action_is_exactly_block_size_integers(action, toy):
    mdp = TextMDP(**toy, block_size=3)
    with pytest.raises(ValueError, match="an action must be block_size = 3 token ids, got"):
        mdp.transition(start(mdp), action)


@pytest.mark.parametrize("token", [-1, V])
def test_an_action_lies_in_the_vocabulary(token, toy):
    mdp = TextMDP(**toy)
    with pytest.raises(ValueError, match=rf"token ids must lie in \[0, 8\), got {token}"):
        mdp.transition(start(mdp), token)


# --- replies --------------------------------------------------------------------------------------------------------


def test_a_reply_is_state_but_not_action_and_ends_the_block(toy):
    mdp = TextMDP(**toy | {"task": Replying()}, block_size=4)
    state = mdp.transition(start(mdp), [A, EOS, B, B])
    assert state.completion == (A, EOS, EQUALS, C) and state.finish_reason is None
    assert state.chosen[state.n_prompt :] == (True, True, False, False)
    assert mdp.text(state) == "a=c" and mdp.info(state) == {}


def test_a_reply_beyond_the_budget_is_cut_and_ends_the_episode(toy):
    mdp = TextMDP(**toy | {"task": Replying()}, block_size=8)
    cut = mdp.transition(start(mdp), [A] * 6 + [EOS, B])
    assert cut.completion == (A,) * 6 + (EOS, EQUALS) and cut.finish_reason == "length"
    none = mdp.transition(start(mdp), [A] * 7 + [EOS])
    assert none.n_tokens == 8 and none.finish_reason == "length"
    fits = mdp.transition(start(mdp), [A] * 5 + [EOS, B, B])
    assert fits.n_tokens == 8 and fits.finish_reason == "length"


def test_after_its_last_reply_the_task_lets_eos_end(toy):
    mdp = TextMDP(**toy | {"task": Replying()})
    state, tokens = start(mdp), 0
    while not mdp.terminal(state):
        state, tokens = mdp.transition(state, EOS), tokens + 1
    assert tokens == 3 and state.completion == (EOS, EQUALS, C, EOS, EQUALS, C, EOS) and state.finish_reason == "eos"


# --- observations ---------------------------------------------------------------------------------------------------


def test_an_observation_is_right_padded_and_shows_the_horizon(toy):
    mdp = TextMDP(**toy)
    state = start(mdp).extended([B, C])
    observation = mdp.observation(state)
    assert observation in mdp.observation_space and mdp.length == 14
    assert observation["input_ids"].tolist() == [A, B, EQUALS, B, C] + [PAD] * 9
    assert observation["attention_mask"].tolist() == [1] * 5 + [0] * 9 and observation["n_tokens"].tolist() == [2]


def test_a_fresh_observation_every_time(toy):
    mdp = TextMDP(**toy)
    state = start(mdp)
    mdp.observation(state)["input_ids"][:] = C
    assert mdp.observation(state)["input_ids"][0] == A


def test_state_of_an_observation_is_the_state_but_for_what_nobody_sees(toy):
    mdp, rng = TextMDP(**toy), RNG(0)
    for n in range(8):
        state = mdp.initial(rng).extended(random_tokens(rng, n).tolist())
        seen = mdp.state_of(mdp.observation(state))
        assert (seen.tokens, seen.n_prompt, seen.chosen) == (state.tokens, state.n_prompt, state.chosen)
        assert seen.key is None and seen.problem.answer == "" and seen.finish_reason is None


@pytest.mark.parametrize("pad", [None, "<eos>"])
def test_without_a_pad_token_of_its_own_a_tokenizer_works_and_stays_as_it_was(pad, toy):
    tokenizer = toy_tokenizer(pad_token=pad)
    before = dict(tokenizer.special_tokens_map)
    mdp = TextMDP(**toy | {"tokenizer": tokenizer}, block_size=4)
    state = mdp.transition(start(mdp), [A, B, EOS, A])
    observation = mdp.observation(state)
    assert observation["input_ids"].tolist() == [A, B, EQUALS, A, B, EOS] + [EOS] * 8
    assert observation["attention_mask"].sum() == 6 and mdp.state_of(observation).tokens == state.tokens
    assert mdp.outcome(state).is_success  # padding that is EOS ends nothing and is no text
    assert tokenizer.special_tokens_map == before and tokenizer.pad_token == pad


def test_spaces_follow_the_block(toy):
    assert TextMDP(**toy).action_space.n == V
    assert TextMDP(**toy, block_size=3).action_space.nvec.tolist() == [V] * 3


# --- rewards --------------------------------------------------------------------------------------------------------


def play(mdp, tokens, prompt="ab=", answer="ab"):
    state = start(mdp, prompt, answer)
    for token in tokens:
        action, before = token, state
        state = mdp.transition(state, token)
    return mdp.reward(before, action, state), state


def test_the_reward_comes_at_the_end_with_its_terms(toy):
    mdp = TextMDP(**toy)
    assert play(mdp, [A, B])[0] == 0.0
    reward, over = play(mdp, [A, B, EOS])
    assert type(reward) is float and reward == 1.0 + 0.25 + 0.5 * 2 / 8
    assert mdp.info(over) == {
        "text": "ab",
        "finish_reason": "eos",
        "n_tokens": 3,
        "reward_terms": {"correct": 1.0, "format": 1.0, "length": 0.25},
        "is_success": True,
    }


def test_special_tokens_are_no_text(toy):
    assert TextMDP(**toy).text(play(TextMDP(**toy), [A, PAD, TAG, EOS])[1]) == "a<t>"


def test_numpy_scores_become_floats(toy):
    class Numpy(Words):
        def score(self, problem, text):
            return {"correct": np.float32(1), "format": np.int64(0), "length": True}

        def is_success(self, terms):
            return np.bool_(True)

    mdp = TextMDP(**toy | {"task": Numpy()})
    reward, over = play(mdp, [EOS])
    assert type(reward) is float and reward == 1.5
    info = mdp.info(over)
    assert {type(v) for v in info["reward_terms"].values()} == {float} and info["is_success"] is True


def fails(value):
    class Broken(Words):
        def score(self, problem, text):
            if isinstance(value, Exception):
                raise value
            return value

    return Broken()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (KeyError("no test"), "KeyError: 'no test'"),
        ({"correct": float("nan")}, "reward term 'correct' must be a finite number, got nan"),
        ({"correct": float("inf")}, "must be a finite number, got inf"),
        ({"correct": "1.0"}, "must be a finite number, got '1.0'"),
        ({"correct": None}, "TypeError"),
        (None, "AttributeError"),
        (1.0, "AttributeError"),
    ],
)
def test_a_scorer_that_fails_is_told_never_scored(value, message, toy):
    mdp = TextMDP(**toy | {"task": fails(value)})
    with pytest.raises(ScorerFailed, match=message.replace("(", r"\(")):
        play(mdp, [A, EOS])


def test_ctrl_c_in_a_scorer_is_no_failing_scorer(toy):
    class Slow(Words):
        def score(self, problem, text):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(TextMDP(**toy | {"task": Slow()}), [EOS])


def test_the_scorer_is_asked_once_an_episode(toy):
    class Counting(Words):
        calls = 0

        def score(self, problem, text):
            self.calls += 1
            return super().score(problem, text)

    task = Counting()
    mdp = TextMDP(**toy | {"task": task})
    _, over = play(mdp, [A, B, EOS])
    mdp.info(over)
    assert task.calls == 1


def test_a_plain_function_is_a_reward_that_sees_the_gold_answer_the_text_and_the_tokens(toy):
    seen = []

    def reward(problem, text, tokens):
        seen.append((problem.prompt, problem.answer, text, tokens))
        return len(tokens)

    got, _ = play(TextMDP(**toy, reward=reward), [A, PAD, EOS])
    assert type(got) is float and got == 3.0 and seen == [("ab=", "ab", "a", (A, PAD, EOS))]
    terms, _ = play(TextMDP(**toy, reward=lambda *_: {"correct": 1, "bonus": 0.5}), [EOS])
    assert terms == 1.5
    failing, _ = play(TextMDP(**toy, reward=reward, banned_tokens=[A]), [A])
    assert failing == -1.0  # the task's
    with pytest.raises(ScorerFailed, match="reward term 'reward' must be a finite number, got 'good'"):
        play(TextMDP(**toy, reward=lambda *_: "good"), [EOS])


# --- rendering, pickling --------------------------------------------------------------------------------------------


def test_ansi_is_prompt_and_text(toy):
    mdp = TextMDP(**toy)
    assert mdp.render(play(mdp, [TAG, NEWLINE, C])[1], "ansi") == "ab=<t>\nc"


def test_human_prints_every_token(toy, capsys):
    mdp = TextMDP(**toy | {"task": Replying()})
    assert mdp.render(play(mdp, [B, TAG, EOS])[1], "human") is None
    assert capsys.readouterr().out == "ab=b<t><eos>=c\n"
    mdp.render(play(mdp, [B] * 8)[1], "human")
    assert capsys.readouterr().out == "ab=bbbbbbbb  [length]\n"


def test_colours_tell_prompt_choice_and_reply_apart(toy):
    from llmgym.rendering import COLOURS, colour_tokens

    mdp = TextMDP(**toy | {"task": Replying()})
    line = colour_tokens(play(mdp, [B, EOS])[1], toy["tokenizer"])
    styles = [str(span.style) for span in line.spans]
    assert styles == ["dim"] * 3 + [COLOURS[3], COLOURS[4]] + ["italic"] * 2


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_rules_and_states_are_equal(again, toy):
    mdp = TextMDP(**toy, block_size=3, stop=[1, 3], constraint=no_repeat, banned_tokens=[TAG])
    state = mdp.initial(RNG(0), {"problem": Problem("ab=", "ab", {"cases": [1, 2]})})
    twin, twin_state = again(mdp), again(state)
    assert twin_state == state and dict(twin_state.problem.data) == {"cases": [1, 2]}
    assert twin.transition(twin_state, [A, B, C]) == mdp.transition(state, [A, B, C])
    assert_same(twin.observation(twin_state), mdp.observation(state))


# --- tokenizers -----------------------------------------------------------------------------------------------------


def test_a_folder_of_a_tokenizer_is_loaded(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    for name in (tmp_path, str(tmp_path)):
        assert load_tokenizer(name).get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tokenizer.json": "{nope"},
        {"tokenizer.json": '{"added_tokens": [], "model": 3}', "tokenizer_config.json": "{}"},
        {"tokenizer_config.json": "[]"},
    ],
)
def test_a_folder_that_holds_no_tokenizer_is_named(files, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=r"no tokenizer could be loaded from .*: give 'tiny', a folder") as error:
        TextMDP(tokenizer=str(tmp_path))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_model_folder_without_its_tokenizer_files_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="has a vocabulary of 1, it must have at least 2"):
        TextMDP(tokenizer=str(tmp_path))


def test_a_tokenizer_without_eos_is_refused():
    with pytest.raises(ValueError, match="has no EOS token: an episode could never end"):
        Codec(toy_tokenizer(eos_token=None))


def test_what_is_no_tokenizer_is_refused():
    with pytest.raises(ValueError, match="tokenizer must be 'tiny', a folder, a hub id or a tokenizer, got 3"):
        Codec(3)


def test_few_prompts_are_remembered_the_latest_ones(tokenizer):
    codec = Codec(tokenizer, cache_size=2)
    for prompt in ("a", "b", "c", "b"):
        assert codec.encode_prompt(Problem(prompt), Words()) == codec.encode_text(prompt)
    assert [key[0] for key in codec._prompts] == ["b", "c"]


def test_a_chat_template_is_used_when_the_task_asks_for_it(toy):
    tokenizer, task = toy_tokenizer(chat_template=CHAT_TEMPLATE), Words()
    mdp = TextMDP(**toy | {"task": task, "tokenizer": tokenizer})
    assert mdp.codec.decode(start(mdp, "b").tokens) == "b"
    task.chat_template = True
    assert mdp.codec.decode(start(mdp, "b").tokens) == "ab="
    task.system = "b"
    state = start(mdp, "b")
    assert mdp.codec.decode(state.tokens) == "cbab=" and not any(state.chosen)
    assert mdp.render(state, "ansi") == "b"  # the problem's own prompt


def test_a_chat_template_that_is_missing_is_said(toy):
    task = Words()
    task.chat_template = True
    with pytest.raises(ValueError, match="the task asks for a chat template, but the tokenizer has none"):
        start(TextMDP(**toy | {"task": task}))


# --- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "poetry"}, "unknown task 'poetry': choose one of arithmetic, "),
        ({"split": "dev"}, "split must be 'train' or 'test', got 'dev'"),
        ({"block_size": 0}, r"block_size must be in \[1, 8\] \(max_new_tokens\), got 0"),
        ({"block_size": 9}, r"block_size must be in \[1, 8\] \(max_new_tokens\), got 9"),
        ({"block_size": -1}, r"block_size must be in \[1, 8\] \(max_new_tokens\), got -1"),
        ({"block_size": 1.5}, "block_size must be an integer, got 1.5"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"max_new_tokens": "8"}, "max_new_tokens must be an integer, got '8'"),
        ({"max_prompt_tokens": -3}, "max_prompt_tokens must be at least 1, got -3"),
        ({"min_new_tokens": -1}, "min_new_tokens must be at least 0, got -1"),
        ({"min_new_tokens": 8}, "min_new_tokens must be below max_new_tokens = 8, got 8"),
        ({"task_options": {"digits": 2}}, r"task options \['digits'\] need a task name, got a Words"),
    ],
)
def test_arguments_out_of_range_are_said_in_one_sentence(arguments, message, toy):
    with pytest.raises(ValueError, match=message):
        TextMDP(**toy | arguments)


def test_an_argument_that_does_not_exist_is_no_silent_typo(toy):
    with pytest.raises(TypeError, match="max_tokens"):
        TextMDP(**toy, max_tokens=3)


def test_the_base_class_promises_nothing():
    mdp, state = MDP(), TextState(Problem(""), (), 0, ())
    assert mdp.player(state) == 0 and mdp.info(state) == {}
    for method, arguments in (
        ("initial", (RNG(0),)),
        ("transition", (state, 0)),
        ("reward", (state, 0, state)),
        ("terminal", (state,)),
        ("observation", (state,)),
        ("mask", (state,)),
        ("render", (state, "ansi")),
    ):
        with pytest.raises(NotImplementedError):
            getattr(mdp, method)(*arguments)
