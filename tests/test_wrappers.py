"""Wrappers that are given a model: what they report equals a full forward pass over the state's text."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from toys import EOS, NEWLINE, PAD, TAG, A, B, Replying, V, no_repeat, random_tokens
from worlds import tiny_model

import llmgym  # noqa: F401
from llmgym.envs import HiddenStateObservation, ReferenceLogProb, TopKActions
from llmgym.mdp import NoLegalAction
from llmgym.models import check_vocab, load_model, resolve_device
from llmgym.tokenization import Codec

TOKEN = "llmgym/TokenMDP-v0"
IDS = {1: TOKEN, 3: "llmgym/BlockMDP-v0", 8: "llmgym/SequenceMDP-v0"}
EXACT = {"rtol": 0, "atol": 1e-10}  # float64 models


@pytest.fixture
def model() -> Any:
    return tiny_model("llama", V)


def make(toy: dict[str, Any], block: int = 1, **changes: Any) -> gym.Env:
    size = {"block_size": block} if block == 3 else {}
    return gym.make(IDS[block], **(toy | size | changes))


@torch.no_grad()
def full(model: Any, tokens: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits [T, V] and last hidden states [T, D] at every position of one text, without a cache."""
    output = model.eval()(torch.tensor([tokens]), use_cache=False, output_hidden_states=True)
    return output.logits[0].numpy(), output.hidden_states[-1][0].numpy()


def masked_logp(logits: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Log-softmax [V] over the allowed tokens, by its definition."""
    scores = np.where(np.ones(V, bool) if mask is None else mask, logits, -np.inf)
    return scores - scores.max() - np.log(np.exp(scores - scores.max()).sum())


def logp_of(model: Any, mdp: Any, state: Any, block: tuple[int, ...]) -> float:
    """Σ log-prob of a block's tokens after `state`, from one full pass."""
    logits, _ = full(model, state.tokens + block)
    at = len(state.tokens) - 1
    return sum(masked_logp(logits[at + j], mdp.token_mask(state, block[:j]))[t] for j, t in enumerate(block))


# Short-list


@pytest.mark.parametrize("kind", ["llama", "gpt2", "sliding"])
@pytest.mark.parametrize("changes", [{}, {"banned_tokens": [A], "min_new_tokens": 3}, {"constraint": no_repeat}])
def test_candidates_are_the_most_probable_allowed_tokens(kind, changes, toy):
    model, rng = tiny_model(kind, V), np.random.default_rng(0)
    env = TopKActions(make(toy, **changes), model, k=5)
    for seed in range(5):
        _, info = env.reset(seed=seed)
        over = False
        while not over:
            state, mdp = env.unwrapped.state, env.unwrapped.mdp
            logp = masked_logp(full(model, state.tokens)[0][-1], mdp.token_mask(state))
            order = np.argsort(-logp)[:5]
            np.testing.assert_array_equal(info["candidates"], order)
            np.testing.assert_allclose(info["candidate_logp"], logp[order], **EXACT)
            assert env.action_masks().all()
            action = int(rng.integers(5))
            _, _, terminated, truncated, info = env.step(action)
            over = terminated or truncated
            assert env.unwrapped.state.tokens[-1] == order[action]
        assert "candidates" not in info


def test_action_zero_is_greedy_decoding(toy, model):
    env = TopKActions(make(toy), model, k=1)
    env.reset(seed=3)
    tokens, over = list(env.unwrapped.state.tokens), False
    while not over:
        tokens.append(int(full(model, tokens)[0][-1].argmax()))
        over = env.step(0)[2]
        assert env.unwrapped.state.tokens == tuple(tokens)


def test_places_beyond_the_allowed_tokens_are_masked_and_end_the_episode(toy, model):
    banned = [PAD, EOS, NEWLINE, TAG, B]
    env = TopKActions(make(toy, banned_tokens=banned, mask_in_info=True), model, k=6)
    _, info = env.reset(seed=0)
    np.testing.assert_array_equal(env.action_masks(), [True] * 3 + [False] * 3)
    np.testing.assert_array_equal(info["action_mask"], env.action_masks())
    assert np.exp(info["candidate_logp"][:3]).sum() == pytest.approx(1.0)
    assert set(info["candidates"][3:]) <= set(banned)
    _, reward, terminated, _, info = env.step(4)
    assert (reward, terminated, info["illegal"]) == (toy["task"].failing_reward, True, True)
    assert info["action_mask"].shape == (6,)


def test_improbable_places_hold_the_most_probable_token(toy, model):
    plain = TopKActions(make(toy), model, k=V)
    env = TopKActions(make(toy), model, k=V, min_prob=0.1)
    tokens, logp = (plain.reset(seed=1)[1][key] for key in ("candidates", "candidate_logp"))
    info = env.reset(seed=1)[1]
    plausible = np.exp(logp) >= 0.1
    assert 0 < plausible.sum() < V
    np.testing.assert_array_equal(info["candidates"], np.where(plausible, tokens, tokens[0]))
    np.testing.assert_array_equal(info["candidate_logp"], np.where(plausible, logp, logp[0]))
    assert env.action_masks().all()


def test_no_allowed_token_is_a_named_error(toy, model):
    env = TopKActions(make(toy, constraint=lambda state, tokens: np.zeros(V, bool)), model, k=2)
    with pytest.raises(NoLegalAction):
        env.reset(seed=0)


# Hidden states


@pytest.mark.parametrize("kind", ["llama", "gpt2", "sliding"])
@pytest.mark.parametrize("block", IDS)
def test_observation_is_the_last_hidden_state(block, kind, toy):
    model, rng = tiny_model(kind, V), np.random.default_rng(0)
    env = HiddenStateObservation(make(toy, block), model)
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        over = False
        while True:
            assert observation in env.observation_space
            np.testing.assert_allclose(
                observation, full(model, env.unwrapped.state.tokens)[1][-1], rtol=1e-6, atol=1e-6
            )
            if over:
                break
            action = random_tokens(rng, env.action_space.shape)
            observation, _, terminated, truncated, _ = env.step(action if block > 1 else int(action))
            over = terminated or truncated


def test_candidate_logp_is_appended_until_the_episode_is_over(toy, model):
    env = HiddenStateObservation(TopKActions(make(toy, banned_tokens=[A, B]), model, k=V), model, candidate_logp=True)
    observation, info = env.reset(seed=0)
    assert env.observation_space.shape == (16 + V,) and observation in env.observation_space
    np.testing.assert_allclose(observation[16:], np.maximum(info["candidate_logp"], -20), rtol=1e-6)
    observation, _, terminated, _, _ = env.step(V - 1)
    assert terminated and not observation[16:].any()
    with pytest.raises(ValueError, match="TopKActions beneath"):
        HiddenStateObservation(make(toy), model, candidate_logp=True)


# Reference log-probs


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("block", IDS)
@pytest.mark.parametrize("changes", [{}, {"task": Replying()}, {"constraint": no_repeat}, {"banned_tokens": [TAG]}])
def test_ref_logp_is_the_sum_over_the_tokens_that_were_written(changes, block, kind, toy):
    model, rng = tiny_model(kind, V), np.random.default_rng(1)
    env = ReferenceLogProb(make(toy, block, **changes), model)
    for seed in range(6):
        assert "ref_logp" not in env.reset(seed=seed)[1]
        over = False
        while not over:
            before = env.unwrapped.state
            action = random_tokens(rng, env.action_space.shape)
            _, _, terminated, truncated, info = env.step(action if block > 1 else int(action))
            over, after = terminated or truncated, env.unwrapped.state
            new = slice(len(before.tokens), None)
            block_ = tuple(t for t, chosen in zip(after.tokens[new], after.chosen[new], strict=True) if chosen)
            assert type(info["ref_logp"]) is float
            assert info["ref_logp"] == pytest.approx(logp_of(model, env.mdp, before, block_), abs=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_ref_logp_of_a_stream_does_not_depend_on_the_blocks(seed, toy, model):
    stream = random_tokens(np.random.default_rng(seed), 9, eos=0.02)
    totals = []
    for block in IDS:
        env, total, at, over = ReferenceLogProb(make(toy, block), model), 0.0, 0, False
        env.reset(seed=seed)
        while not over:
            action = np.resize(stream[at : at + block], block)
            _, _, over, _, info = env.step(action if block > 1 else int(action[0]))
            total, at = total + info["ref_logp"], at + block
        totals.append(total)
    np.testing.assert_allclose(totals, totals[0], **EXACT)


# Stacks, caches, restored states


def stacked(env: gym.Env, model: Any, order: tuple[type, ...]) -> gym.Env:
    for wrapper in order:
        env = wrapper(env, model, k=3) if wrapper is TopKActions else wrapper(env, model)
    return env


@pytest.mark.parametrize("order", itertools.permutations([TopKActions, HiddenStateObservation, ReferenceLogProb]))
def test_a_stack_with_one_model_makes_one_pass_of_one_token_a_step(order, toy, model):
    env = stacked(make(toy, min_new_tokens=7), model, order)
    env.reset(seed=0)
    counters = env.lookahead.decoder.counters
    assert counters.forward_passes == 1
    for step in range(1, 8):
        before = counters.forward_tokens
        env.step(0)
        assert counters.forward_passes == 1 + step
        assert counters.forward_tokens == before + 1


def test_another_model_is_not_shared(toy, model):
    other = tiny_model("llama", V, seed=1)
    env = HiddenStateObservation(TopKActions(make(toy), model, k=3), other)
    observation, info = env.reset(seed=0)
    logits, _ = full(model, env.unwrapped.state.tokens)
    assert info["candidates"][0] == logits[-1].argmax()
    np.testing.assert_allclose(observation, full(other, env.unwrapped.state.tokens)[1][-1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("order", itertools.permutations([TopKActions, HiddenStateObservation, ReferenceLogProb]))
@pytest.mark.parametrize("cut", [0, 2, 4])
def test_a_state_restored_beneath_replays_the_same(cut, order, toy, model):
    env = stacked(make(toy, constraint=no_repeat), model, order)
    rng, env_steps = np.random.default_rng(5), []
    env.reset(seed=4)
    for step in range(8):
        if step == cut:
            snapshot = env.unwrapped.get_state()
        action = int(rng.integers(2))
        env_steps.append((action, env.step(action)))
        if env_steps[-1][1][2]:
            break
    assert len(env_steps) > cut
    for target in (env, stacked(make(toy, constraint=no_repeat), model, order)):
        target.reset(seed=99)
        target.unwrapped.set_state(snapshot)
        for action, (observation, reward, terminated, _, info) in env_steps[cut:]:
            again = target.step(action)
            np.testing.assert_allclose(again[0], observation, rtol=1e-6, atol=1e-6)
            assert again[1:3] == (reward, terminated)
            assert again[4]["ref_logp"] == pytest.approx(info["ref_logp"], abs=1e-10)
            np.testing.assert_array_equal(again[4].get("candidates"), info.get("candidates"))


def test_new_parameters_are_seen_at_once(toy, model):
    env = HiddenStateObservation(TopKActions(make(toy), model, k=V), model)
    env.reset(seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    logp = masked_logp(full(model, env.unwrapped.state.tokens)[0][-1], None)
    shown = env.env.shortlist
    np.testing.assert_allclose(shown.logp[0], logp[shown.tokens[0]], **EXACT)


def test_random_generators_are_left_alone(toy, model):
    env, bare = stacked(make(toy), model, (TopKActions, HiddenStateObservation, ReferenceLogProb)), make(toy)
    state = torch.random.get_rng_state()
    env.reset(seed=7)
    bare.reset(seed=7)
    for _ in range(10):
        assert env.reset()[1]["prompt"] == bare.reset()[1]["prompt"]
        env.step(1)
    assert torch.equal(torch.random.get_rng_state(), state)


# Checkers


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrap", ["topk", "hidden", "ref", "all"])
def test_environment_checkers(wrap, dtype, toy):
    model = tiny_model("llama", V, dtype=dtype)
    env = make(toy, banned_tokens=[A])
    env = TopKActions(env, model, k=4) if wrap in ("topk", "all") else env
    env = ReferenceLogProb(env, model) if wrap in ("ref", "all") else env
    env = HiddenStateObservation(env, model, candidate_logp=wrap == "all") if wrap in ("hidden", "all") else env
    check_env(env)
    sb3_check_env(env)


def test_the_spec_rebuilds_the_stack(toy, model):
    env = TopKActions(make(toy), model, k=3)
    again = gym.make(env.spec)
    np.testing.assert_array_equal(env.reset(seed=0)[1]["candidates"], again.reset(seed=0)[1]["candidates"])


# Bad input


def test_bad_arguments_are_named(toy, model):
    for arguments, text in (
        ({"k": 0}, r"k must be in \[1, 8\].*got 0"),
        ({"k": 9}, "got 9"),
        ({"k": 3, "min_prob": 1.5}, "got 1.5"),
    ):
        with pytest.raises(ValueError, match=text):
            TopKActions(make(toy), model, **arguments)
    with pytest.raises(ValueError, match="block_size 3"):
        TopKActions(make(toy, 3), model)
    with pytest.raises(ValueError, match="text environment"):
        HiddenStateObservation(gym.make("CartPole-v1"), model)
    with pytest.raises(ValueError, match="embeds 4 tokens, but the tokenizer has 8"):
        ReferenceLogProb(make(toy), tiny_model("llama", 4))
    env = TopKActions(make(toy), model, k=3)
    env.reset(seed=0)
    for action in (3, -1):
        with pytest.raises(ValueError, match=rf"\[0, 3\), got {action}"):
            env.step(action)


def test_an_embedding_may_be_padded_beyond_the_tokenizer(toy):
    model = tiny_model("llama", V + 5)
    env = TopKActions(make(toy), model, k=V)
    assert set(env.reset(seed=0)[1]["candidates"]) == set(range(V))
    assert np.exp(env.reset(seed=0)[1]["candidate_logp"]).sum() == pytest.approx(1.0)


# Loading models


def test_load_model_gives_evaluation_mode_on_a_device(tmp_path):
    source = tiny_model("llama", V, dtype=torch.float32)
    source.save_pretrained(tmp_path)
    for dtype in ("float32", "bfloat16", "float64"):
        model = load_model(tmp_path, device="cpu", dtype=dtype)
        assert (model.dtype, model.training) == (getattr(torch, dtype), False)
    assert load_model(str(tmp_path), device="cpu").dtype == torch.float32
    assert load_model(source, device="cpu") is source and not source.training
    assert load_model(source, device="cpu", dtype="float64").dtype == torch.float64


def test_the_embedded_model_loads_by_its_name():
    model = load_model("tiny", device="cpu")
    check_vocab(model, Codec("tiny"))
    assert sum(p.numel() for p in model.parameters()) <= 1_500_000


def test_what_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "config.json").write_text("{")
    for name in (str(tmp_path), str(tmp_path / "nothing"), "nobody/nothing"):
        with pytest.raises(ValueError, match=f"{name}.*give 'tiny', a folder") as caught:
            load_model(name, device="cpu")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["gpu5", "cuda:99", 3.5])
def test_wrong_devices_are_named(device):
    with pytest.raises(ValueError, match=f"device must be 'auto' or 'cpu'.*got '?{device}") as caught:
        resolve_device(device)
    assert "\n" not in str(caught.value)


def test_wrong_dtypes_are_named():
    with pytest.raises(ValueError, match=r"dtype must be one of 'auto', .*got 'float8'"):
        load_model("tiny", dtype="float8")
