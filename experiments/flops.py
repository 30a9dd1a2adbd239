"""Floating-point operations of learning: what updates multiply is counted, what decoding multiplies is reckoned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils import flop_counter

Result = TypeVar("Result")
EVERY = 50  # updates from one that is counted to the next of its kind; those between are taken for as dear
_FORMULAS: Any = flop_counter
_FLASH = "_scaled_dot_product_flash_attention_for_cpu"
_ON_A_CPU: dict[Any, Any] = {  # attention, which the counter knows by its names on other devices only
    getattr(torch.ops.aten, _FLASH): lambda query, key, value, *_, **__: _FORMULAS.sdpa_flop_count(query, key, value),
    getattr(torch.ops.aten, f"{_FLASH}_backward"): lambda gradient, query, key, value, *_, **__: (
        _FORMULAS.sdpa_backward_flop_count(gradient, query, key, value)
    ),
}


def counted(work: Callable[[], Result]) -> tuple[Result, float]:
    """What `work` returns, and the operations of its matrix products and attention, forward and backward."""
    with flop_counter.FlopCounterMode(display=False, custom_mapping=_ON_A_CPU) as counter:
        result = work()
    return result, float(counter.get_total_flops())


def of_reading(model: Any, tokens: int) -> float:
    """Operations of a forward over `tokens` tokens, attention left out: two for each weight that multiplies.

    Source: Kaplan et al. (2020), arXiv:2001.08361, section 2.1; the head counts here, tables that are looked up do not.
    """
    network: Any = model if isinstance(model, torch.nn.Module) else getattr(model, "model", None)
    if network is None:
        return 0.0  # a table multiplies nothing
    tables = {id(part.weight) for part in network.modules() if isinstance(part, torch.nn.Embedding)}
    tables.discard(id(network.get_output_embeddings().weight))
    matrices: int = sum(p.numel() for p in network.parameters() if p.ndim > 1 and id(p) not in tables)
    return 2.0 * matrices * tokens
