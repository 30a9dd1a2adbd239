"""Every target and loss of equations (3)-(6), as pure functions over (..., K); nothing else holds them.

Symbols: B batch, T steps, K slots, V vocabulary. Log-probabilities, rewards, Q and V in nats. Masks select with
`where`, never by product. `discounts` are γ(1 − terminated), formed where episodes are built; no `done` flag gets here.
"""

from __future__ import annotations

from agents.objectives.conservative import conservative_gap
from agents.objectives.divergences import (
    jensen_shannon,
    reverse_kl,
    shared_vocabulary,
    skew_forward_kl,
    skew_reverse_kl,
)
from agents.objectives.imitation import backup_correction, forward_kl, nucleus_nll, renormalise, set_cross_entropy
from agents.objectives.inverse import concave_reward, inverse_reward, inverse_soft_q
from agents.objectives.means import average
from agents.objectives.policy_gradient import (
    centred,
    clipped_policy_gradient,
    clipped_value_error,
    expected_value,
    policy_gradient,
    temperature_loss,
)
from agents.objectives.policy_tilt import differential_returns, leaf_advantage, state_cost, tilted_teacher
from agents.objectives.released import released_loss, released_policy, released_q, released_value
from agents.objectives.returns import lambda_returns, permuted
from agents.objectives.sequence import clipped_importance, later_rewards
from agents.objectives.values import (
    at_slots,
    bootstrap,
    double_value,
    hinge,
    huber,
    levelled_q,
    path_target,
    soft_value,
    value_bounds,
)

__all__ = [
    "at_slots",
    "average",
    "backup_correction",
    "bootstrap",
    "centred",
    "clipped_importance",
    "clipped_policy_gradient",
    "clipped_value_error",
    "concave_reward",
    "conservative_gap",
    "differential_returns",
    "double_value",
    "expected_value",
    "forward_kl",
    "hinge",
    "huber",
    "inverse_reward",
    "inverse_soft_q",
    "jensen_shannon",
    "lambda_returns",
    "later_rewards",
    "leaf_advantage",
    "levelled_q",
    "nucleus_nll",
    "path_target",
    "permuted",
    "policy_gradient",
    "released_loss",
    "released_policy",
    "released_q",
    "released_value",
    "renormalise",
    "reverse_kl",
    "set_cross_entropy",
    "shared_vocabulary",
    "skew_forward_kl",
    "skew_reverse_kl",
    "soft_value",
    "state_cost",
    "temperature_loss",
    "tilted_teacher",
    "value_bounds",
]
