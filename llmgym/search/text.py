"""Search over language: what an evaluator says of a `TextState`, with a language model as the policy.

    reader = TextReader(policy, mdp)
    evaluate = TextEvaluator(reader, 4, RolloutValue(reader))
    search = Search(mdp, evaluate, SearchOptions(simulations=64))

The level is the MDP's: tokens with `block_size=1`, blocks with `block_size=k`, lines with `stop="\\n"`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmgym.policy import LMPolicy
from llmgym.sampling import sample, sampling_logp
from llmgym.search import Proposal, SearchError
from llmgym.search.prefix import PrefixReader
from llmgym.search.text_candidates import Candidates, action_of, block_over, candidates, likely
from llmgym.text import TextMDP, TextState

Value = Callable[[Sequence[TextState]], Any]  # n states -> n expected returns


class TextReader:
    """A policy's distributions, values and continuations, read along one tree of texts: see `PrefixReader`.

    Args:
        policy: its temperature, top_k and top_p hold here too; its counters count.
        mdp: the rules, by default the policy's own; another block size or stop rule is another level.
        seed: of whatever is sampled.

    Raises:
        ValueError: the MDP has another vocabulary than the policy's.
    """

    def __init__(self, policy: LMPolicy, mdp: TextMDP | None = None, *, seed: int = 0):
        self.policy, self.mdp, self.counters = policy, mdp or policy.mdp, policy.counters
        own, other = policy.mdp.codec.vocab_size, self.mdp.codec.vocab_size
        if own != other:
            raise ValueError(f"the MDP has {other} tokens, the policy {own}: they must share a tokenizer")
        self.texts = PrefixReader(policy.model, policy.counters)
        separate = policy.value_model
        self.value_texts = self.texts if separate is None else PrefixReader(separate, policy.counters)
        self.generator = torch.Generator(policy.device).manual_seed(seed)

    def clear(self) -> None:
        """Forget every text, and the memory that goes with them."""
        self.texts.clear()
        self.value_texts.clear()

    def logp(self, states: Sequence[TextState], blocks: Sequence[Sequence[int]]) -> Tensor:
        """Log-probs of the next token after each state and the tokens of the block so far, nats [n, V]."""
        logits = self.texts.read([s.tokens + tuple(b) for s, b in zip(states, blocks, strict=True)]).logits
        allowed, policy = self.masks(states, blocks), self.policy
        mask = None if allowed is None else torch.as_tensor(allowed, device=logits.device)
        kept = {"temperature": policy.temperature, "top_k": policy.top_k, "top_p": policy.top_p}
        return sampling_logp(logits[:, : self.mdp.codec.vocab_size], mask=mask, **kept)  # type: ignore[arg-type]

    def masks(self, states: Sequence[TextState], blocks: Sequence[Sequence[int]]) -> np.ndarray | None:
        """Allowed next tokens, bool [n, V]; None allows all."""
        if not self.mdp.constraints:
            return None
        return np.stack([self.mdp.constraints.mask(s, b) for s, b in zip(states, blocks, strict=True)])

    @torch.inference_mode()
    def values(self, states: Sequence[TextState]) -> np.ndarray:
        """What the value head says of each state, float64 [n]."""
        if self.policy.value_head is None:
            raise ValueError("values of a head need a policy with one: LMPolicy(…, value_head=True)")
        hidden = self.value_texts.read([s.tokens for s in states]).hidden
        head = self.policy.value_head
        assert hidden is not None
        return head(hidden.to(head.weight.dtype))[:, 0].double().cpu().numpy()

    def finish(self, states: Sequence[TextState], *, deterministic: bool = False) -> list[tuple[TextState, float]]:
        """Write on until each episode is over; the last states and the log-probs of what was written."""
        rows, logp = list(states), np.zeros(len(states))
        blocks: list[list[int]] = [[] for _ in rows]
        going = [i for i, state in enumerate(rows) if not self.mdp.terminal(state)]
        while going:
            tokens, chosen = self._next([rows[i] for i in going], [blocks[i] for i in going], deterministic)
            logp[going] += chosen
            for i, token in zip(going, tokens, strict=True):
                blocks[i].append(token)
                if block_over(self.mdp, rows[i], blocks[i]):
                    rows[i], blocks[i] = self.mdp.transition(rows[i], action_of(self.mdp, blocks[i])), []
            going = [i for i in going if not self.mdp.terminal(rows[i])]
        return list(zip(rows, logp.tolist(), strict=True))

    def _next(self, states: Any, blocks: Any, deterministic: bool) -> tuple[list[int], np.ndarray]:
        logp = self.logp(states, blocks)
        tokens = logp.argmax(-1) if deterministic else sample(logp, self.generator)
        self.counters.sampled_tokens += len(tokens)
        return tokens.tolist(), logp.gather(1, tokens[:, None])[:, 0].double().cpu().numpy()


class TextEvaluator:
    """K candidates of each state, proposed by the policy, and a value.

    Priors are the probabilities of the candidates, normalised over the K. Every distinct text costs the tokens that
    it does not share with another one: a node costs its own.

    Args:
        reader: of the policy and the MDP.
        k: K, most candidates of a state.
        value: n states -> n expected returns: `RolloutValue`, `HeadValue`, `Mixed` or any function.
        sampled: draw the K from the policy, without replacement; else take the most probable ones: exactly at token
            level, by beam search of width K where an action is a block.
        min_p: candidates with less than this share of the most probable one's probability are left out.

    Raises:
        ValueError: K below 1, or `min_p` outside [0, 1].
    """

    def __init__(self, reader: TextReader, k: int, value: Value, *, sampled: bool = False, min_p: float = 0.0):
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if not 0 <= min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1], got {min_p}")
        self.reader, self.k, self.value, self.sampled, self.min_p = reader, k, value, sampled, min_p

    def __call__(self, states: list[TextState]) -> list[Proposal]:
        """n states -> n proposals.

        Raises:
            SearchError: the value function gives another number of values.
        """
        found = self.candidates(states)
        values = np.asarray(self.value(states), np.float64)
        if values.shape != (len(states),):
            raise SearchError(f"a value function must give {len(states)} numbers, got shape {values.shape}")
        return [self._proposal(c, v) for c, v in zip(found, values.tolist(), strict=True)]

    def candidates(self, states: Sequence[TextState]) -> list[Candidates]:
        """What is proposed in each state; no value is asked for."""
        generator = self.reader.generator if self.sampled else None
        return [likely(c, self.min_p) for c in candidates(self.reader, states, self.k, generator)]

    def _proposal(self, found: Candidates, value: float) -> Proposal:
        actions = [action_of(self.reader.mdp, block) for block in found.blocks]
        return Proposal(actions, np.exp(found.logp - found.logp.max()), value, found.complete)
