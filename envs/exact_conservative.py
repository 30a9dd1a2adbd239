"""The fixed point of conservative soft Q-learning on the top-p MDP, to float64 precision.

One step of the learner holds y(s, a) = r(s, a) + γ V_p(s·a) still and lowers, over data that take a in s with β(a|s),

    Σ_a β(a|s) [ ½ (Q(s, a) − y(s, a))² + w (V_p(s) − Q(s, a)) ],    V_p(s) = α log Σ_{A_p} exp(Q/α)

How often a state is met does not matter. The gradient β (Q − y) + w (π_Q − β) vanishes at

    Q(s, a) = y(s, a) + w (1 − π_Q(a|s)/β(a|s)),    so that   Σ_a β (Q − y) = 0:

the mean error stays 0, tokens that π_Q prefers to the data are lowered, and the policy moves from exp(y/α) (w = 0) to
β (w → ∞). The loss is strictly convex. Its minimum V_p is monotone in y (the Hessian diag(β) + w (diag(π) − ππᵀ)/α is
an M-matrix) and moves by a constant with it, so the operator y → V_p is a γ-contraction, and its values lie between
those of β and the optimal ones.

Source: Kumar et al. (2020), arXiv:2006.04779, equations 2 and 4 with R = 0 (CQL(H)) on the set, at temperature α of the
soft operator; the fixed point and the contraction are own derivations.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
PRECISION = 1e-13
ITERATIONS = 200


def conservative_q(target: Array, data: Array, *, weight: float, alpha: float) -> Array:
    """The Q that minimises the conservative loss of every state, by Newton's method with halved steps.

    Args:
        target: (S, V) nats, y(s, a); arbitrary where data is 0.
        data: (S, V), β(a|s): 0 outside the set, rows summing to 1.
        weight: w ≥ 0, nats. alpha: temperature > 0.
    Returns: (S, V) nats, 0 where data is 0.
    """
    held = data > 0
    aim: Array = np.where(held, target, 0.0)
    q, loss = aim, _loss(aim, aim, data, weight, alpha)
    for _ in range(ITERATIONS):
        pi = _softmax(q, held, alpha)
        slope = data * (q - aim) + weight * (pi - data)
        curve = weight / alpha * (_diagonal(pi) - pi[:, :, None] * pi[:, None, :])
        step = -np.linalg.solve(curve + _diagonal(np.where(held, data, 1.0)), slope[:, :, None])[:, :, 0]
        if np.abs(step).max() < PRECISION * (1.0 + weight + np.abs(q).max()):
            break
        length = np.ones((len(q), 1))
        while True:
            new = q + length * step
            lower = _loss(new, aim, data, weight, alpha)
            worse = lower > loss + 1e-12 * (1.0 + np.abs(loss))
            if not worse.any():
                break
            length[worse] /= 2
        q, loss = new, lower
    # The mean error is 0 at the optimum; at large w rounding would leave it at w times the precision of a float.
    return np.where(held, q - (data * (q - aim)).sum(1, keepdims=True), 0.0)


def soft_value(q: Array, held: NDArray[np.bool_], alpha: float) -> Array:
    """V_p(s) of equation (3), (S,)."""
    value: Array = alpha * np.logaddexp.reduce(np.where(held, q / alpha, -np.inf), axis=1)
    return value


def _loss(q: Array, target: Array, data: Array, weight: float, alpha: float) -> Array:
    value = soft_value(q, data > 0, alpha)
    loss: Array = (data * (0.5 * (q - target) ** 2 + weight * (value[:, None] - q))).sum(1)
    return loss


def _softmax(q: Array, held: NDArray[np.bool_], alpha: float) -> Array:
    pi: Array = np.where(held, np.exp((q - soft_value(q, held, alpha)[:, None]) / alpha), 0.0)
    return pi


def _diagonal(values: Array) -> Array:
    return values[:, :, None] * np.eye(values.shape[1])
