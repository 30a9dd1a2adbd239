"""Rollouts of Stable-Baselines3 whose return has the policy's entropy in it."""

from __future__ import annotations

from typing import Any

from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer
from stable_baselines3.common.buffers import DictRolloutBuffer


class _Soft:
    """Every step is paid r(s, a) − α log π(a|s): the return is the soft one, whose optimum is equation (3)'s policy.

    An entropy bonus in the loss (`ent_coef`) favours entropy now and is blind to what comes: with log π_T as the reward
    every further token costs something, and such a learner ends its texts early. Inside the return a token in the
    teacher's own proportions is free: −KL(π‖π_T) is maximised, exactly (4e).

    Source: equations (3) and (4e) of the design; Ziebart (2010). In the gradient of the policy the term's own
    derivative is E[∇ log π] = 0.
    Args:
        alpha: temperature ≥ 0; 0 is the plain return.
    """

    def __init__(self, *args: Any, alpha: float = 1.0, **kwargs: Any) -> None:
        self.alpha = alpha
        super().__init__(*args, **kwargs)

    def add(
        self, obs: Any, action: Any, reward: Any, episode_start: Any, value: Any, log_prob: Any, **masks: Any
    ) -> None:
        """Store one step of N environments; `log_prob` (N,) in nats is of the actions taken."""
        paid = reward - self.alpha * log_prob.detach().cpu().numpy()
        buffer: Any = super()  # the rollout buffer that stands behind this one in its subclasses
        buffer.add(obs, action, paid, episode_start, value, log_prob, **masks)


class SoftRolloutBuffer(_Soft, DictRolloutBuffer):
    """For A2C and PPO."""


class SoftMaskableRolloutBuffer(_Soft, MaskableDictRolloutBuffer):
    """For MaskablePPO."""
