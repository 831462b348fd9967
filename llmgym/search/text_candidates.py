"""Candidate actions of a text state: the K most probable blocks, or K drawn without replacement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from llmgym.text import TextMDP, TextState

if TYPE_CHECKING:
    import torch


class Candidates(NamedTuple):
    """Distinct blocks of one state."""

    blocks: list[tuple[int, ...]]  # at most K; the most probable first, or in the order they were drawn
    logp: np.ndarray  # of each, nats [at most K]
    complete: bool  # whether the environment allows no other


@dataclass(frozen=True)
class _Beam:
    """A block in the making; `key` decides who stays: its log-prob, or that plus Gumbel noise."""

    block: tuple[int, ...]
    logp: float
    key: float
    over: bool = False


def block_over(mdp: TextMDP, state: TextState, block: Sequence[int]) -> bool:
    """Whether an action ends with the last of these tokens: EOS, its size, the budget, the stop rule."""
    if block[-1] == mdp.eos_id or len(block) == mdp.block_size or state.n_tokens + len(block) == mdp.max_new_tokens:
        return True
    return mdp.stop is not None and mdp.stop(state, block)


def action_of(mdp: TextMDP, block: Sequence[int]) -> Any:
    """What `transition` takes: a token, or block_size of them; what follows a block's end is ignored."""
    if mdp.block_size == 1:
        return block[0]
    return (*block, *[mdp.eos_id] * (mdp.block_size - len(block)))


def block_of(mdp: TextMDP, state: TextState, action: Any) -> tuple[int, ...]:
    """The tokens of an action that count: `action_of` turned round."""
    tokens = tuple(mdp.tokens_of(action))
    return next(tokens[:n] for n in range(1, len(tokens) + 1) if block_over(mdp, state, tokens[:n]))


def candidates(
    reader: Any, states: Sequence[TextState], k: int, generator: torch.Generator | None = None
) -> list[Candidates]:
    """Up to K blocks of each state: one token, exactly the K most probable ones; longer blocks by beam search.

    With a generator it is stochastic beam search (Kool et al. 2019): a draw of K blocks without replacement, of a
    single token by its Gumbel top-k.

    Args:
        reader: gives log-probs, `TextReader`.
        states: none of them terminal.
        k: K.
        generator: of the Gumbel noise.
    """
    rng = None if generator is None else np.random.default_rng(_seed(generator))
    root = _Beam((), 0.0, 0.0 if rng is None else float(rng.gumbel()))
    beams, complete = [[root] for _ in states], [True] * len(states)
    while rows := [i for i, row in enumerate(beams) if not all(beam.over for beam in row)]:
        open_ = [(i, beam) for i in rows for beam in beams[i] if not beam.over]
        places, blocks = [states[i] for i, _ in open_], [beam.block for _, beam in open_]
        logp = reader.logp(places, blocks).double().cpu().numpy()
        allowed = reader.masks(places, blocks)
        n_allowed = np.full(len(open_), logp.shape[1]) if allowed is None else allowed.sum(1)
        for i in rows:
            mine = [j for j, (row, _) in enumerate(open_) if row == i]
            finite = np.isfinite(logp[mine])
            total = int(finite.sum()) + len(beams[i]) - len(mine)
            complete[i] = complete[i] and total <= k and int(finite.sum()) == int(n_allowed[mine].sum())
            beams[i] = _best(reader.mdp, states[i], beams[i], logp[mine], k, rng)
    reader.counters.sampled_tokens += sum(len(beam.block) for row in beams for beam in row)
    return [_sorted(row, done) for row, done in zip(beams, complete, strict=True)]


def likely(found: Candidates, min_p: float) -> Candidates:
    """Those with at least this share of the most probable one's probability."""
    kept = np.exp(found.logp - found.logp.max()) >= min_p
    if kept.all():
        return found
    return Candidates([block for block, keep in zip(found.blocks, kept, strict=True) if keep], found.logp[kept], False)


def _best(
    mdp: TextMDP, state: TextState, beams: list[_Beam], logp: np.ndarray, k: int, rng: np.random.Generator | None
) -> list[_Beam]:
    """The K best among blocks that are over and all that the others [m, V] may go on to."""
    going = [beam for beam in beams if not beam.over]
    sums = np.array([beam.logp for beam in going])[:, None] + logp
    keys = sums if rng is None else _conditional_gumbels(sums, np.array([beam.key for beam in going]), rng)
    flat = keys.reshape(-1)
    top = np.argsort(-flat, kind="stable")[: min(k, int(np.isfinite(flat).sum()))]
    kept = [beam for beam in beams if beam.over]
    for at in top.tolist():
        parent, token = divmod(at, logp.shape[1])
        block = (*going[parent].block, token)
        kept.append(_Beam(block, float(sums[parent, token]), float(flat[at]), block_over(mdp, state, block)))
    return sorted(kept, key=lambda beam: -beam.key)[:k]


def _conditional_gumbels(logp: np.ndarray, largest: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gumbel variables located at logp [m, V], given that the largest of each row is so much [m].

    Kool et al. 2019, appendix B.3, which is stable where the formula of the text is not.
    """
    drawn = logp + rng.gumbel(size=logp.shape)
    with np.errstate(all="ignore"):
        v = largest[:, None] - drawn + np.log1p(-np.exp(drawn - drawn.max(1, keepdims=True)))
        keys = largest[:, None] - np.maximum(v, 0) - np.log1p(np.exp(-np.abs(v)))
    return np.where(np.isfinite(logp), keys, -np.inf)


def _sorted(beams: list[_Beam], complete: bool) -> Candidates:
    return Candidates([beam.block for beam in beams], np.array([beam.logp for beam in beams]), complete)


def _seed(generator: torch.Generator) -> int:
    import torch

    return int(torch.randint(2**62, (), generator=generator, device=generator.device))
