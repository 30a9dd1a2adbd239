"""Behaviour cloning: cross-entropy on the teacher's tokens, on all its episodes or on those that stay inside."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from agents.base import Agent, Config, FixedPoint, Logs
from agents.episodes import Episodes
from agents.objectives import average


class BehaviorCloning(Agent[Config]):
    """−log π_S(a_t|s_t) over the full softmax on teacher tokens; its fixed point is the teacher.

    The candidate set plays no part: tokens outside it are learnt like any other.
    """

    name: ClassVar[str] = "bc"
    Config: ClassVar[type[Config]] = Config
    data: ClassVar[Literal["teacher", "student", "either", "mixed"]] = "teacher"

    @property
    def depends_on_top_p(self) -> bool:
        return False

    @property
    def fixed_point(self) -> FixedPoint:
        return FixedPoint("teacher")

    def episode_weights(self, batch: Episodes) -> Tensor:
        """Weight of each step in the loss.  # (B, T)"""
        return batch.step_weights

    def loss(self, batch: Episodes) -> tuple[Tensor, Logs]:
        scores, weights = self.student.scores(batch), self.episode_weights(batch)
        loss = average(-scores.logp_taken, weights)
        kept = average(weights.gt(0).float(), batch.step_weights)
        return loss, {"kept": kept, "log_inside": average(scores.log_inside[:, :-1], batch.step_weights)}


class FilteredCloning(BehaviorCloning):
    """Behaviour cloning on the episodes that never leave the candidate sets.

    Its fixed point is the teacher conditioned on staying inside (4c), exactly so for episodes that end by themselves; a
    truncated episode is only known to stay inside up to its end, and is kept. An episode with one token outside teaches
    nothing; `kept` logs the share of steps that remain.
    """

    name: ClassVar[str] = "bc_filtered"

    @property
    def fixed_point(self) -> FixedPoint:
        return FixedPoint("conditioned")

    @property
    def depends_on_top_p(self) -> bool:
        return True

    def episode_weights(self, batch: Episodes) -> Tensor:
        inside = (batch.in_set | ~batch.steps).all(-1, keepdim=True)  # (B, 1)
        return batch.step_weights * inside
