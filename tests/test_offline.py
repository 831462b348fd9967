"""What SFT and DPO share: passes, budgets, one step whatever the micro-batches, files that training goes on from."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from toys import CHAT_TEMPLATE, Words, no_repeat, toy_tokenizer
from transformers import AutoModelForCausalLM
from worlds import flat, four_mdp, lm_policy, rows, tiny_model

from llmgym.agents import DPO, GRPO, SFT
from llmgym.policy import LMPolicy
from llmgym.tasks import Problem
from llmgym.text import TextMDP
from llmgym.texts import Text, batch_of, completion_logp, fingerprint, text_of

PROMPTS = ["a=", "b=", "ab=", "ba=", "aab="]
TEXTS = ["a", "b", "ab", "bba", "aba"]
DEMONSTRATIONS = [{"prompt": p, "completion": t} for p in PROMPTS for t in TEXTS[:2]]
PREFERENCES = [
    {"prompt": p, "chosen": t, "rejected": TEXTS[(i + 1) % 5], "rejected_finished": i % 2 == 0}
    for p in PROMPTS
    for i, t in enumerate(TEXTS[:2])
]
LEARNERS = {SFT: DEMONSTRATIONS, DPO: PREFERENCES}
each_learner = pytest.mark.parametrize("cls", LEARNERS, ids=lambda cls: cls.__name__)
TIMES = ("seconds", "tokens_per_second")


def world(**changes):
    return four_mdp(**({"max_prompt_tokens": 5, "max_new_tokens": 4} | changes))


def learner(cls, mdp=None, model="gpt2", data=None, **config):
    """An agent in float64; `model` is a kind of model or one."""
    mdp = mdp or world()
    settings = {"seed": 0, "learning_rate": 0.01, "dtype": "float64", "device": "cpu", "batch_size": 4} | config
    model = tiny_model(model, mdp.codec.vocab_size) if isinstance(model, str) else model
    return cls(model, mdp, LEARNERS[cls] if data is None else data, **settings)


def logged(agent, **budget):
    """Metrics and rows of every step, times left out."""
    log = []

    def note(agent, metrics, rows):
        log.append(({k: v for k, v in metrics.items() if k not in TIMES}, rows))

    agent.learn(**budget, callback=note)
    return log


def parameters(agent):
    return flat(agent.policy.parameters())


# --- passes and budgets -----------------------------------------------------------------------------------------------


@each_learner
def test_every_pass_takes_every_row_once_in_an_order_of_its_own(cls):
    agent = learner(cls, epochs=3)
    log = logged(agent)
    taken = [[row.prompt + getattr(row, "completion", "") for row in rows] for _, rows in log]
    assert [len(part) for part in taken] == [4, 4, 2] * 3
    passes = [[row for part in taken[3 * i : 3 * i + 3] for row in part] for i in range(3)]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(passes[2])
    assert len({tuple(order) for order in passes}) == 3
    assert [m["timesteps"] for m, _ in log] == [4, 8, 10, 14, 18, 20, 24, 28, 30]
    assert [m["epoch"] for m, _ in log] == pytest.approx([0.4, 0.8, 1, 1.4, 1.8, 2, 2.4, 2.8, 3])
    per_row = [len(text.tokens) - text.n_prompt for texts in agent.texts for text in texts]
    assert agent.num_tokens == 3 * sum(per_row)


@each_learner
@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ({"total_timesteps": 5}, 2),
        ({"epochs": 1}, 3),
        ({"epochs": 0.5}, 2),
        ({"epochs": 5, "total_timesteps": 4}, 1),
        ({"total_tokens": 1}, 1),
        ({"total_timesteps": 100, "total_tokens": 1}, 1),
        ({}, 6),
    ],
    ids=str,
)
def test_the_first_budget_to_be_spent_ends_training(cls, budget, steps):
    assert len(logged(learner(cls, epochs=2), **budget)) == steps


@each_learner
def test_without_a_budget_a_stopped_run_is_finished_and_a_finished_one_repeated(cls):
    agent = learner(cls, epochs=2)
    assert len(logged(agent, total_timesteps=5)) == 2 and len(logged(agent)) == 4
    assert agent.num_timesteps == 20 and len(logged(agent)) == 6


@each_learner
def test_a_budget_of_time_and_a_callback_end_training(cls):
    agent, calls = learner(cls), []
    agent.learn(max_seconds=0.1)
    assert agent.num_timesteps > 0
    agent.learn(epochs=100, callback=lambda *_: len(calls.append(1) or calls) < 3)
    assert len(calls) == 3


@pytest.mark.parametrize("name", ["total_timesteps", "total_tokens", "max_seconds", "epochs"])
def test_bad_budgets_are_said(name):
    for value in (0, -1, math.nan):
        with pytest.raises(ValueError, match=f"{name} must be above 0, got {value}"):
            learner(SFT).learn(**{name: value})


@each_learner
def test_the_learning_rate_falls_to_nothing_over_all_passes_when_linear(cls):
    agent, seen = learner(cls, epochs=2, schedule="linear", learning_rate=0.1), []
    agent.learn(callback=lambda a, m, r: seen.append(a.optimizer.param_groups[0]["lr"]))
    assert seen == pytest.approx([0.1 * (1 - done / 20) for done in (0, 4, 8, 10, 14, 18)])


def test_progress_is_shown_on_request(capsys):
    learner(SFT).learn()
    assert capsys.readouterr().err == ""
    learner(SFT, verbose=1).learn()
    shown = capsys.readouterr().err
    assert "loss" in shown and "tok/s" in shown
    learner(DPO).learn(progress_bar=True)
    shown = capsys.readouterr().err
    assert "accuracy" in shown and "margin" in shown


@each_learner
def test_metrics_are_numbers_and_rows_are_handed_over(cls):
    agent = learner(cls)
    for metrics, learnt in logged(agent):
        json.dumps(metrics)
        assert all(math.isfinite(x) for x in metrics.values())
        assert all(row in agent.data for row in learnt)


@each_learner
def test_every_metric_is_documented_and_none_else(cls):
    page = Path(__file__).parent.parent / "docs" / "agents" / f"{cls.__name__.lower()}.md"
    section = page.read_text("utf-8").split("## What is logged")[1]
    log = []
    learner(cls).learn(total_timesteps=1, callback=lambda agent, metrics, rows: log.append(metrics))
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(log[0])


# --- one step, whatever the micro-batches -----------------------------------------------------------------------------

STEPS = [
    (SFT, {}),
    (SFT, {"packing": True}),
    (DPO, {}),
    (DPO, {"kind": "ipo", "length_normalized": True}),
    (DPO, {"reference_free": True, "sft_weight": 0.5}),
]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize(("cls", "config"), STEPS, ids=lambda x: x.__name__ if isinstance(x, type) else str(x))
def test_every_partition_of_a_batch_gives_the_same_step_and_metrics(cls, config, kind):
    """Gradient descent in place of Adam, which turns rounding errors of zero gradients into steps of full size."""
    results = []
    for size in (0, 1, 2, 3, 7):
        agent = learner(cls, model=kind, batch_size=10, micro_batch_rows=size, max_grad_norm=0.0, **config)
        before = parameters(agent)
        agent.optimizer = torch.optim.SGD(agent.policy.parameters(), lr=0.02)
        metrics, _ = logged(agent, epochs=2)[-1]
        results.append((parameters(agent), {k: v for k, v in metrics.items() if not k.startswith("forward")}))
    assert (results[0][0] - before).abs().max() > 1e-5
    for values, metrics in results[1:]:
        assert (values - results[0][0]).abs().max() <= 1e-8  # a Llama's norms round to float32 in Hugging Face's code
        assert metrics == pytest.approx(results[0][1], abs=1e-6)


# --- files ------------------------------------------------------------------------------------------------------------


@each_learner
@pytest.mark.parametrize("stop_after", [1, 2, 3, 5])
def test_training_that_stopped_and_was_loaded_goes_on_bit_for_bit(cls, stop_after, tmp_path):
    settings = {"epochs": 3, "schedule": "linear"} | ({"fim": 0.0} if cls is SFT else {})
    straight = learner(cls, **settings)
    expected = logged(straight)
    stopped, calls = learner(cls, **settings), []
    stopped.learn(callback=lambda *_: len(calls.append(1) or calls) < stop_after)
    stopped.save(tmp_path / "agent")
    loaded = cls.load(tmp_path / "agent", world(), LEARNERS[cls])
    assert loaded.config == stopped.config
    for agent in (loaded, stopped):  # saving changes nothing either
        assert logged(agent) == expected[stop_after:]
        assert torch.equal(parameters(agent), parameters(straight))


@each_learner
def test_with_adapters_too(cls, tmp_path):
    straight = learner(cls, model="llama", lora=2, epochs=2)
    base = {n: p.clone() for n, p in straight.policy.model.named_parameters() if "lora_" not in n}
    straight.learn()
    assert all(torch.equal(p, dict(straight.policy.model.named_parameters())[n]) for n, p in base.items())
    stopped = learner(cls, model="llama", lora=2, epochs=2).learn(total_timesteps=4)
    stopped.save(tmp_path / "agent")
    loaded = cls.load(tmp_path / "agent", world(), LEARNERS[cls]).learn()
    assert torch.equal(parameters(loaded), parameters(straight)) and len(parameters(loaded)) < 2000


@each_learner
def test_a_saved_folder_is_a_model_and_predicts_without_data(cls, tmp_path):
    agent = learner(cls).learn()
    agent.save(tmp_path / "agent")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "agent", dtype="auto")
    assert torch.equal(flat(list(plain.parameters())), flat(list(agent.policy.model.parameters())))
    again = cls.load(tmp_path / "agent", world())
    observation, _ = rows(world(), 5).reset(seed=0)
    for deterministic in (True, False):
        one, two = (a.predict(observation, state=7, deterministic=deterministic) for a in (agent, again))
        assert np.array_equal(one[0], two[0]) and one[1] == 7
    with pytest.raises(ValueError, match=rf"pass {cls.data_name}= to {cls.__name__} or to {cls.__name__}.load"):
        again.learn()
    again.save(tmp_path / "again")
    third = cls.load(tmp_path / "again", world(), LEARNERS[cls])
    assert logged(third, epochs=1) == logged(agent, epochs=1)
    files = [p.suffix for p in (tmp_path / "agent").rglob("*") if p.is_file()]
    assert set(files) <= {".json", ".safetensors", ".jinja"}


def test_other_data_begin_a_new_pass(tmp_path):
    agent = learner(SFT).learn(total_timesteps=4)
    agent.save(tmp_path / "agent")
    other = SFT.load(tmp_path / "agent", world(), DEMONSTRATIONS[:6])
    taken = [row for _, rows in logged(other) for row in rows]
    assert len(taken) == 6 and other.num_timesteps == 10 and other.passes == 1


def test_the_environment_is_rebuilt_and_settings_are_replaced(tmp_path):
    env = gym.make("llmgym/SequenceMDP-v0", max_new_tokens=12)
    data = [{"prompt": "1+1=", "completion": "<answer>2</answer>"}]
    SFT("tiny", env, data, device="cpu").learn().save(tmp_path / "agent")
    again = SFT.load(tmp_path / "agent", demonstrations=data, learning_rate=0.5)
    assert (again.mdp.block_size, again.config.learning_rate) == (12, 0.5)
    again.learn()
    with pytest.raises(TypeError):
        SFT.load(tmp_path / "agent", learnig_rate=0.5)
    with pytest.raises(ValueError, match=r"holds a SFT, load it with SFT.load"):
        DPO.load(tmp_path / "agent")


@each_learner
def test_rl_goes_on_from_the_saved_folder(cls, tmp_path):
    agent = learner(cls).learn()
    agent.save(tmp_path / "agent")
    rl = GRPO(tmp_path / "agent", rows(world(), 1), prompts=1, samples=2, dtype="float64", device="cpu")
    assert torch.equal(parameters(rl), parameters(agent))


# --- what it takes ----------------------------------------------------------------------------------------------------


@each_learner
def test_the_same_seed_is_the_same_run_and_global_generators_are_left_alone(cls):
    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed + 7)
        agent = learner(cls, seed=seed)
        state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
        runs.append((logged(agent), parameters(agent)))
        assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == numpy_state).all()
    assert runs[0][0] == runs[1][0] and torch.equal(runs[0][1], runs[1][1])
    assert runs[0][0] != runs[2][0]


@each_learner
def test_environments_and_ready_policies_are_taken(cls):
    mdp, results = world(), []
    for env in (mdp, rows(mdp, 3)):
        agent = cls(lm_policy(mdp), env, LEARNERS[cls], seed=0, batch_size=4)
        assert agent.config.dtype == "float64" and isinstance(agent.policy, LMPolicy)
        results.append(parameters(agent.learn()))
    assert torch.equal(*results)


@each_learner
def test_what_cannot_learn_from_text_is_refused(cls):
    data, mdp = LEARNERS[cls], world()
    with pytest.raises(ValueError, match=f"{cls.__name__} learns from text: its policy must be a language model"):
        cls("MlpPolicy", mdp, data)
    with pytest.raises(ValueError, match="env must be a text environment of llmgym or a TextMDP, got"):
        cls(tiny_model(), gym.make("CartPole-v1"), data)
    with pytest.raises(ValueError, match=f"{cls.__name__} needs a policy of temperature 1, got one of temperature 0.7"):
        cls(lm_policy(mdp, temperature=0.7), mdp, data)
    with pytest.raises(ValueError, match="training needs top_k=0 and top_p=1"):
        cls(lm_policy(mdp, top_k=2), mdp, data)
    with pytest.raises(TypeError, match="learnig_rate"):
        learner(cls, learnig_rate=0.1)
    for bad in ({"batch_size": 0}, {"epochs": 0}):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            learner(cls, **bad)


@each_learner
def test_bad_rows_are_refused_before_any_training(cls):
    long = {"prompt": "a=", "completion": "abab", "chosen": "abab", "rejected": "a"}
    with pytest.raises(ValueError, match=r"row 10: \w+ has 5 tokens, end-of-text included, max_new_tokens is 4"):
        learner(cls, data=[*LEARNERS[cls], long])


# --- texts as batches -------------------------------------------------------------------------------------------------


def test_a_batch_holds_each_text_as_one_action():
    mdp = world()
    texts = [text_of(mdp, Problem("ab="), "a"), text_of(mdp, Problem("a="), "bab", finished=False)]
    batch = batch_of(texts, mdp)
    assert batch.tokens.tolist() == [[1, 2, 3, 1, 0], [1, 3, 2, 1, 2]]
    assert batch.action_index.tolist() == [[-1, -1, -1, 0, 0], [-1, -1, 0, 0, 0]]
    assert batch.n_tokens.tolist() == [[2], [3]] and batch.lengths.tolist() == [5, 5] and batch.mask.all()
    assert [text.n_completion for text in texts] == [2, 3] and batch.token_mask is None


@pytest.mark.parametrize("kind", ["gpt2", "llama", "sliding"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_log_probs_of_completions_are_those_the_policy_evaluates(kind, size):
    """Under masks that depend on what stands before, at every granularity."""
    mdp = TextMDP(
        Words(), tokenizer=toy_tokenizer(), max_prompt_tokens=4, max_new_tokens=4, block_size=size,
        constraint=no_repeat, min_new_tokens=1, banned_tokens=["=", "<pad>"],
    )  # fmt: skip
    policy = lm_policy(mdp, kind, value_head=True)
    texts = [text_of(mdp, Problem(p), t) for p, t in [("ab=", "ab"), ("c=", "a"), ("abc=", "cab")]]
    batch = batch_of(texts, mdp)
    assert batch.token_mask is not None and not batch.token_mask[batch.action_index >= 0].all()
    ours = completion_logp(policy, batch)
    torch.testing.assert_close(ours, policy.evaluate(batch).logp[:, 0], rtol=0, atol=1e-12)
    assert policy.counters.forward_tokens == 2 * sum(len(text.tokens) - 1 for text in texts)


def test_prompts_go_through_the_chat_template():
    class Chat(Words):
        chat_template = True
        system = "b"

    tokenizer = toy_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    mdp = TextMDP(Chat(), tokenizer=tokenizer, max_prompt_tokens=8, max_new_tokens=4)
    agent = SFT(tiny_model("gpt2", 8), mdp, [{"prompt": "ab", "completion": "c"}], device="cpu")
    ((text,),) = agent.texts
    assert tokenizer.decode(text.tokens) == "cbaab=c<eos>" and text.n_prompt == 6


def test_a_fingerprint_tells_data_apart():
    def texts(*rows):
        return [Text(np.array(tokens, np.int32), n) for tokens, n in rows]

    one = texts(([1, 2, 3], 1), ([4, 5], 1))
    assert fingerprint(one) == fingerprint(list(one))
    for other in ([*reversed(one)], one[:1], texts(([1, 2, 3], 2), ([4, 5], 1)), texts(([1, 2], 1), ([3, 4, 5], 1))):
        assert fingerprint(other) != fingerprint(one)
