"""Whole texts through a causal language model, without a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
def last_hidden_only(model: Any, positions: Tensor) -> Iterator[None]:
    """Within, the model's head sees one position (B,) of each text: its logits are (B, 1, V) instead of (B, L, V)."""

    def pick(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = inputs[0]  # (B, L, D)
        return (hidden[torch.arange(len(hidden), device=hidden.device), positions][:, None],)

    hook = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        hook.remove()


def last_logits(model: Any, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Logits (B, V) after the last token of each sequence, without any cache."""
    tokens, mask = right_padded(sequences, model.get_output_embeddings().weight.device)
    with torch.no_grad(), last_hidden_only(model, mask.sum(1) - 1):
        logits: Tensor = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    return logits[:, 0]


def context_limit_of(model: Any) -> int:
    """The most tokens a model can see; a million where its configuration sets no limit."""
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if isinstance(limit := getattr(config, name, None), int):
            return limit
    return 1_000_000
