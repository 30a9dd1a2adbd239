"""What an actor climbs: policy gradients by advantages, clipped ratios, expectations over all candidates."""

from __future__ import annotations

import torch
from torch import Tensor

from agents.objectives.means import average
from agents.objectives.values import huber


def policy_gradient(log_policy: Tensor, advantage: Tensor) -> Tensor:
    """Score-function loss of an action taken by the policy itself.

        −A(s, a) · log π(a|s),   no gradient through A

    Source: Williams (1992); Sutton et al. (2000), theorem 1; with −α log π in A's rewards, of the soft return.
    Args:
        log_policy, advantage: (...,) nats.
    Returns: (...,).
    """
    return -advantage.detach() * log_policy


def centred(advantage: Tensor, weights: Tensor) -> Tensor:
    """Advantages less their mean over the batch: a baseline, so no optimum moves (centring rewards would move it).

        A − Σ w A / Σ w

    Source: Greensmith, Bartlett & Baxter (2004), constant baselines; section (2) of the design.
    Args:
        advantage, weights: same shape; weights >= 0, and entries of weight 0 arbitrary.
    Returns: that shape.
    """
    return advantage - average(advantage, weights)


def clipped_policy_gradient(log_ratio: Tensor, advantage: Tensor, epsilon: float) -> Tensor:
    """PPO's pessimistic surrogate, as a loss.

        −min(ρA, clip(ρ, 1 − ε, 1 + ε) A),   ρ = π(a|s) / π_old(a|s),   no gradient through A

    Source: Schulman et al. (2017), arXiv:1707.06347, equation 7.
    Args:
        log_ratio, advantage: (...,) nats; epsilon: ε > 0.
    Returns: (...,).
    """
    fixed, ratio = advantage.detach(), log_ratio.exp()
    return -torch.minimum(ratio * fixed, ratio.clamp(1 - epsilon, 1 + epsilon) * fixed)


def clipped_value_error(value: Tensor, old: Tensor, target: Tensor, epsilon: float, delta: float) -> Tensor:
    """A critic's loss that gains nothing from moving further than ε nats from its old value.

        max(h(V − G), h(V_old + clip(V − V_old, −ε, ε) − G)),   h = `huber` of δ

    Source: Schulman et al., the PPO reference code; Engstrom et al. (2020), arXiv:2005.12729, equation 2.
    Args:
        value, old, target: (...,) nats; epsilon: nats > 0; delta: nats > 0 or ∞.
    Returns: (...,).
    """
    near = old + (value - old).clamp(-epsilon, epsilon)
    return torch.maximum(huber(value - target, delta), huber(near - target, delta))


def expected_value(q: Tensor, log_policy: Tensor, mask: Tensor, alpha: float | Tensor = 1.0) -> Tensor:
    """Soft value of a policy over its candidates, the expectation taken exactly.

        V^π(s) = Σ_{a ∈ A_p(s)} π(a|s) (Q(s, a) − α log π(a|s))

    Over π its maximum is the soft value of Q, at π ∝ exp(Q/α): minus this is the actor's loss.

    Source: Christodoulou (2019), arXiv:1910.07207, equations 10 and 12, restricted to A_p.
    Args:
        q, log_policy: (..., K) nats; padding slots arbitrary.
        mask:  (..., K) bool.
        alpha: temperature >= 0.
    Returns: (...,) nats; 0 for a state without candidates.
    """
    held = torch.where(mask, log_policy, 0)  # before the exponential: its gradient at padding must be 0, not 0 · ∞
    return torch.where(mask, held.exp() * (q - alpha * held), 0).sum(-1)


def temperature_loss(log_alpha: Tensor, entropy: Tensor, target: float) -> Tensor:
    """Moves α until the policy's entropy is a given one: up when it is lower.

        α (H(π(·|s)) − H̄),   no gradient through H

    Source: Haarnoja et al. (2018), arXiv:1812.05905, equation 18; discrete: arXiv:1910.07207, equation 11.
    Args:
        log_alpha: () log α; entropy: (...,) nats; target: H̄ in nats.
    Returns: (...,).
    """
    return log_alpha.exp() * (entropy.detach() - target)
