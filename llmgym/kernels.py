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


def read_off(logits: Tensor, tokens: Tensor, *, entropy: bool = True) -> tuple[Tensor, Tensor | None]:
    """log p(token) and the entropy of p = softmax(logits), nats; differentiable.

    Besides the logits nothing of their size is kept, and the gradient is written once: a vocabulary of 50,000 makes a
    copy the largest thing in memory.

    Args:
        logits: [m, V], float32 or wider; -inf marks a forbidden token.
        tokens: int64 [m].
        entropy: whether to compute it.

    Returns:
        [m] and [m], or None in place of the entropy.
    """
    logp, entropies = _ReadOff.apply(logits, tokens, entropy)
    return logp, entropies if entropy else None


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


class _ReadOff(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, entropy: bool) -> tuple[Tensor, Tensor]:
        total, entropies = logits.new_empty(len(logits)), logits.new_zeros(len(logits) if entropy else 0)
        for part in _slices(logits):
            total[part] = logits[part].logsumexp(-1)
            if entropy:
                logp = logits[part] - total[part, None]
                entropies[part] = -torch.linalg.vecdot(logp.exp(), _finite(logp))
        ctx.save_for_backward(logits, tokens, total, entropies)
        ctx.set_materialize_grads(False)
        return logits.gather(-1, tokens[:, None])[:, 0] - total, entropies

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_logp: Tensor | None, d_entropy: Tensor | None) -> tuple[Tensor, None, None]:
        logits, tokens, total, entropies = ctx.saved_tensors
        out = torch.empty_like(logits)
        d_logp = torch.zeros_like(total) if d_logp is None else d_logp
        for part in _slices(logits):  # d log p(a) = 1[a] - p, d H = -p (log p + H)
            logp = torch.sub(logits[part], total[part, None], out=out[part])
            if d_entropy is None:
                logp.exp_().mul_(-d_logp[part, None])
                continue
            weight = (_finite(logp) + entropies[part, None]).mul_(d_entropy[part, None]).add_(d_logp[part, None])
            logp.exp_().mul_(weight.neg_())
        return out.scatter_add_(-1, tokens[:, None], d_logp[:, None]), None, None


def _slices(logits: Tensor) -> list[slice]:
    """Rows of about four million numbers together."""
    rows = max(1, 2**22 // logits.shape[-1])
    return [slice(i, i + rows) for i in range(0, len(logits), rows)]


def _finite(logp: Tensor) -> Tensor:
    """0 log 0 = 0."""
    return logp.clamp(min=torch.finfo(logp.dtype).min)


def _inverse_length(x: Tensor, root: Tensor) -> Tensor:
    return torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), root).reciprocal_()


def _gated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)


def _learning(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()
