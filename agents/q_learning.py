"""Q-learning on the top-p MDP: hard maximum over the candidates, double, with a target network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from agents import objectives
from agents.base import FixedPoint, Logs
from agents.episodes import Episodes
from agents.objectives import average
from agents.td import ValueAgent, ValueConfig


@dataclass(frozen=True)
class QConfig(ValueConfig):
    """Settings of `q_learning`."""

    double: bool = True
    """The online Q chooses the successor's candidate, the target network values it."""


class QLearning(ValueAgent[QConfig]):
    """Q(s, a) → r + γ max_{a' ∈ A_p(s')} Q̄(s', a'), one step; its fixed point is the hard Q*.

    With `logprob` it learns the most probable text, so it is to be judged by greedy decoding only. Steps outside the
    set have no Q: they are left out, and since targets are one step long no trace passes over them. The cut step
    bootstraps from the candidates after it.
    """

    name: ClassVar[str] = "q_learning"
    Config: ClassVar[type[QConfig]] = QConfig

    @property
    def fixed_point(self) -> FixedPoint:
        config = self.config
        return FixedPoint("hard", gamma=config.gamma, alpha=config.alpha, reward=config.reward)

    @property
    def bounded(self) -> bool:
        """(4d) holds at every α: the hard optimum does not depend on it."""
        return self.config.reward == "logprob"

    def loss(self, batch: Episodes) -> tuple[Tensor, Logs]:
        alpha = self.config.alpha
        scores = self.student.scores(batch)
        q = objectives.levelled_q(scores.value, scores.log_policy, alpha)  # (B, T+1, K)
        with torch.no_grad():
            slow = self.target.scores(batch)
            frozen = objectives.levelled_q(slow.value, slow.log_policy, alpha)
            best = objectives.double_value(q if self.config.double else frozen, frozen, batch.mask)  # (B, T+1)
            values = self.ahead(self.clamped(best, batch.mask.shape[-1]), batch)
            target = objectives.bootstrap(batch.rewards, batch.discounts, values[:, 1:])  # (B, T)
        error = objectives.at_slots(q[:, :-1], batch.slots) - target
        td = average(objectives.huber(error, self.config.huber), batch.step_weights * batch.in_set)
        return self.finish(td, error, scores, batch)
