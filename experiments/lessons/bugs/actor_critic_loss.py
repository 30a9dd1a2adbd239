"""Exercise 4. The loss of a one-step actor-critic: −A · log π for the actor, ½ (G − V)² for the critic.

Its value is right to the last digit, and the student still learns the wrong thing.
"""

from __future__ import annotations

from torch import Tensor


def actor_critic_loss(rewards: Tensor, discounts: Tensor, log_policy: Tensor, value: Tensor, ahead: Tensor) -> Tensor:
    """The mean loss over steps, entropy inside the return.

    Args:
        rewards, discounts, log_policy: (N,) nats of the token taken; the policy has a gradient.
        value: (N,) V(s) nats, with a gradient; ahead: (N,) V(s') nats, without one.
    Returns: scalar.
    """
    returns = rewards - log_policy.detach() + discounts * ahead
    advantage = returns - value
    return (-advantage * log_policy + 0.5 * (returns - value).square()).mean()
