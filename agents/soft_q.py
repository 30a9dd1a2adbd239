"""Soft Q-learning on the top-p MDP: path-consistent targets, and an exact cross-entropy for the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from agents import objectives
from agents.base import FixedPoint, Logs, require
from agents.episodes import Episodes
from agents.objectives import average
from agents.scores import Scores
from agents.td import PathConfig, ValueAgent, ValueConfig


@dataclass(frozen=True)
class SoftQConfig(PathConfig, ValueConfig):
    """Settings of `soft_q`."""

    gradient: Literal["target", "residual"] = "target"
    """"target": bootstrapped values come from the target network; "residual": from the student, with their gradient
    (unbiased: transitions are deterministic)."""
    anchor: float = 1.0
    """Weight of the cross-entropy to the backed-up policy, which has the same fixed point as the TD error; 0 leaves the
    TD error alone. It divides by the walker's probability of the token taken, which `behaviour_logp` must then be."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "gradient", self.gradient in ("target", "residual"), 'must be "target" or "residual"')
        require(self, "anchor", self.anchor >= 0, "must not be negative")


class SoftQ(ValueAgent[SoftQConfig]):
    """V(s_t) → path-consistent return over n steps, or λ-return (3); its fixed point is the soft Q*.

    With the levelled Q, V_p(s) = v(s), and at n = 1 the error v(s_t) − (r − α log π + γ v̄(s')) is Q − (r + γ V̄_p(s')).
    The trace is cut before a token outside the set, and steps that begin with one are left out. `anchor` adds the same
    backup as a cross-entropy over all candidates: kd on the set, corrected by how far the backed-up policy of the taken
    token is from π_T^A; at γ = 0 the correction vanishes with the TD error of v.
    """

    name: ClassVar[str] = "soft_q"
    Config: ClassVar[type[SoftQConfig]] = SoftQConfig

    @property
    def fixed_point(self) -> FixedPoint:
        config = self.config
        return FixedPoint("soft", gamma=config.gamma, alpha=config.alpha, reward=config.reward)

    @property
    def bounded(self) -> bool:
        """V* <= 0 needs α <= 1; the lower bound of (4d) is for α = 1, where alone `min_mass` is read."""
        return self.config.reward == "logprob" and self.config.alpha <= 1

    def loss(self, batch: Episodes) -> tuple[Tensor, Logs]:
        config = self.config
        scores = self.student.scores(batch)
        log_policy = objectives.at_slots(scores.log_policy[:, :-1], batch.slots)  # (B, T)
        if config.gradient == "residual":
            values = scores.value
        else:
            with torch.no_grad():
                values = self.target.values(batch)
        values = self.clamped(values)  # (B, T+1)
        ahead = self.ahead(values, batch)
        target = config.returns(batch.rewards, batch.discounts, log_policy, ahead, batch.in_set)
        error = scores.value[:, :-1] - target
        td = average(objectives.huber(error, config.huber), batch.step_weights * batch.in_set)
        if config.anchor:
            td = td + config.anchor * self.anchored(scores, log_policy, values.detach(), ahead.detach(), batch)
        return self.finish(td, error, scores, batch)

    def anchored(self, scores: Scores, log_policy: Tensor, values: Tensor, ahead: Tensor, batch: Episodes) -> Tensor:
        """Cross-entropy to the backed-up policy π̂ ∝ exp((r + γV(s'))/α) on the set, unbiased from the token taken."""
        mask = batch.mask[:, :-1]
        teacher = objectives.renormalise(batch.logp[:, :-1], mask)  # (B, T, K)
        everything = objectives.set_cross_entropy(teacher, scores.log_policy[:, :-1], mask)  # (B, T)
        backed_up = objectives.bootstrap(batch.rewards, batch.discounts, ahead[:, 1:])
        advantage = (backed_up - values[:, :-1]) / self.config.alpha
        taken = objectives.at_slots(teacher, batch.slots)
        correction = objectives.backup_correction(advantage, log_policy, taken, batch.behaviour_logp)
        return average(everything + torch.where(batch.in_set, correction, 0), batch.step_weights)
