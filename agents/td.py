"""What agents that look ahead share: γ and the leak; and for Q learners a target network and what values can be."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from agents import objectives
from agents.base import Agent, Config, Logs, require
from agents.episodes import Episodes
from agents.objectives import average
from agents.student import Scorer, Scores


@dataclass(frozen=True)
class TDConfig(Config):
    """Settings of agents that look ahead."""

    gamma: float = 1.0
    """Discount; the episodes must be built with the same one."""
    leak_weight: float = 1.0
    """Weight of −log(1 − leak), which makes a loss on candidates a loss on the whole softmax (4g)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "gamma", 0 <= self.gamma <= 1, "must lie in [0, 1]")
        require(self, "leak_weight", self.leak_weight >= 0, "must not be negative")


@dataclass(frozen=True)
class ValueConfig(TDConfig):
    """Settings of agents that regress Q = v + α log π_S^A on a target."""

    alpha: float = 1.0
    """Entropy temperature of Q = v + α log π."""
    target_period: int = 1
    """Updates between two moves of the target network."""
    target_rate: float = 0.05
    """Share of the way it moves; 1 copies."""
    huber: float = 1.0
    """TD errors beyond this many nats count linearly; ∞ squares them all."""
    reward: str = "logprob"
    """Reward the episodes were paid; `clamp` and `hinge` apply to `logprob` alone."""
    clamp: bool = True
    """Hold bootstrapped values to what (4d) allows."""
    min_mass: float | None = None
    """Smallest mass of a candidate set (top_p, unless sets are cut), for `clamp`'s lower bound; None: upper only."""
    hinge: float = 1.0
    """Weight of the free bound Q <= log π_T on every candidate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "alpha", self.alpha > 0, "must be positive")
        require(self, "target_period", self.target_period >= 1, "must be at least 1")
        require(self, "target_rate", 0 < self.target_rate <= 1, "must lie in (0, 1]")
        require(self, "huber", self.huber > 0, "must be positive")
        require(self, "hinge", self.hinge >= 0, "must not be negative")
        require(self, "min_mass", self.min_mass is None or 0 < self.min_mass <= 1, "must lie in (0, 1]")


V = TypeVar("V", bound=ValueConfig)


class ValueAgent(Agent[V]):
    """A Q learner with a target network, values held to (4d) and Q held under its reward; `bounded` says when."""

    @property
    @abstractmethod
    def bounded(self) -> bool:
        """Whether (4d) holds for this agent's values."""

    def __init__(self, student: Scorer, config: V, *, seed: int, total_updates: int) -> None:
        super().__init__(student, config, seed=seed, total_updates=total_updates)
        self.target = student.copy()

    def extras(self) -> dict[str, Any]:
        return {"target": self.target}

    def after_step(self) -> None:
        if self.updates % self.config.target_period == 0:
            follow(self.target, self.student, self.config.target_rate)

    def clamped(self, values: Tensor, width: int = 1) -> Tensor:
        """Values held to `value_bounds`, where those hold."""
        if not (self.config.clamp and self.bounded):
            return values
        lower, upper = objectives.value_bounds(self.config.gamma, self.config.min_mass, width)
        return values.clamp(lower, upper)

    def finish(self, td: Tensor, error: Tensor, scores: Scores, batch: Episodes) -> tuple[Tensor, Logs]:
        """The TD loss plus hinge and leak, and what every Q learner logs."""
        config, steps = self.config, batch.step_weights
        assert batch.weights is not None
        log_inside = scores.log_inside[:, :-1]
        loss = td - config.leak_weight * average(log_inside, steps)
        q = objectives.levelled_q(scores.value, scores.log_policy, config.alpha)  # (B, T+1, K)
        logs = {
            "td_error": average(error.abs(), steps * batch.in_set),
            "q_mean": average(objectives.at_slots(q[:, :-1], batch.slots), steps * batch.in_set),
            "v_mean": average(scores.value[:, :-1], steps),
            "log_inside": average(log_inside, steps),
        }
        if config.hinge and self.bounded:
            excess = average(objectives.hinge(q, batch.logp, batch.mask), batch.weights[:, None] * batch.states)
            return loss + config.hinge * excess, {**logs, "hinge": excess}
        return loss, logs


@torch.no_grad()
def follow(target: Any, online: Any, rate: float) -> None:
    """Move a target network towards its online one: θ̄ ← θ̄ + rate·(θ − θ̄); rate 1 copies."""
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        slow.lerp_(fast, rate)
