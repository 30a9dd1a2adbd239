"""Policy gradient of the reverse KL between whole texts: what a token's future adds to its own step."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def later_rewards(rewards: Tensor, steps: Tensor, per_step: bool) -> Tensor:
    """What follows a token, its own reward left out.

        R_{t+1} = Σ_{t' > t} r_{t'},   or their mean;  0 after the last token

    Source: Gu et al. (2024), arXiv:2306.08543, section 2.2: the long part of the single-step decomposition, and its
        length normalisation 1/(T − t − 1). Undiscounted; a truncated text has no reward beyond its end.
    Args:
        rewards: (B, T) nats, r_t = log π_T(a_t|s_t) − log π_S(a_t|s_t).
        steps:   (B, T) bool, False beyond the end.
        per_step: the mean instead of the sum, so that early tokens of long texts do not weigh most.
    Returns: (B, T) nats; 0 beyond the end.
    """
    kept = torch.where(steps, rewards, 0)
    later = kept.flip(1).cumsum(1).flip(1) - kept
    if not per_step:
        return torch.where(steps, later, 0)
    left = steps.flip(1).cumsum(1).flip(1) - 1  # steps that follow
    return torch.where(left > 0, later / left.clamp(min=1), 0)


def clipped_importance(log_policy: Tensor, behaviour: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Policy gradient on another's walk, as a loss: the importance weight of one token, held near 1.

        −min(w A, clamp(w, 1 − ε, 1 + ε) A),   w = π_S(a|s) / b(a|s);   ε = ∞: −w A, whose gradient is −w A ∇log π_S

    Source: Gu et al. (2024), arXiv:2306.08543, section 2.2: the product over the tokens so far is truncated to its last
        factor; clipped as in Schulman et al. (2017), arXiv:1707.06347, equation 7.
    Args:
        log_policy: (...,) nats, log π_S of the token taken.
        behaviour:  (...,) nats, log b: the walker, a mixture of teacher and student as it was.
        advantage:  (...,) without gradient.
        clip:       ε > 0 or ∞.
    Returns: (...,) nats.
    """
    weight = (log_policy - behaviour).exp()
    loss = -weight * advantage
    return loss if math.isinf(clip) else torch.maximum(loss, -weight.clamp(1 - clip, 1 + clip) * advantage)
