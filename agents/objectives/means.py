"""How a loss per step becomes a scalar."""

from __future__ import annotations

import torch
from torch import Tensor


def average(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over everything; entries of weight 0 may hold anything; 0 if all weights are 0.

        Σ w x / Σ w

    Source: own derivation (every loss is a mean per transition, not per batch).
    Args:
        values, weights: same shape; weights >= 0.
    Returns: scalar.
    """
    kept = torch.where(weights > 0, weights * values, 0)
    return kept.sum() / weights.sum().clamp(min=torch.finfo(torch.float32).tiny)
