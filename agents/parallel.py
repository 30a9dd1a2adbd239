"""Several processes that learn as one: each scores its share of a batch, and all see what all have scored.

The loss is that of the whole batch in every process, whatever an agent makes of its scores, so that no agent has to
know of this: what lies behind the scores, the forwards of the student, is what is shared. The processes are those of
the default group of `torch.distributed`; without one there is a single process and nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def is_spread(value: Any) -> bool:
    """Whether a tensor lies in several processes: a DTensor, whose module takes seconds to import."""
    return hasattr(value, "placements")


_apart = False  # within `first`, where process 0 is by itself


def size() -> int:
    """W: processes."""
    together = dist.is_available() and dist.is_initialized() and not _apart
    return dist.get_world_size() if together else 1


def rank() -> int:
    """Which of them this is, from 0 on; 0 is the one that writes."""
    return dist.get_rank() if size() > 1 else 0


def share(count: int) -> Tensor:
    """The rows of `count` that this process takes, in order; the first processes take the ones left over.  # (b,)"""
    return torch.tensor_split(torch.arange(count), size())[rank()]


def gathered(own: Tensor, count: int) -> Tensor:
    """The rows of all processes.  # (b, ...) of this one's `share` -> (count, ...)

    Gradients come back to this process's rows alone, W-fold: `average_gradients` divides by W, so that what lies
    before has the sum of all shares in the end, and what lies behind, which every process computes alike, itself.
    """
    if size() == 1:
        return own
    return cast(Callable[..., Tensor], _Gather.apply)(own, count)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, count: int) -> Tensor:
        ctx.rows, most = share(count), -(-count // size())
        wide = own.new_zeros(most, *own.shape[1:])
        wide[: len(own)] = own
        parts = [torch.empty_like(wide) for _ in range(size())]
        dist.all_gather(parts, wide)
        sizes = [len(rows) for rows in torch.tensor_split(torch.arange(count), size())]
        return torch.cat([part[:rows] for part, rows in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return size() * gradients[0][ctx.rows], None


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its mean over the processes; one that a process lacks counts as 0 there.

    A gradient by rows keeps the rows that any of the processes names; where none has a gradient there is none after.
    One transfer for each type of number.
    """
    if size() == 1:
        return
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if not is_spread(parameter):  # whose gradient is the mean already
            kinds.setdefault(parameter.dtype, []).append(parameter)
    for own in kinds.values():
        found = [torch.zeros_like(each) if each.grad is None else each.grad.to_dense() for each in own]
        marks = [_marks(each) for each in own]
        flat = torch.cat([part.flatten() for part in [*found, *marks]])
        dist.all_reduce(flat)
        parts = torch.split(flat / size(), [part.numel() for part in [*found, *marks]])
        for each, mean, mark in zip(own, parts, parts[len(own) :], strict=False):
            mean, rows = mean.view_as(each), mark.nonzero()[:, 0]
            if len(mark) > 1:
                each.grad = torch.sparse_coo_tensor(rows[None], mean[rows], each.shape)
            else:
                each.grad = mean if len(rows) else None


def _marks(parameter: Tensor) -> Tensor:
    """Of a gradient by rows, 1 where it names a row (V,); of another, whether there is one (1,)."""
    gradient = parameter.grad
    if gradient is None or not gradient.is_sparse:
        return parameter.new_full((1,), float(gradient is not None))
    return parameter.new_zeros(len(gradient)).index_fill(0, gradient.coalesce().indices()[0], 1.0)


def first(action: Callable[[], T]) -> T:
    """What the action gives in process 0, in all of them: the others wait for it, and raise what it raises.

    Within it process 0 is by itself: nothing is shared.
    """
    global _apart
    if size() == 1:
        return action()
    said: list[Any] = [None, None]
    if rank() == 0:
        _apart = True
        try:
            said[0] = action()
        except (ValueError, OSError, RuntimeError) as error:
            said[1] = error
        finally:
            _apart = False
    dist.broadcast_object_list(said, src=0)
    if said[1] is not None:
        raise said[1]
    return cast(T, said[0])
