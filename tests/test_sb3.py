"""Our vector environments as stable-baselines3 sees them, and its unmodified agents on them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from toys import A, B, V, no_repeat
from worlds import tiny_model

import llmgym  # noqa: F401
from llmgym.envs import (
    HiddenStateObservation,
    SB3VecEnv,
    TokenEmbeddingExtractor,
    TopKActions,
    VectorHiddenStateObservation,
    VectorTopKActions,
)
from llmgym.tasks import Problem

N = 3
ID = "llmgym/TokenMDP-v0"
ROOT = Path(__file__).parent.parent
PPO_EXAMPLE, DQN_EXAMPLE = "03_sb3_ppo_topk", "07_sb3_dqn_topk"


@pytest.fixture
def model() -> Any:
    return tiny_model("llama", V)


def native(toy: dict[str, Any], model: Any, k: int = 4, **changes: Any) -> Any:
    env = gym.make_vec(ID, num_envs=N, autoreset_mode="SameStep", **(toy | changes))
    if model is None:
        return env
    return VectorHiddenStateObservation(VectorTopKActions(env, model, k=k), model)


def single(toy: dict[str, Any], model: Any, k: int = 4, **changes: Any) -> gym.Env:
    env = gym.make(ID, disable_env_checker=True, **(toy | changes))
    return Monitor(env if model is None else HiddenStateObservation(TopKActions(env, model, k=k), model))


def assert_close(ours: Any, theirs: Any, where: str = "") -> None:
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key in theirs.keys() - {"t"}:  # seconds
            assert_close(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(theirs, np.ndarray) and theirs.dtype.kind == "f":
        assert ours.dtype == theirs.dtype, where
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5, err_msg=where)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, abs=1e-6), where  # Monitor rounds returns to six places
    else:
        np.testing.assert_array_equal(ours, theirs, where)


@pytest.mark.parametrize("changes", [{}, {"max_episode_steps": 3}, {"constraint": no_repeat, "mask_in_info": True}])
@pytest.mark.parametrize("wrapped", [True, False])
def test_equals_dummy_vec_env_of_single_environments(wrapped, changes, toy, model):
    model = model if wrapped else None
    ours = SB3VecEnv(native(toy, model, **changes))
    theirs = DummyVecEnv([partial(single, toy, model, **changes)] * N)
    assert (ours.observation_space, ours.action_space) == (theirs.observation_space, theirs.action_space)
    rng, truncated = np.random.default_rng(0), 0
    for env in (ours, theirs):
        env.seed(5)
    assert_close(ours.reset(), theirs.reset(), "reset")
    for step in range(40):
        actions = rng.integers(ours.action_space.n, size=N)
        a, b = ours.step(actions), theirs.step(actions)
        for what, x, y in zip(("observations", "rewards", "dones"), a, b, strict=False):
            assert_close(x, y, f"{step} {what}")
        for row in range(N):
            assert_close(a[3][row], b[3][row], f"{step} info {row}")
            assert_close(ours.reset_infos[row], theirs.reset_infos[row], f"{step} reset info {row}")
            truncated += a[3][row]["TimeLimit.truncated"]
    assert bool(truncated) == ("max_episode_steps" in changes)


def test_seeds_and_options_hold_for_one_reset(toy):
    env = SB3VecEnv(native(toy, None))
    prompts = [info["prompt"] for info in (env.seed(3), env.reset(), env.reset_infos)[-1]]
    assert prompts == [gym.make(ID, **toy).reset(seed=3 + row)[1]["prompt"] for row in range(N)]
    problems = [Problem("ab=", "ab"), Problem("c=", "c"), Problem("a=", "a")]
    env.set_options([{"problem": problem} for problem in problems])
    env.reset()
    assert [info["prompt"] for info in env.reset_infos] == ["ab=", "c=", "a="]
    env.reset()
    assert [info["prompt"] for info in env.reset_infos] != ["ab=", "c=", "a="]
    env.set_options({"reset_mask": np.ones(N, bool)})
    with pytest.raises(ValueError, match="'problem' only, got"):
        env.reset()


def test_attributes_and_methods_are_given_by_row(toy, model):
    env = SB3VecEnv(native(toy, model, banned_tokens=[A, B], k=V))
    env.reset()
    assert env.get_attr("k") == [V] * N and env.get_attr("k", indices=1) == [V]
    assert [state.problem.prompt for state in env.get_attr("states", [0, 2])] == [
        env.reset_infos[row]["prompt"] for row in (0, 2)
    ]
    masks = env.env_method("action_masks", indices=[1])
    assert len(masks) == 1 and masks[0].shape == (V,) and masks[0].sum() == V - 2
    assert env.has_attr("action_masks") and not env.has_attr("nothing")
    env.set_attr("max_episode_steps", 2)
    assert env.venv.unwrapped.max_episode_steps == 2
    with pytest.raises(ValueError, match="shared by all 3 rows"):
        env.set_attr("max_episode_steps", 2, indices=[0])
    assert env.env_is_wrapped(VectorTopKActions) == [True] * N
    assert env.env_is_wrapped(Monitor, [0]) == [True] and env.env_is_wrapped(gym.wrappers.TimeLimit) == [False] * N


def test_another_autoreset_mode_is_refused(toy):
    with pytest.raises(ValueError, match=r"autoreset_mode='SameStep'.*got 'NextStep'"):
        SB3VecEnv(gym.make_vec(ID, num_envs=2, **toy))


def test_render_gives_one_frame_a_row(toy):
    env = SB3VecEnv(native(toy, None, render_mode="ansi"))
    env.reset()
    assert env.render() == tuple(info["prompt"] for info in env.reset_infos)
    env.close()


# Agents


def test_evaluation_needs_no_monitor_and_success_is_logged(toy, model):
    env = SB3VecEnv(native(toy, model))
    agent = PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, device="cpu", seed=0).learn(48)
    assert len(agent.ep_info_buffer) and len(agent.ep_success_buffer)
    mean, _ = evaluate_policy(agent, env, n_eval_episodes=6)
    assert np.isfinite(mean)
    assert all(1 <= episode["l"] <= 8 for episode in agent.ep_info_buffer)


def test_maskable_ppo_never_takes_a_masked_place(toy, model):
    env = SB3VecEnv(native(toy, model, banned_tokens=[A, B], k=V))
    assert is_masking_supported(env)
    agent = MaskablePPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, device="cpu", seed=0).learn(96)
    observations = env.reset()
    for _ in range(30):
        actions, _ = agent.predict(observations, action_masks=get_action_masks(env))
        observations, _, _, infos = env.step(actions)
        assert not any(info.get("illegal") for info in infos)


DQN_SETTINGS: dict[str, Any] = {"learning_starts": 30, "buffer_size": 300, "batch_size": 16, "device": "cpu", "seed": 0}
LEAN = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}


@pytest.mark.parametrize("changes", [{}, {"n_steps": 8, "gamma": 1.0}, LEAN], ids=["one", "eight", "lean"])
def test_dqn_runs_on_the_short_list(changes, toy, model):
    env = SB3VecEnv(native(toy, model))
    agent = DQN("MlpPolicy", env, **DQN_SETTINGS, **changes).learn(150)
    assert agent.predict(env.reset(), deterministic=True)[0].shape == (N,)
    DQN("MlpPolicy", single(toy, model), **DQN_SETTINGS, **changes).learn(60)


def test_dqn_runs_on_raw_tokens_one_step_at_a_time(toy):
    env = SB3VecEnv(native(toy, None))
    policy = {"features_extractor_class": TokenEmbeddingExtractor, "features_extractor_kwargs": {"dim": 8}}
    DQN("MultiInputPolicy", env, policy_kwargs=policy, **DQN_SETTINGS).learn(150)
    with pytest.raises(AssertionError, match="not supported for Dict observation spaces"):  # as docs/wrappers.md says
        DQN("MultiInputPolicy", env, n_steps=2, **DQN_SETTINGS)


@pytest.mark.parametrize("min_prob", [0.0, 0.01])
def test_min_prob_leaves_dqn_no_illegal_place(min_prob, toy, model):
    env = gym.make_vec(ID, num_envs=N, autoreset_mode="SameStep", banned_tokens=[A, B], **toy)
    env = SB3VecEnv(VectorHiddenStateObservation(VectorTopKActions(env, model, k=V, min_prob=min_prob), model))
    illegal: list[bool] = []

    def count(local: dict[str, Any], _: dict[str, Any]) -> bool:
        illegal.extend(bool(info.get("illegal")) for info in local["infos"])
        return True

    DQN("MlpPolicy", env, **DQN_SETTINGS).learn(150, callback=count)
    assert len(illegal) >= 150 and any(illegal) == (min_prob == 0.0)


@pytest.mark.parametrize("id", ["llmgym/TokenMDP-v0", "llmgym/BlockMDP-v0", "llmgym/SequenceMDP-v0"])
def test_ppo_runs_on_raw_tokens_with_the_extractor(id, toy):
    env = SB3VecEnv(gym.make_vec(id, num_envs=4, autoreset_mode="SameStep", **toy))
    policy = {"features_extractor_class": TokenEmbeddingExtractor, "features_extractor_kwargs": {"dim": 8}}
    agent = PPO(
        "MultiInputPolicy", env, n_steps=32, batch_size=32, n_epochs=2, policy_kwargs=policy, device="cpu", seed=0
    )
    before = [p.clone() for p in agent.policy.features_extractor.parameters()]
    agent.learn(256)
    after = agent.policy.features_extractor.parameters()
    assert all(not torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_the_extractor_sees_the_text_and_not_its_padding(toy):
    env = gym.make(ID, **toy)
    extractor = TokenEmbeddingExtractor(env.observation_space, dim=8)
    raw, _ = env.reset(options={"problem": Problem("ab=", "ab")})
    observation = {key: torch.tensor(value, dtype=torch.float32)[None] for key, value in raw.items()}
    features = extractor(observation)
    assert features.shape == (1, extractor.features_dim) == (1, 17)
    garbage = dict(observation)
    garbage["input_ids"] = torch.where(observation["attention_mask"] > 0, observation["input_ids"], 5.0)
    assert torch.equal(extractor(garbage), features)
    swapped = dict(observation, input_ids=observation["input_ids"][:, [1, 0, *range(2, 14)]])
    assert not torch.equal(extractor(swapped), features)
    with pytest.raises(ValueError, match="observation of a text environment, without"):
        TokenEmbeddingExtractor(gym.spaces.Dict(input_ids=env.observation_space["input_ids"]))


def test_without_stable_baselines3_one_sentence_says_what_to_install():
    code = "import sys; sys.modules['stable_baselines3'] = None; import llmgym.envs as e; e.TopKActions; e.SB3VecEnv"
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: llmgym.envs.sb3 needs stable-baselines3") and ".[sb3]" in last


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name, changes", [(PPO_EXAMPLE, {}), (DQN_EXAMPLE, {"learning_starts": 64})])
def test_the_examples_run(name, changes):
    module = example(name)
    result = module.main(module.Config(timesteps=256, num_envs=8, n_steps=16, problems=8, **changes))
    assert 0 <= result.greedy <= 1 and 0 <= result.trained <= 1


def assert_learnt(result: Any) -> None:
    assert result.trained >= result.greedy + 0.2 or 1 - result.trained <= (1 - result.greedy) / 2
    assert result.seconds <= 300


@pytest.mark.slow
def test_stock_ppo_learns_to_reason():
    module = example(PPO_EXAMPLE)
    assert_learnt(module.main(module.Config()))


@pytest.mark.slow
def test_stock_dqn_learns_to_reason_and_what_it_is_worth():
    module = example(DQN_EXAMPLE)
    result = module.main(module.Config())
    assert_learnt(result)
    assert result.trained >= result.untrained + 0.2  # with seed 0 the random network does not think by chance
    assert result.values[0] == pytest.approx(result.greedy, abs=0.2)  # place 0 is what the model prefers
    assert max(result.values) == pytest.approx(result.trained, abs=0.1)
