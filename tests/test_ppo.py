"""PPO on text: expected gradients by enumeration, the KL in both places, values, early stop, its own settings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_grpo import AB, TWO, each_granularity
from toys import Words, toy_tokenizer
from worlds import assert_gradients, every_episode, expected_gradient, flat, four_mdp, lm_policy, rows, tiny_model

from llmgym.agents import GRPO, PPO, REINFORCE
from llmgym.agents.credit import whitened
from llmgym.agents.part import Part
from llmgym.agents.ppo import explained_variance
from llmgym.agents.reference import AdaptersOff, kl_of_actions
from llmgym.batch import Evaluation
from llmgym.envs import VectorTextEnv
from llmgym.policy import LMPolicy
from llmgym.returns import gae
from llmgym.rollout import rollout

PLAIN = {"whiten": False, "normalize": "constant", "epochs": 1, "minibatches": 1, "value_weight": 0.0, "beta": 0.0}
pytestmark = pytest.mark.filterwarnings("ignore:every completion ran:RuntimeWarning")


def agent_of(world=None, cls=PPO, reference=None, value=False, **config):
    mdp = four_mdp(**(TWO | {"max_prompt_tokens": 5} | (world or {})))
    policy = lm_policy(mdp, value_head=cls is PPO)
    if value:
        torch.nn.init.normal_(policy.value_head.weight, generator=torch.Generator().manual_seed(2))
    reference = None if reference is None else lm_policy(mdp, seed=reference)
    defaults = PLAIN if cls is PPO else {}
    return cls(policy, rows(mdp, 1), reference=reference, seed=0, prompts=2, **(defaults | config))


def most(world):
    return 2 if world["block_size"] == 1 else 1


# --- expected gradients -----------------------------------------------------------------------------------------------


@each_granularity
@pytest.mark.parametrize("value", [False, True], ids=["no baseline", "a value baseline"])
def test_at_ratio_one_it_is_the_gradient_of_the_expected_return(world, value):
    """With λ = γ = 1 and advantages as they are, for any value function: it is a baseline."""
    agent = agent_of(world, value=value)
    oracle, batch = every_episode(agent, AB)
    gradient = expected_gradient(agent, oracle, batch, 1)
    truth = oracle.policy_gradient(agent.policy.model.parameters())
    assert_gradients(gradient[:-2], truth, scale=-1 / most(world))


def test_bootstrapping_is_a_documented_bias():
    """λ < 1 leans on V: with a wrong one the gradient is another."""
    agent = agent_of(value=True, lam=0.5)
    oracle, batch = every_episode(agent, AB)
    gradient = expected_gradient(agent, oracle, batch, 1)[:-2]
    truth = oracle.policy_gradient(agent.policy.model.parameters())
    assert torch.cosine_similarity(-flat(gradient), flat(truth), 0) < 0.999


def sequence_kl(agent, batch, oracle):
    """KL(π, π_ref) of whole completions, differentiable."""
    logp, ref = oracle.logp(), agent.reference.token_logp(batch).sum(1)
    return (logp.exp() * (logp - ref)).sum()


@each_granularity
@pytest.mark.parametrize("cls", [PPO, REINFORCE])
def test_k1_in_the_reward_is_the_gradient_of_return_minus_kl(world, cls):
    """RLHF's objective, E[R] - β KL(π, π_ref), at every granularity."""
    plain = {"baseline": "none", "samples": 1} if cls is REINFORCE else {}
    agent = agent_of(world, cls, reference=1, beta=0.3, kl="k1", kl_in="reward", **plain)
    oracle, batch = every_episode(agent, AB)
    penalised = agent._penalised(batch, agent.policy.score(batch), {"reward": 0.0})
    gradient = expected_gradient(agent, oracle, penalised, 1)
    parameters = list(agent.policy.model.parameters())
    kl = torch.autograd.grad(sequence_kl(agent, batch, oracle), parameters)
    truth = [r - 0.3 * k for r, k in zip(oracle.policy_gradient(parameters), kl, strict=True)]
    scale = -1 / most(world) if cls is PPO else -1.0
    assert_gradients(gradient[: len(parameters)], truth, scale=scale)
    assert flat(kl).abs().max() > 1e-3


def test_the_penalty_is_per_token_and_its_sum_is_the_same_at_every_granularity():
    sums = []
    for world in ({"block_size": 1}, {"block_size": 2}):
        agent = agent_of(world, reference=1, beta=0.3)
        _, batch = every_episode(agent, AB)
        metrics = {"reward": 0.0}
        penalised = agent._penalised(batch, agent.policy.score(batch), metrics)
        sums.append((batch.returns - penalised.returns) / 0.3)
        assert metrics["kl"] == pytest.approx(float(sums[-1].sum() / batch.n_tokens.sum()))
    assert torch.allclose(*sums, atol=1e-12) and float(sums[0].abs().max()) > 0.01


@each_granularity
def test_the_exact_kl_at_the_visited_states_is_what_k1_is_on_average(world):
    agent = agent_of(world, reference=1, beta=0.3)
    oracle, batch = every_episode(agent, AB)
    p, scored = oracle.logp().exp(), agent.policy.score(batch)
    means = {
        kind: (p * kl_of_actions(agent.policy, agent.reference, batch, kind, scored, 3).sum(1)).sum()
        for kind in ("k1", "k3", "exact")
    }
    kl = sequence_kl(agent, batch, oracle).detach()
    assert all(abs(float(mean.detach() - kl)) <= 1e-12 for mean in means.values()) and float(kl) > 0.01


def test_exact_kl_in_the_loss_is_the_gradient_at_the_visited_states():
    """∇ₛKL(π, π_ref): that of k2 on average, without its noise (see `kl_estimate`)."""
    kinds = {}
    for kind in ("k2", "exact"):
        agent = agent_of(cls=GRPO, reference=1, beta=0.5, kl=kind, kl_in="loss", samples=2)
        oracle, batch = every_episode(agent, AB)
        p = oracle.logp().exp().detach()
        said = agent.policy.evaluate(batch, ref_logp=agent.reference_logp(batch), **agent.kl_options)
        expected = torch.autograd.grad((p[:, None] * said.kl).sum(), agent.policy.parameters())
        kinds[kind] = flat(expected)
    assert (kinds["k2"] - kinds["exact"]).abs().max() <= 1e-12 < 1e-3 < kinds["k2"].abs().max()


# --- the parts of the loss --------------------------------------------------------------------------------------------


def evaluated(agent, batch, logp, values):
    entropy = torch.full_like(logp, 0.7)
    return Evaluation(logp=logp, entropy=entropy, values=values, kl=None, n_tokens=batch.n_tokens)


def test_the_loss_by_hand():
    agent = agent_of(value_weight=0.25, entropy=0.1, value_clip=0.2, normalize="actions")
    batch = agent.collect()
    n = int(batch.mask.sum())
    old = batch.logp.clone()
    advantages = torch.linspace(-1, 2, batch.mask.numel()).view(batch.mask.shape).double()
    values, old_values, returns = (torch.full_like(old, x) for x in (0.5, 0.0, 1.0))
    part = Part(batch, advantages, returns, old, old_values=old_values)
    loss, metrics = agent.loss(part, evaluated(agent, batch, old + 0.5, values), old, agent.denominator(batch))
    surrogate = torch.where(advantages > 0, 1.2 * advantages, torch.e**0.5 * advantages)[batch.mask].sum() / n
    error = max((0.5 - 1.0) ** 2, (0.2 - 1.0) ** 2)
    assert float(loss) == pytest.approx(float(-surrogate + 0.25 * error - 0.1 * 0.7), rel=1e-6)
    assert float(metrics["value_loss"]) == pytest.approx(error) and float(metrics["clip_fraction"]) == 1.0
    assert float(metrics["approx_kl"]) == pytest.approx(torch.e**0.5 - 1.5, rel=1e-6)


def test_whitening_ignores_padding_and_leaves_equal_numbers_at_zero():
    x = torch.tensor([[1.0, 3.0, 99.0], [5.0, float("nan"), 7.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    white = whitened(x, mask)
    assert white[mask].tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5]) and (white[~mask] == 0).all()
    assert (whitened(torch.full((2, 3), 0.1), mask) == 0).all()
    assert (whitened(x, torch.zeros_like(mask)) == 0).all()


def test_explained_variance():
    mask = torch.ones(1, 4, dtype=torch.bool)
    returns = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.zeros(1, 4), returns, mask) == 0.0
    assert explained_variance(returns, torch.ones(1, 4), mask) != explained_variance(returns, torch.ones(1, 4), mask)


def test_advantages_are_gae_of_penalised_rewards():
    agent = agent_of({"max_new_tokens": 3}, value=True, gamma=0.9, lam=0.8, reference=1, beta=0.2)
    batch = agent.collect()
    scored = agent.policy.score(batch)
    penalised = agent._penalised(batch, scored, {"reward": 0.0})
    credit = agent.credit(penalised, scored, {})
    advantages, returns = gae(penalised.rewards, scored.values, batch.mask, gamma=0.9, lam=0.8)
    assert torch.equal(credit.advantages, advantages) and torch.equal(credit.returns, returns)


def test_a_row_that_an_outer_limit_cut_is_bootstrapped_from_its_last_state():
    mdp = four_mdp(**TWO | {"max_prompt_tokens": 5, "max_new_tokens": 4})
    env = VectorTextEnv(mdp, 3, autoreset_mode="Disabled", max_episode_steps=2)
    agent = PPO(tiny_model("gpt2", 4), env, prompts=6, samples=1, seed=0, dtype="float64", device="cpu", **PLAIN)
    torch.nn.init.normal_(agent.policy.value_head.weight, generator=torch.Generator().manual_seed(2))
    batch = agent.collect()
    assert batch.cut.any() and not batch.cut.all()
    bootstrap = agent.policy.score(batch).bootstrap
    for row in range(len(batch)):
        text = batch.tokens[row : row + 1, : batch.lengths[row]]
        hidden = agent.policy.model(text, output_hidden_states=True).hidden_states[-1][0, -1]
        value = float(agent.policy.value_head(hidden).detach()) if batch.cut[row] else 0.0
        assert float(bootstrap[row]) == pytest.approx(value, abs=1e-10)


# --- learning ---------------------------------------------------------------------------------------------------------


def test_an_update_stops_where_the_policy_has_moved_too_far():
    steps = {}
    for target in (None, 1e-9):
        agent = agent_of(epochs=3, minibatches=2, target_kl=target)
        metrics = agent.update(agent.collect())
        steps[target] = next(iter(agent.optimizer.state.values()))["step"]
        assert ("stopped_early" in metrics) == (target is not None)
    assert steps[None] == 6 and steps[1e-9] == 1  # the first step is at ratio 1


def test_the_first_ratio_is_one():
    agent = agent_of({"max_new_tokens": 3}, epochs=2)
    seen = []
    original = agent.loss
    agent.loss = lambda part, said, old, d: (
        seen.append((said.logp - old)[part.batch.mask]) or original(part, said, old, d)
    )
    agent.update(agent.collect())
    assert (seen[0] == 0).all() and (seen[-1] != 0).any()


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("config", [{"epochs": 1}, {"epochs": 3}, {"epochs": 2, "entropy": 0.1}, {"target_kl": 0.5}])
@pytest.mark.parametrize("more", [{}, {"critic": "separate"}, {"lora": 2}], ids=["shared", "separate", "lora"])
def test_the_first_step_begins_with_the_passes_that_scored(config, beta, more):
    """A limit of all rows makes the same micro-batches, but nothing is kept: the same bits with one more pass each."""
    if "lora" in more:
        pytest.importorskip("peft")

    def trained(micro_batch_rows):
        settings = more | config | {"micro_batch_rows": micro_batch_rows, "beta": beta, "minibatches": 1}
        world, told = rows(four_mdp(**TWO, max_prompt_tokens=5), 1), []
        agent = PPO(tiny_model("llama"), world, prompts=2, samples=4, learning_rate=0.1, seed=0, **settings)
        agent.learn(total_tokens=40, callback=lambda agent, metrics, batch: told.append(metrics))
        return agent, [{k: metrics[k] for k in ("reward", "loss", "entropy", "ratio")} for metrics in told]

    (kept, one), (anew, other) = trained(0), trained(8)
    assert len(one) > 1 and one == other
    assert torch.equal(flat(kept.policy.parameters()), flat(anew.policy.parameters()))
    models = 2 if "critic" in more else 1
    saved = anew.policy.counters.forward_passes - kept.policy.counters.forward_passes
    assert saved == len(one) * models


def test_a_separate_critic_has_parameters_of_its_own():
    mdp = four_mdp(**TWO | {"max_prompt_tokens": 5})
    agents = [
        PPO(tiny_model("llama", 4), rows(mdp, 1), critic=c, seed=0, dtype="float64", device="cpu", value_weight=1.0)
        for c in ("shared", "separate")
    ]
    sizes = [sum(p.numel() for p in a.policy.parameters()) for a in agents]
    assert sizes[1] == 2 * sizes[0] - 17  # the head, 16 weights and a bias, is there once
    agent = agents[1]
    before = flat(list(agent.policy.value_model.parameters()))
    agent.learn(total_timesteps=1)
    assert not torch.equal(before, flat(list(agent.policy.value_model.parameters())))
    batch = agent.collect()
    values = agent.policy.evaluate(batch).values.detach()
    end = int((batch.action_index[0] == 0).nonzero()[0, 0])
    hidden = agent.policy.value_model(batch.tokens[:1, :end], output_hidden_states=True).hidden_states[-1][0, -1]
    assert float(values[0, 0]) == pytest.approx(float(agent.policy.value_head(hidden).detach()), abs=1e-10)


def test_a_separate_critic_is_saved_and_loaded(tmp_path):
    mdp = four_mdp(**TWO | {"max_prompt_tokens": 5})
    agent = PPO(tiny_model("llama", 4), rows(mdp, 1), critic="separate", seed=0, dtype="float64", device="cpu")
    agent.learn(total_timesteps=1).save(tmp_path / "a")
    again = PPO.load(tmp_path / "a", rows(mdp, 1))
    batch = agent.collect()
    assert torch.equal(agent.policy.score(batch).values, again.policy.score(batch).values)


def test_the_weight_of_the_kl_adapts_towards_its_target():
    betas = {}
    for target in (1e-6, 1e6):
        agent = agent_of(reference=1, beta=0.1, kl_target=target, kl_horizon=10)
        agent.learn(total_timesteps=1)
        betas[target] = agent.beta
    assert betas[1e-6] > 0.1 > betas[1e6]


def test_settings_depend_on_the_policy_unless_they_are_given():
    config = agent_of(cls=PPO).config
    text = PPO.config_class().resolved(text=True)
    other = PPO.config_class(lam=0.5).resolved(text=False)
    assert (text.gamma, text.lam, text.beta, other.gamma, other.lam, other.beta) == (1.0, 1.0, 0.05, 0.99, 0.5, 0.0)
    assert config.epochs == 1 and text.epochs == 2


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"clip": 0.0}, "clip must be above 0, got 0.0"),
        ({"gamma": 1.5}, r"gamma must be in \[0, 1\], got 1.5"),
        ({"lam": -0.1}, r"lam must be in \[0, 1\], got -0.1"),
        ({"target_kl": 0.0}, "target_kl must be above 0, got 0.0"),
        ({"value_clip": -1.0}, "value_clip must be above 0, got -1.0"),
        ({"critic": "none"}, "critic must be one of 'shared', 'separate', got 'none'"),
        ({"kl": "k4"}, "kl must be one of 'k1', 'k2', 'k3', 'exact', got 'k4'"),
        ({"kl_in": "both"}, "kl_in must be one of 'reward', 'loss', got 'both'"),
        ({"kl_target": 6.0, "beta": 0.0}, "kl_target adapts beta, which must begin above 0, got beta=0.0"),
        ({"n_steps": 0}, "n_steps must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_said(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        PPO.config_class(**config)


def test_it_needs_a_value_head():
    mdp = four_mdp()
    with pytest.raises(ValueError, match="learning values needs a policy with a value head"):
        PPO(lm_policy(mdp), rows(mdp, 1))


# --- LoRA -------------------------------------------------------------------------------------------------------------


def lora_agent(cls=PPO, **config):
    pytest.importorskip("peft")
    mdp = four_mdp(**TWO | {"max_prompt_tokens": 5})
    settings = {"seed": 0, "lora": 2, "dtype": "float64", "device": "cpu", "beta": 0.2}
    return cls(tiny_model("llama", 4), rows(mdp, 1), **(settings | config)), mdp


@pytest.mark.parametrize("cls", [PPO, GRPO])
def test_lora_trains_adapters_only_and_the_reference_is_the_base(cls):
    agent, _ = lora_agent(cls, learning_rate=0.05)
    assert isinstance(agent.reference, AdaptersOff)
    base = {n: p.clone() for n, p in agent.policy.model.named_parameters() if "lora" not in n}
    batch = agent.collect()
    start = agent.reference.token_logp(batch)
    assert torch.equal(agent.policy.token_logp(batch), start)  # adapters begin at zero
    for _ in range(3):
        agent.learn(total_timesteps=1)
    assert all(torch.equal(p, base[n]) for n, p in agent.policy.model.named_parameters() if n in base)
    assert torch.equal(agent.reference.token_logp(batch), start)
    assert not torch.equal(agent.policy.token_logp(batch), start)


def test_adapters_are_saved_and_loaded_with_their_base(tmp_path):
    agent, mdp = lora_agent(learning_rate=0.05)
    agent.learn(total_timesteps=1).save(tmp_path / "a")
    again = PPO.load(tmp_path / "a", rows(mdp, 1))
    batch = agent.collect()
    assert torch.equal(agent.policy.token_logp(batch), again.policy.token_logp(batch))
    assert torch.equal(agent.reference.token_logp(batch), again.reference.token_logp(batch))
    assert isinstance(again.reference, AdaptersOff) and again.config.lora == 0
    trained = [n for n, p in again.policy.model.named_parameters() if p.requires_grad]
    assert trained and all("lora" in n for n in trained)


def test_an_adapter_on_a_named_model_keeps_the_name(tmp_path):
    pytest.importorskip("peft")
    import gymnasium as gym

    import llmgym  # noqa: F401

    policy = LMPolicy("tiny", gym.make("llmgym/TokenMDP-v0"), lora=4, device="cpu")
    (tmp_path / "a").mkdir()
    policy.save(tmp_path / "a")
    assert (
        not (tmp_path / "a" / "base").exists() and (tmp_path / "a" / "adapter_model.safetensors").stat().st_size < 1e6
    )
    again = LMPolicy(str(tmp_path / "a"), policy.mdp, device="cpu")
    assert len(again.parameters()) == len(policy.parameters())


@pytest.mark.parametrize("rank", [-1, True])
def test_a_rank_that_cannot_be_meant(rank):
    mdp = four_mdp()
    with pytest.raises(ValueError, match="lora must be"):
        LMPolicy(tiny_model("llama", 4), mdp, lora=rank)


def test_collected_rows_are_cut_only_by_outer_limits():
    mdp = four_mdp(task=Words(), tokenizer=toy_tokenizer(), reward=None, max_prompt_tokens=6)
    env = rows(mdp, 4)
    assert not rollout(env, LMPolicy(tiny_model("gpt2", 8), mdp, dtype="float64", device="cpu"), seed=0).cut.any()


def test_a_batch_without_its_mask_is_the_same_batch():
    agent = agent_of()
    batch = agent.collect()
    dirty = replace(batch, rewards=torch.where(batch.mask, batch.rewards, float("nan")))
    one, two = (agent.credit(b, agent.policy.score(b), {}).advantages for b in (batch, dirty))
    assert torch.equal(one, two)
