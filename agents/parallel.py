"""Several processes that learn as one: each scores its share of a batch, and all see what all have scored.

The loss is that of the whole batch in every process, whatever an agent makes of its scores, so that no agent has to
know of this: what lies behind the scores, the forwards of the student, is what is shared. The processes are those of
the default group of `torch.distributed`; without one there is a single process and nothing here does anything.
"""

from __future__ import annotations

import pickle
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
_helps: list[Callable[[], None]] = []  # what it may ask of the others there, by number


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
def average_gradients(parameters: Iterable[Tensor], by_rows: Iterable[Tensor] = ()) -> None:
    """Replace every gradient by its mean over the processes; one that a process lacks counts as 0 there.

    A gradient of `by_rows` has the rows that are not 0, or are named, in any of the processes; where none has a
    gradient there is none after. One transfer for each type of number and device.
    """
    if size() == 1:
        return
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for parameter in parameters:
        if not is_spread(parameter):  # whose gradient is the mean already
            kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    rowwise = {id(parameter) for parameter in by_rows}
    for own in kinds.values():
        found = [torch.zeros_like(each) if each.grad is None else each.grad.to_dense() for each in own]
        marks = [_rows(each) if id(each) in rowwise else each.new_full((1,), each.grad is not None) for each in own]
        flat = torch.cat([part.flatten() for part in [*found, *marks]])
        dist.all_reduce(flat)
        parts = torch.split(flat / size(), [part.numel() for part in [*found, *marks]])
        for each, mean, mark in zip(own, parts, parts[len(own) :], strict=False):
            mean, rows = mean.view_as(each), mark.nonzero()[:, 0]
            each.grad = mean if len(rows) else None
            if len(rows) and id(each) in rowwise:
                each.grad = torch.sparse_coo_tensor(rows[None], mean[rows], each.shape)


def _rows(parameter: Tensor) -> Tensor:
    """1 where a gradient names a row, or a dense one is not 0.  # (V,)"""
    gradient = parameter.grad
    if gradient is None:
        return parameter.new_zeros(len(parameter))
    if not gradient.is_sparse:
        return (gradient != 0).any(1).to(parameter.dtype)
    return parameter.new_zeros(len(gradient)).index_fill(0, gradient.coalesce().indices()[0], 1.0)


def total(value: float) -> float:
    """The sum of what the processes have."""
    if size() == 1:
        return value
    found = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(found)
    return float(found)


def first(action: Callable[[], T]) -> T:
    """What the action gives in process 0, in all of them: the others wait for it, and raise what it raises.

    Within it process 0 is by itself: nothing is shared, but for what the others have promised with `lend`.
    """
    global _apart
    if size() == 1:
        return action()
    said: list[Any] = [None, None]
    if rank() == 0:
        _apart = True
        try:
            said[0] = action()
        except Exception as error:  # whatever it is, the others must not wait for it
            said[1] = portable(error)
        finally:
            _apart = False
            _ask(-1)
    else:
        _wait()
    dist.broadcast_object_list(said, src=0)
    if said[1] is not None:
        raise said[1]
    return cast(T, said[0])


def lend(help_out: Callable[[], None]) -> Callable[[], None]:
    """A call by which process 0, by itself within `first`, has every other process do this; elsewhere it does nothing.

    For what takes all processes, as weights that each holds a part of. All of them call this together.
    """
    number = len(_helps)
    _helps.append(help_out)

    def ask() -> None:
        if _apart:
            _ask(number)

    return ask


def _ask(number: int) -> None:
    if _helps:
        dist.broadcast(torch.tensor(number), src=0)


def _wait() -> None:
    """Help process 0 until it says that it is done."""
    number = torch.tensor(0 if _helps else -1)
    while number >= 0:
        dist.broadcast(number, src=0)
        if number >= 0:
            _helps[int(number)]()


def portable(error: Exception) -> Exception:
    """An error that another process can be told: itself, or its kind and words where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error of any kind may come from its own code, called while it is unpickled
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
