"""The soft-optimal return of a state, from walks that look no step ahead, and the rewards along soft-optimal walks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.objectives import renormalise, soft_value
from envs.candidates import top_p
from envs.rewards import Step, make_reward
from envs.teachers import Teacher
from experiments.explore.walk import Settings


@dataclass(frozen=True)
class Walks:
    """M walks of the policy π_α ∝ π_T^{1/α} on the sets, from one state to their ends."""

    rewards: Tensor  # (M, T) nats, 0 behind an end
    levels: Tensor  # (M, T) m = α log Σ_{a ∈ A} π_T(a|s)^{1/α}, nats, 0 behind an end


@dataclass(frozen=True)
class Outlook:
    """What soft-optimal walking is worth from a state on; nats."""

    value: float
    error: float  # standard error of `value`
    exact: bool  # at γ = 1 the estimate is consistent; below, it is of a lower bound
    mean: tuple[float, ...]  # E Σ_{k<t} γ^k r_k of soft-optimal walks, t = 0, 1, …
    low: tuple[float, ...]  # a tenth of them (by weight) has less
    high: tuple[float, ...]  # a tenth has more


def walks_from(teacher: Teacher, text: Sequence[int], left: int, settings: Settings, count: int, seed: int) -> Walks:
    """Draw the walks.

    Args:
        left: tokens of the budget.
    """
    walk, generator = teacher.walk(count), torch.Generator().manual_seed(seed)
    walk.start(range(count), [list(text)] * count)
    alive = torch.ones(count, dtype=torch.bool)
    ends = torch.zeros(walk.log_probs.shape[-1], dtype=torch.bool)
    ends[list(teacher.eos_ids)] = True
    reward, rewards, levels = make_reward("logprob", settings.gamma), list[Tensor](), list[Tensor]()
    limit = min(left, teacher.context_limit - len(text), settings.context_limit - len(text))
    for step in range(limit):
        sets = top_p(walk.log_probs.cpu(), settings.top_p, settings.max_candidates)
        policy = renormalise(sets.logp / settings.alpha, sets.mask).exp()
        slots = torch.multinomial(torch.where(sets.mask, policy, 0), 1, generator=generator)
        tokens, logp = sets.ids.gather(1, slots)[:, 0], sets.logp.gather(1, slots)[:, 0]
        over = ends[tokens]
        paid = reward(Step(logp, sets.log_mass, over, ~over & (step == limit - 1)))
        rewards.append(torch.where(alive, paid, 0))
        levels.append(torch.where(alive, soft_value(sets.logp, sets.mask, settings.alpha), 0))
        alive = alive & ~over
        if not alive.any() or step == limit - 1:
            break
        walk.step(tokens, alive)
    if not rewards:
        return Walks(torch.zeros(count, 1), torch.zeros(count, 1))
    return Walks(torch.stack(rewards, 1), torch.stack(levels, 1))


def outlook(walks: Walks, alpha: float, gamma: float) -> Outlook:
    """The soft-optimal value of the state that walks began in, and the rewards of soft-optimal walks from it.

        V*(s) = α log E[exp(Σ_t γ^t m_t / α)]  at γ = 1, and ≥ it below;   m_t = α log Σ_{a ∈ A_p(s_t)} π_T(a|s_t)^{1/α}

    A soft-optimal walk is one of π_α, weighted by exp(Σ_t γ^t m_t / α). At α = γ = 1 this is identity (4b): m = log Z,
    and V* = log P(the teacher never leaves the sets).

    Source: own derivation. Along π_α, r − α log π_α = m, so that V* = max_π E_π[Σ γ^t (m_t − α KL(π‖π_α))]; without the
    γ^t before the KL, which makes it no larger, the maximum is the right-hand side (Donsker & Varadhan).
    """
    powers = gamma ** torch.arange(walks.levels.shape[1], dtype=torch.float64)  # (T,)
    total = (powers * walks.levels.double()).sum(1) / alpha  # (M,)
    count = len(total)
    value = alpha * (float(total.logsumexp(0)) - math.log(count))
    weights = total.softmax(0)  # (M,)
    spread = float((weights * count).std()) if count > 1 else math.nan
    sums = torch.nn.functional.pad((powers * walks.rewards.double()).cumsum(1), (1, 0))  # (M, T + 1)
    return Outlook(
        value=value,
        error=alpha * spread / math.sqrt(count),
        exact=gamma == 1.0,
        mean=tuple((weights[:, None] * sums).sum(0).tolist()),
        low=tuple(_quantile(sums, weights, 0.1)),
        high=tuple(_quantile(sums, weights, 0.9)),
    )


def _quantile(values: Tensor, weights: Tensor, share: float) -> list[float]:
    """The least value of each column that this share of the weight does not exceed.  # (M, T), (M,) -> T of them"""
    ordered, order = values.sort(0)
    mass = weights[order].cumsum(0)
    place = (mass < share).sum(0).clamp(max=len(values) - 1)
    found: list[float] = ordered.gather(0, place[None])[0].tolist()
    return found
