"""Values of text states: rollouts of the policy, its value head, a sum of both; and how a head learns them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from llmgym.mdp import ScorerFailed
from llmgym.search.text import TextReader, Value
from llmgym.text import TextMDP, TextState


class RolloutValue:
    """Mean return of texts that the policy writes on to their end.

    Args:
        reader: of the policy and the MDP.
        n: texts of each state.

    Attributes:
        finished: what was written and its return, by prompt: a search may answer with the best of them.

    Raises:
        ValueError: n below 1.
    """

    def __init__(self, reader: TextReader, n: int = 1):
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        self.reader, self.n = reader, n
        self.finished: dict[tuple[int, ...], list[tuple[float, TextState]]] = {}

    def __call__(self, states: Sequence[TextState]) -> np.ndarray:
        """n states -> float64 [n].

        Raises:
            ScorerFailed: the task could not judge a text.
        """
        ends = [end for end, _ in self.reader.finish([state for state in states for _ in range(self.n)])]
        rewards = rewards_of(self.reader.mdp, ends)
        for end, reward in zip(ends, rewards.tolist(), strict=True):
            self.finished.setdefault(end.tokens[: end.n_prompt], []).append((reward, end))
        return rewards.reshape(-1, self.n).mean(1)


class HeadValue:
    """What the policy's value head says; costs no token of its own where head and policy share the model."""

    def __init__(self, reader: TextReader):
        if reader.policy.value_head is None:
            raise ValueError("HeadValue needs a policy with a value head: LMPolicy(…, value_head=True)")
        self.reader = reader

    def __call__(self, states: Sequence[TextState]) -> np.ndarray:
        """n states -> float64 [n]."""
        return self.reader.values(states)


class Mixed:
    """Weighted sum of values, as AlphaGo's (1 - λ) v + λ z (Silver et al. 2016).

    Args:
        weights: value -> weight, such as `{head: 0.5, rollouts: 0.5}`.
    """

    def __init__(self, weights: Mapping[Value, float]):
        if not weights or not np.isfinite(list(weights.values())).all():
            raise ValueError(f"weights must be finite numbers, at least one, got {list(weights.values())}")
        self.weights = dict(weights)

    def __call__(self, states: Sequence[TextState]) -> np.ndarray:
        """n states -> float64 [n]."""
        return sum(weight * np.asarray(value(states), np.float64) for value, weight in self.weights.items())  # type: ignore[return-value]


def rewards_of(mdp: TextMDP, states: Sequence[TextState]) -> np.ndarray:
    """Rewards of finished states, in one call of the task where it can; float64 [n].

    Raises:
        ScorerFailed: the task could not judge one of them.
    """
    judged = mdp.outcomes(states)
    for outcome in judged:
        if isinstance(outcome, ScorerFailed):
            raise outcome
    return np.array([outcome.reward for outcome in judged if not isinstance(outcome, ScorerFailed)])


@torch.no_grad()
def fit_head(reader: TextReader, starts: Sequence[TextState], *, n: int = 8, ridge: float = 1.0) -> float:
    """Fit the policy's value head to the returns of its own texts, by ridge regression on the hidden states.

    Every state on the way of a text has the text's return as its target: V of the policy in expectation.

    Args:
        reader: of a policy with a value head on the model itself or on a copy.
        starts: first states of problems to learn from.
        n: texts of each.
        ridge: added to the diagonal of the normal equations.

    Returns:
        The share of the targets' variance that the head explains.
    """
    ends = [end for end, _ in reader.finish([state for state in starts for _ in range(n)])]
    texts = [end.tokens[:length] for end in ends for length in range(end.n_prompt, len(end.tokens))]
    targets = np.repeat(rewards_of(reader.mdp, ends), [end.n_tokens for end in ends])
    hidden = reader.value_texts.read(texts).hidden
    assert hidden is not None and reader.policy.value_head is not None
    x = torch.cat([hidden.double(), hidden.new_ones(len(texts), 1).double()], 1)
    y = torch.as_tensor(targets, device=x.device)
    weights = torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1], device=x.device), x.T @ y)
    head = reader.policy.value_head
    head.weight.copy_(weights[None, :-1])
    head.bias.copy_(weights[-1:])
    return float(1 - (y - x @ weights).var() / y.var().clamp_min(1e-12))
