"""What an evaluator says of new nodes, one by one (`Proposal`) or together (`Proposals`), and what it may not say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from llmgym.mdp import NoLegalAction

_NO_NUMBERS = np.zeros((0, 0), np.int64)


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

    @property
    def width(self) -> int:
        """The largest K."""
        return int(self.degrees.max(initial=1))

    @property
    def numbers(self) -> tuple[np.ndarray, ...]:
        """What kernels read of it: see `llmgym.search.walks.grow`."""
        actions = self.actions if isinstance(self.actions, np.ndarray) else _NO_NUMBERS
        priors, values = np.asarray(self.priors, np.float64), np.asarray(self.values, np.float64)
        return actions, priors, self.degrees, values, self.complete


class LegalActions(NamedTuple):
    """The same where the candidates are all actions that a mask allows."""

    masks: np.ndarray  # bool [n, K]
    logits: np.ndarray  # floats [n, K]; priors are their softmax over the legal actions
    values: np.ndarray  # floats [n]

    @property
    def width(self) -> int:
        """K."""
        return self.masks.shape[1]


Evaluate = Callable[[Any], Sequence[Proposal] | Proposals | LegalActions]
NONE = Proposals([], np.zeros((0, 1)), np.zeros(0), np.zeros(0, bool))


def ask(evaluate: Evaluate, states: Sequence[Any]) -> Proposals | LegalActions:
    """What an evaluator says of states; numbers are looked at where a tree grows by them.

    Raises:
        SearchError: another number of proposals, or of priors of one.
    """
    if not len(states):
        return NONE
    told = evaluate(states)
    proposals = told if isinstance(told, Proposals | LegalActions) else gathered(told)
    given = {len(part) for part in proposals if part is not None}
    if given != {len(states)}:
        raise SearchError(f"the evaluator must give one proposal a state: {len(states)}, got {sorted(given)}")
    return proposals


def gathered(told: Sequence[Proposal]) -> Proposals:
    """Proposals of one state each as arrays."""
    priors = np.zeros((len(told), max([1, *(len(p.actions) for p in told)])))
    for row, proposal in enumerate(told):
        given = np.asarray(proposal.priors, np.float64)
        if given.shape != (len(proposal.actions),):
            raise no_priors(len(proposal.actions), given)
        priors[row, : len(given)] = given
    values, complete = np.array([p.value for p in told], np.float64), np.array([p.complete for p in told], bool)
    return Proposals([p.actions for p in told], priors, values, complete)


def complaint(proposals: Proposals | LegalActions, row: int) -> SearchError | NoLegalAction:
    """What is wrong with a proposal that no tree can grow by."""
    value = proposals.values[row]
    if not np.isfinite(value):
        return SearchError(f"a value must be a finite number, got {value}")
    if isinstance(proposals, LegalActions):
        allowed = proposals.masks[row]
        if not allowed.any():
            return NoLegalAction("a mask forbids every action of a state that is not terminal")
        return SearchError(f"logits must be numbers, got {proposals.logits[row, allowed]}")
    candidates = int(proposals.degrees[row])
    if not candidates:
        return SearchError("an evaluator must propose at least one candidate in a state that is not terminal, got none")
    return no_priors(candidates, proposals.priors[row, :candidates])


def no_priors(candidates: int, got: np.ndarray) -> SearchError:
    """Priors must be as many as there are candidates, and numbers that make sense."""
    return SearchError(f"priors must be {candidates} finite numbers of at least 0, got {got}")
