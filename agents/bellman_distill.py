"""Bellman Distill: inverse soft-Q learning of the teacher on the top-p MDP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from agents import objectives
from agents.base import FixedPoint, Logs, require
from agents.episodes import Episodes
from agents.objectives import average
from agents.search import Range, Search
from agents.td import TDAgent, TDConfig


@dataclass(frozen=True)
class BellmanConfig(TDConfig):
    """Settings of `bellman_distill`; its arms are γ, c ∈ {0.1, 1, 10, ∞}, `outside` and `linear`."""

    c: float = 10.0
    """Width of φ(x) = x − x²/(4c). ∞ switches χ² off, and with it TD. The paper's 0.1 moves the optimum far from the
    teacher (5); 10 keeps it near."""
    outside: Literal["mask", "full"] = "mask"
    """Teacher tokens outside the set: left out, or learnt by full-softmax cross-entropy."""
    linear: Literal["sampled", "expected"] = "sampled"
    """The linear term of φ from the token taken, or summed exactly over the candidates; χ² stays sampled."""

    SEARCH: ClassVar[Search] = {**TDConfig.SEARCH, "c": Range(0.1, 100.0, log=True)}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "c", self.c > 0, "must be positive")
        require(self, "outside", self.outside in ("mask", "full"), 'must be "mask" or "full"')
        require(self, "linear", self.linear in ("sampled", "expected"), 'must be "sampled" or "expected"')


class BellmanDistill(TDAgent[BellmanConfig]):
    """max_Q E_T[φ(Q − γV_p(s'))] − E_T[V_p(s) − γV_p(s')] (5); its fixed point is its own χ² optimum, not the teacher.

    The gradient runs through both ends of a transition, so no target network is needed. V(s_H) after a truncated end is
    one such end and never the left side of a step. Rewards are not read. With c = ∞ and outside="full" it is
    `bc`. `shuffle` permutes V(s') in χ² alone: from the linear part it cancels, as γ does.
    """

    name: ClassVar[str] = "bellman_distill"
    Config: ClassVar[type[BellmanConfig]] = BellmanConfig
    data: ClassVar[Literal["teacher", "student", "either", "mixed"]] = "teacher"

    @property
    def fixed_point(self) -> FixedPoint:
        return FixedPoint("chi2", gamma=self.config.gamma, c=self.config.c)

    def loss(self, batch: Episodes) -> tuple[Tensor, Logs]:
        config, weights = self.config, batch.step_weights
        scores = self.student.scores(batch)
        mask, log_inside = batch.mask[:, :-1], scores.log_inside[:, :-1]
        log_policy = objectives.at_slots(scores.log_policy[:, :-1], batch.slots)  # (B, T)
        ahead = self.ahead(scores.value, batch)[:, 1:]
        transition = (scores.value[:, :-1], log_policy, batch.discounts, ahead)
        reward = objectives.inverse_reward(*transition)
        step = torch.where(batch.in_set, objectives.inverse_soft_q(*transition, config.c), 0)
        if config.linear == "expected":
            exact = objectives.set_cross_entropy(batch.logp[:, :-1], scores.log_policy[:, :-1], mask)
            step = step + exact + torch.where(batch.in_set, log_policy, 0)
        leak = -config.leak_weight * log_inside
        if config.outside == "full":
            step, leak = torch.where(batch.in_set, step + leak, step - scores.logp_taken), torch.zeros_like(leak)
        inside = weights * batch.in_set
        logs = {
            "implied_reward": average(reward, inside),
            "chi2": average(reward - objectives.concave_reward(reward, config.c), inside),
            "q_mean": average(scores.value[:, :-1] + log_policy, inside),
            "v_mean": average(scores.value[:, :-1], weights),
            "log_inside": average(log_inside, weights),
        }
        return average(step + leak, weights), logs
