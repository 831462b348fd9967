"""Steps of a forward pass whose gradients, written out, take fewer passes over memory than autograd's and keep less.

With and without a gradient each does the same arithmetic, bit for bit: a first ratio of exactly 1 depends on it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def unit(x: Tensor, root: Tensor) -> Tensor:
    """x / sqrt(|x|² + root²) over the last axis: an RMS norm whose weight and √D are folded into what follows."""
    return _Unit.apply(x, root) if _learning(x) else x * _inverse_length(x, root)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) · up of [gate, up] along the last axis (Shazeer 2020)."""
    return _SwiGLU.apply(gate_up) if _learning(gate_up) else _gated(gate_up)


def rows_of(x: Tensor, index: Tensor) -> Tensor:
    """x[index] along the first axis; the gradient is added up row by row, many times faster than that of indexing."""
    return F.embedding(index, x.flatten(1)).unflatten(-1, x.shape[1:])


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, root: Tensor) -> Tensor:
        inverse = _inverse_length(x, root)
        y = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        y, inverse = ctx.saved_tensors  # d y = (d x - y (y · d x)) / length
        along = torch.linalg.vecdot(grad, y)[..., None]
        return torch.addcmul(grad, y, along, value=-1).mul_(inverse), None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return _gated(gate_up)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        out = torch.empty_like(gate_up)
        d_gate, d_up = out.chunk(2, -1)
        work = F.silu(gate)  # computed again: cheaper than keeping it for every layer
        torch.mul(grad, work, out=d_up)
        torch.mul(grad, up, out=work)
        torch.ops.aten.silu_backward.grad_input(work, gate, grad_input=d_gate)
        return out


def _inverse_length(x: Tensor, root: Tensor) -> Tensor:
    return torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), root).reciprocal_()


def _gated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)


def _learning(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()
