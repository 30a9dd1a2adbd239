"""An agent in one file: path consistency with the gradient through both ends of a step; lesson 08 takes it apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from agents import objectives
from agents.base import Agent, Config, FixedPoint, Logs, require
from agents.episodes import Episodes


@dataclass(frozen=True)
class PathConfig(Config):
    """Settings of `path`."""

    gamma: float = 1.0
    """Discount; the episodes must be built with the same one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "gamma", 0 <= self.gamma <= 1, "must lie in [0, 1]")


class PathConsistency(Agent[PathConfig]):
    """½ (v(s) − [r − log π(a|s) + γ v(s')])² on every step inside the sets; its fixed point is the soft optimum.

    No target network: transitions are deterministic, so the squared error of one step is an unbiased estimate of the
    squared error, and its gradient may run through both ends.

    Source: Nachum et al. (2017), arXiv:1702.08892, equation 14 with d = 1 and τ = 1, restricted to the candidate sets.
    """

    name: ClassVar[str] = "path"
    Config: ClassVar[type[Config]] = PathConfig

    @property
    def fixed_point(self) -> FixedPoint:
        return FixedPoint("soft", gamma=self.config.gamma)

    def loss(self, batch: Episodes) -> tuple[Tensor, Logs]:
        scores = self.student.scores(batch)
        log_policy = objectives.at_slots(scores.log_policy[:, :-1], batch.slots)  # (B, T)
        target = objectives.bootstrap(batch.rewards - log_policy, batch.discounts, scores.value[:, 1:])
        error = torch.where(batch.in_set, scores.value[:, :-1] - target, 0)  # (B, T) nats
        consistency = objectives.average(0.5 * error.square(), batch.step_weights * batch.in_set)
        leak = -objectives.average(scores.log_inside[:, :-1], batch.step_weights)  # mass outside the sets
        return consistency + leak, {"path_error": objectives.average(error.abs(), batch.step_weights)}
