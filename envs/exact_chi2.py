"""The optimum of equation (5), inverse soft-Q learning on the top-p MDP, to float64 precision.

The problem, over the pairs (s, a) that the data hold, w(s, a) = how often:

    J(Q) = Σ w(s, a) [φ(r(s, a)) − V_p(s) + γ V_p(s·a)],    r = Q(s, a) − γ V_p(s·a),    φ(x) = x − x²/(4c)

with V_p(terminal) = 0. For teacher walks w(s, a) = d(s) π_T(a|s) on the set. A token taken *outside* the set is masked:
it has no pair, so it adds neither its φ nor its −V_p(s) + γ V_p(s·a). (Kept in the linear term alone, the weight of
−V_p(s) would be d(s) and that of Q(s, ·) only d(s) Z(s): at c = ∞ lowering every Q of a state would pay for ever.)

What it solves. Write m(s) = Σ_a w(s, a) − γ Σ_{pairs leading to s} w, the mass that the data start in s, and ρ_π for
the γ-discounted flow of π from m. The stationary point is w φ'(r) = ρ_π, that is Q(s, a) = 2c (1 − ρ_π/w) + γ V_p(s·a),
and with m ≥ 0 (J is then concave in r) it is the unique solution of

    min_π  c Σ (ρ_π − w)² / w  −  α H(ρ_π),      H the causal entropy of π along its own flow

Per state this is `min c χ²(π‖π_T) − α H(π)` at γ = 0 only. At γ > 0 the states are coupled: raising the odds of a token
also raises the flow into what follows it.

Source: equation (5) of the design; IQ-Learn (arXiv:2106.12142), proposition 3.5 and the χ² of its appendix; the top-p
form of arXiv:2505.20335; the dual and the masking are own derivations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from envs.errors import InputError

Array: TypeAlias = NDArray[np.float64]
PRECISION = 1e-12
ITERATIONS = 500


@dataclass(frozen=True)
class Transitions:
    """The data as N distinct pairs (s, a)."""

    states: int  # S
    state: NDArray[np.int64]  # (N,)
    after: NDArray[np.int64]  # (N,), −1 where the text ended
    weight: Array  # (N,) > 0, how often, any scale

    def __post_init__(self) -> None:
        met, reached = np.unique(self.state), np.unique(self.after[self.after >= 0])
        if len(lost := np.setdiff1d(reached, met)):
            raise InputError(
                f"state {lost[0]} is reached but no token is taken in it inside the sets, so the data do not determine "
                "its Q; give visits of walks that end with their texts"
            )
        if not len(met) or self.weight.min() <= 0:
            raise InputError("the data of equation (5) are empty or a weight is not above 0; give visits of real walks")


@dataclass(frozen=True)
class _Point:
    """J of equation (5) at some Q, its gradient and its curvature."""

    objective: float
    gradient: Array  # (N,)
    curvature: Array  # (N, N), the Hessian


def maximise_chi2(data: Transitions, *, gamma: float, alpha: float, c: float) -> Array:
    """Q of every pair at the maximum of J, (N,) nats.

    At c = ∞ the levels of Q cancel from J (φ = identity: maximum likelihood) and Q = α log(w / Σ_a w), V_p ≡ 0, is
    returned. Otherwise Newton's method, damped until J rises; the end is checked to be a maximum.

    Raises: InputError: no maximum was found, to a gradient of 1e-12 (1 + 1/c) of the largest weight.
    """
    total = np.bincount(data.state, data.weight, data.states)
    weight = data.weight / data.weight.max()
    q = alpha * np.log(data.weight / total[data.state])
    if np.isinf(c):
        levelled: Array = q
        return levelled
    here, damping = _evaluate(q, data, weight, gamma, alpha, c), 1e-3
    for _ in range(ITERATIONS):
        size, bend = float(np.abs(here.gradient).max()), float(np.linalg.eigvalsh(here.curvature).max())
        if size <= PRECISION * (1 + 1 / c) and bend <= 1e-9:
            return q
        # Shifted by the largest eigenvalue where J is not concave, so that every step goes uphill.
        shifted = (max(0.0, bend) + damping) * np.eye(len(q)) - here.curvature
        step = np.linalg.solve(shifted, here.gradient)
        there = _evaluate(q + step, data, weight, gamma, alpha, c)
        # Near the maximum J no longer resolves a step; the gradient does.
        if there.objective > here.objective or (size < 1e-5 and np.abs(there.gradient).max() < size):
            q, here, damping = q + step, there, damping / 10
        else:
            damping *= 10
    raise InputError(f"equation (5) has no maximum that can be found at γ = {gamma}, c = {c} (gradient {size:.1e})")


def objective_chi2(q: Array, data: Transitions, *, gamma: float, alpha: float, c: float) -> float:
    """J(Q) of equation (5) for (N,) values of Q, nats times the scale of the weights; c = ∞ allowed."""
    value = _soft_values(q, data, alpha)
    after = np.where(data.after >= 0, value[data.after], 0.0)
    r = q - gamma * after
    return float((data.weight * (r - r**2 / (4 * c) - value[data.state] + gamma * after)).sum())


def _soft_values(q: Array, data: Transitions, alpha: float) -> Array:
    """V_p(s) = α log Σ exp(Q/α) over the pairs of each state, (S,); −∞ where there are none."""
    top = np.full(data.states, -np.inf)
    np.maximum.at(top, data.state, q)
    shifted = np.bincount(data.state, np.exp((q - top[data.state]) / alpha), data.states)
    with np.errstate(divide="ignore"):
        values: Array = top + alpha * np.log(shifted)
    return values


def _evaluate(q: Array, data: Transitions, weight: Array, gamma: float, alpha: float, c: float) -> _Point:
    pairs = np.arange(len(q))
    goes_on = data.after >= 0
    value = _soft_values(q, data, alpha)
    pi = np.exp((q - value[data.state]) / alpha)
    after = np.where(goes_on, value[data.after], 0.0)
    r = q - gamma * after
    slopes = np.zeros((data.states, len(q)))  # ∂V_p(s)/∂Q
    slopes[data.state, pairs] = pi
    inner = np.eye(len(q)) - gamma * np.where(goes_on[:, None], slopes[data.after], 0.0)  # ∂r/∂Q
    flow = weight * (1 - r / (2 * c))  # w φ'(r)
    # What V_p(s) is multiplied by in the gradient: the data's start mass, and γ times the flow into s.
    out = np.bincount(data.state, weight, data.states)
    into = np.bincount(data.after[goes_on], (flow - weight)[goes_on], data.states)
    level = out + gamma * into  # (S,)
    bend = (np.diag(pi) - np.where(data.state[:, None] == data.state, np.outer(pi, pi), 0.0)) / alpha
    objective = (weight * (r - r**2 / (4 * c) - value[data.state] + gamma * after)).sum()
    return _Point(
        objective=float(objective),
        gradient=flow - level[data.state] * pi,
        curvature=-inner.T @ ((weight / (2 * c))[:, None] * inner) - level[data.state][:, None] * bend,
    )
