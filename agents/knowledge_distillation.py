"""Knowledge distillation: forward KL to the teacher, over the whole vocabulary or on its candidate sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from agents import objectives
from agents.base import Agent, Config, FixedPoint, Logs, StagedConfig, require
from agents.episodes import Episodes
from agents.objectives import average


@dataclass(frozen=True)
class KDConfig(StagedConfig):
    """Settings of `kd`."""

    on: Literal["vocabulary", "set"] = "vocabulary"
    """"vocabulary" (p = 1; asks the teacher for its logits) or "set": the candidates, renormalised."""
    leak_weight: float = 1.0
    """Weight of −log(1 − leak) with on="set" (4g)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "on", self.on in ("vocabulary", "set"), 'must be "vocabulary" or "set"')
        require(self, "leak_weight", self.leak_weight >= 0, "must not be negative")
        for name in ("p_schedule", "k_schedule"):
            good = self.on == "set" or not self.is_staged
            require(self, name, good, 'is of candidate sets, which on="vocabulary" does not see: take on=set')


class KnowledgeDistillation(Agent[KDConfig]):
    """Σ π_T log(π_T / π_S) at every state of a walk; its fixed point is the teacher, or the renormalised teacher.

    on="vocabulary": every token counts. A student with more output rows than the teacher (padded embeddings) keeps them
    in its normaliser, so their mass is driven to 0; teacher rows that the student lacks hold no token and are left out.
    on="set": π_T^A against π_S^A, and −log(1 − leak) takes the student's mass off the outside; the teacher's mass there
    (1 − Z) is given to the candidates in proportion, whatever token the walk took.
    """

    name: ClassVar[str] = "kd"
    Config: ClassVar[type[Config]] = KDConfig

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"teacher_logits"} if self.config.on == "vocabulary" else ())

    @property
    def depends_on_top_p(self) -> bool:
        return self.config.on == "set"

    @property
    def fixed_point(self) -> FixedPoint:
        return FixedPoint("teacher" if self.config.on == "vocabulary" else "renormalised")

    def loss(self, batch: Episodes) -> tuple[Tensor, Logs]:
        whole = self.config.on == "vocabulary"
        scores = self.student.scores(batch, full=whole)
        log_inside = scores.log_inside[:, :-1]
        if whole:
            assert batch.teacher_logp is not None and scores.logp is not None
            width = min(batch.teacher_logp.shape[-1], scores.logp.shape[-1])
            kl = objectives.forward_kl(batch.teacher_logp[..., :width], scores.logp[:, :-1, :width])
            loss = average(kl, batch.step_weights)
        else:
            mask = batch.mask[:, :-1]
            teacher = objectives.renormalise(batch.logp[:, :-1], mask)
            kl = objectives.forward_kl(teacher, scores.log_policy[:, :-1], mask)
            loss = average(kl - self.config.leak_weight * log_inside, batch.step_weights)
        logs = {"kl": average(kl, batch.step_weights), "log_inside": average(log_inside, batch.step_weights)}
        return loss, logs
