"""Exercise 1. The one-step target of Q-learning: y = r + d · max_{a' ∈ A(s')} Q̄(s', a').

It is right in many cases. In which is it wrong, and why did nobody notice while acting?
"""

from __future__ import annotations

import torch
from torch import Tensor


def greedy_target(rewards: Tensor, discounts: Tensor, next_q: Tensor, next_mask: Tensor) -> Tensor:
    """Target of each step.

    Args:
        rewards, discounts: (B, T) nats, and γ(1 − terminated).
        next_q:    (B, T, K) nats, the target network's Q of the state after each step.
        next_mask: (B, T, K) bool, its candidates; none after the end of a text.
    Returns: (B, T) nats.
    """
    best = (next_q * next_mask).amax(-1)
    return rewards + torch.where(discounts > 0, discounts * best, 0)
