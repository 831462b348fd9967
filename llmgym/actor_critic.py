"""Networks with an actor and, if wanted, a critic: vectors or planes in, outputs [n, K] and values [n] out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "silu": F.silu,
    "elu": F.elu,
    "gelu": F.gelu,
}
_LARGEST_PLANE = 21  # sides above it are halved: a board of 19 keeps its points, a picture of 84 becomes 21
_FEATURES = 128  # what the planes are summed up in


class ActorCritic(nn.Module):
    """What both kinds have in common.

    Args:
        shape: of one encoded observation.
        hidden: units (or channels) of each hidden layer.
        outputs: K.
        activation: between layers.
        critic: whether there is one.
        generator: of the weights; the global random generator is not touched.

    Attributes:
        actor, critic: what gives outputs and values; no critic, None.
        log_std: a parameter of the distribution over actions, saved and moved with the rest; None where it has none.
    """

    actor: nn.Module
    critic: nn.Module | None
    log_std: nn.Parameter | None

    def outputs(self, x: Tensor) -> Tensor:
        """Those of the actor alone, [n, …] -> [n, K]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Outputs [n, K], and values [n] or None."""
        raise NotImplementedError


class Mlps(ActorCritic):
    """An actor and a critic that share nothing, on vectors."""

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
        sizes = (*shape, *hidden)
        self.actor = Mlp((*sizes, outputs), activation, 0.01, generator)
        self.critic = Mlp((*sizes, 1), activation, 1.0, generator) if critic else None

    def outputs(self, x: Tensor) -> Tensor:
        return self.actor(x)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.actor(x), None if self.critic is None else self.critic(x).flatten()


class Cnn(ActorCritic):
    """An actor and a critic on one stack of 3x3 convolutions, on planes [C, H, W]."""

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
        channels, *sides = shape
        convolutions = []
        while max(sides) > _LARGEST_PLANE:
            convolutions.append(convolution(channels, hidden[0], 2, generator))
            channels, sides = hidden[0], [(side + 1) // 2 for side in sides]
        for width in hidden:
            convolutions.append(convolution(channels, width, 1, generator))
            channels = width
        self.convolutions, self.activation = nn.ModuleList(convolutions), activation
        # Flattened and not pooled: on a board it matters where things are.
        self.features = linear(channels * math.prod(sides), _FEATURES, math.sqrt(2), generator)
        self.actor = linear(_FEATURES, outputs, 0.01, generator)
        self.critic = linear(_FEATURES, 1, 1.0, generator) if critic else None

    def outputs(self, x: Tensor) -> Tensor:
        return self.actor(self._trunk(x))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self._trunk(x)
        return self.actor(x), None if self.critic is None else self.critic(x).flatten()

    def _trunk(self, x: Tensor) -> Tensor:
        for convolution in self.convolutions:
            x = self.activation(convolution(x))
        return self.activation(self.features(x.flatten(1)))


class Mlp(nn.Module):
    """Linear layers with an activation between them.

    Args:
        sizes: inputs, units of each hidden layer, outputs.
        activation: between the layers.
        gain: of the last layer's weights.
        generator: of the weights.
    """

    def __init__(self, sizes: Sequence[int], activation: Activation, gain: float, generator: torch.Generator):
        super().__init__()
        gains = [math.sqrt(2)] * (len(sizes) - 2) + [gain]
        layers = [linear(*pair, generator) for pair in zip(sizes[:-1], sizes[1:], gains, strict=True)]
        self.layers, self.activation = nn.ModuleList(layers), activation
        # To look a parameter up in its module takes as long as a small product does.
        self._weights = [(layer.weight, layer.bias) for layer in layers]

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs] -> [n, outputs]."""
        *inner, last = self._weights
        for weight, bias in inner:
            x = self.activation(F.linear(x, weight, bias))
        return F.linear(x, *last)


def linear(inputs: int, outputs: int, gain: float, generator: torch.Generator) -> nn.Linear:
    """A linear layer with orthogonal weights."""
    return _orthogonal(nn.utils.skip_init(nn.Linear, inputs, outputs), gain, generator)


def convolution(
    inputs: int,
    outputs: int,
    stride: int,
    generator: torch.Generator,
    *,
    side: int = 3,
    gain: float = math.sqrt(2),
) -> nn.Conv2d:
    """A convolution that keeps the sides of planes (divided by `stride`), with orthogonal weights."""
    layer = nn.utils.skip_init(nn.Conv2d, inputs, outputs, side, stride=stride, padding=side // 2)
    return _orthogonal(layer, gain, generator)


def _orthogonal(layer: Any, gain: float, generator: torch.Generator) -> Any:
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer
