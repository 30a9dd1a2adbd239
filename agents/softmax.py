"""What scores read of wide logits, with one exponential and one buffer each way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PART = 2**22
"""Logits at a time where no gradient is wanted: scratch of 16 MB, which an allocator keeps, in the place of (N, V)."""


def picked(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of some tokens, and the log-sum-exp of all; differentiable once.

        z(a) for a ∈ ids,   log Σ_{a ∈ V} exp z(a)

    As `logits.gather(1, ids)` and `logits.logsumexp(1)`, whose gradients would be a buffer (N, V) each, and their sums
    more; here it is written once: softmax · ∂/∂lse, and ∂/∂z added at the ids, without an exponential of its own.

    Args:
        logits: (N, V); ids: (N, K) int64.
    Returns: (N, K) and (N,).
    """
    return _picked(logits, ids)


class _Picked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        if not ctx.needs_input_grad[0]:
            return logits.gather(1, ids), torch.cat([part.logsumexp(1) for part in logits.chunk(_parts(logits))])
        most = logits.amax(1, keepdim=True)
        mass = (logits - most).exp_()  # what the gradient is made of, too
        sums = mass.sum(1)
        ctx.save_for_backward(mass, ids, sums)
        return logits.gather(1, ids), most[:, 0] + sums.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        mass, ids, sums = ctx.saved_tensors
        at_ids, at_sum = gradients
        return (mass * (at_sum / sums)[:, None]).scatter_add_(1, ids, at_ids), None


_picked: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = _Picked.apply


def _parts(logits: Tensor) -> int:
    return -(-logits.numel() // PART)
