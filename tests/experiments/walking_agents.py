"""Agents for the tests of student walks: `kd` on the set, on the student's own episodes or on both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from agents.base import Config
from agents.episodes import Episodes
from agents.knowledge_distillation import KDConfig, KnowledgeDistillation
from agents.walks import WalkConfig


@dataclass(frozen=True)
class WalkingConfig(WalkConfig, KDConfig):
    """Settings of the agents here."""

    on: Literal["vocabulary", "set"] = "set"
    walk_episodes: int = 6
    walk_every: int = 2


class OnPolicy(KnowledgeDistillation):
    """Learns from the newest portion alone."""

    name: ClassVar[str] = "on_policy"
    Config: ClassVar[type[Config]] = WalkingConfig
    data: ClassVar[Literal["teacher", "student", "either", "mixed"]] = "student"


class Mixed(OnPolicy):
    """Learns from the teacher's episodes too."""

    name: ClassVar[str] = "mixed"
    data: ClassVar[Literal["teacher", "student", "either", "mixed"]] = "mixed"


class Recorder(Mixed):
    """Keeps what it was given."""

    name: ClassVar[str] = "recorder"
    received: ClassVar[list[Episodes]] = []
    learnt: ClassVar[list[Episodes]] = []

    def receive(self, walk: Episodes) -> Episodes:
        self.received.append(walk)
        return walk

    def check(self, batch: Episodes) -> None:
        super().check(batch)
        self.learnt.append(batch)
