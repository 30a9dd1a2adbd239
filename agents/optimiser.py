"""AdamW for a student; where its vocabulary is wide, one that does not walk the rows that a batch left alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from agents import parallel, sharding
from agents.errors import InputError


class RestingRows(torch.optim.AdamW):
    """AdamW whose vocabulary weights rest, row by row, while no batch touches them.

    A row of an embedding or of a head has a gradient only if its token is in the batch. AdamW walks all rows all the
    same: their moments fade, and the momentum of an earlier batch moves them on for some updates. Here a row that is
    not in the batch keeps its weights and its moments; one that is takes the step that AdamW would take from them.
    Bias corrections count updates, not touches. With every row in a batch the two are equal, and AdamW takes the step;
    after any other the rows have no gradient.

    Source: Kingma and Ba (2015), arXiv:1412.6980, with the rows of `torch.optim.SparseAdam`, whose ε is not corrected.
    Args:
        parameters: all of them.
        rows: those among them whose rows rest; their gradients may be sparse in the first dimension, or dense.
    Raises: InputError: weight decay, which moves every row.
    """

    def __init__(self, parameters: Sequence[Tensor], rows: Sequence[Tensor], lr: float, weight_decay: float) -> None:
        if weight_decay:
            raise InputError(
                f"weight_decay is {weight_decay:g}, which moves every row of the vocabulary at every update; set it to "
                "0, or let no rows rest"
            )
        super().__init__(parameters, lr=lr, weight_decay=0.0, fused=True)
        self.rows = list(rows)
        self.register_step_pre_hook(self._move_rows)

    @torch.no_grad()
    def _move_rows(self, *_: Any) -> None:
        """Before every step: move the rows, and leave AdamW without their gradients, so that it passes them by."""
        for weight in self.rows:
            if weight.grad is not None and not reaches_all(weight.grad):
                self._move(weight, *touched(weight.grad))
                weight.grad = None

    def _move(self, weight: Tensor, rows: Tensor, values: Tensor) -> None:
        """One step of Adam on these rows (R,), whose gradients are the values (R, D)."""
        (group,), state = self.param_groups, self.state[weight]
        beta1, beta2 = group["betas"]
        if not state:
            state["step"] = torch.zeros((), device=weight.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        first, second = (1 - beta ** state["step"].double() for beta in (beta1, beta2))  # (), read by no host
        mean = state["exp_avg"][rows].lerp_(values, 1 - beta1)
        square = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(values, values, value=1 - beta2)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = mean, square
        step = mean.mul_(group["lr"] / first).div_((square / second).sqrt_().add_(group["eps"]))
        weight.index_add_(0, rows, step, alpha=-1)


def reaches_all(gradient: Tensor) -> bool:
    """Whether a gradient (V, D) is dense and none of its rows is 0, as that of a head computed whole."""
    return not gradient.is_sparse and bool(gradient.any(1).all())


def touched(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The rows (R,) of a gradient (V, D) that are not 0, and their values (R, D); of a sparse one, those it names."""
    if gradient.is_sparse:
        gradient = gradient.coalesce()
        return gradient.indices()[0], gradient.values()
    rows = (gradient != 0).any(1).nonzero()[:, 0]
    return rows, gradient[rows]


def optimiser_of(
    parameters: Sequence[Tensor], resting: Sequence[Tensor], lr: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW on these parameters, `resting` among them row by row."""
    if resting:
        return RestingRows(parameters, resting, lr, weight_decay)
    whole = not any(map(parallel.is_spread, parameters))  # its learning rate would have to be spread with them
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=whole)


def clip_gradients(parameters: Sequence[Tensor], most: float) -> Tensor:
    """Scale all gradients, dense and sparse, to a common norm of at most this; the norm it was before.  # ()"""
    found = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
        if parameter.grad is not None:
            found.append(parameter.grad.values() if parameter.grad.is_sparse else parameter.grad)
    if not found:
        return torch.tensor(0.0)
    norm = sharding.norm_of(found) if any(map(parallel.is_spread, found)) else torch.nn.utils.get_total_norm(found)
    torch._foreach_mul_([sharding.part_of(value) for value in found], (most / (norm + 1e-6)).clamp(max=1.0))
    return norm
