"""Distributions over actions: from the outputs of a network to actions, log-probs and entropies, in nats.

They do what `torch.distributions` does in a fraction of the time: no checks of arguments, and what is needed twice is
computed once. n is a number of states; each takes its part of the outputs of one network, [n, K].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from llmgym.mdp import NoLegalAction

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Distribution(Protocol):
    """Of one action in each of n states."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """An action a row, [n] or [n, D]."""

    def mode(self) -> Tensor:
        """The most probable action a row."""

    def logp(self, actions: Tensor) -> Tensor:
        """Log-prob (or log-density) of one action a row, nats [n]."""

    def entropy(self) -> Tensor:
        """Nats, [n]."""


class Categorical:
    """One of K choices: p = softmax(logits) over what the mask allows; a forbidden choice has log-prob -inf.

    Args:
        logits: [n, K].
        mask: True for allowed choices, bool [n, K].

    Raises:
        NoLegalAction: a row of `mask` allows nothing.
    """

    def __init__(self, logits: Tensor, mask: Tensor | None = None):
        if mask is not None:
            if not bool(mask.any(-1).all()):
                raise NoLegalAction("a row of the action masks allows no action")
            logits = logits.masked_fill(~mask, -torch.inf)
        self.logits, self.mask = logits, mask

    @cached_property
    def all_logp(self) -> Tensor:
        """Log-prob of every choice, [n, K]."""
        return self.logits.log_softmax(-1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """By the Gumbel-max trick: argmax(logits - log E) with E exponential, which normalises nothing."""
        noise = torch.empty_like(self.logits).exponential_(generator=generator).log_()
        return (self.logits - noise).argmax(-1)

    def mode(self) -> Tensor:
        """The first of the most probable choices."""
        return self.logits.argmax(-1)

    def logp(self, actions: Tensor) -> Tensor:
        """Of int64 [n]."""
        return -F.nll_loss(self.all_logp, actions, reduction="none")

    def entropy(self) -> Tensor:
        """-Σ p log p; a forbidden choice adds 0, and no NaN to the gradient."""
        logp = self.all_logp
        finite = logp if self.mask is None else logp.masked_fill(~self.mask, 0.0)
        return -(logp.exp() * finite).sum(-1)


class MultiCategorical:
    """Independent choices, [n, D]: log-probs and entropies are sums over them.

    Args:
        logits: those of each choice side by side, [n, Σ sizes].
        sizes: K of each choice.
        mask: flat and concatenated as the logits are (the form of sb3-contrib), bool [n, Σ sizes].
    """

    def __init__(self, logits: Tensor, sizes: Sequence[int], mask: Tensor | None = None):
        sizes = list(sizes)
        masks = [None] * len(sizes) if mask is None else mask.split(sizes, -1)
        self.parts = [Categorical(x, m) for x, m in zip(logits.split(sizes, -1), masks, strict=True)]

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """int64 [n, D]."""
        return torch.stack([part.sample(generator) for part in self.parts], -1)

    def mode(self) -> Tensor:
        """int64 [n, D]."""
        return torch.stack([part.mode() for part in self.parts], -1)

    def logp(self, actions: Tensor) -> Tensor:
        """Of int64 [n, D]."""
        chosen = zip(self.parts, actions.unbind(-1), strict=True)
        return torch.stack([part.logp(a) for part, a in chosen]).sum(0)

    def entropy(self) -> Tensor:
        """Sum over the choices."""
        return torch.stack([part.entropy() for part in self.parts]).sum(0)


class Bernoulli:
    """D independent bits, each 1 with probability σ(logit); logits [n, D]."""

    def __init__(self, logits: Tensor):
        self.logits = logits

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """int64 [n, D]."""
        p = self.logits.sigmoid()
        return (torch.rand(p.shape, generator=generator, device=p.device, dtype=p.dtype) < p).long()

    def mode(self) -> Tensor:
        """int64 [n, D]; 0 where both are as probable."""
        return (self.logits > 0).long()

    def logp(self, actions: Tensor) -> Tensor:
        """Of bits [n, D]."""
        bits = actions.to(self.logits.dtype)
        return -F.binary_cross_entropy_with_logits(self.logits, bits, reduction="none").sum(-1)

    def entropy(self) -> Tensor:
        """Sum of softplus(x) - x σ(x), which is exact where p log p would be 0 · ∞."""
        return (F.softplus(self.logits) - self.logits * self.logits.sigmoid()).sum(-1)


class Gaussian:
    """Independent normal variables with a standard deviation that is the same in every state.

    Args:
        mean: [n, D].
        log_std: [D].
    """

    def __init__(self, mean: Tensor, log_std: Tensor):
        self.mean, self.log_std = mean, log_std

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """[n, D]; no bounds are known here."""
        noise = torch.empty_like(self.mean).normal_(generator=generator)
        return self.mean + self.log_std.exp() * noise

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean

    def logp(self, actions: Tensor) -> Tensor:
        """Log-density of [n, D]."""
        z = (actions - self.mean) * (-self.log_std).exp()
        return (-0.5 * z.square() - self.log_std - _HALF_LOG_2PI).sum(-1)

    def entropy(self) -> Tensor:
        """Σ ½ + ½ log 2π + log std: the differential entropy, which may be negative."""
        return (0.5 + _HALF_LOG_2PI + self.log_std).sum().expand(len(self.mean))


class Head:
    """How the outputs of a network become actions of one space.

    Attributes:
        size: outputs the network must have, K.
        takes_masks: whether action masks, bool [n, K], mean something here.
        log_std: a parameter of the distribution itself; None where there is none.
    """

    size: int
    takes_masks = False
    log_std: nn.Parameter | None = None

    def distribution(self, outputs: Tensor, mask: Tensor | None = None) -> Distribution:
        """The distribution that outputs [n, K] stand for."""
        raise NotImplementedError

    def for_env(self, actions: np.ndarray) -> np.ndarray:
        """Sampled actions as the environment takes them, [n, …]."""
        raise NotImplementedError


class _DiscreteHead(Head):
    takes_masks = True

    def __init__(self, space: spaces.Discrete):
        self.size, self.start, self.dtype = int(space.n), int(space.start), space.dtype

    def distribution(self, outputs: Tensor, mask: Tensor | None = None) -> Distribution:
        return Categorical(outputs, mask)

    def for_env(self, actions: np.ndarray) -> np.ndarray:
        return (actions + self.start if self.start else actions).astype(self.dtype, copy=False)


class _MultiDiscreteHead(Head):
    takes_masks = True

    def __init__(self, space: spaces.MultiDiscrete):
        self.sizes, self.start, self.dtype = space.nvec.flatten().tolist(), space.start, space.dtype
        self.size, self.shape = sum(self.sizes), space.shape

    def distribution(self, outputs: Tensor, mask: Tensor | None = None) -> Distribution:
        return MultiCategorical(outputs, self.sizes, mask)

    def for_env(self, actions: np.ndarray) -> np.ndarray:
        return (actions.reshape(-1, *self.shape) + self.start).astype(self.dtype, copy=False)


class _MultiBinaryHead(Head):
    def __init__(self, space: spaces.MultiBinary):
        self.size, self.shape, self.dtype = math.prod(space.shape), space.shape, space.dtype

    def distribution(self, outputs: Tensor, mask: Tensor | None = None) -> Distribution:
        return Bernoulli(outputs)

    def for_env(self, actions: np.ndarray) -> np.ndarray:
        return actions.reshape(-1, *self.shape).astype(self.dtype)


class _BoxHead(Head):
    def __init__(self, space: spaces.Box):
        self.size, self.low, self.high = math.prod(space.shape), space.low, space.high
        self.log_std = nn.Parameter(torch.zeros(self.size))

    def distribution(self, outputs: Tensor, mask: Tensor | None = None) -> Distribution:
        assert self.log_std is not None
        return Gaussian(outputs, self.log_std)

    def for_env(self, actions: np.ndarray) -> np.ndarray:
        """Clipped to the bounds, for the environment only: log-probs are those of the action before."""
        return np.clip(actions.reshape(-1, *self.low.shape), self.low, self.high).astype(self.low.dtype, copy=False)


def make_head(space: Any) -> Head:
    """The head of an action space.

    Discrete: `Categorical`. MultiDiscrete: `MultiCategorical`. MultiBinary: `Bernoulli`. Box of floats: `Gaussian`
    with log std 0 at first.

    Raises:
        ValueError: any other space.
    """
    if isinstance(space, spaces.Discrete):
        return _DiscreteHead(space)
    if isinstance(space, spaces.MultiDiscrete):
        return _MultiDiscreteHead(space)
    if isinstance(space, spaces.MultiBinary):
        return _MultiBinaryHead(space)
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return _BoxHead(space)
    raise ValueError(f"actions must be Discrete, MultiDiscrete, MultiBinary or a Box of floats, got {space}")
