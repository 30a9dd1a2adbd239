"""Conservative Q-learning on the top-p MDP: soft Q-learning that mistrusts what the teacher does not do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from agents import objectives
from agents.base import FixedPoint, Logs, require
from agents.episodes import Episodes
from agents.objectives import average
from agents.search import Range, Search
from agents.td import BoundedAgent, BoundedConfig


@dataclass(frozen=True)
class CQLConfig(BoundedConfig):
    """Settings of `cql`."""

    conservatism: float = 1.0
    """Weight of the penalty, in nats: 0 leaves one-step soft Q-learning, ∞ cloning on the set."""
    huber: float = math.inf
    """TD errors beyond this many nats count linearly; ∞, at which the declared optimum is exact, squares them all."""

    SEARCH: ClassVar[Search] = {**BoundedConfig.SEARCH, "conservatism": Range(0.01, 10.0, log=True)}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "conservatism", self.conservatism >= 0, "must not be negative")


class CQL(BoundedAgent[CQLConfig]):
    """h(Q − (r + γV̄_p(s'))) + w (α log Σ exp(Q/α) − Q(s, a)), one step; it ends at its penalised optimum.

    The penalty of a levelled Q is −wα log π_S^A(a|s), cloning on the set, and the optimum per state is
    Q(s, a) = r + γV_p(s') + w (1 − π_Q(a|s)/β(a|s)), where β, the data, is π_T^A: between the soft-optimal policy
    (w = 0) and π_T^A (w = ∞), which at γ = 0 and α = 1 are one.

    Source: Kumar et al. (2020), arXiv:2006.04779, equation 4 (CQL(H)). Departures: the log-sum-exp runs over the set
    and at temperature α, its weight is fixed, one critic. n-step targets, a residual gradient, the hinge and the
    anchor of `soft_q` would each move the optimum, so they are left out. Errors at the optimum are w (1 − π_Q/β),
    not 0: a `huber` below the largest of them moves it too, so errors are squared unless set otherwise.
    """

    name: ClassVar[str] = "cql"
    Config: ClassVar[type[CQLConfig]] = CQLConfig
    data: ClassVar[Literal["teacher", "student", "either", "mixed"]] = "teacher"

    @property
    def fixed_point(self) -> FixedPoint:
        c = self.config
        return FixedPoint("conservative", gamma=c.gamma, alpha=c.alpha, weight=c.conservatism, reward=c.reward)

    @property
    def bounded(self) -> bool:
        """(4d) holds: penalised values lie between those of π_T^A, which the lower bound covers, and optimal ones."""
        return self.config.reward == "logprob" and self.config.alpha <= 1

    def loss(self, batch: Episodes) -> tuple[Tensor, Logs]:
        config, inside = self.config, batch.step_weights * batch.in_set
        scores = self.student.scores(batch)
        log_policy = objectives.at_slots(scores.log_policy[:, :-1], batch.slots)  # (B, T)
        with torch.no_grad():
            ahead = self.ahead(self.clamped(self.target.values(batch)), batch)  # (B, T+1)
        path = (batch.rewards, batch.discounts, log_policy, ahead, batch.in_set)
        error = scores.value[:, :-1] - objectives.path_target(*path, n=1, alpha=config.alpha)
        penalty = average(objectives.conservative_gap(log_policy, config.alpha), inside)
        td = average(objectives.huber(error, config.huber), inside) + config.conservatism * penalty
        loss, logs = self.finish(td, error, scores, batch)
        return loss, {**logs, "conservative_gap": penalty}
