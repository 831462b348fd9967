"""`RewardModel`: its scores by hand, in every form and batch; as the reward of an environment; on disk."""

from __future__ import annotations

import copy
import json
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.envs.registration import EnvSpec
from toys import EOS, PAD, TAG, A, B, Words, toy_tokenizer
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from worlds import KINDS, four_tokenizer, lm_policy, tiny_model

from llmgym.forward import CachedForward, FusedLlama
from llmgym.labellers import RuleLabeller
from llmgym.pairs import Pair
from llmgym.preferences import Preference
from llmgym.reward_model import RewardModel, is_reward_model, pad
from llmgym.rewards import ModelReward
from llmgym.tasks import Problem, Task
from llmgym.text import TextMDP

ROWS = [[A, B, 5, A, EOS], [B, 5, B], [A, B, 5, A, A, B, B, A], [A, 5, EOS], [A, B, 5, B, EOS], [B, 5]]
PREFERENCES = [
    Preference("ab=", "ab", "b"),
    Preference("a=", "a", "ccc", rejected_finished=False),
    Preference("cb=", "cb", "cbcb"),
]


@pytest.fixture
def mdp(toy):
    return TextMDP(**toy)


@pytest.fixture
def exact_norms(monkeypatch):
    """Hugging Face's norms round to float32 even in a float64 model; these do not."""
    for norm in (LlamaRMSNorm, Qwen2RMSNorm):
        exact = lambda self, x: F.rms_norm(x, self.weight.shape, self.weight, self.variance_epsilon)  # noqa: E731
        monkeypatch.setattr(norm, "forward", exact)


def reward_model(mdp, kind="gpt2", dtype="float64", seed=0, **settings):
    """A reward model with a head that is not 0."""
    model = tiny_model(kind, mdp.codec.vocab_size, seed, getattr(torch, dtype)) if isinstance(kind, str) else kind
    made = RewardModel(model, mdp, dtype=dtype, device="cpu", **settings)
    with torch.no_grad():
        made.head.weight.copy_(torch.randn(made.head.weight.shape, generator=torch.Generator().manual_seed(seed)))
    return made


@torch.no_grad()
def by_hand(made, row):
    """w · the last hidden state of Hugging Face's own forward pass over one text."""
    hidden = made.model(torch.tensor([row]), use_cache=False, output_hidden_states=True).hidden_states[-1]
    return float(made.head.weight[0] @ hidden[0, -1].to(made.head.weight.dtype))


# --- scores ---------------------------------------------------------------------------------------------------------


def test_the_head_starts_at_0(mdp):
    made = RewardModel(tiny_model("gpt2", 8), mdp, device="cpu")
    assert made.score([Problem("ab=")] * 2, ["ab", "b"]).tolist() == [0.0, 0.0]
    assert made.head.bias is None and made.mean == 0.0 and made.deviation == 1.0


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_score_is_the_head_on_the_hidden_state_after_the_last_token(kind, dtype, mdp):
    made = reward_model(mdp, kind, dtype)
    tolerance = 1e-10 if dtype == "float64" else 1e-4
    assert made.raw_scores(ROWS).tolist() == pytest.approx([by_hand(made, row) for row in ROWS], abs=tolerance)
    assert np.ptp(made.raw_scores(ROWS).tolist()) > 0.1


def test_small_float32_llamas_run_in_the_fused_form(mdp):
    assert isinstance(reward_model(mdp, "llama", "float32").forward, FusedLlama)
    assert isinstance(reward_model(mdp, "gpt2", "float32").forward, CachedForward)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_scores_and_gradients_are_the_same_in_both_forms(kind, exact_norms, mdp):
    made, found = reward_model(mdp, kind), []
    for form in (FusedLlama, CachedForward):
        made.forward = form(made.model)
        scores = made.evaluate(*pad(ROWS))
        slopes = torch.autograd.grad(scores.sin().sum(), made.parameters(), allow_unused=True, materialize_grads=True)
        found.append((scores, slopes))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-10)
    for one, two in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", ["gpt2", "neox"])
def test_padding_never_matters(kind, mdp):
    made = reward_model(mdp, kind)
    alone = torch.cat([made.evaluate(*pad([row])) for row in ROWS])
    tokens, lengths = pad(ROWS)
    for extra in (0, 1, 5, 16):
        for filling in (PAD, EOS, TAG):
            wide = torch.full((len(ROWS), tokens.shape[1] + extra), filling)
            for i, row in enumerate(ROWS):
                wide[i, : len(row)] = torch.tensor(row)
            torch.testing.assert_close(made.evaluate(wide, lengths), alone, rtol=0, atol=1e-10)
    for at_once in (1, 2, 5, 64):
        torch.testing.assert_close(made.raw_scores(ROWS, at_once), alone, rtol=0, atol=1e-10)
    order = [4, 2, 0, 5, 3, 1]
    torch.testing.assert_close(made.raw_scores([ROWS[i] for i in order]), alone[order], rtol=0, atol=1e-10)


def test_dropout_is_off(mdp):
    made = reward_model(mdp)
    assert torch.equal(made.evaluate(*pad(ROWS)), made.evaluate(*pad(ROWS)))


def test_eos_is_read_where_the_text_is_finished(mdp):
    made, problem = reward_model(mdp), Problem("ab=")
    done, cut = made.score([problem] * 2, ["ab", "ab"], [True, False]).tolist()
    assert done == pytest.approx(by_hand(made, [A, B, 5, A, B, EOS]))
    assert cut == pytest.approx(by_hand(made, [A, B, 5, A, B]))
    assert made.score([problem], ["ab"]).tolist() == pytest.approx([done])


def test_token_ids_are_scored_as_they_are(mdp):
    made = reward_model(mdp)
    tokens = [(A, PAD, EOS), (A, EOS)]  # the same text, once special tokens are left out
    one, two = made.score_tokens([Problem("b=")] * 2, tokens).tolist()
    assert one == pytest.approx(by_hand(made, [B, 5, A, PAD, EOS])) and one != pytest.approx(two)


def test_a_score_has_no_gradient_and_evaluate_has_one(mdp):
    made = reward_model(mdp)
    assert not made.raw_scores(ROWS).requires_grad and not made.margins(PREFERENCES).requires_grad
    made.evaluate(*pad(ROWS)).sum().backward()
    assert all(p.grad is not None for p in made.parameters())


def test_work_is_counted(mdp):
    made = reward_model(mdp)
    made.raw_scores(ROWS)
    counted = made.counters.as_dict()
    assert counted["forward_tokens"] == sum(map(len, ROWS)) and counted["sampled_tokens"] == 0
    assert counted["forward_passes"] == 1


def test_scores_of_bfloat16_are_float32(mdp):
    scores = reward_model(mdp, "llama", "bfloat16").raw_scores(ROWS)
    assert scores.dtype == torch.float32 and scores.isfinite().all()


# --- pairs ----------------------------------------------------------------------------------------------------------


def test_swapping_a_pair_changes_the_sign_of_its_margin(mdp):
    made = reward_model(mdp)
    swapped = [Preference(p.prompt, p.rejected, p.chosen, p.rejected_finished, p.chosen_finished) for p in PREFERENCES]
    torch.testing.assert_close(made.margins(PREFERENCES), -made.margins(swapped), rtol=0, atol=1e-12)
    chosen = made.score([p.problem for p in PREFERENCES], [p.chosen for p in PREFERENCES])
    rejected = made.score(
        [p.problem for p in PREFERENCES], [p.rejected for p in PREFERENCES], [p.rejected_finished for p in PREFERENCES]
    )
    torch.testing.assert_close(made.margins(PREFERENCES), chosen - rejected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("unit", [False, True])
def test_normalised_rewards_of_the_pairs_have_mean_0_and_if_wanted_deviation_1(unit, mdp):
    made = reward_model(mdp)
    margins, before = made.margins(PREFERENCES), made.score_rows(made.encode(PREFERENCES))
    made.normalise(PREFERENCES, unit=unit)
    after = made.score_rows(made.encode(PREFERENCES))
    assert float(after.mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(after.std(correction=0)) == pytest.approx(1.0 if unit else float(before.std(correction=0)))
    assert torch.equal(made.margins(PREFERENCES), margins)  # probabilities do not move
    made.normalise(PREFERENCES, unit=unit)
    torch.testing.assert_close(made.score_rows(made.encode(PREFERENCES)), after)  # nor does doing it again


def test_equal_scores_cannot_be_scaled_nor_those_that_are_no_numbers(mdp):
    made = RewardModel(tiny_model("gpt2", 8), mdp, device="cpu")
    made.normalise(PREFERENCES)
    with pytest.raises(ValueError, match="cannot be scaled to deviation 1: the model scores all completions alike"):
        made.normalise(PREFERENCES, unit=True)
    made.head.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="scores that are no finite numbers"):
        made.normalise(PREFERENCES)
    with pytest.raises(ValueError, match="preferences are empty"):
        made.normalise([])


def test_a_row_that_does_not_fit_is_named(mdp):
    made = reward_model(mdp)
    with pytest.raises(ValueError, match="row 1 has 9 tokens, end-of-text included, max_new_tokens is 8"):
        made.score([Problem("ab=")] * 2, ["ab", "abababab"])
    with pytest.raises(ValueError, match="row 1: chosen follows a prompt of 7 tokens, max_prompt_tokens is 6"):
        made.margins([PREFERENCES[0], Preference("aaaaaaa", "a", "b")])


# --- what it starts from --------------------------------------------------------------------------------------------


def test_an_object_is_copied(mdp):
    policy = lm_policy(mdp)
    before = {name: p.clone() for name, p in policy.model.state_dict().items()}
    for given in (policy, policy.model):
        made = RewardModel(given, mdp, device="cpu", dtype="float64")
        made.evaluate(*pad(ROWS)).sum().backward()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(1.0)
        assert all(torch.equal(p, before[name]) for name, p in policy.model.state_dict().items())
        assert all(p.grad is None for p in policy.model.parameters())
        assert not policy.model.training


def test_a_policy_on_disk_is_what_it_starts_from(mdp, tmp_path):
    policy = lm_policy(mdp)
    policy.save(tmp_path)
    assert not is_reward_model(tmp_path)
    made = RewardModel(tmp_path, mdp, device="cpu", dtype="float64")
    for name, parameter in made.model.state_dict().items():
        assert torch.equal(parameter, policy.model.state_dict()[name])


@pytest.mark.parametrize("model", [None, 3, Words()])
def test_what_is_no_model_is_said(model, mdp):
    with pytest.raises(ValueError, match="model must be a name, a folder, an LMPolicy or a language model, got"):
        RewardModel(model, mdp)


def test_a_model_must_fit_the_environment(mdp, toy):
    with pytest.raises(ValueError, match="the model embeds 4 tokens, but the tokenizer has 8"):
        RewardModel(tiny_model("gpt2", 4), mdp)
    with pytest.raises(ValueError, match="is 70, but the model has positions for 64 tokens only"):
        RewardModel(tiny_model("gpt2", 8), TextMDP(**toy | {"max_new_tokens": 64}))
    with pytest.raises(ValueError, match="env must be a text environment"):
        RewardModel(tiny_model("gpt2", 8), gym.make("CartPole-v1"))


# --- adapters -------------------------------------------------------------------------------------------------------


def test_with_adapters_only_they_and_the_head_are_trained(mdp, tmp_path):
    pytest.importorskip("peft")
    made = RewardModel(tiny_model("llama", 8), mdp, lora=2, device="cpu", dtype="float64", seed=0)
    plain = reward_model(mdp, "llama")
    made.head.load_state_dict(plain.head.state_dict())
    assert made.raw_scores(ROWS).tolist() == pytest.approx(plain.raw_scores(ROWS).tolist(), abs=1e-10)
    names = [n for n, p in made.model.named_parameters() if p.requires_grad]
    assert names and all("lora" in name for name in names) and len(made.parameters()) == len(names) + 1
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1)
    made.save(tmp_path / "rm")
    again = RewardModel.load(tmp_path / "rm", mdp, device="cpu")
    assert torch.equal(again.raw_scores(ROWS), made.raw_scores(ROWS))
    assert len(again.parameters()) == len(names) + 1


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_saved_and_loaded_bit_for_bit(dtype, mdp, tmp_path):
    made = reward_model(mdp, "llama", dtype)
    made.normalise(PREFERENCES, unit=True)
    for _ in range(2):  # an older folder is replaced
        made.save(tmp_path / "rm")
    again = RewardModel.load(tmp_path / "rm", mdp, device="cpu")
    assert again.dtype == made.dtype and (again.mean, again.deviation) == (made.mean, made.deviation)
    assert torch.equal(again.score_rows(ROWS), made.score_rows(ROWS))
    assert [p.name for p in tmp_path.iterdir()] == ["rm"] and is_reward_model(tmp_path / "rm")
    assert RewardModel.load(tmp_path / "rm", mdp, device="cpu", dtype="float64").dtype == torch.float64


def test_copies_and_pickles_score_alike(mdp):
    made = reward_model(mdp, "llama", "float32")
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        torch.testing.assert_close(other.raw_scores(ROWS), made.raw_scores(ROWS))
        assert other.model is not made.model


def test_a_folder_without_a_reward_model_is_said(mdp, tmp_path):
    lm_policy(mdp).save(tmp_path)
    with pytest.raises(ValueError, match=r"is no folder of a reward model: reward_model\.json is missing"):
        RewardModel.load(tmp_path, mdp)
    with pytest.raises(ValueError, match="is no folder of a reward model"):
        RewardModel.load(tmp_path / "nothing", mdp)


def test_another_tokenizer_is_said(mdp, toy, tmp_path):
    made = reward_model(mdp)
    made.save(tmp_path / "rm")
    other = TextMDP(**toy | {"tokenizer": four_tokenizer()})
    for call in (lambda: RewardModel.load(tmp_path / "rm", other), lambda: made.check_fits(other)):
        with pytest.raises(ValueError, match="the reward model was trained with another tokenizer"):
            call()
    made.check_fits(TextMDP(**toy | {"tokenizer": toy_tokenizer()}))  # an equal one will do


# --- as a reward ----------------------------------------------------------------------------------------------------


def finish(env, tokens=(A, B, EOS)):
    env.reset(seed=0, options={"problem": Problem("ab=", "ab")})
    for token in tokens:
        _, reward, terminated, truncated, info = env.step(token)
    return reward, terminated, truncated, info


def test_the_reward_of_any_text_environment_with_the_true_score_beside_it(mdp, toy):
    made = reward_model(mdp)
    env = gym.make("llmgym/TokenMDP-v0", **toy, reward=made)
    r = float(made.score([Problem("ab=")], ["ab"])[0])
    reward, terminated, _, info = finish(env)
    assert reward == pytest.approx(r, abs=1e-12) and type(reward) is float and terminated
    terms = info["reward_terms"]
    assert terms == {"correct": 1.0, "format": 1.0, "length": 0.25, "reward_model": reward}
    assert info["is_success"] is True and finish(env, (A, EOS))[3]["is_success"] is False


def test_weights_of_the_learned_reward_and_of_the_rules(mdp, toy):
    made = reward_model(mdp)
    r = float(made.score([Problem("ab=")], ["ab"])[0])
    for weight, rules in ((1.0, 0.0), (0.0, 1.0), (2.0, 0.5), (-1.0, 0.0)):
        env = gym.make("llmgym/TokenMDP-v0", **toy, reward={"model": made, "weight": weight, "rules": rules})
        assert finish(env)[0] == pytest.approx(weight * r + rules * (1.0 + 0.25 + 0.5 * 0.25))


def test_success_is_the_tasks_judgement_even_without_rules(mdp, toy):
    made = reward_model(mdp)
    made.mean = -1e6  # every reward is huge
    reward, _, _, info = finish(gym.make("llmgym/TokenMDP-v0", **toy, reward=made), (B, EOS))
    assert reward > 1e5 and info["is_success"] is False and info["reward_terms"]["correct"] == 0.0


def test_an_environment_names_its_reward_by_folder_and_can_be_described_as_json(mdp, toy, tmp_path):
    made = reward_model(mdp, "llama", "float32")
    made.normalise(PREFERENCES)
    made.save(tmp_path / "rm")
    expected = finish(gym.make("llmgym/TokenMDP-v0", **toy, reward=made))[0]
    for reward in (str(tmp_path / "rm"), tmp_path / "rm", {"model": str(tmp_path / "rm")}):
        assert finish(gym.make("llmgym/TokenMDP-v0", **toy, reward=reward))[0] == pytest.approx(expected, abs=1e-5)
    named = copy.deepcopy(gym.spec("llmgym/TokenMDP-v0"))
    named.kwargs = {"reward": {"model": str(tmp_path / "rm"), "rules": 0.5}}
    assert EnvSpec.from_json(named.to_json()).kwargs == named.kwargs == json.loads(named.to_json())["kwargs"]


def test_many_rows_are_scored_in_one_pass_and_as_one_alone(mdp, toy):
    made = reward_model(mdp)
    rows = gym.make_vec("llmgym/SequenceMDP-v0", num_envs=4, autoreset_mode="Disabled", reward=made, **toy)
    rows.reset(seed=0, options={"problem": Problem("ab=", "ab")})
    actions = np.array([[A] * k + [EOS] * (8 - k) for k in (1, 3, 0, 8)])
    _, rewards, _, _, info = rows.step(actions)
    assert made.counters.forward_passes == 1
    env = gym.make("llmgym/SequenceMDP-v0", reward=made, **toy)
    for row, action in enumerate(actions):
        env.reset(options={"problem": Problem("ab=", "ab")})
        assert env.step(action)[1] == pytest.approx(rewards[row], abs=1e-10)
    assert info["reward_terms"]["reward_model"] == pytest.approx(rewards.tolist())


def test_a_score_that_is_no_number_is_a_failing_scorer(mdp, toy):
    made = reward_model(mdp)
    made.head.weight.data.fill_(float("nan"))
    reward, terminated, truncated, info = finish(gym.make("llmgym/TokenMDP-v0", **toy, reward=made))
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert "reward term 'reward_model' must be a finite number, got nan" in info["scorer_failed"]


def test_a_rule_that_fails_for_one_row_costs_no_other(mdp, toy):
    class Fragile(Words):
        def score(self, problem, text):
            if text == "a":
                raise KeyError("no such test")
            return super().score(problem, text)

    rows = gym.make_vec(
        "llmgym/SequenceMDP-v0",
        num_envs=2,
        autoreset_mode="Disabled",
        reward=reward_model(mdp),
        **toy | {"task": Fragile()},
    )
    rows.reset(seed=0)
    _, rewards, terminated, truncated, info = rows.step(np.array([[A] + [EOS] * 7, [B] + [EOS] * 7]))
    assert terminated.tolist() == [False, True] and truncated.tolist() == [True, False]
    assert rewards[0] == 0.0 and rewards[1] != 0.0 and info["scorer_failed"][0] == "KeyError: 'no such test'"


def test_a_task_without_a_score_of_its_own_has_the_learned_reward_alone(mdp, toy):
    class Prompts(Task):
        def problem(self, rng, split="train"):
            return Problem("ab=")

    made = reward_model(mdp)
    reward, _, _, info = finish(gym.make("llmgym/TokenMDP-v0", **toy | {"task": Prompts()}, reward=made))
    assert info["reward_terms"] == {"reward_model": reward} and info["is_success"] is False


def test_training_the_model_further_moves_the_reward(mdp, toy):
    made = reward_model(mdp)
    env = gym.make("llmgym/TokenMDP-v0", **toy, reward=made)
    before = finish(env)[0]
    made.head.weight.data.mul_(2.0)
    assert finish(env)[0] == pytest.approx(2 * before)


def test_it_can_label_pairs(mdp):
    made = reward_model(mdp)
    labeller = RuleLabeller(ModelReward(mdp.task, made), tokenizer=mdp.codec.tokenizer)
    margin = float(made.margins(PREFERENCES[:1])[0])
    assert labeller(Pair(Problem("ab=", "ab"), "ab", "b")) == ("first" if margin > 0 else "second")


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("nothing here", "'nothing here' is no folder of a reward model: reward_model.json is missing"),
        ({"weight": 1.0}, "reward as a mapping must have the key model"),
        ({"model": "x", "weit": 1.0}, "reward as a mapping must have the key model, and may have weight and rules"),
        ({"model": 3}, "reward must be a function, a reward model or the folder of one, got 3"),
    ],
)
def test_a_reward_that_is_none_is_said(reward, message, toy):
    with pytest.raises(ValueError, match=message):
        TextMDP(**toy, reward=reward)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", None, True])
@pytest.mark.parametrize("name", ["weight", "rules"])
def test_weights_are_finite_numbers(name, value, mdp, toy):
    with pytest.raises(ValueError, match=f"{name} of the reward must be a finite number, got"):
        TextMDP(**toy, reward={"model": reward_model(mdp), name: value})
