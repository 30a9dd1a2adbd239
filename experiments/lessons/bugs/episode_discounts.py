"""Exercise 2. The discount that each step of an episode carries: γ while the text goes on, 0 where it really ended.

A text ends by its end token (terminated) or because the budget of tokens is used up (truncated).
"""

from __future__ import annotations

import torch
from torch import Tensor


def episode_discounts(length: Tensor, terminated: Tensor, truncated: Tensor, gamma: float, steps: int) -> Tensor:
    """Discounts of B episodes of up to T steps.

    Args:
        length:     (B,) int64 in 1..T, steps of each episode.
        terminated, truncated: (B,) bool, how it stopped: one of the two.
        gamma:      in [0, 1].
        steps:      T.
    Returns: (B, T); 0 beyond the end of an episode.
    """
    step = torch.arange(steps)
    done = terminated | truncated
    last = step == length[:, None] - 1
    return gamma * ((step < length[:, None]) & ~(last & done[:, None])).float()
