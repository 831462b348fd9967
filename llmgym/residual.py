"""A residual tower on a board: an action for each point, and one more for the pass."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llmgym.actor_critic import Activation, ActorCritic, convolution, linear

_HEAD = 32  # channels of both heads, and units of the critic


class ResNet(ActorCritic):
    """An actor and a critic on one residual tower, as AlphaZero's (Silver et al. 2018), on planes [C, H, W].

    A 3x3 convolution, then blocks x + g(f(x)) of two 3x3 convolutions each, no normalisation: the last convolution of
    a block begins at 0, and the block as the identity (Zhang, Dauphin & Ma 2019). The actor's heads convolve: a point's
    output is read off the tower at that point, with what the whole board says added (global pooling, Wu 2019), the
    pass and the value off means and maxima over the board. No weight depends on the size of the board, so that a
    network goes on learning on a larger one.

    Args: those of `ActorCritic`; `hidden` holds the channels of each block, which must be equal.

    Raises:
        ValueError: blocks of different widths, or actions that are not the points of the board and a pass.
    """

    def __init__(
        self,
        shape: Sequence[int],
        hidden: Sequence[int],
        outputs: int,
        activation: Activation,
        critic: bool,
        generator: torch.Generator,
    ):
        super().__init__()
        planes, rows, cols = shape
        if len(set(hidden)) > 1:
            raise ValueError(f"hidden of 'ResNetPolicy' must be equal numbers of channels, got {tuple(hidden)}")
        if outputs != rows * cols + 1:
            raise ValueError(
                f"'ResNetPolicy' acts on the points of a board and passes, {rows * cols + 1} actions on {rows}x{cols} "
                f"points, got {outputs}"
            )
        width = hidden[0]
        self.activation = activation
        self.stem = convolution(planes, width, 1, generator)
        self.blocks = nn.ModuleList(Block(width, activation, generator) for _ in hidden)
        self.actor = PointHead(width, activation, generator)
        self.critic = BoardHead(width, activation, generator) if critic else None

    def outputs(self, x: Tensor) -> Tensor:
        return self.actor(self._tower(x))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self._tower(x)
        return self.actor(x), None if self.critic is None else self.critic(x)

    def _tower(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.activation(x)


class Block(nn.Module):
    """x + g(f(x)), activations first (He et al. 2016, "identity mappings")."""

    def __init__(self, width: int, activation: Activation, generator: torch.Generator):
        super().__init__()
        self.first, self.second = (convolution(width, width, 1, generator) for _ in range(2))
        nn.init.zeros_(self.second.weight)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """[n, W, H, W'] -> the same shape."""
        return x + self.second(self.activation(self.first(self.activation(x))))


class PointHead(nn.Module):
    """Outputs of all points and of the pass, [n, H · W' + 1]."""

    def __init__(self, width: int, activation: Activation, generator: torch.Generator):
        super().__init__()
        self.seen, self.activation = convolution(width, _HEAD, 1, generator, side=1), activation
        self.board = linear(2 * _HEAD, _HEAD, 1.0, generator)
        self.points = convolution(_HEAD, 1, 1, generator, side=1, gain=0.01)
        self.skip = linear(2 * _HEAD, 1, 0.01, generator)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.seen(x))
        board = pooled(x)
        points = self.points(self.activation(x + self.board(board)[:, :, None, None]))
        return torch.cat([points.flatten(1), self.skip(board)], 1)


class BoardHead(nn.Module):
    """A value of the whole board, [n]."""

    def __init__(self, width: int, activation: Activation, generator: torch.Generator):
        super().__init__()
        self.seen, self.activation = convolution(width, _HEAD, 1, generator, side=1), activation
        self.hidden = linear(2 * _HEAD, _HEAD, math.sqrt(2), generator)
        self.value = linear(_HEAD, 1, 1.0, generator)

    def forward(self, x: Tensor) -> Tensor:
        x = pooled(self.activation(self.seen(x)))
        return self.value(self.activation(self.hidden(x))).flatten()


def pooled(x: Tensor) -> Tensor:
    """Means and maxima over the board, [n, C, H, W] -> [n, 2 C]."""
    wide = x.float() if x.dtype == torch.bfloat16 else x  # maxima of bfloat16 take ten times as long
    return torch.cat([wide.mean((2, 3)), wide.amax((2, 3))], 1).to(x.dtype)
