"""Values, targets and their bounds: equation (3), its hard version and what (4d) allows."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def soft_value(q: Tensor, mask: Tensor, alpha: float = 1.0) -> Tensor:
    """Soft value of a state over its candidates.

        V_p(s) = α · log Σ_{a ∈ A_p(s)} exp(Q(s, a) / α)

    Source: equation (3) of the design; Ziebart (2010), recurrence 9.1, restricted to A_p (arXiv:2505.20335).
    Args:
        q:     (..., K) nats; padding slots arbitrary.
        mask:  (..., K) bool, True = candidate; at least one per row.
        alpha: temperature > 0, dimensionless.
    Returns: (...,) nats.
    Raises:  ValueError: alpha <= 0, shapes disagree, or a row without a candidate.
    >>> round(soft_value(torch.tensor([0.0, 0.0, 99.0]), torch.tensor([True, True, False])).item(), 4)
    0.6931
    """
    if alpha <= 0:
        raise ValueError(f"alpha is {alpha}; it must be positive")
    if q.shape != mask.shape:
        raise ValueError(f"q has shape {tuple(q.shape)}, its mask {tuple(mask.shape)}")
    if not bool(mask.any(-1).all()):
        raise ValueError("a state has no candidates; leave terminal states out")
    return alpha * (q / alpha).masked_fill(~mask, -math.inf).logsumexp(-1)


def double_value(selector: Tensor, evaluator: Tensor, mask: Tensor) -> Tensor:
    """Hard value of a state over its candidates, chosen by one estimate and read from another.

        V(s) = Q̄(s, argmax_{a ∈ A_p(s)} Q(s, a));   with both the same: max_{a ∈ A_p(s)} Q(s, a)

    Source: van Hasselt, Guez & Silver (2016), arXiv:1509.06461, equation 4, restricted to A_p.
    Args:
        selector:  (..., K) nats, the online Q that chooses; padding slots arbitrary.
        evaluator: (..., K) nats, the target Q that is read.
        mask:      (..., K) bool.
    Returns: (...,) nats; 0 for a state without candidates (terminal).
    """
    best = selector.masked_fill(~mask, -math.inf).argmax(-1, keepdim=True)
    return torch.where(mask.any(-1), evaluator.gather(-1, best)[..., 0], 0)


def levelled_q(value: Tensor, log_policy: Tensor, alpha: float = 1.0) -> Tensor:
    """Q of a student: a level from its value head, differences from its policy, so that V_p(s) = v(s) exactly.

        Q(s, a) = v(s) + α · log π_S^A(a|s)

    Source: equation (6) of the design.
    Args:
        value:      (...,) nats.
        log_policy: (..., K) nats, normalised on the candidates.
        alpha:      temperature > 0.
    Returns: (..., K) nats.
    """
    return value[..., None] + alpha * log_policy


def at_slots(values: Tensor, slots: Tensor) -> Tensor:
    """The entry of the slot taken; 0 where no slot was (−1: outside the set, or beyond the end).

    Source: own derivation (the transition's side of house.md: an action is a slot, never a token id).
    Args:
        values: (..., K).
        slots:  (...,) int64 in −1..K−1.
    Returns: (...,).
    """
    return torch.where(slots >= 0, values.gather(-1, slots.clamp(min=0)[..., None])[..., 0], 0)


def bootstrap(rewards: Tensor, discounts: Tensor, next_values: Tensor) -> Tensor:
    """One-step target.

        y_t = r_t + d_t · V(s_{t+1}),   d_t = γ(1 − terminated)

    Source: equation (3) of the design; Watkins (1989).
    Args:
        rewards, discounts, next_values: (..., T); the value of s_{t+1} at index t; arbitrary where d_t = 0.
    Returns: (..., T) nats.
    """
    return rewards + torch.where(discounts > 0, discounts * next_values, 0)


def path_target(
    rewards: Tensor, discounts: Tensor, log_policy: Tensor, values: Tensor, in_set: Tensor, n: int, alpha: float = 1.0
) -> Tensor:
    """Path-consistent n-step target of V(s_t), exact for any walk inside the sets, without off-policy correction.

        G_t = Σ_{k<m} γ^k (r_{t+k} − α log π(a_{t+k}|s_{t+k})) + γ^m V(s_{t+m}),   m = min(n, steps to the first token
        outside the set, steps to the end);  as one recursion, n times: G ← in_set ? r − α log π + d · G_next : V

    Source: Nachum et al. (2017), arXiv:1702.08892, equation 14; traces cut outside A_p (equation 3 of the design).
    Args:
        rewards, discounts: (B, T).
        log_policy: (B, T) log π_S^A of the token taken, at temperature α; arbitrary where not in_set.
        values:     (B, T+1); row t is V(s_t), the row after a truncated end its bootstrap, after a terminal one unused.
        in_set:     (B, T) bool, False beyond the end.
        n:          steps >= 1.
    Returns: (B, T) nats; V(s_t) itself where step t is outside the set.
    """
    target = values
    for _ in range(n):
        ahead = bootstrap(rewards - alpha * log_policy, discounts, target[:, 1:])
        target = torch.cat([torch.where(in_set, ahead, values[:, :-1]), values[:, -1:]], 1)
    return target[:, :-1]


def value_bounds(gamma: float, min_mass: float | None, width: int = 1) -> tuple[float, float]:
    """What optimal values can be, for reward `logprob`.

        0 ≥ V*(s) ≥ log(min Z / width) / (1 − γ)

    Source: identity (4d) of the design, at an unlimited horizon. width = 1 for the soft operator at α = 1; the hard one
        only knows that its best candidate holds a share 1/width of the set's mass.
    Args:
        gamma:    discount in [0, 1].
        min_mass: smallest Z(s) of any set, in (0, 1]; None if unknown.
        width:    candidates of the largest set.
    Returns: lower and upper bound in nats; lower is −∞ at γ = 1 or unknown Z.
    """
    if min_mass is None or gamma == 1:
        return -math.inf, 0.0
    return math.log(min_mass / width) / (1 - gamma), 0.0


def hinge(q: Tensor, logp: Tensor, mask: Tensor) -> Tensor:
    """What each candidate's Q exceeds its reward by, squared: a bound that the optimum never breaks.

        mean_{a ∈ A_p(s)} max(Q(s, a) − log π_T(a|s), 0)²

    Source: equation (6) of the design: Q* = log π_T + γV* ≤ log π_T since V* ≤ 0 (4d). Reward `logprob` only.
    Args:
        q, logp: (..., K) nats; padding slots arbitrary.
        mask:    (..., K) bool.
    Returns: (...,) nats²; 0 for a state without candidates.
    """
    excess = torch.where(mask, q - logp, 0).clamp(min=0)
    return excess.square().sum(-1) / mask.sum(-1).clamp(min=1)


def huber(error: Tensor, delta: float) -> Tensor:
    """Squared error near 0, linear beyond δ.

        ½e² if |e| ≤ δ, else δ(|e| − ½δ)

    Source: Huber (1964); Mnih et al. (2015), Methods.
    Args:
        error: (...,) nats.
        delta: nats > 0; ∞ for the square alone.
    Returns: (...,).
    """
    if math.isinf(delta):
        return 0.5 * error.square()
    size = error.abs()
    return torch.where(size <= delta, 0.5 * size.square(), delta * (size - 0.5 * delta))
