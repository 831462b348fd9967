"""What an evaluator says of new nodes, one by one (`Proposal`) or together (`Proposals`), and what it may not say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from llmgym.compiled import kernel
from llmgym.mdp import NoLegalAction


class SearchError(ValueError):
    """What an evaluator has said cannot be searched with."""


class Proposal(NamedTuple):
    """What an evaluator says of a state that is not terminal."""

    actions: Sequence[Any]  # K candidates
    priors: Any  # [K], not negative; normalised by the search
    value: float  # expected return from here, of the player to move
    complete: bool = True  # whether the candidates are all legal actions: only then can a loss be proven


class Proposals(NamedTuple):
    """The same of n states, as arrays: W is the largest K, or more."""

    actions: list[Sequence[Any]] | np.ndarray  # n times K candidates; or, all being numbers, int64 [n, W]
    priors: np.ndarray  # float64 [n, W]; the first K of a row count
    values: np.ndarray  # float64 [n]
    complete: np.ndarray  # bool [n]
    counts: np.ndarray | None = None  # K of each where `actions` is an array, int64 [n]

    @property
    def degrees(self) -> np.ndarray:
        """K of each, int64 [n]; 0 for a terminal state."""
        return np.fromiter(map(len, self.actions), np.int64, len(self.actions)) if self.counts is None else self.counts


Evaluate = Callable[[list[Any]], Sequence[Proposal] | Proposals]
_NONE = Proposals([], np.zeros((0, 1)), np.zeros(0), np.zeros(0, bool))


def ask(evaluate: Evaluate, states: list[Any]) -> Proposals:
    """What an evaluator says of states, priors normalised.

    Raises:
        SearchError: another number of proposals; no candidate; a value that is no number, or priors that are none.
    """
    told = evaluate(states) if states else _NONE
    proposals = told if isinstance(told, Proposals) else gathered(told)
    if len(proposals.actions) != len(states):
        raise SearchError(f"the evaluator must give one proposal a state: {len(states)}, got {len(proposals.actions)}")
    return checked(proposals)


def gathered(told: Sequence[Proposal]) -> Proposals:
    """Proposals of one state each as arrays."""
    priors = np.zeros((len(told), max([1, *(len(p.actions) for p in told)])))
    for row, proposal in enumerate(told):
        given = np.asarray(proposal.priors, np.float64)
        if given.shape != (len(proposal.actions),):
            raise _no_priors(len(proposal.actions), given)
        priors[row, : len(given)] = given
    values, complete = np.array([p.value for p in told], np.float64), np.array([p.complete for p in told], bool)
    return Proposals([p.actions for p in told], priors, values, complete)


def checked(proposals: Proposals) -> Proposals:
    """Proposals with priors that add up to 1 (equal ones where all were 0), and zeros behind them."""
    degrees, priors = proposals.degrees, np.array(proposals.priors, np.float64)
    if not degrees.all():
        raise SearchError("an evaluator must propose at least one candidate in a state that is not terminal, got none")
    wrong = normalise(priors, degrees)
    if wrong >= 0:
        raise _no_priors(int(degrees[wrong]), priors[wrong, : degrees[wrong]])
    if not np.isfinite(proposals.values).all():
        bad = proposals.values[~np.isfinite(proposals.values)][0]
        raise SearchError(f"a value must be a finite number, got {bad}")
    return proposals._replace(priors=priors, values=np.asarray(proposals.values, np.float64))


@kernel
def normalise(priors, degrees):
    """Priors float64 [n, W] of which the first K count, in place; returns a row with one that is none, or -1."""
    for i in range(priors.shape[0]):
        total = 0.0
        for k in range(degrees[i]):
            if not 0.0 <= priors[i, k] < math.inf:
                return i
            total += priors[i, k]
        for k in range(priors.shape[1]):
            if k >= degrees[i]:
                priors[i, k] = 0.0
            else:
                priors[i, k] = priors[i, k] / total if total > 0.0 else 1.0 / degrees[i]
    return -1


def of_legal_actions(masks: np.ndarray, logits: np.ndarray, values: np.ndarray) -> Proposals:
    """Proposals of all actions that masks allow, priors their softmax: bool [n, K], floats [n, K], floats [n].

    Raises:
        NoLegalAction: a mask that allows nothing.
    """
    actions, priors, degrees = np.empty(masks.shape, np.int64), np.empty(masks.shape), np.empty(len(masks), np.int64)
    pack(masks, logits, actions, priors, degrees)
    if not degrees.all():
        raise NoLegalAction("a mask forbids every action of a state that is not terminal")
    return Proposals(actions, priors, values, np.ones(len(masks), bool), degrees)


@kernel
def pack(masks, logits, actions, priors, degrees):
    """Legal actions and their priors to the front of their rows: see `of_legal_actions`; NaN where a logit is none."""
    for i in range(masks.shape[0]):
        n, top = 0, -math.inf
        for k in range(masks.shape[1]):
            if masks[i, k]:
                actions[i, n], priors[i, n] = k, logits[i, k]
                top = max(top, priors[i, n])
                n += 1
        degrees[i] = n
        for k in range(n):
            priors[i, k] = math.exp(priors[i, k] - top)
        for k in range(n, masks.shape[1]):
            actions[i, k], priors[i, k] = 0, 0.0


def among(proposals: Proposals, rows: Sequence[int], n: int) -> Proposals:
    """Proposals for some of n states; the others are terminal: no candidate, the value 0."""
    at = list(rows)
    priors, values, complete = np.zeros((n, proposals.priors.shape[1])), np.zeros(n), np.zeros(n, bool)
    priors[at], values[at], complete[at] = proposals.priors, proposals.values, proposals.complete
    if isinstance(proposals.actions, np.ndarray):
        numbers, counts = np.zeros((n, proposals.actions.shape[1]), np.int64), np.zeros(n, np.int64)
        numbers[at], counts[at] = proposals.actions, proposals.degrees
        return Proposals(numbers, priors, values, complete, counts)
    actions: list[Sequence[Any]] = [()] * n
    for row, candidates in zip(at, proposals.actions, strict=True):
        actions[row] = candidates
    return Proposals(actions, priors, values, complete)


def _no_priors(candidates: int, got: np.ndarray) -> SearchError:
    return SearchError(f"priors must be {candidates} finite numbers of at least 0, got {got}")
