"""Conservative Q-learning: what keeps a Q low where the data are not."""

from __future__ import annotations

from torch import Tensor


def conservative_gap(log_policy: Tensor, alpha: float = 1.0) -> Tensor:
    """How far the soft value lies above the Q of the token in the data; of a levelled Q it is a cross-entropy.

        α log Σ_{b ∈ A_p(s)} exp(Q(s, b)/α) − Q(s, a) = v(s) − Q(s, a) = −α log π_S^A(a|s)

    Source: Kumar et al. (2020), arXiv:2006.04779, equation 4 (CQL(H)), at temperature α, on the set; (6) for the level.
    Args:
        log_policy: (...,) log π_S^A of the token taken.
        alpha:      temperature > 0 of the levelled Q.
    Returns: (...,) nats >= 0.
    """
    return -alpha * log_policy
