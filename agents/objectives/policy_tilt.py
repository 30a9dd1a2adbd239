"""Tilting the teacher by a student's own future: its cost, that cost's value and the tilted target, equation (6b)."""

from __future__ import annotations

import torch
from torch import Tensor

from agents.objectives.divergences import reverse_kl
from agents.objectives.imitation import renormalise
from agents.objectives.returns import lambda_returns


def state_cost(teacher: Tensor, policy: Tensor, log_inside: Tensor, mask: Tensor, limit: float) -> Tensor:
    """What a student's distribution costs at a state it has walked to.

        c(s) = min(KL(π_S^A‖π_T^A) − log Z − log(1 − leak), limit)

    Since log π_T^A = log π_T − log Z, the first two are the reverse KL to the teacher's full probabilities.

    Source: (6b) of the design, 1.
    Args:
        teacher: (..., K) nats, log π_T; policy: (..., K) nats, log π_S^A; mask: (..., K) bool.
        log_inside: (...,) nats, log(1 − leak).
        limit: nats.
    Returns: (...,) nats, at least 0.
    """
    return (reverse_kl(teacher, policy, mask) - log_inside).clamp(max=limit)


def differential_returns(
    costs: Tensor, mean: Tensor, discounts: Tensor, values: Tensor, steps: Tensor, lam: float
) -> Tensor:
    """λ-returns of what a walk costs less than its average.

        G_t = (ρ − c_t) + d_t · ((1 − λ) V(s_{t+1}) + λ G_{t+1}),   G = V where the walk is over

    Source: Sutton (1988), TD(λ); average-reward form Wan, Naik & Sutton (2021), arXiv:2006.16318, equation 5.
    Args:
        costs, discounts: (B, T) nats, and γ(1 − terminated).
        mean:   () nats, ρ: the average cost of a step.
        values: (B, T+1) nats; the row after a truncated end is its bootstrap, after a terminal one unused.
        steps:  (B, T) bool, False beyond the end.
        lam:    λ in [0, 1]: 0 is one step, 1 the whole walk.
    Returns: (B, T) nats; V(s_t) itself beyond the end.
    """
    return lambda_returns(mean - costs, discounts, torch.zeros_like(costs), values, steps, lam)


def leaf_advantage(values: Tensor, teacher: Tensor, leaves: Tensor, ends: Tensor, limit: float) -> Tensor:
    """How much better than usual each successor is, over the successors looked at.

        Δ(a) = V(s·a) − Σ_{b ∈ leaves} π̃_T(b) V(s·b), within ±limit;   V(s·EOS) = 0, Δ(EOS) = 0

    π̃_T is the teacher renormalised on the leaves.

    Source: (6b) of the design, 1.
    Args:
        values:  (..., K) nats, V(s·a); arbitrary off the leaves and at EOS.
        teacher: (..., K) nats, log π_T.
        leaves:  (..., K) bool, the successors looked at; ends: (..., K) bool, tokens that end the text.
        limit:   nats.
    Returns: (..., K) nats; 0 off the leaves and at EOS.
    """
    known = torch.where(leaves & ~ends, values, 0)
    share = torch.where(leaves, renormalise(teacher, leaves).exp(), 0)
    usual = (share * known).sum(-1, keepdim=True)
    return torch.where(leaves & ~ends, known - usual, 0).clamp(-limit, limit)


def tilted_teacher(teacher: Tensor, advantage: Tensor, strength: float, mask: Tensor) -> Tensor:
    """The teacher on the candidates, tilted towards better successors.

        log π̂(a) = log π_T(a) + ηγ Δ(a) − log Σ_{b ∈ A_p} π_T(b) exp(ηγ Δ(b))

    Source: (6b) of the design, 1; with the optimal V and η = 1 it is (4c).
    Args:
        teacher, advantage: (..., K) nats; mask: (..., K) bool.
        strength: ηγ in [0, 1]; 0 gives the renormalised teacher.
    Returns: (..., K) nats.
    """
    return renormalise(torch.where(mask, teacher + strength * advantage, teacher), mask)
