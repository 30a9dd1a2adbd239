"""Divergences between teacher and student on one state, beside the forward one: reverse, skewed and Jensen-Shannon.

All are 0 at equality and nowhere else, over the last axis, with padding masked out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from agents.objectives.imitation import forward_kl


def reverse_kl(teacher: Tensor, student: Tensor, mask: Tensor | None = None) -> Tensor:
    """Reverse Kullback-Leibler divergence, over the vocabulary or over candidates.

        KL(π_S‖π_T) = Σ_a π_S(a) (log π_S(a) − log π_T(a))

    Source: Gu et al. (2024), arXiv:2306.08543, equation 1, one step.
    Args:
        teacher, student: (..., A) nats.
        mask: (..., A) bool or None for all.
    Returns: (...,) nats.
    """
    return forward_kl(student, teacher, mask)


def jensen_shannon(teacher: Tensor, student: Tensor, beta: float, mask: Tensor | None = None) -> Tensor:
    """Generalised Jensen-Shannon divergence, between the forward (β → 0) and the reverse KL (β → 1).

        JSD_β = β KL(π_T‖m) + (1 − β) KL(π_S‖m),   m = β π_T + (1 − β) π_S
        JSD_β / β → KL(π_T‖π_S) as β → 0,   JSD_β / (1 − β) → KL(π_S‖π_T) as β → 1

    At β = 0 and β = 1 themselves it would vanish; there it is the divergence of its limit, as in TRL's GKD.

    Source: Agarwal et al. (2024), arXiv:2306.13649, equation 1; the ends as in TRL, `generalized_jsd_loss`.
    Args:
        teacher, student: (..., A) nats.
        beta: in [0, 1].
        mask: (..., A) bool or None for all.
    Returns: (...,) nats.
    """
    if beta == 0:
        return forward_kl(teacher, student, mask)
    if beta == 1:
        return reverse_kl(teacher, student, mask)
    mixture = _mixture(teacher, student, beta)
    return beta * forward_kl(teacher, mixture, mask) + (1 - beta) * forward_kl(student, mixture, mask)


def skew_forward_kl(teacher: Tensor, student: Tensor, skew: float, mask: Tensor | None = None) -> Tensor:
    """Forward KL to the student mixed with a little of the teacher, which bounds it by −log α.

        KL(π_T ‖ α π_T + (1 − α) π_S)

    Source: Ko et al. (2024), arXiv:2402.03898, equation 4 (α-SKL).
    Args:
        teacher, student: (..., A) nats.
        skew: α in [0, 1); 0 is the forward KL.
        mask: (..., A) bool or None for all.
    Returns: (...,) nats.
    """
    return forward_kl(teacher, _mixture(teacher, student, skew) if skew else student, mask)


def skew_reverse_kl(teacher: Tensor, student: Tensor, skew: float, mask: Tensor | None = None) -> Tensor:
    """Reverse KL to the teacher mixed with a little of the student, which bounds it by −log α.

        KL(π_S ‖ (1 − α) π_T + α π_S)

    Source: Ko et al. (2024), arXiv:2402.03898, section 3.1 (α-SRKL).
    Args:
        teacher, student: (..., A) nats.
        skew: α in [0, 1); 0 is the reverse KL.
        mask: (..., A) bool or None for all.
    Returns: (...,) nats.
    """
    return forward_kl(student, _mixture(student, teacher, skew) if skew else teacher, mask)


def shared_vocabulary(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Teacher and student on the rows that both have, and the student's mass there.

        log π_S(a) = log π_S^W(a) + log π_S(W),   W the shared rows

    A student with more rows than the teacher (padded embeddings) is renormalised; −log π_S(W) then belongs in the loss,
    as the leak does in (4g): without it a reverse divergence would pay for mass put on rows that are no tokens. Teacher
    rows that the student lacks hold no token and are left out.

    Source: own derivation; with the forward KL it is KL(π_T‖π_S) over the wider softmax, exactly.
    Args:
        teacher: (..., V_T) nats; student: (..., V_S) nats, normalised.
    Returns: (..., W), (..., W) and (...,) nats; the last is 0 where the student has no row to spare.
    """
    width = min(teacher.shape[-1], student.shape[-1])
    if width == student.shape[-1]:
        return teacher[..., :width], student, torch.zeros_like(student[..., 0])
    own = student[..., :width]
    inside = own.logsumexp(-1)
    return teacher, own - inside[..., None], inside


def _mixture(one: Tensor, other: Tensor, share: float) -> Tensor:
    """log(share · exp(one) + (1 − share) · exp(other)), elementwise."""
    return torch.logaddexp(one + math.log(share), other + math.log1p(-share))
