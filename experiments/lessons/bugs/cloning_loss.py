"""Exercise 5. Behaviour cloning on padded replies: the mean of −log π_S(token) over the tokens of the replies.

The student it trains writes well, and writes on.
"""

from __future__ import annotations

from torch import Tensor

PAD = 0  # the tokenizer has no padding token of its own, so the end token fills up short replies, as is usual
END = 0


def cloning_loss(log_policy: Tensor, targets: Tensor, length: Tensor) -> Tensor:
    """Cross-entropy a token.

    Args:
        log_policy: (B, T, V) nats, log π_S of the next token at each step.
        targets:    (B, T) int64, the teacher's tokens, the end token last, then padding.
        length:     (B,) int64, tokens of each reply, its end token included.
    Returns: scalar.
    """
    keep = targets != PAD
    taken = log_policy.gather(-1, targets[..., None])[..., 0]
    return -(taken * keep).sum() / keep.sum()
