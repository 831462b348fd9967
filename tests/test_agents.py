"""What all agents share: learn, predict, save, load; budgets; one step whatever the micro-batches; seeds."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import threading
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from toys import Failing, Words, no_repeat, toy_tokenizer
from worlds import EQUALS4, flat, four_mdp, four_tokenizer, irregular, lm_policy, rows, tiny_model

import llmgym  # noqa: F401
from llmgym.agents import GRPO, PPO, REINFORCE
from llmgym.envs import TokenMDP
from llmgym.policy import LMPolicy
from llmgym.tasks import Problem
from llmgym.text import TextMDP

AGENTS = [
    (GRPO, {"prompts": 2, "samples": 3}),
    (REINFORCE, {"prompts": 4}),
    (REINFORCE, {"prompts": 4, "baseline": "value"}),
]
each_agent = pytest.mark.parametrize(("cls", "config"), AGENTS, ids=["GRPO", "REINFORCE", "REINFORCE with values"])
pytestmark = pytest.mark.filterwarnings(
    "ignore:every completion ran:RuntimeWarning", "ignore:all rewards:RuntimeWarning"
)


def world(**changes):
    return four_mdp(**({"max_prompt_tokens": 5, "max_new_tokens": 4} | changes))


def agent_of(cls, config, mdp=None, kind="llama", **more):
    mdp = mdp or world()
    settings = {"seed": 0, "learning_rate": 0.01, "dtype": "float64", "device": "cpu"} | config | more
    return cls(tiny_model(kind, mdp.codec.vocab_size), rows(mdp, 1), **settings)


def observations(mdp, n=5):
    observation, _ = rows(mdp, n).reset(seed=0)
    return observation


def updates(agent, n):
    """n updates: one timestep is less than any batch."""
    for _ in range(n):
        agent.learn(total_timesteps=1)
    return agent


# --- predict ---------------------------------------------------------------------------------------------------------


@each_agent
@pytest.mark.parametrize("size", [1, 2, 4])
def test_predict_gives_actions_for_one_observation_or_many(cls, config, size):
    mdp = world(block_size=size)
    agent, batch = agent_of(cls, config, mdp), observations(mdp)
    actions, state = agent.predict(batch, state="kept", episode_start=np.ones(5, bool), deterministic=True)
    assert actions.shape == (5, size)[: 1 + (size > 1)] and state == "kept"
    for row in range(5):
        alone, nothing = agent.predict({k: v[row] for k, v in batch.items()}, deterministic=True)
        assert np.array_equal(alone, actions[row]) and nothing is None
        assert mdp.action_space.contains(alone)


def test_predict_samples_unless_told_otherwise():
    mdp = world()
    agent, start = agent_of(GRPO, AGENTS[0][1], mdp), mdp.observation(mdp.start(Problem("ab=")))
    assert len({int(agent.predict(start)[0]) for _ in range(40)}) > 1
    assert len({int(agent.predict(start, deterministic=True)[0]) for _ in range(5)}) == 1


@pytest.mark.parametrize("id", ["TokenMDP", "BlockMDP", "SequenceMDP"])
def test_stable_baselines3_evaluates_an_agent_on_a_single_environment(id):
    env = gym.make(f"llmgym/{id}-v0", task=Words(), tokenizer=toy_tokenizer(), max_prompt_tokens=6, max_new_tokens=8)
    agent = REINFORCE(tiny_model("gpt2", 8), env, prompts=2, device="cpu")
    mean, deviation = evaluate_policy(agent, Monitor(env), n_eval_episodes=4, deterministic=True)
    assert 0 <= mean <= 2 and math.isfinite(deviation)
    rewards, lengths = evaluate_policy(agent, Monitor(env), n_eval_episodes=4, return_episode_rewards=True)
    assert len(rewards) == 4 and max(lengths) <= {"TokenMDP": 8, "BlockMDP": 2, "SequenceMDP": 1}[id]


# --- learn: budgets ---------------------------------------------------------------------------------------------------


@each_agent
def test_learning_returns_the_agent_and_counts_what_it_spends(cls, config):
    agent, seen = agent_of(cls, config), []

    def callback(agent, metrics, batch):
        seen.append((metrics, batch))

    assert agent.learn(total_timesteps=40, callback=callback) is agent
    spent = [int(batch.mask.sum()) for _, batch in seen]
    assert agent.num_timesteps == sum(spent) >= 40 > sum(spent[:-1])
    last = seen[-1][0]
    assert last["timesteps"] == agent.num_timesteps and last["sampled_tokens"] == sum(
        int(b.n_tokens.sum()) for _, b in seen
    )
    assert {
        "reward",
        "accuracy",
        "length",
        "loss",
        "grad_norm",
        "entropy",
        "ratio",
        "forward_tokens",
        "cache_hits",
    } <= set(last)
    assert all(isinstance(v, int | float) and math.isfinite(v) for v in last.values())
    json.dumps([last, seen[-1][1].infos])


@pytest.mark.parametrize("size", [1, 4])
def test_a_budget_of_tokens_is_the_same_at_every_granularity(size):
    agent = agent_of(GRPO, AGENTS[0][1], world(block_size=size))
    agent.learn(total_tokens=50)
    assert 50 <= agent.policy.counters.sampled_tokens <= 50 + 6 * 4
    assert (agent.num_timesteps == agent.policy.counters.sampled_tokens) == (size == 1)


def test_a_second_call_learns_that_much_again():
    agent = agent_of(REINFORCE, AGENTS[1][1])
    first = agent.learn(total_timesteps=20).num_timesteps
    assert agent.learn(total_timesteps=20).num_timesteps - first >= 20


def test_a_budget_of_time_ends_learning():
    agent = agent_of(REINFORCE, AGENTS[1][1])
    agent.learn(max_seconds=0.2)
    assert agent.num_timesteps > 0


def test_a_callback_that_says_false_ends_learning():
    agent, calls = agent_of(REINFORCE, AGENTS[1][1]), []
    agent.learn(total_timesteps=10_000, callback=lambda *_: len(calls.append(1) or calls) < 3)
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("budget", "sentence"),
    [
        ({}, r"learn\(\) needs a budget: total_timesteps, total_tokens or max_seconds"),
        ({"total_timesteps": 0}, "total_timesteps must be above 0, got 0"),
        ({"total_tokens": -5}, "total_tokens must be above 0, got -5"),
        ({"max_seconds": 0.0}, "max_seconds must be above 0, got 0.0"),
    ],
)
def test_bad_budgets_are_said(budget, sentence):
    with pytest.raises(ValueError, match=sentence):
        agent_of(REINFORCE, AGENTS[1][1]).learn(**budget)


def test_progress_is_shown_on_request(capsys):
    updates(agent_of(REINFORCE, AGENTS[1][1]), 1)
    assert capsys.readouterr().err == ""
    updates(agent_of(REINFORCE, AGENTS[1][1], verbose=1), 1)
    assert "reward" in capsys.readouterr().err


# --- save and load ----------------------------------------------------------------------------------------------------


@each_agent
@pytest.mark.parametrize("rules", [{}, {"block_size": 3, "stop": [1, 2]}], ids=["token", "random blocks"])
def test_n_steps_saved_loaded_and_n_more_are_two_n_steps(cls, config, rules, tmp_path):
    straight = updates(agent_of(cls, config, world(**rules)), 4)
    stopped = updates(agent_of(cls, config, world(**rules)), 2)
    stopped.save(tmp_path / "agent")
    loaded = cls.load(tmp_path / "agent", rows(world(**rules), 1))
    assert loaded.config == stopped.config and loaded.num_timesteps == stopped.num_timesteps
    assert loaded.policy.counters == stopped.policy.counters
    for agent in (loaded, stopped):  # saving changes nothing either
        updates(agent, 2)
        assert torch.equal(flat(agent.policy.parameters()), flat(straight.policy.parameters()))
        assert agent.num_timesteps == straight.num_timesteps
        assert agent.policy.counters.sampled_tokens == straight.policy.counters.sampled_tokens


@each_agent
@pytest.mark.parametrize("size", [1, 3])
def test_a_loaded_agent_predicts_what_the_saved_one_did(cls, config, size, tmp_path):
    mdp = world(block_size=size)
    agent = updates(agent_of(cls, config, mdp), 2)
    agent.save(tmp_path / "agent")
    batch, again = observations(mdp), cls.load(tmp_path / "agent", rows(mdp, 1))
    for deterministic in (True, False):  # the sampling generator goes on where it stopped
        one, two = (a.predict(batch, deterministic=deterministic)[0] for a in (agent, again))
        assert np.array_equal(one, two)


def test_the_reference_of_grpo_survives(tmp_path):
    agent = updates(agent_of(GRPO, AGENTS[0][1]), 2)
    agent.save(tmp_path / "agent")
    again = GRPO.load(tmp_path / "agent", rows(world(), 1))
    ours, theirs = (flat(list(a.reference.model.parameters())) for a in (agent, again))
    assert torch.equal(ours, theirs) and not torch.equal(ours, flat(agent.policy.parameters()))
    assert not any(p.requires_grad for p in again.reference.model.parameters())


@pytest.fixture
def folder_world(tmp_path):
    toy_tokenizer().save_pretrained(tmp_path / "tokenizer")
    sizes = {"max_prompt_tokens": 24, "max_new_tokens": 6}
    return {"task": "copy", "tokenizer": str(tmp_path / "tokenizer"), "task_options": {"max_length": 4}} | sizes


@pytest.mark.parametrize("id", ["TokenMDP", "BlockMDP", "SequenceMDP"])
@pytest.mark.parametrize("form", ["single", "vector"])
def test_without_an_environment_load_rebuilds_the_saved_one(id, form, folder_world, tmp_path):
    id = f"llmgym/{id}-v0"
    if form == "single":
        env = gym.make(id, **folder_world, max_episode_steps=3)
    else:
        mode = AutoresetMode.SAME_STEP
        env = gym.make_vec(id, num_envs=3, autoreset_mode=mode, max_episode_steps=3, **folder_world)
    agent = updates(REINFORCE(tiny_model("gpt2", 8), env, prompts=2, device="cpu", seed=1), 1)
    agent.save(tmp_path / "agent")
    again = REINFORCE.load(tmp_path / "agent")
    one, two = agent.mdp, again.mdp
    assert (one.block_size, one.length, one.task.name, two.codec.vocab_size) == (two.block_size, two.length, "copy", 8)
    assert agent.venv.max_episode_steps == again.venv.max_episode_steps == 3
    updates(again, 1)
    again.save(tmp_path / "agent")
    assert (tmp_path / "agent" / "model.safetensors").exists()


@pytest.mark.parametrize("made", ["task object", "tokenizer object", "by hand"])
def test_an_environment_that_cannot_be_described_must_be_given(made, folder_world, tmp_path):
    if made == "task object":
        env = gym.make("llmgym/TokenMDP-v0", **(folder_world | {"task": Words(), "task_options": None}))
    elif made == "tokenizer object":
        env = gym.make("llmgym/TokenMDP-v0", **(folder_world | {"tokenizer": toy_tokenizer()}))
    else:
        env = TokenMDP(**folder_world)
    REINFORCE(tiny_model("gpt2", 8), env, prompts=2, device="cpu").save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"does not describe its environment .*: pass env="):
        REINFORCE.load(tmp_path / "agent")
    assert REINFORCE.load(tmp_path / "agent", env).mdp is env.unwrapped.mdp


def test_settings_can_be_replaced_at_loading(tmp_path):
    agent_of(GRPO, AGENTS[0][1]).save(tmp_path / "agent")
    again = GRPO.load(tmp_path / "agent", rows(world(), 1), learning_rate=0.5, samples=5)
    assert (again.config.learning_rate, again.config.samples, again.config.prompts) == (0.5, 5, 2)
    assert again.optimizer.param_groups[0]["lr"] == 0.5
    with pytest.raises(TypeError):
        GRPO.load(tmp_path / "agent", rows(world(), 1), learnig_rate=0.5)


def test_saving_over_an_older_folder_replaces_it_whole(tmp_path):
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "leftover").touch()
    agent_of(REINFORCE, AGENTS[1][1]).save(tmp_path / "agent")
    assert not (tmp_path / "agent" / "leftover").exists() and [p.name for p in tmp_path.iterdir()] == ["agent"]


def test_nothing_on_disk_is_a_pickle(tmp_path):
    updates(agent_of(GRPO, AGENTS[0][1]), 1).save(tmp_path / "agent")
    files = [p.suffix for p in (tmp_path / "agent").rglob("*") if p.is_file()]
    assert set(files) <= {".json", ".safetensors", ".jinja"}


def test_what_is_no_saved_agent_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"is no folder that an agent saved: agent.json is missing"):
        GRPO.load(tmp_path / "nowhere")
    agent_of(REINFORCE, AGENTS[1][1]).save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"holds a REINFORCE, load it with REINFORCE.load"):
        GRPO.load(tmp_path / "agent", rows(world(), 1))


# --- the policy that is given -----------------------------------------------------------------------------------------


def test_a_ready_policy_keeps_its_settings_through_saving(tmp_path):
    mdp = world()
    agent = REINFORCE(lm_policy(mdp, temperature=0.7), rows(mdp, 1), prompts=2)
    assert (agent.config.temperature, agent.config.dtype) == (0.7, "float64")
    agent.save(tmp_path / "agent")
    again = REINFORCE.load(tmp_path / "agent", rows(mdp, 1))
    assert (again.policy.temperature, again.policy.dtype) == (0.7, torch.float64)


@pytest.mark.parametrize("setting", [{"temperature": 1.0}, {"dtype": "float32"}, {"device": "cuda"}])
def test_settings_that_contradict_the_given_policy_are_refused(setting):
    mdp = world()
    (name,) = setting
    with pytest.raises(ValueError, match=f"{name} is a setting of the policy that was given"):
        REINFORCE(lm_policy(mdp, temperature=0.7), rows(mdp, 1), prompts=2, **setting)


@pytest.mark.parametrize("limits", [{"top_k": 3}, {"top_p": 0.9}])
def test_training_refuses_a_moving_support(limits):
    mdp = world()
    with pytest.raises(ValueError, match="training needs top_k=0 and top_p=1"):
        REINFORCE(lm_policy(mdp, **limits), rows(mdp, 1))


def test_an_environment_that_is_no_text_is_refused():
    with pytest.raises(ValueError, match="env must be a text environment of llmgym, got "):
        GRPO(tiny_model(), gym.make("CartPole-v1"))


# --- settings ---------------------------------------------------------------------------------------------------------


@each_agent
def test_a_misspelt_setting_is_a_type_error(cls, config):
    with pytest.raises(TypeError, match="learnig_rate"):
        agent_of(cls, config, learnig_rate=0.1)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"prompts": 0}, "prompts must be at least 1, got 0"),
        ({"prompts": 2.5}, "prompts must be a whole number, got 2.5"),
        ({"samples": True}, "samples must be a whole number, got True"),
        ({"epochs": -1}, "epochs must be at least 1, got -1"),
        ({"minibatches": 0}, "minibatches must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"learning_rate": "fast"}, "learning_rate must be a number, got 'fast'"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, got nan"),
        ({"temperature": -1.0}, "temperature must be above 0, got -1.0"),
        ({"micro_batch_rows": -1}, "micro_batch_rows must be at least 0, got -1"),
        ({"max_grad_norm": -0.5}, "max_grad_norm must be at least 0, got -0.5"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"device": "tape"}, "device must be 'auto'"),
    ],
)
def test_bad_settings_are_one_sentence(config, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        agent_of(GRPO, AGENTS[0][1], **config)
    assert "\n" not in str(error.value)


# --- one step, whatever the micro-batches -----------------------------------------------------------------------------

STEPS = [
    (GRPO, {"normalize": "rows", "beta": 0.1, "entropy": 0.01}),
    (GRPO, {"normalize": "actions", "beta": 0.1, "kl": "k2"}),
    (GRPO, {"normalize": "constant", "length_normalized_ratio": True}),
    (GRPO, {"minibatches": 2, "beta": 0.1}),
    (REINFORCE, {"baseline": "mean", "entropy": 0.1}),
    (REINFORCE, {"baseline": "value", "normalize": "actions"}),
    (PPO, {"value_clip": 0.1, "entropy": 0.01, "epochs": 3}),
]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize(("cls", "config"), STEPS, ids=lambda x: x.__name__ if isinstance(x, type) else str(x))
def test_every_partition_of_a_ragged_batch_gives_the_same_step(cls, config, kind, dtype):
    """Gradient descent in place of Adam, which turns rounding errors of zero gradients into steps of full size."""
    results = []
    for size in (0, 1, 2, 3, 4, 5, 6):
        config = {"prompts": 2, "samples": 3, "dtype": dtype, "micro_batch_rows": size, "max_grad_norm": 0.0} | config
        agent = agent_of(cls, config | {"micro_batch_rows": size}, kind=kind)
        agent.optimizer = torch.optim.SGD(agent.policy.parameters(), lr=0.02)
        batch = agent.collect()
        assert len(set(batch.lengths.tolist())) > 1
        before = flat(agent.policy.parameters())
        metrics = agent.update(batch)
        results.append((flat(agent.policy.parameters()), metrics))
    parameters, metrics = results[0]
    assert (parameters - before).abs().max() > 1e-4 and metrics["loss"] != 0
    exact = dtype == "float64"
    for other, told in results[1:]:
        assert (other - parameters).abs().max() <= (1e-12 if exact else 1e-6)
        assert told == pytest.approx(metrics, rel=1e-6 if exact else 1e-3, abs=1e-12 if exact else 1e-5)


def test_garbage_in_the_padding_of_a_batch_changes_no_bit_of_the_step():
    results = []
    for garbage in (0.0, math.nan, math.inf, 1e30):
        agent = agent_of(GRPO, {"prompts": 2, "samples": 3, "epochs": 2})
        batch = agent.collect()
        for x in (batch.rewards, batch.logp):
            x[~batch.mask] = garbage
        beyond = torch.arange(batch.tokens.shape[1]) >= batch.lengths[:, None]
        assert beyond.any() and not batch.mask.all()
        batch.tokens[beyond] = EQUALS4 if garbage else 0
        metrics = agent.update(batch)
        results.append((flat(agent.policy.parameters()), metrics))
    for parameters, metrics in results[1:]:
        assert torch.equal(parameters, results[0][0]) and metrics == results[0][1]


# --- seeds ------------------------------------------------------------------------------------------------------------

TIMES = {"seconds", "seconds_sampling", "tokens_per_second"}


def run(cls, config, seed):
    """Hashes of the parameters and of the metric log, times left out, after some updates."""
    agent, log = agent_of(cls, config, world(block_size=2, stop=[1, 2]), seed=seed), []
    agent.learn(total_timesteps=60, callback=lambda agent, metrics, batch: log.append(metrics))
    lines = json.dumps([{k: v for k, v in m.items() if k not in TIMES} for m in log])
    numbers = flat(agent.policy.parameters()).tolist()
    return hashlib.sha256(struct.pack(f"{len(numbers)}d", *numbers)).hexdigest(), hashlib.sha256(
        lines.encode()
    ).hexdigest()


@pytest.mark.parametrize(
    ("cls", "config"), [*AGENTS, (GRPO, {"prompts": 2, "samples": 4, "epochs": 2, "minibatches": 2})]
)
def test_equal_seeds_give_equal_hashes_of_parameters_and_log(cls, config):
    torch.manual_seed(1)
    np.random.seed(1)
    first = run(cls, config, seed=3)
    torch.manual_seed(2)
    np.random.seed(2)
    assert run(cls, config, seed=3) == first
    other = run(cls, config, seed=4)
    assert other[0] != first[0] and other[1] != first[1]


def test_learning_leaves_the_global_generators_alone():
    torch.manual_seed(0)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    agent = agent_of(GRPO, {"prompts": 2, "samples": 3, "minibatches": 2})
    state = torch.get_rng_state()
    updates(agent, 2)
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == numpy_state).all()


# --- scorers that fail ------------------------------------------------------------------------------------------------


def failing_world(**changes):
    return TextMDP(Failing(), tokenizer=toy_tokenizer(), max_prompt_tokens=6, max_new_tokens=6, **changes)


def test_rows_whose_scorer_failed_are_dropped_and_counted():
    agent, log = agent_of(REINFORCE, {"prompts": 16}, failing_world()), []
    agent.learn(total_timesteps=150, callback=lambda agent, metrics, batch: log.append((metrics, batch)))
    failed = [int((~batch.valid).sum()) for _, batch in log]
    assert sum(failed) > 3 and log[-1][0]["dropped_rows"] == agent.dropped_rows == sum(failed)
    for metrics, batch in log:
        kept = batch.select(batch.valid)
        assert metrics["reward"] == pytest.approx(float(kept.returns.mean()))
        assert metrics["accuracy"] == pytest.approx(sum(i["is_success"] for i in kept.infos) / len(kept))


@each_agent
def test_a_dropped_row_is_as_if_it_had_not_been_there(cls, config):
    results = []
    for drop in (True, False):
        agent = agent_of(cls, config, world())
        batch = agent.collect()
        batch.valid[1] = False
        agent.update(batch if drop else batch.select(batch.valid))
        results.append(flat(agent.policy.parameters()))
    assert torch.equal(*results)


def test_a_batch_without_a_scored_row_is_no_step_but_a_warning():
    def broken(problem, text, tokens):
        raise KeyError("no gold answer")

    agent = agent_of(GRPO, AGENTS[0][1], world(reward=broken))
    before = flat(agent.policy.parameters())
    with pytest.warns(RuntimeWarning, match="every row of the batch was dropped: its scorer failed"):
        metrics = agent.update(agent.collect())
    assert torch.equal(flat(agent.policy.parameters()), before)
    assert metrics["dropped_rows"] == 6 and all(math.isfinite(v) for v in metrics.values())


def test_right_answers_score_in_a_thread_too():
    """Nothing of scoring depends on the main thread (`signal.alarm` would)."""
    rewards = []

    def play():
        agent = agent_of(REINFORCE, {"prompts": 4}, world(reward=lambda problem, text, tokens: 1.0))
        rewards.extend(agent.collect().returns.tolist())

    thread = threading.Thread(target=play)
    thread.start()
    thread.join()
    assert rewards == [1.0] * 4


# --- masks ------------------------------------------------------------------------------------------------------------


@each_agent
@pytest.mark.parametrize("size", [1, 3])
def test_masked_worlds_train_without_illegal_tokens(cls, config, size):
    mdp = TextMDP(
        Words(), tokenizer=toy_tokenizer(), max_prompt_tokens=6, max_new_tokens=6, block_size=size,
        constraint=no_repeat, min_new_tokens=2, banned_tokens=["=", "<pad>"],
    )  # fmt: skip
    log = []
    agent_of(cls, config, mdp).learn(
        total_tokens=60, callback=lambda agent, metrics, batch: log.append((metrics, batch))
    )
    assert all(m["illegal"] == 0 and m["behaviour_gap"] <= 1e-10 and m["ratio"] == 1 for m, _ in log)
    assert all((b.n_tokens.sum(1) >= 3).all() for _, b in log)


def test_nothing_warns_in_a_normal_run():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent = agent_of(REINFORCE, {"prompts": 16}, four_mdp(max_prompt_tokens=5, max_new_tokens=12, min_new_tokens=1))
        updates(agent, 2)


def test_a_model_may_be_an_object_and_is_the_one_trained():
    mdp = four_mdp(max_prompt_tokens=5)
    model = tiny_model("gpt2", 4)
    agent = REINFORCE(model, rows(mdp, 1), prompts=4, dtype="float64", device="cpu")
    assert isinstance(agent.policy, LMPolicy) and agent.policy.model is model and not model.training
    assert four_tokenizer().pad_token is None and irregular(Problem("a="), "", (1,)) != 0


def test_the_learning_rate_falls_to_nothing_over_the_budget_when_linear():
    rates = {}
    for schedule in ("constant", "linear"):
        agent = agent_of(GRPO, {"prompts": 2, "samples": 3, "learning_rate": 0.1, "schedule": schedule, "seed": 0})
        seen = rates.setdefault(schedule, [])
        agent.learn(total_tokens=60, callback=lambda a, m, b, seen=seen: seen.append(a.optimizer.param_groups[0]["lr"]))
    assert set(rates["constant"]) == {0.1} and len(rates["linear"]) > 1
    assert 0.1 > rates["linear"][0] > rates["linear"][-1] >= 0.0
