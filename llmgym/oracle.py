"""Exact values for text environments small enough to enumerate: what every estimator must equal on average.

    oracle = Oracle(env, problem, policy)
    oracle.expected_return(), oracle.value(state), oracle.q(state, action)
    oracle.policy_gradient(policy.parameters())

Nothing is sampled, so nothing has an error bar: an estimator that differs by more than rounding is biased.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llmgym.policy import LMPolicy
from llmgym.sampling import sampling_logp
from llmgym.tasks import Problem
from llmgym.text import TextMDP, TextState

# Token ids of n prefixes -> unnormalised scores of the next token, [n, V]; may carry a gradient.
Scores = Callable[[Sequence[tuple[int, ...]]], Tensor]


class Step(NamedTuple):
    """One action taken in one state.

    Attributes:
        state: before the action.
        tokens: the tokens of the block that count.
        reward: of this step.
        next_state: after it, the task's reply included.
    """

    state: TextState
    tokens: tuple[int, ...]
    reward: float
    next_state: TextState


class Oracle:
    """Every episode that can follow `start`, with exact probabilities and returns.

    The action is the environment's: a token, a block with or without a stop rule, a whole sequence. Everything is
    computed in float64 from the *current* parameters of `policy`, at every call. S counts episodes.

    Args:
        env: a text environment (single or vector), or a `TextMDP`.
        start: a problem, or a state to start from (which may carry the key of random block lengths).
        policy: an `LMPolicy`, or a function of token prefixes that gives scores of the next token; masks of the
            environment are applied to these, and they are normalised over what is left.
        max_actions: largest number of (state, action) pairs to enumerate.

    Raises:
        ValueError: there are more than `max_actions`; the sentence says how many there may be.
    """

    def __init__(self, env: Any, start: Problem | TextState, policy: LMPolicy | Scores, *, max_actions: int = 100_000):
        self.mdp: TextMDP = env if isinstance(env, TextMDP) else env.unwrapped.mdp
        self.start = start if isinstance(start, TextState) else self.mdp.start(start)
        self.policy = policy
        self._tree = _Tree(self.mdp, self.start, max_actions)

    @property
    def states(self) -> list[TextState]:
        """Every state in which an action is taken, each before those that follow it."""
        return list(self._tree.actions)

    @property
    def episodes(self) -> list[list[Step]]:
        """The steps of each episode, in lexicographic order of the tokens; row i of `logp` and `returns`."""
        return [[self._tree.steps[k] for k in path] for path in self._tree.paths]

    @property
    def returns(self) -> Tensor:
        """R of each episode, the undiscounted sum of its rewards, float64 [S]."""
        return torch.tensor([sum(step.reward for step in e) for e in self.episodes], dtype=torch.float64)

    def logp(self, policy: LMPolicy | Scores | None = None) -> Tensor:
        """log p(episode) = Σ_n log π(a_n|s_n), nats [S]; differentiable. Another `policy` may be asked about."""
        actions = self._action_logp(policy)
        return torch.stack([actions[list(path)].sum() for path in self._tree.paths])

    def expected_return(self) -> Tensor:
        """J = E[R] = Σ p(episode) R, []; differentiable."""
        return (self.logp().exp() * self.returns).sum()

    @torch.no_grad()
    def values(self) -> dict[TextState, float]:
        """V(s) = Σ_a π(a|s) Q(s, a) of every state in which an action is taken."""
        p, values = self._action_logp().exp().tolist(), dict[TextState, float]()
        for state, actions in reversed(self._tree.actions.items()):
            after = {k: self._tree.steps[k] for k in actions}
            values[state] = sum(p[k] * (s.reward + values.get(s.next_state, 0.0)) for k, s in after.items())
        return values

    def value(self, state: TextState) -> float:
        """V(s), the expected sum of rewards from `state` on; 0 in a terminal state."""
        if self.mdp.terminal(state):
            return 0.0
        if state not in self._tree.actions:
            raise ValueError(f"no action leads from the start to the state with tokens {state.tokens}")
        return self.values()[state]

    def q(self, state: TextState, action: Any) -> float:
        """Q(s, a) = r(s, a, s') + V(s'); `action` is what `step` takes."""
        next_state = self.mdp.transition(state, action)
        return self.mdp.reward(state, action, next_state) + self.value(next_state)

    def kl(self, reference: LMPolicy | Scores) -> Tensor:
        """KL(π, π_ref) = Σ p(episode) log p(episode)/p_ref(episode) of whole episodes, nats []; differentiable."""
        logp, ref_logp = self.logp(), self.logp(reference)
        possible = logp > -torch.inf  # 0 log 0 = 0
        return (logp[possible].exp() * (logp - ref_logp)[possible]).sum()

    def policy_gradient(self, parameters: Iterable[Tensor]) -> list[Tensor]:
        """∇J, one tensor a parameter; 0 for what the policy does not depend on."""
        return _gradient(self.expected_return(), list(parameters))

    def gradient_variance(
        self, parameters: Iterable[Tensor], baseline: float | Callable[[TextState], float] = 0.0
    ) -> float:
        """E|g|² - |E g|² of the REINFORCE estimate g = Σ_n ∇log π(a_n|s_n) (G_n - b(s_n)) from one episode.

        This is the trace of the covariance matrix; the mean of m independent episodes has 1/m of it.

        Args:
            parameters: of the policy.
            baseline: b, a number or a function of the state, such as `oracle.values().__getitem__`.
        """
        parameters = list(parameters)
        actions, square, mean = self._action_logp(), 0.0, [torch.zeros_like(p) for p in parameters]
        for path, p in zip(self._tree.paths, self.logp().exp().tolist(), strict=True):
            steps = [self._tree.steps[k] for k in path]
            weights = [g - (baseline(s.state) if callable(baseline) else baseline) for g, s in _returns_to_go(steps)]
            gradient = _gradient((actions[list(path)] * actions.new_tensor(weights)).sum(), parameters)
            square += p * sum(float(g.square().sum()) for g in gradient)
            mean = [m + p * g for m, g in zip(mean, gradient, strict=True)]
        return square - sum(float(m.square().sum()) for m in mean)

    def _action_logp(self, policy: LMPolicy | Scores | None = None) -> Tensor:
        """log π(a|s) of every step of the tree, float64 [K]: the sum over the tokens of the block."""
        policy, tree = self.policy if policy is None else policy, self._tree
        scores, settings = policy, {}
        if isinstance(policy, LMPolicy):
            scores = _model_scores(policy)
            settings = {"temperature": policy.temperature, "top_k": policy.top_k, "top_p": policy.top_p}
        logits = scores(tree.prefixes)[:, : self.mdp.codec.vocab_size]  # type: ignore[operator]
        mask = torch.as_tensor(np.stack(tree.masks), device=logits.device)
        logp = sampling_logp(logits, mask=mask, **settings).double()  # type: ignore[arg-type]
        step, prefix, token = torch.tensor(tree.tokens, device=logp.device).unbind(1)
        return logp.new_zeros(len(tree.steps)).index_add(0, step, logp[prefix, token]).cpu()


class _Tree:
    """All states and actions below `start`.

    Attributes:
        steps: every (state, action) pair.
        tokens: every token of every step as (index of the step, index of the prefix it follows, token id).
        actions: state -> indices of its steps; parents before children.
        paths: for each episode the indices of its steps.
        prefixes, masks: texts after which a token is chosen, and from what; bool [V].
    """

    def __init__(self, mdp: TextMDP, start: TextState, limit: int):
        self.mdp, self.limit = mdp, limit
        self.steps: list[Step] = []
        self.tokens: list[tuple[int, int, int]] = []
        self.actions: dict[TextState, range] = {}
        self.paths: list[tuple[int, ...]] = []
        self.prefixes: list[tuple[int, ...]] = []
        self.masks: list[np.ndarray] = []
        if mdp.terminal(start):
            raise ValueError("the start is a terminal state: there is nothing to enumerate")
        pending: list[tuple[TextState, tuple[int, ...]]] = [(start, ())]
        while pending:
            state, path = pending.pop()
            if mdp.terminal(state):
                self.paths.append(path)
                continue
            self._expand(state)
            pending += [(self.steps[k].next_state, (*path, k)) for k in reversed(self.actions[state])]

    def _expand(self, state: TextState) -> None:
        first = len(self.steps)
        for tokens, prefixes in self._blocks(state):
            action = tokens + (self.mdp.eos_id,) * (self.mdp.block_size - len(tokens))  # the rest is ignored
            next_state = self.mdp.transition(state, action)
            self.tokens += [(len(self.steps), p, t) for p, t in zip(prefixes, tokens, strict=True)]
            self.steps.append(Step(state, tokens, self.mdp.reward(state, action, next_state), next_state))
            if len(self.steps) > self.limit:
                raise ValueError(f"more than max_actions = {self.limit} actions: {_size(self.mdp, state)}")
        self.actions[state] = range(first, len(self.steps))

    def _blocks(
        self, state: TextState, tokens: tuple[int, ...] = (), prefixes: tuple[int, ...] = ()
    ) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Every block that can be written in `state` under the masks, and the prefix that each token follows."""
        mask = self.mdp.token_mask(state, tokens)
        mask = np.ones(self.mdp.codec.vocab_size, bool) if mask is None else mask
        prefixes = (*prefixes, len(self.prefixes))
        self.prefixes.append(state.tokens + tokens)
        self.masks.append(mask)
        for token in np.flatnonzero(mask).tolist():
            block = (*tokens, token)
            if self._block_ends(state, block):
                yield block, prefixes
            else:
                yield from self._blocks(state, block, prefixes)

    def _block_ends(self, state: TextState, block: tuple[int, ...]) -> bool:
        mdp = self.mdp
        if block[-1] == mdp.eos_id or len(block) == mdp.block_size or state.n_tokens + len(block) == mdp.max_new_tokens:
            return True
        return mdp.stop is not None and mdp.stop(state, block)


def _size(mdp: TextMDP, state: TextState) -> str:
    """How many texts there may be, in words: (V-1)^t end with EOS after t tokens, (V-1)^T spend the budget."""
    others, budget = mdp.codec.vocab_size - 1, mdp.max_new_tokens
    if budget * math.log10(max(others, 1)) > 12:
        return f"{mdp.codec.vocab_size} tokens and max_new_tokens = {budget} allow some {others}^{budget} texts"
    count = sum(others**t for t in range(budget)) + others**budget
    return f"{mdp.codec.vocab_size} tokens and max_new_tokens = {budget} allow up to {count} texts"


def _model_scores(policy: LMPolicy) -> Scores:
    def scores(prefixes: Sequence[tuple[int, ...]]) -> Tensor:
        lengths = torch.tensor([len(p) for p in prefixes], device=policy.device)
        tokens = pad_sequence([torch.tensor(p) for p in prefixes], batch_first=True).to(policy.device)
        mask = torch.arange(tokens.shape[1], device=policy.device) < lengths[:, None]
        logits = policy.model(tokens, attention_mask=mask.long(), use_cache=False).logits
        return logits[torch.arange(len(prefixes), device=policy.device), lengths - 1]

    return scores


def _returns_to_go(steps: Sequence[Step]) -> list[tuple[float, Step]]:
    return [(sum(later.reward for later in steps[n:]), step) for n, step in enumerate(steps)]


def _gradient(x: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(x, parameters, retain_graph=True, allow_unused=True, materialize_grads=True))
