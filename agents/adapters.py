"""Low-rank adapters in the place of a model's weights: few parameters learn, and are merged into it in the end."""

from __future__ import annotations

import copy
from typing import Any

import torch

from agents.errors import InputError


def adapted(model: Any, rank: int, seed: int = 0) -> Any:
    """The model with adapters of this rank on every linear layer but its head; nothing else of it learns.

        W + 2 B A,   A (rank, in), B (out, rank), B = 0 at first, so that it begins as the model

    A is drawn from the seed.

    Source: Hu et al. (2022), arXiv:2106.09685; on all linear layers, Dettmers et al. (2023), arXiv:2305.14314.
    Raises: InputError: `peft` is not installed, a rank below 1, or a model that it knows no layers of.
    """
    if rank < 1:
        raise InputError(f"rank {rank} of the adapters must be at least 1")
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise InputError("adapters need `peft`: pip install 'tdistill[lora]'") from None
    settings = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return get_peft_model(model, settings).eval()
    except ValueError as error:
        raise InputError(f"{type(model).__name__} cannot have adapters: {error}") from error


def merged(model: Any, *, keep: bool = False) -> Any:
    """An ordinary model again, adapters added to its weights; with `keep` a copy, if it has any."""
    if not hasattr(model, "merge_and_unload"):
        return model
    return (copy.deepcopy(model) if keep else model).merge_and_unload()
