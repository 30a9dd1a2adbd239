"""Inverse soft Q-learning: equation (5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from agents.objectives.values import levelled_q


def inverse_reward(value: Tensor, log_policy: Tensor, discounts: Tensor, next_value: Tensor) -> Tensor:
    """The reward for which a levelled Q is consistent at one transition: the argument of φ in (5), at α = 1.

        x = Q(s, a) − d · V_p(s') = v(s) + log π_S^A(a|s) − d · v(s')

    Source: Garg et al. (2021), arXiv:2106.12142, inverse soft Bellman operator; top-p form arXiv:2505.20335.
    Args:
        value, log_policy, discounts, next_value: (..., T) nats; the value of s_{t+1} at index t.
    Returns: (..., T) nats.
    """
    return levelled_q(value, log_policy[..., None])[..., 0] - torch.where(discounts > 0, discounts * next_value, 0)


def concave_reward(x: Tensor, c: float) -> Tensor:
    """φ of inverse soft-Q learning: the χ² regulariser of the implied reward.

        φ(x) = x − x² / (4c);   c = ∞: φ(x) = x

    Source: Garg et al. (2021), arXiv:2106.12142, section 4 (χ²-divergence); equation (5) of the design.
    Args:
        x: (...,) nats.
        c: > 0.
    Returns: (...,) nats.
    """
    return x if math.isinf(c) else x - x.square() / (4 * c)


def inverse_soft_q(value: Tensor, log_policy: Tensor, discounts: Tensor, next_value: Tensor, c: float) -> Tensor:
    """Inverse soft-Q learning on one teacher transition, as a loss.

        −[ φ(Q(s, a) − d·V_p(s')) − (V_p(s) − d·V_p(s')) ];   c = ∞: −log π_S^A(a|s), γ cancels

    Source: equation (5) of the design; arXiv:2106.12142 equation 10; arXiv:2505.20335.
    Args:
        value, log_policy, discounts, next_value: (..., T) nats, as in `inverse_reward`.
        c: > 0 or ∞.
    Returns: (..., T) nats.
    """
    ahead = torch.where(discounts > 0, discounts * next_value, 0)
    return (value - ahead) - concave_reward(inverse_reward(value, log_policy, discounts, next_value), c)
