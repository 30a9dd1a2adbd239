"""Who walks while an agent learns: what an agent that wants its student's own episodes asks of the run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from agents.base import Config, require


@dataclass(frozen=True)
class Walks:
    """The student's own episodes that an agent learns from, drawn anew while it learns.

    A run draws `episodes` of them before update 0, `every`, 2·`every`, …; each batch holds ⌈share · batch_size⌉ of the
    student's (from the last `keep` portions) and teacher episodes for the rest.
    """

    share: float
    """Share of a batch that the student walked, in (0, 1]."""
    every: int
    """Updates between two portions."""
    episodes: int
    """Episodes of a portion."""
    keep: int
    """Portions that may still be learnt from; 1: the newest alone (on-policy)."""
    teacher_mix: float = 0.0
    """Per token, the walker draws from teacher_mix · π_T + (1 − teacher_mix) · π_S; behaviour_logp is the mixture's."""
    mix_decay: float = 1.0
    """What teacher_mix is multiplied by from a portion to the next (a DAgger schedule); 1 keeps it."""

    @property
    def max_age(self) -> int:
        """Updates after which an episode is stale."""
        return self.every * self.keep

    def student_episodes(self, batch_size: int) -> int:
        """How many of a batch's episodes the student walked."""
        return math.ceil(self.share * batch_size)


@dataclass(frozen=True)
class WalkConfig(Config):
    """Settings of agents that learn from their student's own episodes; a mix-in beside an agent's other settings."""

    student_share: float = 1.0
    """Share of each batch's episodes that the student walked, from its full softmax; the teacher walked the others."""
    walk_episodes: int = 64
    """Episodes that the student walks each time."""
    walk_every: int = 4
    """Updates between two walks."""
    walk_keep: int = 1
    """Walks whose episodes may still be learnt from; 1: the newest alone."""
    teacher_mix: float = 0.0
    """Share of the teacher in the mixture that each token of a walk is drawn from."""
    mix_decay: float = 1.0
    """What `teacher_mix` is multiplied by from a walk to the next."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "student_share", 0 <= self.student_share <= 1, "must lie in [0, 1]")
        for name in ("walk_episodes", "walk_every", "walk_keep"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        require(self, "teacher_mix", 0 <= self.teacher_mix <= 1, "must lie in [0, 1]")
        require(self, "mix_decay", 0 <= self.mix_decay <= 1, "must lie in [0, 1]")

    @property
    def walks(self) -> Walks | None:
        """What the agent asks for; None at student_share = 0: the teacher's episodes alone."""
        if self.student_share == 0:
            return None
        return Walks(
            self.student_share, self.walk_every, self.walk_episodes, self.walk_keep, self.teacher_mix, self.mix_decay
        )
