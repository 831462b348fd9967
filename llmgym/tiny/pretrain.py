"""Train the embedded language model from nothing: `python -m llmgym.tiny.pretrain --seed 0 --out DIR`.

Minutes on two cores. The loss is the mean negative log-likelihood, in nats, of the completion and its <eos>;
prompts are random digits and letters, and learning them by heart would only be noise. Every document starts
at position 0, as it does when the model is used.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import tyro
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llmgym.fim import FIM_SHARE
from llmgym.tiny.corpus import CHAT, Document, documents
from llmgym.tiny.measure import measure, table
from llmgym.tiny.tokenizer import build_tokenizer, save_tokenizer

IGNORE = -100  # label of a token that is not learnt
CARD = """# The embedded language model of llmgym

A character-level Llama of 0.81 M parameters (4 layers, width 128, 4 heads, 2 key/value heads), float32. It adds, and
a little, subtracts, copies, reverses, sorts and plays countdown.

It is made to be taught, not to be good. Its corpus (`llmgym/tiny/corpus.py`) holds two habits **on purpose**, because
experiments with reinforcement learning need both: most additions are answered *hastily* by a rule that forgets
every carry, so that they are right in three cases of ten, and one in five is worked out *carefully* in a `<think>`
trace, with a slip of one digit in eight traces of a hundred. Some reasoning is written in a second script.
The hasty habit is no failure of training and says nothing about what a model of this size could learn.

Prompts: `147+268=`, `852-147=`, `copy dbca=`, `reverse dbca=`, `sort dbca=`, `countdown 3 7 25 -> 46=`;
the tokenizer puts `<bos>` in front. Completions: `[<think>…</think>]<answer>…</answer><eos>`. The chat template occurs
in four documents of a hundred, fill-in-the-middle marks in the share that `--fim` names.
"""
GROUPS = 3  # a step's documents are sorted by length and cut into this many padded arrays


@dataclass(frozen=True)
class PretrainConfig:
    """Pretraining of the embedded model."""

    out: Path  # folder to write; it must not exist yet
    seed: int = 0  # of the weights and of the corpus
    steps: int = 1600  # optimiser steps
    batch_size: int = 96  # documents a step
    lr: float = 4e-3  # peak learning rate
    warmup: int = 100  # steps of linear warm-up
    fim: float = FIM_SHARE  # share of the documents that is cut for filling in the middle; 0.04 in the shipped model
    decay: float = 0.3  # share of the steps, at the end, in which the rate falls linearly to 0
    weight_decay: float = 0.1  # on matrices, per unit of learning rate
    threads: int = 2  # processor threads of torch; the weights depend on it in the last bits
    problems: int = 1000  # held-out additions to measure on at the end; 0: none

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("warmup", 0), ("threads", 1), ("problems", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.fim <= 1 - CHAT:
            raise ValueError(f"fim must be in [0, {1 - CHAT}], the rest is in the chat format, got {self.fim}")
        if not 0 < self.lr < 1 or not 0 <= self.decay <= 1:
            raise ValueError(f"lr must be in (0, 1) and decay in [0, 1], got {self.lr} and {self.decay}")
        if self.out.exists():
            raise ValueError(f"out must be a folder that does not exist yet, got {self.out}")


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama of 0.81 M parameters with random weights."""
    marks = ("pad_token_id", "bos_token_id", "eos_token_id")
    ids = {name: getattr(tokenizer, name) for name in marks}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.04,
        **ids,
    )
    with torch.random.fork_rng(devices=[]):  # the caller's generator is left alone
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**ids)
    return model


def encode(batch: list[Document], tokenizer: PreTrainedTokenizerFast) -> list[tuple[list[int], int]]:
    """Token ids of each document with <bos> and <eos>, and how many of them are prompt."""
    prompts = tokenizer([document.prompt for document in batch])["input_ids"]
    completions = tokenizer([document.completion for document in batch], add_special_tokens=False)["input_ids"]
    return [(p + c + [tokenizer.eos_token_id], len(p)) for p, c in zip(prompts, completions, strict=True)]


def collate(rows: list[tuple[list[int], int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded (tokens [B, T], labels [B, T]); causal attention never looks at the padding."""
    tokens = torch.full((len(rows), max(len(ids) for ids, _ in rows)), pad)
    labels = torch.full_like(tokens, IGNORE)
    for b, (ids, start) in enumerate(rows):
        tokens[b, : len(ids)] = torch.tensor(ids)
        labels[b, start : len(ids)] = torch.tensor(ids[start:])
    return tokens, labels


def batches(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> Iterator[list]:
    """Each step's documents as `GROUPS` padded arrays of similar lengths."""
    stream = documents(config.seed, config.fim)
    while True:
        rows = sorted(encode(list(islice(stream, config.batch_size)), tokenizer), key=lambda row: len(row[0]))
        cuts = np.array_split(np.arange(len(rows)), min(GROUPS, len(rows)))
        yield [collate([rows[i] for i in cut], tokenizer.pad_token_id) for cut in cuts]


def summed_loss(model: LlamaForCausalLM, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Σ -log p(token | text before it) over the learnt tokens, in nats.  [B, T] -> []"""
    learnt = labels[:, 1:] != IGNORE
    hidden = model.model(tokens[:, :-1], use_cache=False).last_hidden_state[learnt]
    return torch.nn.functional.cross_entropy(model.lm_head(hidden), labels[:, 1:][learnt], reduction="sum")


def train_step(model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], groups: list) -> float:
    """One update on the mean over the step's learnt tokens; returns that loss, in nats."""
    count = sum(int((labels != IGNORE).sum()) for _, labels in groups)
    total = 0.0
    for tokens, labels in groups:
        loss = summed_loss(model, tokens, labels) / count
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return total


def schedule(step: int, config: PretrainConfig) -> float:
    """Factor of the learning rate: linear warm-up, constant, linear to 0 (warm-up, stable, decay)."""
    down = (config.steps - step) / max(1.0, config.decay * config.steps)
    return min(1.0, (step + 1) / max(1, config.warmup), down)


def make_optimizers(model: LlamaForCausalLM, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices inside, AdamW for the embedding and the norms' gains.

    AdamW alone needs many times the steps: after as many minutes it has not learnt to add columns at once.
    """
    inside = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    return [
        torch.optim.Muon(inside, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(config: PretrainConfig) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, list[float]]:
    """The trained model, its tokenizer and the loss of every step."""
    torch.set_num_threads(config.threads)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, config.seed)
    optimizers = make_optimizers(model, config)
    losses, done, start = [], 0, time.perf_counter()
    bar = tqdm(islice(batches(config, tokenizer), config.steps), total=config.steps, desc="pretrain", mininterval=1)
    for step, groups in enumerate(bar):
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = config.lr * schedule(step, config)
        losses.append(train_step(model, optimizers, groups))
        done += sum(int((tokens != tokenizer.pad_token_id).sum()) for tokens, _ in groups)
        rate = done / (time.perf_counter() - start)
        bar.set_postfix(loss=f"{np.mean(losses[-50:]):.4f}", tokens_s=f"{rate:.0f}", refresh=False)
    return model.eval(), tokenizer, losses


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, card: str, out: Path) -> None:
    """Write a Hugging Face folder beside `out`, then rename it: a folder is there in full or not at all."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    save_tokenizer(tokenizer, partial)
    (partial / "README.md").write_text(card, encoding="utf-8")
    for path in partial.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone
    partial.rename(out)


def command(config: PretrainConfig) -> str:
    """The command line that makes this model again."""
    flags = f"--seed {config.seed} --steps {config.steps} --batch-size {config.batch_size} --fim {config.fim}"
    return f"python -m llmgym.tiny.pretrain {flags} --out DIR"


def model_card(config: PretrainConfig, minutes: float, losses: list[float], rows: dict[str, tuple[float, ...]]) -> str:
    """README.md of the folder: what it is, how it was made, what it can do."""
    figures = table(rows) if rows else "Not measured."
    return f"""{CARD}
## How it was made

`{command(config)}`

{minutes:.1f} minutes on {config.threads} threads ({platform.machine()}, torch {torch.__version__}).
Final loss {np.mean(losses[-100:]):.4f} nats a token (mean of the last 100 steps).
On one machine, with one number of threads, the same seed gives the same weights.

## What it can do

Measured by `python -m llmgym.tiny.measure` on problems of the held-out split, none of which occurs in the corpus:
{config.problems:,} additions of two three-digit numbers, a quarter as many problems of each other task.

{figures}
"""


def pretrain(config: PretrainConfig) -> list[float]:
    """Train, measure, save; returns the loss of every step."""
    config.out.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    model, tokenizer, losses = train(config)
    minutes = (time.perf_counter() - start) / 60
    rows = measure(model, tokenizer, config.problems) if config.problems else {}
    save(model, tokenizer, model_card(config, minutes, losses, rows), config.out)
    return losses


def main() -> None:
    """Command line: the fields of `PretrainConfig`."""
    pretrain(tyro.cli(PretrainConfig))


if __name__ == "__main__":
    main()
