"""Language models and worlds small enough to enumerate, and a policy that replays given tokens."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from toys import Words
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from llmgym.agents.part import Part
from llmgym.batch import TextBatch
from llmgym.envs import VectorTextEnv
from llmgym.oracle import Oracle
from llmgym.policy import Action, LMPolicy
from llmgym.rollout import rollout
from llmgym.tasks import Problem
from llmgym.text import TextMDP

EOS4, A4, B4, EQUALS4 = range(4)
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
ROTARY = SIZES | {"num_key_value_heads": 2, "attention_dropout": 0.1, "initializer_range": 0.4}
NEOX = SIZES | {"rotary_pct": 0.5, "attention_dropout": 0.1, "hidden_dropout": 0.1, "initializer_range": 0.4}
DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
KINDS: dict[str, Any] = {
    "gpt2": lambda **k: GPT2Config(
        n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4, **DROPOUT, **k
    ),
    "llama": lambda **k: LlamaConfig(**ROTARY, **k),
    "qwen2": lambda **k: Qwen2Config(**ROTARY, **k),
    "qwen3": lambda **k: Qwen3Config(head_dim=8, **ROTARY, **k),
    "neox": lambda **k: GPTNeoXConfig(**NEOX, **k),
    "sliding": lambda **k: MistralConfig(sliding_window=3, **ROTARY, **k),
}


def tiny_model(kind: str = "gpt2", vocab: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """A random model with sharp distributions, dropout in its config and left in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = KINDS[kind](vocab_size=vocab, bos_token_id=None, eos_token_id=None, pad_token_id=None)
        return AutoModelForCausalLM.from_config(config).to(dtype).train()


def four_tokenizer(**special: Any) -> PreTrainedTokenizerFast:
    """Four tokens: <eos>, a, b and =; nothing to pad with."""
    backend = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "b": 2, "=": 3}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    special = {"eos_token": "<eos>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)


def irregular(problem: Problem, text: str, tokens: Sequence[int]) -> float:
    """A reward that is another one for every completion."""
    return math.sin(sum((i + 1.3) * (t + 1.7) for i, t in enumerate(tokens))) + 0.1 * len(problem.prompt)


def four_mdp(**changes: Any) -> TextMDP:
    """Three tokens of an alphabet of four: 40 completions, each with a reward of its own."""
    task = {"task": Words(), "tokenizer": four_tokenizer(), "reward": irregular}
    return TextMDP(**(task | {"max_prompt_tokens": 3, "max_new_tokens": 3} | changes))


def lm_policy(env: Any, model: Any = "gpt2", seed: int = 0, **settings: Any) -> LMPolicy:
    """A float64 policy over a tiny model that fits the environment's tokenizer; `model` is a kind or a model."""
    mdp = env if isinstance(env, TextMDP) else env.unwrapped.mdp
    model = tiny_model(model, mdp.codec.vocab_size, seed) if isinstance(model, str) else model
    return LMPolicy(model, mdp, **({"dtype": "float64", "device": "cpu", "seed": 0} | settings))


def rows(mdp: TextMDP, n: int, **shell: Any) -> VectorTextEnv:
    """n rows in lockstep, as agents step them."""
    return VectorTextEnv(mdp, n, autoreset_mode=AutoresetMode.DISABLED, **shell)


class Scripted:
    """Writes given tokens: row i takes its next ones from `streams[i]`, however long a block is."""

    def __init__(self, env: VectorTextEnv, streams: Sequence[Sequence[int]]):
        self.env, self.streams = env, streams

    def act(self, observation: Any, active: np.ndarray, *, states: Any = None, deterministic: bool = False) -> Action:
        """Blocks are filled up with token 1 where the stream ends: what nobody reads."""
        size = self.env.mdp.block_size
        tokens = np.ones((self.env.num_envs, size), np.int64)
        written = (self.env.chosen & (np.arange(self.env.mdp.length) < self.env.lengths[:, None])).sum(1)
        for row in np.flatnonzero(active):
            part = self.streams[row][written[row] : written[row] + size]
            tokens[row, : len(part)] = part
        return Action(tokens, np.zeros(tokens.shape))


class Bigram(nn.Module):
    """The smallest causal language model: the scores of the next token are a row of a table."""

    def __init__(self, table: torch.Tensor):
        super().__init__()
        self.table = nn.Parameter(table.clone())
        self.config = type("Config", (), {"hidden_size": table.shape[1]})()

    def get_input_embeddings(self) -> nn.Embedding:
        """As Hugging Face models have it."""
        return nn.Embedding(*self.table.shape)

    def forward(self, input_ids: torch.Tensor, logits_to_keep: Any = slice(None), **_: Any) -> Any:
        """Logits [n, T, V]; hidden states are the same."""
        scores = self.table[input_ids]
        return type("Output", (), {"logits": scores[:, logits_to_keep], "hidden_states": (scores,)})()


def every_episode(agent: Any, problem: Problem) -> tuple[Oracle, TextBatch]:
    """All episodes of an agent's world: the oracle, and the batch that its environment makes of them."""
    oracle = Oracle(agent.mdp, problem, agent.policy)
    streams = [[t for step in e for t in step.tokens] for e in oracle.episodes]
    env = rows(agent.mdp, len(streams))
    return oracle, rollout(env, Scripted(env, streams), [problem] * len(streams), groups=[0] * len(streams))


def expected_gradient(agent: Any, oracle: Oracle, batch: TextBatch, size: int) -> list[torch.Tensor]:
    """E[∇loss] of the agent's own advantages and loss over `size` independent episodes, without sampling.

    The loss is differentiated for every tuple of episodes at what `evaluate` says, weighted by its probability.
    """
    p, parameters = oracle.logp().exp().tolist(), agent.policy.parameters()
    evaluation = agent.policy.evaluate(batch, ref_logp=agent.reference_logp(batch), **agent.kl_options)
    names = [n for n in ("logp", "entropy", "values", "kl") if getattr(evaluation, n) is not None]
    totals = {name: torch.zeros_like(getattr(evaluation, name)) for name in names}
    for chosen in itertools.product(range(len(batch)), repeat=size):
        index, weight = torch.tensor(chosen), math.prod(p[i] for i in chosen)
        part = batch.select(index)
        width = part.mask.shape[1]
        leaves = {n: getattr(evaluation, n)[index, :width].detach().requires_grad_() for n in names}
        said = replace(evaluation, **leaves, n_tokens=part.n_tokens)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scored = agent.policy.score(part) if agent._needs_score() else None
            given = Part(part, *agent.credit(part, scored, {}))
        loss, _ = agent.loss(given, said, leaves["logp"].detach(), agent.denominator(part))
        slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        for name, slope in zip(names, slopes, strict=True):
            totals[name][:, :width].index_add_(0, index, weight * slope)
    weighted = sum((totals[name] * getattr(evaluation, name)).sum() for name in names)
    return list(torch.autograd.grad(weighted, parameters, allow_unused=True, materialize_grads=True))


def assert_gradients(ours: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], scale: float = 1.0) -> None:
    """Equal up to rounding, and not because both are zero."""
    largest = max(float(g.abs().max()) for g in expected)
    assert largest > 1e-4
    for one, two in zip(ours, expected, strict=True):
        assert float((one - scale * two).abs().max()) <= 1e-12 * max(largest, 1.0)


def flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """All numbers of some tensors in one vector."""
    return torch.cat([t.detach().reshape(-1) for t in tensors])
