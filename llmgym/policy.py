"""`LMPolicy`: a causal language model as a policy over blocks of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llmgym.batch import Batch, by_length, first_token, sum_by_action
from llmgym.counters import Counters
from llmgym.decoder import IncrementalDecoder
from llmgym.losses import kl_estimate, wider
from llmgym.models import check_positions, check_vocab, load_model
from llmgym.sampling import check_sampling, sample, sampling_logp
from llmgym.text import TextMDP, TextState


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


@dataclass(frozen=True)
class Evaluation:
    """What the current parameters say of a batch; all [B, N], differentiable.

    Attributes:
        logp: log-prob of each action, the sum over its tokens, nats.
        entropy: sum of the conditional entropies on the sampled path, nats. For blocks its direct gradient is a
            biased estimate of the gradient of the block's entropy: the path itself depends on the parameters.
        values: value of the state before the action; None without a value head.
        kl: KL estimate against the reference, formed per token and then summed; None without a reference.
        n_tokens: tokens of each action.
    """

    logp: Tensor
    entropy: Tensor | None
    values: Tensor | None
    kl: Tensor | None
    n_tokens: Tensor


class LMPolicy:
    """A Hugging Face causal language model that acts on a text environment.

    `act` is a pure function of its input: a KV cache remembers the ids of each row and only saves work. The model
    stays in evaluation mode while it learns, so that dropout never makes two scorings differ.

    Args:
        model: "tiny", a folder, a hub id or a model object.
        env: a text environment (single or vector), for its rules and tokenizer; or a `TextMDP`.
        temperature: > 0; log-probs are those of the tempered distribution.
        top_k, top_p: restrict sampling; leave them off in training, where the support must not move.
        value_head: adds a linear value head on the last hidden state, starting at 0.
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
        value_head: bool = False,
        device: str = "auto",
        dtype: str = "float32",
        seed: int | None = None,
    ):
        check_sampling(temperature, top_k, top_p)
        self.mdp: TextMDP = env if isinstance(env, TextMDP) else env.unwrapped.mdp
        self.model = load_model(model, device=device, dtype=dtype)
        check_vocab(self.model, self.mdp.codec)
        check_positions(self.model, self.mdp.length)
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        parameter = next(self.model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.value_head = _value_head(self.model, parameter) if value_head else None
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
        head = [] if self.value_head is None else list(self.value_head.parameters())
        return [p for p in self.model.parameters() if p.requires_grad] + head

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
            logp = self._logp(prediction.logits, block.masks())
            tokens = logp.argmax(-1) if deterministic else sample(logp, self.generator)
            chosen = logp.gather(-1, tokens[:, None])[:, 0]
            self.counters.sampled_tokens += len(tokens)
            block.add(tokens.cpu().numpy(), chosen.cpu().numpy())
        return Action(block.tokens, block.logp)

    def evaluate(
        self, batch: Batch, *, ref_logp: Tensor | None = None, kl: str = "k3", entropy: bool = True
    ) -> Evaluation:
        """Score a batch in one forward pass; differentiable.

        Args:
            batch: rows to score, on any device.
            ref_logp: reference log-prob of every token, [B, T] as `token_logp` gives it.
            kl: estimator of the KL term, "k1", "k2" or "k3".
            entropy: whether to compute it (it costs a pass over the vocabulary).
        """
        batch = batch.to(self.device)
        logp, token_entropy, hidden = self._score(batch, entropy)
        index, n = batch.action_index, batch.mask.shape[1]
        chosen = index >= 0
        divergence = None
        if ref_logp is not None:
            per_token = kl_estimate(logp, ref_logp.to(logp), kind=kl, mask=chosen)  # type: ignore[arg-type]
            divergence = sum_by_action(per_token * chosen, index, n)
        return Evaluation(
            logp=sum_by_action(logp, index, n),
            entropy=None if token_entropy is None else sum_by_action(token_entropy, index, n),
            values=None if self.value_head is None else self._values(hidden, index, n),
            kl=divergence,
            n_tokens=batch.n_tokens,
        )

    @torch.no_grad()
    def token_logp(self, batch: Batch, rows_at_once: int = 0) -> Tensor:
        """Log-prob of every chosen token, nats [B, T], 0 elsewhere; in micro-batches of at most `rows_at_once` rows."""
        out = torch.zeros(batch.tokens.shape, dtype=torch.float32 if self.dtype != torch.float64 else self.dtype)
        out = out.to(self.device)
        for rows in by_length(batch.lengths, torch.arange(len(batch)), rows_at_once):
            part = batch.select(rows).to(self.device)
            out[rows, : part.tokens.shape[1]] = self._score(part, entropy=False)[0]
        return out

    def save(self, folder: Path) -> None:
        """Write the model as a Hugging Face folder (safetensors) with its tokenizer, and the value head beside."""
        self.model.save_pretrained(folder, safe_serialization=True)
        self.mdp.codec.tokenizer.save_pretrained(folder)
        if self.value_head is not None:
            save_file(self.value_head.state_dict(), folder / "value_head.safetensors")

    def load_value_head(self, folder: Path) -> None:
        """Read the value head that `save` wrote."""
        if self.value_head is not None:
            self.value_head.load_state_dict(load_file(folder / "value_head.safetensors"))

    def _score(self, batch: Batch, entropy: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Log-prob [B, T] (and entropy [B, T], hidden [B, T, D]) of the batch's tokens; 0 where not chosen.

        The off-by-one lives here: position t - 1 predicts token t.
        """
        rows, places = (batch.action_index >= 0).nonzero(as_tuple=True)
        fed = max(batch.tokens.shape[1] - 1, 1)
        self.counters.forward_passes += 1
        self.counters.forward_tokens += int((batch.lengths - 1).sum())  # nothing follows a last token
        logits, hidden = self.decoder.forward.score(
            batch.tokens[:, :fed], rows, places - 1, hidden=self.value_head is not None
        )
        mask = None if batch.token_mask is None else batch.token_mask[rows, places]
        logp = self._logp(logits, mask)
        chosen = logp.gather(-1, batch.tokens[rows, places, None])[:, 0]
        spread = chosen.new_zeros(batch.tokens.shape)
        entropies = spread.index_put((rows, places), _entropy(logp)) if entropy else None
        return spread.index_put((rows, places), chosen), entropies, hidden

    def _values(self, hidden: Tensor | None, action_index: Tensor, n: int) -> Tensor:
        """Value at the last token before each action, [B, N]."""
        assert hidden is not None and self.value_head is not None
        before = first_token(action_index, n) - 1
        at = hidden.gather(1, before[:, :, None].expand(-1, -1, hidden.shape[-1]))
        return self.value_head(at.to(self.value_head.weight.dtype))[..., 0]

    def _logp(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        logits = logits[..., : self.mdp.codec.vocab_size]  # a model may have more rows than its tokenizer has ids
        mask = None if mask is None else mask.to(logits.device)
        return sampling_logp(logits, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, mask=mask)


class BlockWriter:
    """Blocks in the making: which rows still take tokens, and what each has so far."""

    def __init__(self, mdp: TextMDP, observation: dict[str, np.ndarray], active: Any, states: Any):
        self.mdp, n = mdp, len(observation["input_ids"])
        self.text = observation["input_ids"].copy()
        self.lengths = observation["attention_mask"].sum(1, dtype=np.int64)
        self.left = mdp.max_new_tokens - observation["n_tokens"][:, 0]
        self.tokens, self.logp = np.zeros((n, mdp.block_size), np.int64), np.zeros((n, mdp.block_size))
        self.rows = np.arange(n) if active is None else np.flatnonzero(active)
        self.size = 0
        self.states: dict[int, TextState] = {}
        if mdp.needs_state:
            self.states = {
                r: states[r] if states is not None else self._state(observation, r) for r in self.rows.tolist()
            }

    def masks(self) -> Tensor | None:
        """Allowed next tokens of the rows at work, bool [n, V]; None allows all."""
        constraints = self.mdp.constraints
        if not constraints:
            return None
        if constraints.function is None:
            n_tokens = self.mdp.max_new_tokens - self.left[self.rows] + self.size
            return torch.as_tensor(constraints.static_rows(n_tokens))
        masks = [self.mdp.token_mask(self.states[r], self.tokens[r, : self.size].tolist()) for r in self.rows.tolist()]
        return torch.as_tensor(np.stack(masks))  # type: ignore[arg-type]

    def add(self, tokens: np.ndarray, logp: np.ndarray) -> None:
        """Append one token to each row at work; rows whose block or episode is over leave."""
        rows = self.rows
        self.tokens[rows, self.size], self.logp[rows, self.size] = tokens, logp
        self.size += 1
        going = (tokens != self.mdp.eos_id) & (self.size < self.left[rows])
        if self.size == self.mdp.block_size:
            going[:] = False
        if self.mdp.stop is not None:
            going &= [not self.mdp.stop(self.states[r], self.tokens[r, : self.size].tolist()) for r in rows.tolist()]
        self.text[rows[going], self.lengths[rows[going]]] = tokens[going]
        self.lengths[rows[going]] += 1
        self.rows = rows[going]

    def _state(self, observation: dict[str, np.ndarray], row: int) -> TextState:
        return self.mdp.state_of({key: value[row] for key, value in observation.items()})


def _entropy(logp: Tensor) -> Tensor:
    """-Σ p log p over the last axis, nats; 0 · log 0 = 0, without NaN in the gradient."""
    return -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1)


def _value_head(model: Any, like: Tensor) -> nn.Linear:
    head = nn.Linear(model.config.hidden_size, 1, device=like.device, dtype=wider(like))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
