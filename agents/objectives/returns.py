"""Multi-step returns over whole episodes: equation (3), path-consistent; and the control that shuffles their values."""

from __future__ import annotations

import torch
from torch import Tensor

from agents.objectives.values import bootstrap


def lambda_returns(
    rewards: Tensor,
    discounts: Tensor,
    log_policy: Tensor,
    values: Tensor,
    in_set: Tensor,
    lam: float,
    alpha: float = 1.0,
) -> Tensor:
    """Path-consistent λ-return of V(s_t): all n-step targets in a geometric mean, by one backward scan.

        G_t = r_t − α log π(a_t|s_t) + d_t ((1 − λ) V(s_{t+1}) + λ G_{t+1})
        G_t = V(s_t) where step t is outside the set, or beyond the end
        λ = 0: one step;  λ = 1: `path_target` with n = T

    G_t − V(s_t) is the generalised advantage Σ_k (γλ)^k δ_{t+k} up to the same cut
    (Schulman et al. 2016, arXiv:1506.02438, equation 16); δ_t = r_t − α log π(a_t|s_t) + d_t V(s_{t+1}) − V(s_t).

    Source: Sutton & Barto (2018), equation 12.2, on the path consistency of Nachum et al. (2017), arXiv:1702.08892;
        traces cut outside A_p (equation 3 of the design).
    Args:
        rewards, discounts, log_policy, values, in_set: as for `path_target`.
        lam: λ in [0, 1].
    Returns: (B, T) nats.
    """
    returns = [values[:, -1]]
    for t in reversed(range(rewards.shape[1])):
        ahead = (1 - lam) * values[:, t + 1] + lam * returns[-1]
        step = bootstrap(rewards[:, t] - alpha * log_policy[:, t], discounts[:, t], ahead)
        returns.append(torch.where(in_set[:, t], step, values[:, t]))
    return torch.stack(returns[:0:-1], 1)


def permuted(values: Tensor, states: Tensor, order: Tensor) -> Tensor:
    """Values that belong to other states: a control, under which looking ahead can teach nothing but the mean.

        V'(s_i) = V(s_{order(i)}) over the states there are

    Source: own derivation (a permutation keeps the distribution of values and breaks their tie to the state).
    Args:
        values: (B, T+1) nats; states: (B, T+1) bool, N of them True; order: (N,) int64, a permutation.
    Returns: (B, T+1) nats; unchanged where there is no state.
    """
    return values.masked_scatter(states, values[states][order])
