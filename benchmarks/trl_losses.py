"""What TRL's own code says of given tensors: the literal numbers that `tests/test_trl_parity.py` compares ours with.

TRL lives in a virtual environment of its own. PPO left it after version 1.12, so there are two of them:

    python -m venv trl && trl/bin/pip install -c constraints.txt trl==1.16.0 tyro
    trl/bin/python benchmarks/trl_losses.py --out tests/data/trl_losses.json
    python -m venv trl_ppo && trl_ppo/bin/pip install -c constraints.txt trl==1.12.0 tyro
    trl_ppo/bin/python benchmarks/trl_losses.py --part ppo --out tests/data/trl_ppo.json

No formula is written again here. The loss methods of the trainers are called unbound, with a stand-in for the trainer
that has its settings and a model that answers with the given numbers. PPO's loss is inlined in `train`, so that runs
for one update, with the same kind of stand-ins; what it holds in its local variables when it calls `backward` is noted.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest import mock

import torch
import trl
from accelerate import Accelerator
from torch import Tensor
from transformers import set_seed


@dataclass(frozen=True)
class Config:
    """What to write."""

    out: Path  # the JSON file
    part: Literal["losses", "ppo"] = "losses"  # "ppo" needs a TRL that has it, 1.12 or older
    seed: int = 0


B, T, VOCAB = 6, 5, 11  # rows, tokens of a completion, size of the vocabulary


def main(config: Config) -> None:
    set_seed(config.seed)
    parts = {"losses": (dpo, cpo, reward, sft, grpo), "ppo": (ppo,)}[config.part]
    versions = {"trl": trl.__version__, "torch": torch.__version__.split("+")[0]}
    sections: dict[str, Any] = {"made_by": "benchmarks/trl_losses.py", "versions": versions}
    sections |= {part.__name__: part() for part in parts}
    # Tensors become lists; float32 numbers survive exactly.
    lines = [f'"{name}": {json.dumps(section, default=lambda x: x.tolist())}' for name, section in sections.items()]
    config.out.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def trainer(**settings: Any) -> SimpleNamespace:
    """What a loss method reads of its trainer."""
    model = SimpleNamespace(training=True)
    metrics = {mode: defaultdict(list) for mode in ("train", "eval")}
    common = {"_metrics": metrics, "_total_train_tokens": 0, "_tp_size": 1, "aux_loss_enabled": False}
    return SimpleNamespace(accelerator=Accelerator(cpu=True), model=model, **(common | settings))


def ragged(rows: int, most: int) -> Tensor:
    """Masks of completions of different lengths, none empty, [rows, most]."""
    return torch.arange(most) < torch.randint(1, most + 1, (rows, 1))


def log_probs(rows: int = B) -> Tensor:
    """log-probs of tokens, of about the size that a language model gives."""
    return -torch.rand(rows, T) * 3


def case(settings: dict[str, Any], loss: Tensor, *leaves: Tensor) -> dict[str, Any]:
    """A loss with its gradients."""
    return {"settings": settings, "loss": loss, "gradients": torch.autograd.grad(loss, leaves)}


# --- pairs ---


def dpo() -> dict[str, Any]:
    """`DPOTrainer._compute_loss` on log-probs of tokens; chosen completions first, then rejected ones."""
    mask, leaf = ragged(2 * B, T), log_probs(2 * B).requires_grad_()
    ref = leaf.detach() + 0.5 * torch.randn(2 * B, T)
    settings: list[dict[str, Any]] = [
        {"loss_type": kind, "beta": beta} for kind in ("sigmoid", "sigmoid_norm", "ipo") for beta in (0.1, 1.5)
    ]
    cases = [case(s, dpo_loss(leaf, ref, mask, **s), leaf) for s in settings]
    # Label smoothing is left in the AOT losses alone. These sort the pairs of a batch, so pairs come one at a time.
    for s in ({"loss_type": "aot_unpaired", "beta": beta, "label_smoothing": 0.1} for beta in (0.1, 1.5)):
        pairs = [[i, B + i] for i in range(B)]
        cases.append(case(s, sum(dpo_loss(leaf[p], ref[p], mask[p], **s) for p in pairs) / B, leaf))
    return {"logp": leaf, "ref_logp": ref, "mask": mask, "cases": cases}


def dpo_loss(logp: Tensor, ref: Tensor, mask: Tensor, *, loss_type: str, beta: float, label_smoothing: float = 0.0):
    """TRL's loss of one batch."""
    stub = trainer(
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=label_smoothing,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        use_weighting=False,
    )
    completion = torch.nn.functional.pad(mask.long(), (1, 0))  # after a prompt of one token
    chosen, rejected = (ref * mask).sum(-1).chunk(2)
    inputs = {"input_ids": torch.zeros_like(completion), "attention_mask": torch.ones_like(completion)}
    inputs |= {"completion_mask": completion, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    return trl.DPOTrainer._compute_loss(stub, lambda **_: answer(logp, mask), inputs, return_outputs=False)


def answer(logp: Tensor, mask: Tensor) -> SimpleNamespace:
    """What TRL's models say: log-probs of the labelled tokens, 0 elsewhere; the rest goes into metrics."""
    nothing = torch.zeros_like(logp)
    return SimpleNamespace(
        log_probs=logp * mask, label_mask=mask, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
    )


def cpo() -> dict[str, Any]:
    """`CPOTrainer.cpo_loss`: without a reference; SimPO has means over tokens and a margin."""
    from trl.experimental.cpo import CPOTrainer

    chosen, rejected = (10 * log_probs()[:, 0]).requires_grad_(), (10 * log_probs()[:, 0]).requires_grad_()
    settings: list[dict[str, Any]] = [{"loss_type": "sigmoid", "label_smoothing": e} for e in (0.0, 0.1)]
    settings += [{"loss_type": "ipo"}, {"loss_type": "simpo", "simpo_gamma": 0.5, "label_smoothing": 0.1}]
    cases = []
    for s in settings:
        stub = trainer(**({"alpha": 0.0, "beta": 0.3, "label_smoothing": 0.0} | s))
        losses, _, _ = CPOTrainer.cpo_loss(stub, chosen, rejected)
        cases.append(case(s | {"beta": 0.3}, losses.mean(), chosen, rejected))
    return {"chosen_logp": chosen, "rejected_logp": rejected, "cases": cases}


def reward() -> dict[str, Any]:
    """`RewardTrainer.compute_loss` on scores."""
    scores = torch.randn(2 * B, 1).requires_grad_()
    stub = trainer(args=SimpleNamespace(center_rewards_coefficient=None))
    inputs = {"attention_mask": torch.ones(2 * B, T)}
    loss = trl.RewardTrainer.compute_loss(stub, lambda **_: SimpleNamespace(logits=scores), inputs)
    return {"scores": scores, "cases": [case({}, loss, scores)]}


# --- batches of tokens ---


def sft() -> dict[str, Any]:
    """`SFTTrainer.compute_loss`."""
    mask, leaf = ragged(B, T), log_probs().requires_grad_()
    args = SimpleNamespace(loss_type="nll", average_tokens_across_devices=False)
    stub = trainer(args=args, compute_loss_func=None, label_smoother=None)
    inputs = {"labels": None, "attention_mask": torch.ones(B, T)}
    loss = trl.SFTTrainer.compute_loss(stub, lambda **_: answer(leaf, mask), inputs)
    return {"logp": leaf, "mask": mask, "cases": [case({}, loss, leaf)]}


def grpo() -> dict[str, Any]:
    """`GRPOTrainer._compute_loss` on log-probs of tokens, with ratios on both sides of the clip."""
    mask, leaf = ragged(B, T), log_probs().requires_grad_()
    old = leaf.detach() + 0.3 * torch.randn(B, T)
    ref, advantages = leaf.detach() + 0.5 * torch.randn(B, T), torch.randn(B)
    data = {"old_logp": old, "ref_logp": ref, "advantages": advantages, "mask": mask}
    settings: list[dict[str, Any]] = [
        {"loss_type": kind, "level": "token", "beta": beta, "epsilon_high": high}
        for kind in ("grpo", "bnpo", "dapo", "dr_grpo")
        for beta, high in ((0.0, 0.2), (0.04, 0.2), (0.5, 0.28))
    ]
    settings += [{"loss_type": "grpo", "level": "sequence", "beta": 0.0, "epsilon_high": 0.28}]  # GSPO
    return {"logp": leaf} | data | {"cases": [case(s, grpo_loss(leaf, data, **s), leaf) for s in settings]}


def grpo_loss(logp: Tensor, data: dict[str, Tensor], *, loss_type: str, level: str, beta: float, epsilon_high: float):
    """TRL's loss of one batch; `max_completion_length` of Dr. GRPO is T."""
    stub = trainer(
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        loss_type=loss_type,
        importance_sampling_level=level,
        beta=beta,
        epsilon_low=0.2,
        epsilon_high=epsilon_high,
        max_completion_length=T,
        current_gradient_accumulation_steps=1,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp, torch.zeros_like(logp), None),
    )
    mask = data["mask"].long()
    inputs = {
        "prompt_ids": torch.zeros(B, 1, dtype=torch.long),
        "prompt_mask": torch.ones(B, 1, dtype=torch.long),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": data["advantages"],
        "old_per_token_logps": data["old_logp"],
        "ref_per_token_logps": data["ref_logp"],
        "num_items_in_batch": mask.sum(),
    }
    return trl.GRPOTrainer._compute_loss(stub, None, inputs)


# --- PPO ---

PAD, EOS = 0, 1
PPO = {"gamma": 0.97, "lam": 0.9, "cliprange": 0.2, "cliprange_value": 0.15, "vf_coef": 0.1, "kl_coef": 0.1}
NOTED = ("logprobs", "ref_logprobs", "kl", "rewards", "values", "returns", "advantages", "padding_mask")
NOTED += ("padding_mask_p1", "micro_batch_inds", "new_logprobs", "vpred", "pg_loss", "vf_loss")


def ppo() -> dict[str, Any]:
    """One update of `PPOTrainer.train`, with the k1 and with the k3 penalty in the reward."""
    return {"cases": [ppo_update(kind) for kind in ("k1", "k3")]}


def ppo_update(kl_estimator: str) -> dict[str, Any]:
    """The local variables of `train` when it calls `backward`, and the gradients of the loss it has there."""
    from trl.experimental.ppo import PPOTrainer, ppo_trainer

    noted: dict[str, Any] = {"settings": PPO | {"kl_estimator": kl_estimator}}

    def backward(loss: Tensor) -> None:
        local = sys._getframe(1).f_locals
        slopes = torch.autograd.grad(loss, (local["new_logprobs"], local["vpred"]))
        noted.update({name: local[name] for name in NOTED} | {"gradients": slopes})

    data = ppo_data()
    says = {"ref": SimpleNamespace(logits=data["ref"]), "new": (SimpleNamespace(logits=data["new"]), data["vpred"])}
    scores = {"values": (data["values"], None, None), "reward": (None, data["scores"], None)}
    with mock.patch.multiple(
        ppo_trainer,
        batch_generation=lambda *_: (data["texts"], data["old"]),
        forward=lambda model, *_: says[model.name],
        get_reward=lambda model, *_: scores[model.name],
        unwrap_model_for_generation=mock.MagicMock(),
    ):
        PPOTrainer.train(ppo_trainer_stub(kl_estimator, data["texts"][:, :2], backward))
    return noted


def ppo_data() -> dict[str, Tensor]:
    """A prompt of two tokens, completions of all lengths, one without EOS, and what the models say of them."""
    completions = torch.randint(2, VOCAB, (B, T))
    completions[range(1, B), range(B - 1)] = EOS
    old, values = torch.randn(B, T, VOCAB), torch.randn(B, 2 + T, 1)
    at = torch.nn.functional.pad(old, (0, 0, 1, 1))  # the last place of the prompt predicts the first token
    new = (at + 0.4 * torch.randn(at.shape)).requires_grad_().clone()  # `train` divides it in place
    return {
        "texts": torch.cat([torch.full((B, 2), 2), completions], 1),
        "old": old,
        "new": new,
        "ref": at + 0.4 * torch.randn(at.shape),
        "values": values,
        "vpred": (values + 0.3 * torch.randn(values.shape)).requires_grad_(),
        "scores": torch.randn(B),
    }


def ppo_trainer_stub(kl_estimator: str, prompts: Tensor, backward: Any) -> SimpleNamespace:
    """What `train` reads of its trainer."""
    one = ("gradient_accumulation_steps", "num_ppo_epochs", "num_mini_batches", "num_total_batches", "temperature")
    rows = ("batch_size", "local_batch_size", "local_mini_batch_size", "per_device_train_batch_size")
    rows += ("local_rollout_forward_batch_size", "total_episodes")
    off = ("logging_steps", "eval_steps", "save_steps", "missing_eos_penalty", "num_sample_generations")
    args = dict.fromkeys(one, 1) | dict.fromkeys(rows, B) | dict.fromkeys(off[:4]) | {off[4]: 0}
    args |= {"whiten_rewards": False, "ds3_gather_for_generation": False, "response_length": T}
    accelerator = mock.MagicMock(device="cpu", backward=backward, gather_for_metrics=lambda x: x)
    accelerator.unwrap_model.return_value.value_model.name = "values"
    model, ref_model, reward_model = mock.MagicMock(), mock.MagicMock(), mock.MagicMock()
    model.name, ref_model.name, reward_model.name = "new", "ref", "reward"
    return mock.MagicMock(
        args=SimpleNamespace(**args, **PPO, kl_estimator=kl_estimator),
        accelerator=accelerator,
        model=model,
        ref_model=ref_model,
        reward_model=reward_model,
        processing_class=SimpleNamespace(pad_token_id=PAD, eos_token_id=EOS),
        dataloader=[{"input_ids": prompts}],
        stop_token_id=EOS,
        is_deepspeed_enabled=False,
        train_dataset_len=B,
        state=SimpleNamespace(),
    )


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
