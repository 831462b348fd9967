"""Texts that a search writes, move by move, and what it asks of a language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from llmgym.mdp import ScorerFailed
from llmgym.policy import LMPolicy
from llmgym.search import Proposal, Result, Search, SearchOptions
from llmgym.search.evaluators import BOUNDS
from llmgym.search.proposals import Evaluate
from llmgym.search.text import TextEvaluator, TextReader, Value
from llmgym.search.text_candidates import block_of
from llmgym.search.text_lessons import Lesson, Written
from llmgym.search.text_values import Mixed, RolloutValue
from llmgym.text import Outcome, TextMDP, TextState

FAILED = Outcome(0.0, {}, False)
REMEMBERED = 1 << 16  # tokens read along one tree of texts before it is begun anew: memory


class Asking(NamedTuple):
    """What a search asks of a language model; fields of `TextMCTSConfig`."""

    candidates: int
    sampled: bool
    min_p: float
    rollouts: float
    bound: str


class LenientText(TextMDP):
    """The rules of `mdp`, where a text that its scorer fails on is worth 0: one must not end a search."""

    def __init__(self, mdp: TextMDP):
        vars(self).update(vars(mdp))

    def outcomes(self, states: Sequence[TextState]) -> list[Any]:
        return [FAILED if isinstance(one, ScorerFailed) else one for one in super().outcomes(states)]


class RememberingEvaluator:
    """A `TextEvaluator` that says the same of a state however often it is asked: what was read is not paid again.

    Its value is (1 - λ) v + λ z, v of the value head and z of one text that the policy writes on to its end (Silver
    et al. 2016); a weight of 0 leaves one of them out.

    Args:
        policy: of candidates and values.
        mdp: the rules.
        asking: how many candidates, how they are chosen, λ and the bound of v.
        generator: of what is drawn.
    """

    def __init__(self, policy: LMPolicy, mdp: TextMDP, asking: Asking, generator: torch.Generator):
        self.reader = TextReader(policy, mdp)
        self.reader.generator = generator
        value = mixed_value(self.reader, asking.rollouts, asking.bound)
        named: dict[str, Any] = {"sampled": asking.sampled, "min_p": asking.min_p}
        self.evaluate = TextEvaluator(self.reader, asking.candidates, value, **named)
        self.known: dict[TextState, Proposal] = {}

    def __call__(self, states: list[TextState]) -> list[Proposal]:
        """n states -> n proposals."""
        if len(self.reader.texts) > REMEMBERED:
            self.refresh()
        new = [state for state in dict.fromkeys(states) if state not in self.known]
        if new:
            self.known |= zip(new, self.evaluate(new), strict=True)
        return [self.known[state] for state in states]

    def refresh(self) -> None:
        """Forget everything: the policy has learnt."""
        self.known.clear()
        self.reader.clear()


def mixed_value(reader: TextReader, rollouts: float, bound: str) -> Value:
    """(1 - λ) v + λ z."""
    weights: dict[Value, float] = {}
    if rollouts > 0:
        weights[RolloutValue(reader)] = rollouts
    if rollouts < 1:
        weights[lambda states: BOUNDS[bound](torch.from_numpy(reader.values(states))).numpy()] = 1 - rollouts
    return Mixed(weights)


class Writer:
    """Writes texts side by side, in one search that is begun anew at each of their states.

    Args:
        mdp: the rules.
        evaluate: of the search.
        options: of the search.
        drawn_moves: actions of a text that are drawn from the search's policy instead of the best.
        rng: of noise and draws.
    """

    def __init__(
        self,
        mdp: TextMDP,
        evaluate: Evaluate,
        options: SearchOptions,
        drawn_moves: int,
        rng: np.random.Generator,
    ):
        self.mdp, self.drawn_moves, self.rng = mdp, drawn_moves, rng
        self.search = Search[TextState](mdp, evaluate, options)

    def write(self, starts: Sequence[TextState]) -> list[Written]:
        """From each state to an end."""
        states, moves = list(starts), [list[_Move]() for _ in starts]
        while going := [row for row, state in enumerate(states) if not self.mdp.terminal(state)]:
            self.search.start([states[row] for row in going], self.rng)
            for row, result in zip(going, self.search.run(), strict=True):
                states[row], move = self._move(states[row], result, len(moves[row]) < self.drawn_moves)
                moves[row].append(move)
        return [self._written(*pair) for pair in zip(states, moves, strict=True)]

    def _move(self, state: TextState, result: Result, draw: bool) -> tuple[TextState, _Move]:
        index = int(self.rng.choice(len(result.policy), p=result.policy)) if draw else result.index
        after = self.mdp.transition(state, result.actions[index])
        blocks = [block_of(self.mdp, state, action) for action in result.actions]
        reward = self.mdp.reward(state, result.actions[index], after)
        return after, _Move(len(state.tokens), blocks, result.policy, reward)

    def _written(self, end: TextState, moves: Sequence[_Move]) -> Written:
        """With the return of each state, G_t = r_t + discount G_{t+1}."""
        lessons, worth = list[Lesson](), 0.0
        for move in reversed(moves):
            worth = move.reward + self.search.options.discount * worth
            lessons.insert(0, Lesson(move.length, move.blocks, move.policy, worth))
        return Written(end, tuple(lessons))


class _Move(NamedTuple):
    length: int
    blocks: list[tuple[int, ...]]
    policy: np.ndarray
    reward: float


__all__ = ["Asking", "LenientText", "RememberingEvaluator", "Writer", "mixed_value"]
