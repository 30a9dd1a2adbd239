"""Exercise 3. The student's log-probability, on the candidates, of the token that was taken at each step.

The environment was told a token; the student scores slots.
"""

from __future__ import annotations

from torch import Tensor


def taken_scores(log_policy: Tensor, ids: Tensor, tokens: Tensor) -> Tensor:
    """log π_S^A(a_t|s_t).

    Args:
        log_policy: (B, T, K) nats, of each candidate.
        ids:        (B, T, K) int64, the candidates' token ids, most probable first.
        tokens:     (B, T) int64, the token taken: one of the candidates.
    Returns: (B, T) nats.
    """
    slots = tokens.clamp(max=ids.shape[-1] - 1)
    return log_policy.gather(-1, slots[..., None])[..., 0]
