"""The loss of the code published with arXiv 2505.20335, as it computes it; for comparison only."""

from __future__ import annotations

import torch
from torch import Tensor


def released_policy(logits: Tensor, inside: Tensor, top_p: float, epsilon: float) -> Tensor:
    """The published code's "projected policy": a clipped softmax on the set, over p, plus ε everywhere.

        P(a) ∝ softmax(q)(a) · 1{a ∈ A_p} / p + ε,   q(a) = max(z(a) − max z, −10)

    Source: github.com/TobyLeelsz/Bellman-Distillation, bellman/losses.py, `compute_projected_policy`.
    Args:
        logits: (..., V) nats, any level; inside: (..., V) bool, the teacher's candidates.
        top_p, epsilon: > 0.
    Returns: (..., V) probabilities over the whole vocabulary.
    """
    policy = torch.where(inside, released_q(logits).softmax(-1) / top_p, 0) + epsilon
    return policy / policy.sum(-1, keepdim=True)


def released_q(logits: Tensor) -> Tensor:
    """The published code's Q: logits below their largest, none by more than 10 nats.

        q(a) = max(z(a) − max z, −10)

    Source: github.com/TobyLeelsz/Bellman-Distillation, bellman/losses.py, `bellman_distill_loss`.
    Args:
        logits: (..., V) nats, any level.
    Returns: (..., V) nats in [−10, 0].
    """
    return (logits - logits.amax(-1, keepdim=True)).clamp(min=-10)


def released_value(logits: Tensor, inside: Tensor, top_p: float, epsilon: float) -> Tensor:
    """The published code's V: the entropy-regularised value of its projected policy.

        V = Σ_{a ∈ V} P(a) (q(a) − log P(a))

    Source: github.com/TobyLeelsz/Bellman-Distillation, bellman/losses.py, `compute_value`.
    Args: as `released_policy`.
    Returns: (...,) nats.
    """
    policy = released_policy(logits, inside, top_p, epsilon)
    return (policy * (released_q(logits) - policy.log())).sum(-1)


def released_loss(q: Tensor, inside: Tensor, value: Tensor, next_value: Tensor, gamma: float, c: float) -> Tensor:
    """The published code's loss of one position: its means run over the whole vocabulary, not over the token taken.

        x(a) = q(a) 1{a ∈ A_p} − γ V',   −mean_{a ∈ V} x(a) + (V − γ V') + mean_{a ∈ V} x(a)² / (4c)

    Source: github.com/TobyLeelsz/Bellman-Distillation, bellman/losses.py, `bellman_distill_loss` with `chi_reg`.
    Args:
        q:      (..., V) nats; inside: (..., V) bool.
        value, next_value: (...,) nats; the next one 0 where the code masks it.
        gamma:  γ in [0, 1].
        c:      > 0; 0.1 there; ∞ without `chi_reg`.
    Returns: (...,) nats.
    """
    x = torch.where(inside, q, 0) - gamma * next_value[..., None]
    return -x.mean(-1) + (value - gamma * next_value) + x.square().mean(-1) / (4 * c)
