"""Weights that are spread over processes (FSDP): each holds a part of every weight, its gradient and its moments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from agents import parallel
from agents.parallel import is_spread


def shard(model: Any, device: str = "", again: bool | None = None) -> None:
    """Spread the weights of a model, layer by layer; a layer has them whole while it computes.

    Gradients come back as parts of their mean over the processes.

    Source: Zhao et al. (2023), arXiv:2304.11277, as `torch.distributed.fsdp.fully_shard` does it.
    Args:
        device: the type of where the parts go to; empty: where the weights are.
        again: spread what belongs to no layer after a forward too; None: it stays whole for the backward that follows.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers.modeling_layers import GradientCheckpointingLayer

    mesh = init_device_mesh(device or next(model.parameters()).device.type, (parallel.size(),))
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            fully_shard(layer, mesh=mesh, reshard_after_forward=again)
    fully_shard(model, mesh=mesh, reshard_after_forward=again)


def shard_frozen(model: Any, device: str = "") -> None:
    """Spread the weights of a model that is read and does not learn; once: one that is spread already stays.

    All processes may run it together, each on texts of its own and as often as the others. Process 0 may also run it by
    itself within `parallel.first`, at any length and in any order: before a layer it asks the others for their parts.
    """
    from torch.distributed.fsdp import FSDPModule

    if any(map(is_spread, model.parameters())):
        return
    shard(model.requires_grad_(False), device, again=True)
    units: list[Any] = [part for part in model.modules() if isinstance(part, FSDPModule)]
    for unit in units:
        ask = parallel.lend(partial(_give, unit))
        unit.register_forward_pre_hook(partial(_before, ask), prepend=True)


def _give(unit: Any) -> None:
    """What the others do while process 0 gathers the weights of a layer."""
    unit.unshard()
    unit.reshard()


def _before(ask: Callable[[], None], unit: Any, inputs: Any) -> None:
    unit.reshard()  # also after a forward that ended in an error half-way: the parts are about to be gathered
    ask()


def part_of(value: Any) -> Tensor:
    """What this process holds of a tensor, in place."""
    own: Tensor = value.to_local() if is_spread(value) else value
    return own


def whole(state: Any) -> Any:
    """A state, dictionaries and lists of tensors, with every spread tensor whole in process 0, and empty elsewhere.

    All processes call this together.
    """
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    if isinstance(state, list):
        return [whole(value) for value in state]
    if not is_spread(state):
        return state
    full = state.full_tensor().detach().cpu()
    return full if parallel.rank() == 0 else full.new_empty(0)


def spread(value: Tensor, like: Any) -> Tensor:
    """A whole tensor, which every process has, as a spread one is; as it is where that one is not spread."""
    if not is_spread(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def spread_moments(optimiser: torch.optim.Optimizer) -> None:
    """After `load_state_dict`: spread what the optimiser holds of a weight as the weight is."""
    for weight, own in optimiser.state.items():
        for name, value in own.items():
            if value.shape == weight.shape and not is_spread(value):
                own[name] = spread(value, weight)


def norm_of(gradients: list[Tensor]) -> Tensor:
    """The norm of all gradients together, spread ones and others.  # ()"""
    own, others = ([part_of(value) for value in gradients if is_spread(value) == kind] for kind in (True, False))
    square = torch.nn.utils.get_total_norm(own).square()
    if own:
        dist.all_reduce(square)
    return (square + torch.nn.utils.get_total_norm(others).square()).sqrt()
