"""What a language model learns from texts that a search has written: its visits, and how the texts ended.

One forward pass reads every state of a text and all candidates that were visited there: at token level that is the
text itself; longer candidates that part from it are texts of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmgym.policy import LMPolicy
from llmgym.search.losses import candidate_loss, return_loss
from llmgym.text import TextMDP, TextState

Block = tuple[int, ...]


class Lesson(NamedTuple):
    """What a search has found at one state of a text."""

    length: int  # tokens of the state: the first so many of the text
    blocks: Sequence[Block]  # K candidates
    policy: np.ndarray  # the search's, float64 [K]
    ret: float  # return from this state on


@dataclass(frozen=True)
class Written:
    """A finished text and what was found on the way.

    Attributes:
        end: the terminal state.
        lessons: of every state in which an action was chosen.
    """

    end: TextState
    lessons: tuple[Lesson, ...]

    def state(self, lesson: Lesson) -> TextState:
        """The state that a lesson is about."""
        end, n = self.end, lesson.length
        return TextState(end.problem, end.tokens[:n], end.n_prompt, end.chosen[:n], end.key)


class Losses(NamedTuple):
    """Shares of the means over states; []."""

    policy: Tensor
    value: Tensor | None  # None without a value head


def lesson_losses(
    policy: LMPolicy, mdp: TextMDP, texts: Sequence[Written], bound: Callable[[Tensor], Tensor], states: int
) -> Losses:
    """mean -Σ_a π(a) log p(a) and mean (V(s) - G)² over states; differentiable.

    log p of a candidate is the sum over its tokens, among all that the environment allows and not only the K.

    Args:
        policy: p and V.
        mdp: the rules; its masks are those that candidates were chosen under.
        texts: to learn from.
        bound: of the value head's output.
        states: what the sums are divided by, the states of the whole minibatch.
    """
    at = _Reading(mdp, texts)
    tokens, lengths, rows, places = (x.to(policy.device) for x in at.texts)
    logits, values = policy.next_token(tokens, lengths, rows, places, at.masks(policy.device))
    place, token, candidate = at.tokens_of_candidates.to(policy.device)
    logp = logits.log_softmax(-1)[place, token]
    logp = logp.new_zeros(len(at.targets)).index_add(0, candidate, logp)
    policy_loss = candidate_loss(logp, at.targets.to(logp), denominator=states)
    if values is None:
        return Losses(policy_loss, None)
    value_places, returns = at.value_places.to(values.device), at.returns.to(values)
    return Losses(policy_loss, return_loss(bound(values[value_places]), returns, denominator=states))


class _Reading:
    """Rows of tokens, the m places in them after which something is asked, and what.

    Attributes:
        texts: tokens [R, T], lengths [R], rows [m] and places [m].
        tokens_of_candidates: of every token of every candidate its place in [0, m), its id, its candidate; [3, t].
        targets: π of every candidate.
        value_places, returns: of every state.
    """

    def __init__(self, mdp: TextMDP, texts: Sequence[Written]):
        self.mdp, self.rows = mdp, list[Block]()
        self.places = list[tuple[int, int]]()  # row, and position in it
        self.asked = list[tuple[TextState, Block]]()  # at every place: a state, and the block so far
        named, targets, value_places = list[tuple[int, int, int]](), list[float](), list[int]()
        for text in texts:
            known = self._read(text)
            for lesson in text.lessons:
                before = text.end.tokens[: lesson.length]
                value_places.append(known[before])
                for block, share in _visited(lesson):
                    named += [(known[before + block[:j]], token, len(targets)) for j, token in enumerate(block)]
                    targets.append(share)
        returns = [lesson.ret for text in texts for lesson in text.lessons]
        self.tokens_of_candidates = torch.tensor(named).reshape(-1, 3).T
        self.targets, self.returns = (torch.tensor(x, dtype=torch.float64) for x in (targets, returns))
        self.value_places = torch.tensor(value_places)

    @property
    def texts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        lengths = torch.tensor([len(row) for row in self.rows])
        tokens = torch.zeros(len(self.rows), int(lengths.max()), dtype=torch.int64)
        for i, row in enumerate(self.rows):
            tokens[i, : len(row)] = torch.tensor(row)
        rows, places = torch.tensor(self.places).T
        return tokens, lengths, rows, places

    def masks(self, device: Any) -> Tensor | None:
        """Allowed next tokens at every place, bool [m, V]; None allows all."""
        if not self.mdp.constraints:
            return None
        masks = [self.mdp.constraints.mask(state, block) for state, block in self.asked]
        return torch.as_tensor(np.stack(masks), device=device)

    def _read(self, text: Written) -> dict[Block, int]:
        """Places of all that one text asks for; a row for each prefix that no longer one goes through."""
        asked = {before + block: (state, block) for state, before, block in _prefixes(text)}
        found, inside = dict[Block, int](), dict[Block, int]()
        for prefix in sorted(asked, key=len, reverse=True):
            if prefix not in inside:
                self.rows.append(prefix)
                inside |= {prefix[:n]: len(self.rows) - 1 for n in range(text.end.n_prompt, len(prefix) + 1)}
            found[prefix] = len(self.places)
            self.places.append((inside[prefix], len(prefix) - 1))
            self.asked.append(asked[prefix])
        return found


def _prefixes(text: Written) -> Iterator[tuple[TextState, Block, Block]]:
    """States and, after each, the beginnings of the candidates that were visited there."""
    for lesson in text.lessons:
        state = text.state(lesson)
        yield state, state.tokens, ()
        for block, _ in _visited(lesson):
            yield from ((state, state.tokens, block[:j]) for j in range(1, len(block)))


def _visited(lesson: Lesson) -> Iterator[tuple[Block, float]]:
    """Candidates that the search's policy gives a share."""
    return ((block, share) for block, share in zip(lesson.blocks, lesson.policy.tolist(), strict=True) if share > 0)
