"""SQIL: soft Q-learning on a reward of 1 for what the teacher did and 0 for what the student did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from agents import objectives
from agents.base import Logs
from agents.episodes import Episodes
from agents.objectives import average
from agents.td import TargetAgent, TargetConfig
from agents.walks import WalkConfig


@dataclass(frozen=True)
class SQILConfig(WalkConfig, TargetConfig):
    """Settings of `sqil`."""

    student_share: float = 0.5
    """Share of each batch's episodes that the student walked; the paper balances the two."""
    walk_keep: int = 16
    """Walks whose episodes may still be learnt from: a replay, for soft Q-learning is off-policy."""


class SQIL(TargetAgent[SQILConfig]):
    """Soft Q-learning with r = 1 on teacher and r = 0 on student transitions, half of each in a batch.

    It never sees π_T: the batch's own rewards are not read, `from_teacher` is. Every reward is at least 0, so ending a
    text never pays and going on may: a survival bias, which makes replies longer than the teacher's unless its
    EOS outweighs that; and V* grows with the steps left, up to 1/(1 − γ), so take γ < 1 for long replies.

    There is no fixed point: the optimum moves with the student's own walk, and where that equals the teacher's the
    reward says nothing. On transitions that stand still it is soft Q-learning on the teacher's share of each, the mean
    reward of taking a in s; at γ = 0 that share is Q itself. Targets take one step: the reward tells who walks, not
    what is done, so that a longer return would go on paying the walker and miss that mean.

    Source: Reddy, Dragan & Levine (2020), arXiv:1905.11108, equation 1. Departures: bootstrapped values come from a
    target network; a levelled Q.
    """

    name: ClassVar[str] = "sqil"
    Config: ClassVar[type[SQILConfig]] = SQILConfig
    data: ClassVar[Literal["teacher", "student", "either", "mixed"]] = "mixed"
    identity: ClassVar[str | None] = "on a fixed mixture: soft Q-learning whose reward is the teacher's share of (s, a)"

    @property
    def fixed_point(self) -> None:
        return None

    def loss(self, batch: Episodes) -> tuple[Tensor, Logs]:
        config, inside = self.config, batch.step_weights * batch.in_set
        scores = self.student.scores(batch)
        log_policy = objectives.at_slots(scores.log_policy[:, :-1], batch.slots)  # (B, T)
        rewards = (batch.from_teacher[:, None] & batch.steps).to(batch.rewards.dtype)
        with torch.no_grad():
            ahead = self.ahead(self.target.values(batch), batch)  # (B, T+1)
        path = (rewards, batch.discounts, log_policy, ahead, batch.in_set)
        error = scores.value[:, :-1] - objectives.path_target(*path, n=1, alpha=config.alpha)
        return self.finish(average(objectives.huber(error, config.huber), inside), error, scores, batch)
