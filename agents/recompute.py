"""Layers that are read again when their gradients are due, in the place of keeping what they made."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from agents.errors import InputError


def recomputing(model: Any) -> Any:
    """The model, of whose layers a forward keeps nothing but what goes in; the backward pass runs each once more.

    Transformers' own switch does this in training mode alone, which a student, without dropout, is never in.

    Source: Chen et al. (2016), arXiv:1604.06174.
    Raises: InputError: a model whose layers do not say that they can be.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise InputError(f"{type(model).__name__} names no layers to recompute; leave --gradient-checkpointing out")
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    return model
