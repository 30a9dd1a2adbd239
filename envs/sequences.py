"""Whole texts through a causal language model, without a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def right_padded(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, (B, L) int64 each; causality makes right padding harmless."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    tokens = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = torch.as_tensor(sequence)
    mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
    return tokens.to(device), mask.to(device)


@contextmanager
def hidden_states_through(model: Any, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within, what the model's head is given, (B, L, D), goes through `change` first."""
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: (change(inputs[0]),))
    try:
        yield
    finally:
        hook.remove()


def at_positions(positions: Tensor) -> Callable[[Tensor], Tensor]:
    """For `hidden_states_through`: one position (B,) of each text, so that logits are (B, 1, V) and not (B, L, V)."""
    return lambda hidden: hidden[torch.arange(len(hidden), device=hidden.device), positions][:, None]


def last_logits(model: Any, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Logits (B, V) after the last token of each sequence, without any cache."""
    tokens, mask = right_padded(sequences, model.get_output_embeddings().weight.device)
    with torch.no_grad(), hidden_states_through(model, at_positions(mask.sum(1) - 1)):
        logits: Tensor = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    return logits[:, 0]


def context_limit_of(model: Any) -> int:
    """The most tokens a model can see; a million where its configuration sets no limit.

    Rotary embeddings that change once a text outgrows the context of pre-training (dynamic, longrope) would change with
    the other texts of a batch, and under cached keys; such a model is held to that context.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    first = rope.get("original_max_position_embeddings")
    if rope.get("rope_type") in {"dynamic", "longrope"} and isinstance(first, int):
        return first
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if isinstance(limit := getattr(config, name, None), int):
            return limit
    return 1_000_000
