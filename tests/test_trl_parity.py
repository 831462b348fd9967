"""TRL's numbers for given tensors, which `benchmarks/trl_losses.py` made: ours are the same to 1e-6 in float32.

Losses and their gradients. Where TRL has a factor or a convention of its own, the test says which.
"""

import json
from pathlib import Path

import pytest
import torch

from llmgym.losses import (
    bradley_terry_loss,
    dpo_loss,
    grpo_loss,
    kl_estimate,
    masked_mean,
    ppo_loss,
    sft_loss,
    value_loss,
)
from llmgym.returns import gae

DATA = Path(__file__).parent / "data"
TRL = json.loads((DATA / "trl_losses.json").read_text("utf-8"))
PPO = json.loads((DATA / "trl_ppo.json").read_text("utf-8"))["ppo"]["cases"]


def close(ours, theirs):
    ours = torch.as_tensor(ours)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, torch.tensor(theirs), atol=1e-6, rtol=0)


def cases(section):
    return pytest.mark.parametrize(
        "case", TRL[section]["cases"], ids=lambda c: " ".join(str(v) for v in c["settings"].values())
    )


def tensors(section):
    return {name: torch.tensor(value) for name, value in TRL[section].items() if name != "cases"}


def check(case, loss, *leaves):
    close(loss, case["loss"])
    for slope, theirs in zip(torch.autograd.grad(loss, leaves), case["gradients"], strict=True):
        close(slope, theirs)


@cases("dpo")
def test_dpo(case):
    """The lengths of "ipo" and "sigmoid_norm" are TRL's token means; "aot_unpaired" of single pairs is cDPO."""
    data, settings = tensors("dpo"), case["settings"]
    logp, mask = data["logp"].requires_grad_(), data["mask"]
    sums = (*(logp * mask).sum(-1).chunk(2), *(data["ref_logp"] * mask).sum(-1).chunk(2))
    how = {"beta": settings["beta"], "label_smoothing": settings.get("label_smoothing", 0.0)}
    if settings["loss_type"] in ("ipo", "sigmoid_norm"):
        how["chosen_lengths"], how["rejected_lengths"] = mask.sum(-1).chunk(2)
    kind = "ipo" if settings["loss_type"] == "ipo" else "sigmoid"
    check(case, dpo_loss(*sums, kind=kind, **how), logp)


@cases("cpo")
def test_without_a_reference(case):
    """CPO's preference term; TRL's SimPO is given means over tokens, here of completions of one token."""
    data, settings = tensors("cpo"), case["settings"]
    chosen, rejected = data["chosen_logp"].requires_grad_(), data["rejected_logp"].requires_grad_()
    how = {"beta": settings["beta"], "label_smoothing": settings.get("label_smoothing", 0.0)}
    how |= {"margin": settings.get("simpo_gamma", 0.0)}
    kind = "ipo" if settings["loss_type"] == "ipo" else "sigmoid"
    check(case, dpo_loss(chosen, rejected, None, None, kind=kind, **how), chosen, rejected)


@cases("reward")
def test_bradley_terry(case):
    scores = tensors("reward")["scores"].requires_grad_()
    check(case, bradley_terry_loss(*scores[:, 0].chunk(2)), scores)


@cases("sft")
def test_sft(case):
    data = tensors("sft")
    logp = data["logp"].requires_grad_()
    check(case, sft_loss(logp, data["mask"]), logp)


@cases("grpo")
def test_grpo(case):
    """ "bnpo" and "dapo" are the mean over actions (of a batch, of all that is accumulated); "sequence" is GSPO."""
    data, settings = tensors("grpo"), case["settings"]
    logp, old_logp, mask = data["logp"].requires_grad_(), data["old_logp"], data["mask"]
    advantages = data["advantages"][:, None].expand_as(logp)
    normalize = {"grpo": "rows", "dr_grpo": "constant"}.get(settings["loss_type"], "actions")
    how = {"clip": 0.2, "clip_high": settings["epsilon_high"], "beta": settings["beta"], "normalize": normalize}
    how["denominator"] = float(mask.numel()) if normalize == "constant" else None
    kl = kl_estimate(logp, data["ref_logp"], "k3", mask)
    if settings["level"] == "sequence":
        rows = [(x * mask).sum(-1, keepdim=True) for x in (logp, old_logp)]
        row_mask, how["n_tokens"] = mask.any(-1, keepdim=True), mask.sum(-1, keepdim=True)
        loss = grpo_loss(*rows, advantages[:, :1], row_mask, **how)
    else:
        loss = grpo_loss(logp, old_logp, advantages, mask, kl=kl, **how)
    check(case, loss, logp)


each_update = pytest.mark.parametrize("case", PPO, ids=lambda case: case["settings"]["kl_estimator"])


def ppo(case):
    """Tensors of one update of TRL's PPO, and its masks of tokens and of values: these have one place more."""
    data = {k: torch.tensor(v) for k, v in case.items() if k not in ("settings", "gradients")}
    return data, ~data["padding_mask"], ~data["padding_mask_p1"]


@each_update
def test_kl_penalty_of_ppo(case):
    data, mask, _ = ppo(case)
    kind = case["settings"]["kl_estimator"]
    close(kl_estimate(data["logprobs"], data["ref_logprobs"], kind, mask), case["kl"])


@each_update
def test_gae(case):
    """Before whitening: TRL whitens advantages with the mean and the deviation of the tokens that count."""
    data, mask, value_mask = ppo(case)
    how = {"gamma": case["settings"]["gamma"], "lam": case["settings"]["lam"]}
    advantages, returns = gae(data["rewards"], data["values"], value_mask, **how)
    close(returns, case["returns"])
    mean = masked_mean(advantages, mask)
    deviation = advantages[mask].std()
    close(torch.where(mask, (advantages - mean) / deviation, 0.0), case["advantages"])


@each_update
def test_policy_and_value_loss_of_ppo(case):
    """The factor ½ of the value loss is TRL's."""
    data, mask, value_mask = ppo(case)
    settings, rows = case["settings"], data["micro_batch_inds"]
    mask, value_mask = mask[rows], value_mask[rows]
    logp, vpred = data["new_logprobs"].requires_grad_(), data["vpred"].requires_grad_()
    policy = ppo_loss(logp, data["logprobs"][rows], data["advantages"][rows], mask, clip=settings["cliprange"])
    value = 0.5 * value_loss(
        vpred,
        data["returns"][rows],
        value_mask,
        old_values=data["values"][rows],
        clip=settings["cliprange_value"],
    )
    close(policy, case["pg_loss"])
    close(value, case["vf_loss"])
    slopes = torch.autograd.grad(policy + settings["vf_coef"] * value, (logp, vpred))
    for slope, theirs in zip(slopes, case["gradients"], strict=True):
        close(slope, theirs)


def test_the_data_reach_both_sides_of_the_clip():
    """Or the comparison would say little."""
    grpo = tensors("grpo")
    ratio = (grpo["logp"] - grpo["old_logp"]).exp()[grpo["mask"]]
    assert (ratio > 1.28).any() and (ratio < 0.8).any() and ((ratio > 0.8) & (ratio < 1.2)).any()
    for case in PPO:
        data, mask, value_mask = ppo(case)
        rows = data["micro_batch_inds"]
        ratio = (data["new_logprobs"] - data["logprobs"][rows]).exp()[mask[rows]]
        assert (ratio > 1.2).any() and (ratio < 0.8).any()
        assert ((data["vpred"] - data["values"][rows]).abs()[value_mask[rows]] > 0.15).any()
        assert data["micro_batch_inds"].tolist() != sorted(data["micro_batch_inds"].tolist())
