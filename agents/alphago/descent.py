"""What the stages that fit something share: minibatches, AdamW with a rate that falls to 0."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

Tell = Callable[[dict[str, float]], bool | None]  # is told the metrics of a step; False ends the stage
ROWS_AT_ONCE = 1024  # positions in one forward pass without gradients


class Descent:
    """AdamW, clipped, its rate falling linearly to 0.

    Args:
        parameters: what is learnt.
        learning_rate: at first.
        steps: after which it is 0.
        weight_decay: of AdamW.
        max_norm: gradients are clipped to this norm; infinity: never.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        learning_rate: float,
        steps: int,
        weight_decay: float = 0.0,
        max_norm: float = 1.0,
    ):
        self.parameters, self.max_norm = list(parameters), max_norm
        self.optimizer = torch.optim.AdamW(self.parameters, learning_rate, weight_decay=weight_decay)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: max(0.0, 1 - step / steps))

    def step(self, loss: Tensor) -> float:
        """One step down a loss; returns it."""
        loss.backward()
        self.apply()
        return float(loss.detach())

    def apply(self) -> None:
        """One step by the gradients that are there."""
        nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()


def minibatches(n: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """All of n rows once, in random order."""
    order = rng.permutation(n)
    return (order[start : start + size] for start in range(0, n, size))
