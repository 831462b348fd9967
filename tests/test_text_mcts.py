"""MCTS on text: it acts through reset and step, learns what its search has found, and pays for every token."""

from __future__ import annotations

import json
import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from toys import Failing, no_repeat, toy_tokenizer
from worlds import assert_gradients, flat, four_mdp, lm_policy, rows

from llmgym.agents import MCTS, TextMCTS
from llmgym.agents.text_play import Asking, RememberingEvaluator, Writer
from llmgym.cli import main
from llmgym.env import MDPEnv
from llmgym.intervals import student
from llmgym.nets import NetPolicy
from llmgym.oracle import Oracle
from llmgym.search import Search, SearchOptions
from llmgym.search.distillation_plots import Run, distillation_picture, over_seeds
from llmgym.search.prefix import PrefixReader
from llmgym.search.text_candidates import block_of
from llmgym.search.text_lessons import Lesson, Written, lesson_losses
from llmgym.tasks import Problem
from llmgym.text import TextMDP

PROBLEM = Problem("ab=", "ab")
LEVELS: dict[str, dict[str, Any]] = {
    "token": {"block_size": 1},
    "block": {"block_size": 2},
    "line": {"block_size": 3, "stop": "b"},
}
each_level = pytest.mark.parametrize("level", LEVELS)
ASKING = Asking(3, False, 0.0, 1.0, "none")
SMALL = {"prompts": 3, "simulations": 6, "seed": 0, "learning_rate": 0.01}


def world(**changes):
    return four_mdp(**({"max_prompt_tokens": 5} | changes))


def agent_of(mdp, policy=None, **config):
    return MCTS(policy or lm_policy(mdp, value_head=True), MDPEnv(mdp), **(SMALL | config))


def written(mdp, policy, rule="puct", asking=ASKING, n=1, **options):
    evaluate = RememberingEvaluator(policy, mdp, asking, policy.generator)
    options = SearchOptions(rule=rule, simulations=12, **options)
    texts = Writer(mdp, evaluate, options, 0, np.random.default_rng(0)).write([mdp.start(PROBLEM)] * n)
    return texts, evaluate


def value_of(policy, state):
    """V by a plain forward pass."""
    out = policy.model(torch.tensor([state.tokens]), output_hidden_states=True)
    return policy.value_head(out.hidden_states[-1][0, -1])[0]


# Learning.


@each_level
@pytest.mark.parametrize("masks", [{}, {"banned_tokens": ["b"], "constraint": no_repeat, "min_new_tokens": 1}])
def test_the_gradient_is_that_of_the_enumerated_log_probs_and_values(level, masks):
    if "constraint" in masks:
        masks = masks | {"constraint": lambda state, tokens: np.array([True, True, True, state.tokens[-1] != 1])}
    mdp = world(**LEVELS[level], **masks)
    policy = lm_policy(mdp, value_head=True)
    torch.nn.init.normal_(policy.value_head.weight, generator=torch.Generator().manual_seed(1))
    texts, _ = written(mdp, policy, rule="uct", n=2)
    losses = lesson_losses(policy, mdp, texts, torch.tanh, 7)
    ours = torch.autograd.grad(losses.policy + 0.3 * losses.value, policy.parameters())

    oracle, expected = Oracle(mdp, PROBLEM, policy), 0.0
    steps = {(step.state, step.tokens): k for k, step in enumerate(oracle._tree.steps)}
    logp = oracle._action_logp()
    for text in texts:
        for lesson in text.lessons:
            state = text.state(lesson)
            for block, share in zip(lesson.blocks, lesson.policy, strict=True):
                expected = expected - share * logp[steps[state, block]] / 7
            expected = expected + 0.3 * (torch.tanh(value_of(policy, state)) - lesson.ret) ** 2 / 7
    assert_gradients(ours, torch.autograd.grad(expected, policy.parameters()))
    assert (losses.policy + 0.3 * losses.value).item() == pytest.approx(expected.item())


@each_level
def test_targets_are_the_shares_of_visits_and_values_the_discounted_outcome(level):
    mdp = world(**LEVELS[level])
    policy = lm_policy(mdp, value_head=True)
    (text,), evaluate = written(mdp, policy, discount=0.9)
    assert mdp.terminal(text.end) and text.end.tokens[:3] == mdp.start(PROBLEM).tokens
    search, state = Search(mdp, evaluate, SearchOptions(rule="puct", simulations=12, discount=0.9)), mdp.start(PROBLEM)
    for n, lesson in enumerate(text.lessons):
        search.start([state])  # the evaluator says the same again
        (result,) = search.run()
        assert text.state(lesson) == state and lesson.length == len(state.tokens)
        np.testing.assert_array_equal(lesson.policy, result.visits / 12)
        assert list(lesson.blocks) == [block_of(mdp, state, action) for action in result.actions]
        after = mdp.transition(state, result.action)
        assert lesson.ret == pytest.approx(mdp.outcome(text.end).reward * 0.9 ** (len(text.lessons) - 1 - n))
        state = after
    assert state == text.end


def test_every_token_of_search_and_training_is_counted(monkeypatch):
    """Independently: distinct prefixes of the texts that were asked for, and the tokens of the rows learnt from."""
    mdp = world()
    agent, asked, learnt = agent_of(mdp, epochs=2), set[tuple[int, ...]](), []
    read = PrefixReader.read

    def watched(self, texts):
        asked.update(tuple(text[:n]) for text in texts for n in range(1, len(text) + 1))
        return read(self, texts)

    monkeypatch.setattr(PrefixReader, "read", watched)
    agent.learn(total_timesteps=1, callback=lambda agent, metrics, texts: learnt.extend(texts))
    trained = 2 * sum(len(text.end.tokens) - 1 for text in learnt)  # nothing follows a last token
    assert len(learnt) == 3 and agent.policy.counters.forward_tokens == len(asked) + trained
    assert agent.num_timesteps == sum(len(text.lessons) for text in learnt)


def test_a_text_is_read_once_and_candidates_that_part_from_it_are_rows_of_their_own():
    mdp = world(block_size=2)
    policy = lm_policy(mdp)
    start = mdp.start(PROBLEM)
    middle = mdp.transition(start, (1, 2))
    end = mdp.transition(middle, (0, 0))
    first = Lesson(3, [(1, 2), (1, 3), (2, 1)], np.array([0.5, 0.25, 0.25]), 1.0)
    text = Written(end, (first, Lesson(5, [(0,), (1,)], np.array([1.0, 0.0]), 1.0)))
    before = policy.counters.forward_tokens
    lesson_losses(policy, mdp, [text], torch.tanh, 2)
    assert policy.counters.forward_tokens - before == 5 + 4  # "ab=ab" for the text, "ab=b" for the third candidate


@pytest.mark.parametrize("config", [{"rule": "gumbel"}, {"rule": "puct", "rollouts": 0.5, "noise": 0.1}])
def test_it_learns_what_pays(config):
    mdp = world()
    mdp.task.problem = lambda rng, split="train": PROBLEM
    agent = agent_of(mdp, lm_policy(mdp, "llama", value_head=True), simulations=16, candidates=4, min_p=0.0, **config)
    oracle = Oracle(mdp, PROBLEM, agent.policy)
    before = oracle.expected_return().item()
    agent.learn(total_timesteps=150)
    after, best = oracle.expected_return().item(), oracle.returns.max().item()
    assert after - before > 0.5 * (best - before)


def test_the_step_is_the_same_whatever_the_micro_batches():
    mdp = world(block_size=2)
    found = []
    for rows_at_once in (0, 1):
        agent = agent_of(mdp, lm_policy(mdp, value_head=True), micro_batch_rows=rows_at_once)
        found.append(flat(agent.learn(total_timesteps=1).policy.parameters()))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_a_text_that_the_scorer_fails_on_is_dropped_and_counted():
    mdp = TextMDP(task=Failing(), tokenizer=toy_tokenizer(), max_new_tokens=6, banned_tokens=["<eos>"])
    agent = agent_of(mdp, prompts=8, candidates=8, min_p=0.0)
    learnt: list[Any] = []
    agent.learn(total_timesteps=1, callback=lambda agent, metrics, texts: learnt.append((metrics, texts)))
    ((metrics, texts),) = learnt
    assert metrics["dropped_rows"] == 8 - len(texts) > 0 and metrics["texts"] == 8


# Acting.


@each_level
def test_it_acts_through_reset_and_step_and_finds_what_pays(level):
    mdp = world(**LEVELS[level])
    env, least = MDPEnv(mdp), Oracle(mdp, PROBLEM, lm_policy(mdp)).expected_return().item()
    for rule in ("puct", "gumbel"):
        agent = MCTS(lm_policy(mdp), env, rule=rule, simulations=300, candidates=50, min_p=0.0, value_weight=0.0)
        assert isinstance(agent, TextMCTS) and agent.config.rule == rule
        observation, _ = env.reset(seed=0, options={"problem": PROBLEM})
        total, over = 0.0, False
        while not over:
            action, state = agent.predict(observation)
            assert env.action_space.contains(action) and state is None
            observation, reward, over, _, _ = env.step(action)
            total += reward
        assert total > least
    assert all(mdp.outcome(end).reward > least for end in agent.write([mdp.start(PROBLEM)] * 2))


def test_it_acts_in_rows_and_for_stable_baselines3():
    mdp = world(block_size=2)
    venv = rows(mdp, 3)
    agent = MCTS(lm_policy(mdp, value_head=True), venv, **SMALL)
    observations, _ = venv.reset(seed=0)
    ended = np.zeros(3, bool)
    for _ in range(2):
        actions, _ = agent.predict(observations, deterministic=False)
        assert actions.shape == (3, 2) and venv.action_space.contains(actions)
        observations, _, terminated, _, _ = venv.step(actions)
        ended |= terminated
    assert ended.all()
    env = MDPEnv(mdp)
    agent = MCTS(agent.policy, env, **SMALL)
    result, _ = evaluate_policy(agent, Monitor(env), n_eval_episodes=2)
    assert -2 < result < 2


def test_acting_leaves_learning_as_it_is_and_the_same_seed_learns_the_same():
    mdp, found = world(), []
    for acts in (False, True):
        agent = agent_of(mdp)
        if acts:
            agent.predict(agent.env.reset(seed=1)[0], deterministic=False)
        found.append(flat(agent.learn(total_timesteps=20).policy.parameters()))
    assert torch.equal(*found)


def test_it_comes_back_from_a_folder_and_goes_on_as_if_it_had_not_stopped(tmp_path):
    env = gym.make("llmgym/TokenMDP-v0", max_new_tokens=8)
    agent = MCTS("tiny", env, device="cpu", **(SMALL | {"simulations": 2}))
    agent.learn(total_timesteps=1)
    agent.save(tmp_path / "agent")
    again = MCTS.load(tmp_path / "agent")
    assert isinstance(again, TextMCTS) and again.config == agent.config
    assert again.num_timesteps == agent.num_timesteps and again.policy.counters == agent.policy.counters
    for one in (agent, again):
        one.learn(total_timesteps=1)
    torch.testing.assert_close(flat(agent.policy.parameters()), flat(again.policy.parameters()), rtol=0, atol=1e-6)


def test_bad_input_is_one_sentence():
    env = MDPEnv(world())
    wrong = [
        ({"min_p": 1.5}, "min_p must be in [0, 1], got 1.5"),
        ({"candidates": 0}, "candidates must be at least 1, got 0"),
        ({"rollouts": 2.0}, "rollouts must be in [0, 1], got 2.0"),
        ({"simulations": 0}, "simulations must be at least 1, got 0"),
        ({"discount": -1.0}, "discount must be above 0"),
        ({"rule": "rave"}, "rule must be one of gumbel, puct, uct"),
        ({"bound": "none at all"}, "bound must be one of 'tanh', 'clip', 'none'"),
    ]
    for config, sentence in wrong:
        with pytest.raises(ValueError, match=re.escape(sentence)):
            agent_of(env.mdp, **config)
    with pytest.raises(ValueError, match="must be a language model"):
        MCTS("uniform", env)
    with pytest.raises(ValueError, match="must be a language model"):
        MCTS(NetPolicy("MlpPolicy", gym.make("CartPole-v1"), device="cpu"), env)
    with pytest.raises(ValueError, match="a value head"):
        MCTS(lm_policy(env.mdp), env)
    with pytest.raises(TypeError, match="symmetries"):
        MCTS(lm_policy(env.mdp, value_head=True), env, symmetries=True)


# The study.


def test_candidates_far_behind_the_first_are_left_out():
    mdp = world()
    policy = lm_policy(mdp)
    every = RememberingEvaluator(policy, mdp, Asking(4, False, 0.0, 1.0, "none"), policy.generator)
    (all_,) = every([mdp.start(PROBLEM)])
    shares = np.array(all_.priors) / max(all_.priors)
    few = RememberingEvaluator(policy, mdp, Asking(4, False, 0.5, 1.0, "none"), policy.generator)
    (found,) = few([mdp.start(PROBLEM)])
    assert list(found.actions) == [a for a, s in zip(all_.actions, shares, strict=True) if s >= 0.5] and all_.complete
    assert 1 <= len(found.actions) < 4 and not found.complete


def test_means_over_seeds_have_the_interval_of_student():
    mean, half = student([0.2, 0.4, 0.6])
    assert mean == pytest.approx(0.4) and half == pytest.approx(4.303 * 0.2 / 3**0.5)
    assert over_seeds([0.5]) == (0.5, 0.0, 1.0)
    run = Run("GRPO", 0, (0, 11, 25), (0.1, 0.2, 0.3), {}, 1.0)
    assert [run.at(budget) for budget in (0, 10, 11, 24, 99)] == [0.1, 0.1, 0.2, 0.2, 0.3]


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_picture_has_the_mean_of_several_seeds_or_the_one_there_is(seeds, tmp_path):
    runs = [Run("GRPO", seed, (0, 10, 20), (0.1, 0.2 + 0.1 * seed, 0.4), {}, 1.0) for seed in range(seeds)]
    distillation_picture({"copy": runs, "sort": runs}, [0, 10, 20], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_command_compares_both_and_draws_it(tmp_path, capsys):
    few = ["--budget", "3000", "--looks", "2", "--seeds", "1", "--problems", "20", "--searched", "4"]
    small = ["--mcts", '{"prompts": 4, "simulations": 4}', "--grpo", '{"prompts": 2, "samples": 4}']
    out = tmp_path / "study"
    assert main(["distillation-study", "--tasks", '{"arithmetic": {}}', *few, *small, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "search distillation" in said and "GRPO" in said and "before" in said
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")
    runs = json.loads((tmp_path / "study.json").read_text())["runs"]["arithmetic"]
    assert [run["method"] for run in runs] == ["search distillation", "GRPO"]
    for run in runs:
        assert run["tokens"][0] == 0 and run["tokens"][-1] >= 3000 and len(run["tokens"]) == len(run["accuracy"]) >= 2
        assert run["searched"]["before"] == runs[0]["searched"]["before"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--tasks", "{}"], "there must be a task"),
        (["--tasks", '{"chess": {}}'], "chess"),
        (["--budget", "0"], "budget must be above 0, got 0"),
        (["--mcts", '{"depth": 3}'], "depth"),
        (["--grpo", '{"samples": 1}'], "samples must be at least 2"),
        (["--out", "no/such/folder/x"], "a folder for 'no/such/folder/x'"),
    ],
)
def test_bad_options_are_one_sentence(words, sentence, capsys):
    assert main(["distillation-study", *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("llmgym:") == 1


def test_the_embedded_model_gets_better_at_sums():
    """The thin path, end to end: a few thousand forward tokens."""
    mdp = TextMDP(max_new_tokens=40)
    agent = MCTS("tiny", MDPEnv(mdp), device="cpu", seed=0, prompts=8)
    found = []
    agent.learn(total_timesteps=150, callback=lambda agent, metrics, texts: found.append(metrics["accuracy"]))
    assert np.mean(found) > 0.7  # greedy: 0.3
