"""Generalised knowledge distillation: any divergence to the teacher, on its episodes and on the student's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from agents import objectives
from agents.base import Agent, FixedPoint, Logs, require
from agents.episodes import Episodes
from agents.objectives import average
from agents.search import Range, Search
from agents.walks import WalkConfig

DIVERGENCES = ("jsd", "forward", "reverse", "skew_forward", "skew_reverse")


@dataclass(frozen=True)
class GKDConfig(WalkConfig):
    """Settings of `gkd`."""

    student_share: float = 0.5
    """Share of each batch's episodes that the student walked: λ of the paper."""
    divergence: Literal["jsd", "forward", "reverse", "skew_forward", "skew_reverse"] = "jsd"
    """What is descended at every state."""
    beta: float = 0.5
    """β of "jsd": 0 is the forward, 1 the reverse KL."""
    skew: float = 0.1
    """α of the skew divergences: how much of the one distribution is mixed into the other."""
    on: Literal["vocabulary", "set"] = "vocabulary"
    """"vocabulary" (asks the teacher for its logits) or "set": the candidates, renormalised."""
    leak_weight: float = 1.0
    """Weight of −log(1 − leak) with on="set" (4g)."""

    SEARCH: ClassVar[Search] = {**WalkConfig.SEARCH, "student_share": Range(0.1, 1.0)}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "divergence", self.divergence in DIVERGENCES, f"must be one of {', '.join(DIVERGENCES)}")
        require(self, "beta", 0 <= self.beta <= 1, "must lie in [0, 1]")
        require(self, "skew", 0 <= self.skew < 1, "must lie in [0, 1)")
        require(self, "on", self.on in ("vocabulary", "set"), 'must be "vocabulary" or "set"')
        require(self, "leak_weight", self.leak_weight >= 0, "must not be negative")


class GKD(Agent[GKDConfig]):
    """D(π_T, π_S) at every state of teacher and student walks; its fixed point is that of `kd`.

    Source: Agarwal et al. (2024), arXiv:2306.13649; the skew divergences: Ko et al. (2024), arXiv:2402.03898. No
    gradient goes through the walk. Departures: a batch holds both kinds of episodes, where the paper draws one kind for
    a whole batch; the mean is over steps. The sets, and a student with more rows than the teacher, are treated as by
    `kd`: a divergence of renormalised distributions, and −log of the student's mass where they live.
    """

    name: ClassVar[str] = "gkd"
    Config: ClassVar[type[GKDConfig]] = GKDConfig
    data: ClassVar[Literal["teacher", "student", "either", "mixed"]] = "mixed"

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
        whole, weights = self.config.on == "vocabulary", batch.step_weights
        scores = self.student.scores(batch, full=whole)
        log_inside = scores.log_inside[:, :-1]
        if whole:
            assert batch.teacher_logp is not None and scores.logp is not None
            teacher, policy, inside = objectives.shared_vocabulary(batch.teacher_logp, scores.logp[:, :-1])
            apart = self.divergence(teacher, policy, None)
            loss = average(apart - inside, weights)
        else:
            mask = batch.mask[:, :-1]
            teacher = objectives.renormalise(batch.logp[:, :-1], mask)
            apart = self.divergence(teacher, scores.log_policy[:, :-1], mask)
            loss = average(apart - self.config.leak_weight * log_inside, weights)
        logs = {"divergence": average(apart, weights), "log_inside": average(log_inside, weights)}
        return loss, logs

    def divergence(self, teacher: Tensor, policy: Tensor, mask: Tensor | None) -> Tensor:
        """The chosen one.  # (B, T, A) x3 -> (B, T)"""
        config = self.config
        match config.divergence:
            case "jsd":
                return objectives.jensen_shannon(teacher, policy, config.beta, mask)
            case "forward":
                return objectives.forward_kl(teacher, policy, mask)
            case "reverse":
                return objectives.reverse_kl(teacher, policy, mask)
            case "skew_forward":
                return objectives.skew_forward_kl(teacher, policy, config.skew, mask)
            case "skew_reverse":
                return objectives.skew_reverse_kl(teacher, policy, config.skew, mask)
