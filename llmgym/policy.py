"""`LMPolicy`: a causal language model as a policy over blocks of tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file, save_model
from safetensors.torch import load_model as load_model_weights
from torch import Tensor, nn

from llmgym.batch import Evaluation, Scored, TextBatch, by_length, first_token, sum_by_action
from llmgym.blocks import BlockWriter
from llmgym.counters import Counters
from llmgym.decoder import IncrementalDecoder
from llmgym.forward import make_forward
from llmgym.kernels import read_off
from llmgym.lora import add_lora, is_lora, save_lora
from llmgym.losses import KLKind, exact_kl, kl_estimate, wider
from llmgym.models import check_positions, check_vocab, load_model
from llmgym.sampling import check_sampling, sample, sampling_logits
from llmgym.text import TextMDP, TextState

ValueKind = Literal["shared", "separate"]


class Action(NamedTuple):
    """One action a row, as numpy arrays.

    Attributes:
        tokens: int64 [B, block_size]; what follows the block's end is 0 and ignored by the environment.
        logp: behaviour log-prob of each token under the distribution really sampled from, nats, [B, block_size].
    """

    tokens: np.ndarray
    logp: np.ndarray

    @property
    def for_env(self) -> np.ndarray:
        """What `step` takes: [B] on a token environment, [B, block_size] else."""
        return self.tokens[:, 0] if self.tokens.shape[1] == 1 else self.tokens


class LMPolicy:
    """A Hugging Face causal language model that acts on a text environment.

    `act` is a pure function of its input: a KV cache remembers the ids of each row and only saves work. The model
    stays in evaluation mode while it learns, so that dropout never makes two scorings differ.

    Args:
        model: "tiny", a folder, a hub id or a model object.
        env: a text environment (single or vector), for its rules and tokenizer; or a `TextMDP`.
        temperature: > 0; log-probs are those of the tempered distribution.
        top_k, top_p: restrict sampling; leave them off in training, where the support must not move.
        value_head: adds a linear value head, starting at 0: True or "shared" on the last hidden state of the model
            itself, "separate" on that of a copy of the model with parameters of its own.
        lora: rank of LoRA adapters (Hu et al. 2022) on every linear layer, which are then all that is trained; needs
            the package peft. 0 trains the whole model.
        device: "auto", "cpu", "cuda", "cuda:1", …
        dtype: "float32", "bfloat16", "float64" or "auto" (as stored).
        seed: of the sampling generator.

    Raises:
        ValueError: settings out of range, a model that cannot be loaded or has too small a vocabulary.
    """

    def __init__(
        self,
        model: Any,
        env: Any,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        value_head: bool | ValueKind = False,
        lora: int = 0,
        device: str = "auto",
        dtype: str = "float32",
        seed: int | None = None,
    ):
        check_sampling(temperature, top_k, top_p)
        self.mdp: TextMDP = env if isinstance(env, TextMDP) else env.unwrapped.mdp
        self.name = str(model) if isinstance(model, str | Path) else None
        self.model = load_model(model, device=device, dtype=dtype)
        if lora:
            self.model = add_lora(self.model, lora, seed=seed or 0)
        check_vocab(self.model, self.mdp.codec)
        check_positions(self.model, self.mdp.length)
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        parameter = next(self.model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.value_head = _value_head(self.model, parameter) if value_head else None
        self.value_model = copy.deepcopy(self.model) if value_head == "separate" else None
        self.value_forward = None if self.value_model is None else make_forward(self.value_model)
        self.counters = Counters()
        self.decoder = IncrementalDecoder(self.model, self.counters)
        self.generator = torch.Generator(self.device)
        self.seed(seed)

    def seed(self, seed: int | None) -> None:
        """Seed the sampling generator; None takes fresh entropy."""
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)

    def parameters(self) -> list[nn.Parameter]:
        """What an optimiser trains."""
        modules = [m for m in (self.model, self.value_head, self.value_model) if m is not None]
        return [p for module in modules for p in module.parameters() if p.requires_grad]

    def act(
        self,
        observation: dict[str, np.ndarray],
        active: np.ndarray | None = None,
        *,
        states: Sequence[TextState] | None = None,
        deterministic: bool = False,
    ) -> Action:
        """Sample a block for every active row, asking the MDP for the mask and the block's end after each token.

        Args:
            observation: of a vector environment, arrays [B, …].
            active: bool [B]; rows that are not cost nothing and get tokens 0. None means all.
            states: MDP states of the rows, asked only where there are constraints or a stop rule; by default they
                are rebuilt from the observation, without problem and random key.
            deterministic: the most probable allowed token instead of a sampled one.
        """
        block = BlockWriter(self.mdp, observation, active, states)
        while block.rows.size:
            lengths = block.lengths[block.rows]
            # Padding up to the budget would make every early token pay for the longest possible text.
            prediction = self.decoder.predict(block.rows, block.text[block.rows, : lengths.max()], lengths)
            logp = self._sampled_from(prediction.logits, block.masks()).log_softmax(-1)
            tokens = logp.argmax(-1) if deterministic else sample(logp, self.generator)
            chosen = logp.gather(-1, tokens[:, None])[:, 0]
            self.counters.sampled_tokens += len(tokens)
            block.add(tokens.cpu().numpy(), chosen.cpu().numpy())
        return Action(block.tokens, block.logp)

    def predict(
        self, observation: dict[str, np.ndarray], *, deterministic: bool = False, action_masks: Any = None
    ) -> np.ndarray:
        """Action of one observation, or of a batch of them; the environment's masks are asked by itself."""
        single = observation["input_ids"].ndim == 1
        if single:
            observation = {key: value[None] for key, value in observation.items()}
        actions = self.act(observation, deterministic=deterministic).for_env
        return actions[0] if single else actions

    def evaluate(
        self,
        batch: TextBatch,
        *,
        ref_logp: Tensor | None = None,
        reference: Any = None,
        kl: KLKind | Literal["exact"] = "k3",
        entropy: bool = True,
    ) -> Evaluation:
        """Score a batch in one forward pass; differentiable.

        Args:
            batch: rows to score, on any device.
            ref_logp: reference log-prob of every token, [B, T] as `token_logp` gives it.
            reference: the reference itself, which "exact" asks for its whole distribution.
            kl: estimator of the KL term, "k1", "k2" or "k3"; or "exact", the KL over the vocabulary at each token.
            entropy: whether to compute it (it costs passes over the vocabulary).
        """
        batch = batch.to(self.device)
        index, n = batch.action_index, batch.mask.shape[1]
        places = _Places(batch)
        logits, values = self._read(batch, places)
        logp, entropies = read_off(logits, places.tokens, entropy=entropy)
        chosen, divergence = places.spread(logp), None
        if kl == "exact" and reference is not None:
            divergence = places.spread(exact_kl(logits, reference.distributions(batch)))
        elif ref_logp is not None:
            divergence = kl_estimate(chosen, ref_logp.to(chosen), kind=kl, mask=index >= 0)  # type: ignore[arg-type]
        return Evaluation(
            logp=sum_by_action(chosen, index, n),
            entropy=None if entropies is None else sum_by_action(places.spread(entropies), index, n),
            values=None if values is None else places.spread(values).gather(1, first_token(index, n)),
            kl=None if divergence is None else sum_by_action(divergence, index, n),
            n_tokens=batch.n_tokens,
            token_logp=chosen,
        )

    def score(self, batch: TextBatch, rows_at_once: int = 0, *, keep: bool = False, entropy: bool = False) -> Scored:
        """What the policy says of a batch as it is now, without gradient.

        Args:
            batch: rows to score.
            rows_at_once: most rows in a forward pass; 0 sets no limit.
            keep: also return the evaluations, with their gradient: the first step need not make them again.
            entropy: whether these have one.
        """
        kind = torch.float64 if self.dtype == torch.float64 else torch.float32
        token_logp = torch.zeros(batch.tokens.shape, dtype=kind, device=self.device)
        values = torch.zeros(batch.mask.shape, dtype=kind, device=self.device) if self.value_head is not None else None
        kept = []
        for rows in by_length(batch.lengths, torch.arange(len(batch)), rows_at_once):
            with torch.set_grad_enabled(keep):
                part = self.evaluate(batch.select(rows), entropy=entropy)
            assert part.token_logp is not None
            token_logp[rows, : part.token_logp.shape[1]] = part.token_logp.detach().to(kind)
            if values is not None and part.values is not None:
                values[rows, : part.values.shape[1]] = part.values.detach().to(kind)
            kept.append(part)
        return Scored(
            logp=sum_by_action(token_logp, batch.action_index.to(self.device), batch.mask.shape[1]),
            values=values,
            bootstrap=None if values is None else self._last_values(batch, values),
            token_logp=token_logp,
            evaluations=tuple(kept) if keep else (),
        )

    def token_logp(self, batch: TextBatch, rows_at_once: int = 0) -> Tensor:
        """Log-prob of every chosen token, nats [B, T], 0 elsewhere; without gradient."""
        token_logp = self.score(batch, rows_at_once).token_logp
        assert token_logp is not None
        return token_logp

    @torch.no_grad()
    def distributions(self, batch: TextBatch) -> Tensor:
        """Log-probs of the whole vocabulary at each chosen token, row by row, nats [m, V]; without gradient."""
        batch = batch.to(self.device)
        return self._read(batch, _Places(batch))[0].log_softmax(-1)

    def save(self, folder: Path) -> None:
        """Write the model as a Hugging Face folder (safetensors) with its tokenizer, and the value head beside."""
        if is_lora(self.model):
            save_lora(self.model, folder, self.name)
        else:
            self.model.save_pretrained(folder, safe_serialization=True)
        self.mdp.codec.tokenizer.save_pretrained(folder)
        if self.value_head is not None:
            save_file(self.value_head.state_dict(), folder / "value_head.safetensors")
        if self.value_model is not None:
            save_model(self.value_model, str(folder / "value_model.safetensors"))

    def load_value_head(self, folder: Path) -> None:
        """Read the value head that `save` wrote."""
        if self.value_head is not None:
            self.value_head.load_state_dict(load_file(folder / "value_head.safetensors"))
        if self.value_model is not None:
            load_model_weights(self.value_model, str(folder / "value_model.safetensors"))

    def next_token(
        self, tokens: Tensor, lengths: Tensor, rows: Tensor, places: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Scores of the next token, [m, V], and values, [m], after `tokens[rows, places]`; differentiable.

        Args:
            tokens: texts, int64 [B, T], right-padded.
            lengths: how many tokens of each are read, int64 [B].
            rows, places: where, int64 [m].
            mask: allowed tokens, bool [m, V]; None allows all.

        Returns:
            Scores as they are sampled from (temperature and mask applied), and values, None without a head.
        """
        shared = self.value_head is not None and self.value_model is None
        where = (tokens, rows, places, int(lengths.sum()))
        logits, hidden = self._forward(self.decoder.forward, *where, logits=True, hidden=shared)
        if self.value_forward is not None:
            hidden = self._forward(self.value_forward, *where, logits=False, hidden=True)[1]
        return self._sampled_from(logits, mask), None if hidden is None else self._value(hidden)

    def _read(self, batch: TextBatch, places: _Places) -> tuple[Tensor, Tensor | None]:
        """Logits [m, V] and values [m] at the places before each chosen token; values None without a head."""
        mask = None if batch.token_mask is None else batch.token_mask[places.rows, places.of_tokens]
        fed = max(batch.tokens.shape[1] - 1, 1)  # nothing follows a last token
        return self.next_token(batch.tokens[:, :fed], batch.lengths - 1, places.rows, places.before, mask)

    def _forward(
        self, forward: Any, tokens: Tensor, rows: Tensor, places: Tensor, count: int, **wanted: bool
    ) -> tuple[Any, Any]:
        self.counters.forward_passes += 1
        self.counters.forward_tokens += count
        return forward.score(tokens, rows, places, **wanted)

    def _value(self, hidden: Tensor) -> Tensor:
        assert self.value_head is not None
        return self.value_head(hidden.to(self.value_head.weight.dtype))[..., 0]

    @torch.no_grad()
    def _last_values(self, batch: TextBatch, values: Tensor) -> Tensor:
        """V after the last action: of a row that an outer limit cut; an ended episode has none, 0. [B]"""
        out = values.new_zeros(len(batch))
        if batch.cut is None or not batch.cut.any():
            return out
        part = batch.select(batch.cut).to(self.device)
        rows = torch.arange(len(part), device=self.device)
        forward = self.value_forward or self.decoder.forward
        hidden = forward.score(part.tokens, rows, part.lengths - 1, logits=False, hidden=True)[1]
        self.counters.forward_passes += 1
        self.counters.forward_tokens += int(part.lengths.sum())
        out[batch.cut.to(self.device)] = self._value(hidden).to(out)
        return out

    def _sampled_from(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        logits = logits[..., : self.mdp.codec.vocab_size]  # a model may have more rows than its tokenizer has ids
        mask = None if mask is None else mask.to(logits.device)
        return sampling_logits(logits, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, mask=mask)


class _Places:
    """Where a batch's chosen tokens stand, row by row; the off-by-one lives here: position t - 1 predicts token t."""

    def __init__(self, batch: TextBatch):
        self.rows, self.of_tokens = (batch.action_index >= 0).nonzero(as_tuple=True)
        self.before, self.tokens = self.of_tokens - 1, batch.tokens[self.rows, self.of_tokens]
        self._shape = batch.tokens.shape

    def spread(self, per_token: Tensor) -> Tensor:
        """[m] -> [B, T], 0 where no token was chosen."""
        return per_token.new_zeros(self._shape).index_put((self.rows, self.of_tokens), per_token)


def _value_head(model: Any, like: Tensor) -> nn.Linear:
    head = nn.Linear(model.config.hidden_size, 1, device=like.device, dtype=wider(like))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
