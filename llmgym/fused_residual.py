"""A residual tower in bfloat16 on the CPU, for looking only: a convolution takes what follows it along.

oneDNN adds the bias, what a block began with, and the activation while it writes a convolution's output, and reads
weights that were packed once. torch offers that to its compiler; called directly it needs none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from llmgym.residual import ResNet, pooled

_CHANNELS = 32  # oneDNN is fast for multiples of these: 48 channels take six times as long as 64 of 8 boards


def fused(net: Any) -> Any:
    """The network, or one that says the same sooner: for a `ResNet` in bfloat16 with ReLUs and a critic, on a CPU that
    has bfloat16. What the network learns later does not reach it."""
    if not isinstance(net, ResNet) or net.critic is None or net.activation is not torch.relu:
        return net
    weights, ops = net.stem.weight, torch.ops.mkldnn
    if weights.device.type != "cpu" or weights.dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        return net
    return FusedResNet(net) if hasattr(ops, "_convolution_pointwise") and ops._is_mkldnn_bf16_supported() else net


class Convolution:
    """A convolution that keeps the board's size, with what follows it; "channels last" in and out.

    Args:
        layer: what it computes.
        more: channels that come in beyond the layer's own, and go out: the first are ignored, the second are 0.
    """

    def __init__(self, layer: nn.Conv2d, more: tuple[int, int] = (0, 0)):
        side = layer.kernel_size[0] // 2
        self.shape: Any = ([side, side], [1, 1], [1, 1], 1)
        self.bias = None if layer.bias is None else pad(layer.bias.detach(), (0, more[1]))
        weight = pad(layer.weight.detach(), (0, 0, 0, 0, 0, more[0], 0, more[1]))
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.shape)

    def __call__(self, x: Tensor, activation: str = "relu") -> Tensor:
        """[n, C, H, W] -> [n, C', H, W]; the activation may be "none"."""
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.shape, activation, [], "")

    def onto(self, x: Tensor, other: Tensor) -> Tensor:
        """The output on top of what is there."""
        sums: Any = ("add", 1.0, None, [], "")
        return torch.ops.mkldnn._convolution_pointwise.binary(x, other, self.weight, self.bias, *self.shape, *sums)


class FusedResNet:
    """Outputs and values of a `ResNet` as it is now.

    Args:
        net: see `fused`.
    """

    def __init__(self, net: ResNet):
        actor: Any = net.actor
        critic: Any = net.critic
        blocks: Any = net.blocks
        more = -net.stem.out_channels % _CHANNELS
        self.stem = Convolution(net.stem, (0, more))
        self.blocks = [
            tuple(Convolution(each, (more, more)) for each in (block.first, block.second)) for block in blocks
        ]
        self.actor, self.critic = actor, critic
        self.points, self.board = (Convolution(head.seen, (more, 0)) for head in (actor, critic))

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Planes [n, C, H, W] -> [n, H · W + 1] and [n]."""
        x = self.stem(x, "none")
        for first, second in self.blocks:
            x = second.onto(first(torch.relu(x)), x)
        x = torch.relu_(x)
        return self._outputs(self.points(x)), self._values(self.board(x))

    def _outputs(self, x: Tensor) -> Tensor:
        actor, board = self.actor, pooled(x)
        points = actor.points(torch.relu_(x + actor.board(board)[:, :, None, None]))
        return torch.cat([points.flatten(1), actor.skip(board)], 1)

    def _values(self, x: Tensor) -> Tensor:
        return self.critic.value(torch.relu(self.critic.hidden(pooled(x)))).flatten()
