"""Every target and loss of equations (3)-(6), as pure functions over (..., K); nothing else holds them.

Symbols: B batch, T steps, K slots, V vocabulary. Log-probabilities, rewards, Q and V in nats. Masks select with
`where`, never by product. `discounts` are γ(1 − terminated), formed where episodes are built; no `done` flag gets here.
"""

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
