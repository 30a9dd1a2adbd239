"""The published code of Bellman Distill, what it computes and not what its paper says; for comparison only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from agents import objectives
from agents.base import Agent, Config, FixedPoint, Logs, require
from agents.episodes import Episodes
from agents.objectives import average
from agents.search import Range, Search


@dataclass(frozen=True)
class ReleasedConfig(Config):
    """Settings of `bellman_distill_released`."""

    gamma: float = 0.99
    """Discount; the episodes must be built with the same one."""
    c: float = 0.1
    """Width of φ(x) = x − x²/(4c), a constant of the code; ∞ is its run without `chi_reg`."""
    top_p: float = 0.8
    """Mass of the candidate sets, by which the code divides the student's."""
    epsilon: float = 1e-8
    """Probability added to every token of the vocabulary before the policy is normalised again."""

    SEARCH: ClassVar[Search] = {**Config.SEARCH, "c": Range(0.03, 10.0, log=True)}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "gamma", 0 <= self.gamma <= 1, "must lie in [0, 1]")
        require(self, "c", self.c > 0, "must be positive")
        require(self, "top_p", 0 < self.top_p <= 1, "must lie in (0, 1]")
        require(self, "epsilon", self.epsilon > 0, "must be positive")


class BellmanDistillReleased(Agent[ReleasedConfig]):
    """For comparison only: (5) is `bellman_distill`. What the published code does, and this reproduces:

    - Q − γV' is averaged over the whole vocabulary, outside the set too, where it is −γV'; the token that the teacher
      took is not read, and so no expectation over the teacher is taken: only its sets are learnt from.
    - Logits count from their largest and are cut at −10, which stops the gradient of unlikely tokens.
    - V is that of a policy with ε on every token of the vocabulary.
    - EOS is padding there: the step that takes it is no target, and the state before it is worth 0 to its predecessor.
      The last step of a cut text is no target either, for want of a next one.

    Left out: the language-model and distillation losses on other text that its trainer adds, and temperature (1).

    Source: github.com/TobyLeelsz/Bellman-Distillation, bellman/losses.py at commit e5548e6.
    """

    name: ClassVar[str] = "bellman_distill_released"
    Config: ClassVar[type[ReleasedConfig]] = ReleasedConfig
    data: ClassVar[Literal["teacher", "student", "either", "mixed"]] = "teacher"
    identity: ClassVar[str | None] = "its loss is the published code's number on an example worked by hand"

    @property
    def fixed_point(self) -> FixedPoint | None:
        return None

    def loss(self, batch: Episodes) -> tuple[Tensor, Logs]:
        config = self.config
        scores = self.student.scores(batch, full=True)
        assert scores.logp is not None and batch.weights is not None
        logits, inside = scores.logp[:, :-1], on_vocabulary(batch.ids, batch.mask, scores.logp.shape[-1])[:, :-1]
        value = objectives.released_value(logits, inside, config.top_p, config.epsilon)
        unmasked = batch.alive  # EOS is padding to the code
        value = torch.where(unmasked, value, 0)
        followed = unmasked[:, :-1] & batch.steps[:, 1:]
        q = objectives.released_q(logits[:, :-1])
        rest = (inside[:, :-1], value[:, :-1], value[:, 1:], config.gamma, config.c)
        weights = batch.weights[:, None] * followed
        loss = average(objectives.released_loss(q, *rest), weights)
        logs = {"v_mean": average(value[:, :-1], weights)}
        return loss, logs | {"log_inside": average(scores.log_inside[:, :-1], batch.step_weights)}


def on_vocabulary(ids: Tensor, mask: Tensor, width: int) -> Tensor:
    """Candidates as a mask over the vocabulary.  # (..., K) x2 -> (..., V) bool"""
    counted = torch.zeros(*ids.shape[:-1], width, dtype=torch.int64, device=ids.device)
    return counted.scatter_add(-1, ids, mask.long()) > 0  # padding has id 0 and adds nothing
