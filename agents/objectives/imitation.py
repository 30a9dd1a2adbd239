"""Losses against the teacher's probabilities on one state: cross-entropies and divergences, equations (1) and (4g)."""

from __future__ import annotations

import torch
from torch import Tensor

from agents.objectives.values import soft_value


def renormalise(logp: Tensor, mask: Tensor) -> Tensor:
    """The teacher on the candidates.

        log π_T^A(a|s) = log π_T(a|s) − log Z(s)

    Source: equation (1) of the design.
    Args:
        logp: (..., K) nats, full softmax; mask: (..., K) bool.
    Returns: (..., K) nats; where there is no candidate, `logp` as it came.
    """
    some = mask | ~mask.any(-1, keepdim=True)
    return torch.where(mask, logp - soft_value(logp, some)[..., None], logp)


def forward_kl(teacher: Tensor, student: Tensor, mask: Tensor | None = None) -> Tensor:
    """Forward Kullback-Leibler divergence, over the vocabulary or over candidates.

        KL(π_T‖π_S) = Σ_a π_T(a) (log π_T(a) − log π_S(a)),   0 log 0 = 0

    Source: Hinton et al. (2015), arXiv:1503.02531; on the set, equation (4c) of the design says what it converges to.
    Args:
        teacher, student: (..., A) nats.
        mask: (..., A) bool or None for all.
    Returns: (...,) nats.
    """
    weight = teacher.exp() if mask is None else torch.where(mask, teacher.exp(), 0)
    return torch.where(weight > 0, weight * (teacher - student), 0).sum(-1)


def nucleus_nll(log_policy: Tensor, log_inside: Tensor, leak_weight: float = 1.0) -> Tensor:
    """Cross-entropy of a candidate taken, as its two parts.

        −log π_S^A(a|s) − λ log(1 − leak(s));   at λ = 1 it is −log π_S(a|s), the full-softmax cross-entropy, exactly

    Source: identity (4g) of the design.
    Args:
        log_policy: (...,) nats, log π_S^A of the token taken.
        log_inside: (...,) nats, log of the student's mass on the candidates.
        leak_weight: λ ≥ 0.
    Returns: (...,) nats.
    """
    return -log_policy - leak_weight * log_inside


def set_cross_entropy(teacher: Tensor, log_policy: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy over every candidate; with full-softmax weights, the nucleus NLL's expectation over the teacher.

        −Σ_{a ∈ A_p(s)} exp(teacher(a)) · log π_S^A(a|s)

    Source: own derivation: E_{a∼π_T}[1{a ∈ A_p} · −log π_S^A(a|s)] when `teacher` is log π_T.
    Args:
        teacher: (..., K) nats, log π_T or log π_T^A; log_policy: (..., K) nats; mask: (..., K) bool.
    Returns: (...,) nats; 0 for a state without candidates.
    """
    return -torch.where(mask, teacher.exp() * log_policy, 0).sum(-1)


def backup_correction(advantage: Tensor, log_policy: Tensor, teacher: Tensor, behaviour: Tensor) -> Tensor:
    """What turns a cross-entropy to the teacher on the set into one to the backed-up policy, by the token taken alone.

        (π̂(a) − π_T^A(a)) / b(a) · −log π_S^A(a|s),   π̂(a) = exp(min(A, 0)),  A = (r + d·V(s') − V(s)) / α
        E_{a∼b} of it + set_cross_entropy(log π_T^A) = −Σ_{a ∈ A_p} π̂(a) log π_S^A(a|s)

    The minimiser is π ∝ exp((r + γV(s'))/α): the soft-optimal policy where V is. min(A, 0): no optimum has A > 0.

    Source: own derivation: importance sampling of (3) with π_T^A as control variate; (4c) is its optimum for `logprob`.
    Args:
        advantage:  (...,) dimensionless; no gradient is taken through it.
        log_policy: (...,) nats, log π_S^A of the token taken.
        teacher:    (...,) nats, log π_T^A of the token taken.
        behaviour:  (...,) nats, log b: the probability with which the walker took it.
    Returns: (...,) nats.
    """
    shift = advantage.detach().clamp(max=0).exp() - teacher.exp()
    return -shift * (-behaviour).exp() * log_policy
