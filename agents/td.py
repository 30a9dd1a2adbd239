"""What agents that look ahead share: γ, the leak, the shuffled control; for Q learners a target network and (4d)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from agents import objectives
from agents.base import Agent, Config, Logs, StagedConfig, require
from agents.episodes import Episodes
from agents.errors import InputError
from agents.objectives import average
from agents.scores import Scorer, Scores
from agents.search import Range, Search


@dataclass(frozen=True)
class TDConfig(StagedConfig):
    """Settings of agents that look ahead."""

    gamma: float = 1.0
    """Discount; the episodes must be built with the same one."""
    leak_weight: float = 1.0
    """Weight of −log(1 − leak), which makes a loss on candidates a loss on the whole softmax (4g)."""
    shuffle: bool = False
    """A control: bootstrapped values are permuted among the batch's successor states before they enter a target."""

    SEARCH: ClassVar[Search] = {**Config.SEARCH, "leak_weight": Range(0.1, 10.0, log=True)}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "gamma", 0 <= self.gamma <= 1, "must lie in [0, 1]")
        require(self, "leak_weight", self.leak_weight >= 0, "must not be negative")


@dataclass(frozen=True)
class CriticConfig(TDConfig):
    """Settings of agents whose values meet a target."""

    alpha: float = 1.0
    """Entropy temperature of Q = v + α log π."""
    huber: float = 1.0
    """TD errors beyond this many nats count linearly; ∞ squares them all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "alpha", self.alpha > 0, "must be positive")
        require(self, "huber", self.huber > 0, "must be positive")


@dataclass(frozen=True)
class TargetConfig(CriticConfig):
    """Settings of agents with a target network."""

    target_period: int = 1
    """Updates between two moves of the target network."""
    target_rate: float = 0.05
    """Share of the way it moves; 1 copies."""

    SEARCH: ClassVar[Search] = {**CriticConfig.SEARCH, "target_rate": Range(0.01, 1.0, log=True)}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "target_period", self.target_period >= 1, "must be at least 1")
        require(self, "target_rate", 0 < self.target_rate <= 1, "must lie in (0, 1]")


@dataclass(frozen=True)
class PathConfig(TargetConfig):
    """Settings of agents whose targets run along the path taken."""

    n: int = 1
    """Steps of the path-consistent target; 1 is the one-step soft backup."""
    lam: float | None = None
    """λ of path-consistent λ-returns in place of n steps: 0 is n = 1, 1 the whole path; None: n steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "n", self.n >= 1, "must be at least 1")
        require(self, "lam", self.lam is None or 0 <= self.lam <= 1, "must lie in [0, 1], or be None")
        require(self, "lam", self.lam is None or self.n == 1, f"excludes n = {self.n}: set one of the two")

    def returns(self, rewards: Tensor, discounts: Tensor, log_policy: Tensor, ahead: Tensor, in_set: Tensor) -> Tensor:
        """The target of V(s_t): n steps along the path, or all of it by λ.  # (B, T)"""
        path = (rewards, discounts, log_policy, ahead, in_set)
        if self.lam is None:
            return objectives.path_target(*path, n=self.n, alpha=self.alpha)
        return objectives.lambda_returns(*path, lam=self.lam, alpha=self.alpha)


@dataclass(frozen=True)
class BoundedConfig(TargetConfig):
    """Settings of agents whose optimal values (4d) bounds."""

    reward: str = "logprob"
    """Reward the episodes were paid; bounds on values apply to `logprob` alone."""
    clamp: bool = True
    """Hold bootstrapped values to what (4d) allows."""
    min_mass: float | None = None
    """Smallest mass of a candidate set (top_p, unless sets are cut), for `clamp`'s lower bound; None: upper only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "min_mass", self.min_mass is None or 0 < self.min_mass <= 1, "must lie in (0, 1]")


@dataclass(frozen=True)
class ValueConfig(BoundedConfig):
    """Settings of agents that regress Q = v + α log π_S^A on a target."""

    hinge: float = 1.0
    """Weight of the free bound Q <= log π_T on every candidate, for reward `logprob`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "hinge", self.hinge >= 0, "must not be negative")


D = TypeVar("D", bound=TDConfig)
P = TypeVar("P", bound=TargetConfig)
B = TypeVar("B", bound=BoundedConfig)
V = TypeVar("V", bound=ValueConfig)


class TDAgent(Agent[D]):
    """An agent that looks ahead with its student's values.

    Raises: InputError: a student without values.
    """

    def __init__(self, student: Scorer, config: D, *, seed: int, total_updates: int) -> None:
        if not callable(getattr(student, "values", None)):
            raise InputError(
                f"{self.name} learns values and a {type(student).__name__} has none; wrap the model in "
                "agents.student.Student, which adds a value head"
            )
        self.prepare(student, config)
        super().__init__(student, config, seed=seed, total_updates=total_updates)

    def prepare(self, student: Scorer, config: D) -> None:
        """Build what is trained beside the student, before the optimiser asks for it."""

    def ahead(self, values: Tensor, batch: Episodes) -> Tensor:
        """Values as they enter a target: as they are, or in the control those of other states.  # (B, T+1)"""
        if not self.config.shuffle:
            return values
        successors = batch.states.clone()
        successors[:, 0] = False  # nothing is bootstrapped from a prompt: its value would change the law of the others
        order = torch.randperm(int(successors.sum()), generator=self.generator)
        return objectives.permuted(values, successors, order.to(values.device))


class TargetAgent(TDAgent[P]):
    """A learner of levelled Q values with a target network."""

    def __init__(self, student: Scorer, config: P, *, seed: int, total_updates: int) -> None:
        super().__init__(student, config, seed=seed, total_updates=total_updates)
        self.target = student.copy()

    def extras(self) -> dict[str, Any]:
        return {"target": self.target}

    def after_step(self) -> None:
        if self.updates % self.config.target_period == 0:
            follow(self.target, self.student, self.config.target_rate)

    def finish(self, td: Tensor, error: Tensor, scores: Scores, batch: Episodes) -> tuple[Tensor, Logs]:
        """The TD loss plus the leak, and what every Q learner logs."""
        config, steps = self.config, batch.step_weights
        log_inside = scores.log_inside[:, :-1]
        q = objectives.levelled_q(scores.value, scores.log_policy, config.alpha)  # (B, T+1, K)
        logs = {
            "td_error": average(error.abs(), steps * batch.in_set),
            "q_mean": average(objectives.at_slots(q[:, :-1], batch.slots), steps * batch.in_set),
            "v_mean": average(scores.value[:, :-1], steps),
            "log_inside": average(log_inside, steps),
        }
        return td - config.leak_weight * average(log_inside, steps), logs


class BoundedAgent(TargetAgent[B]):
    """A Q learner with values held to (4d); `bounded` says when it applies."""

    @property
    @abstractmethod
    def bounded(self) -> bool:
        """Whether (4d) holds for this agent's values."""

    def clamped(self, values: Tensor, width: int = 1) -> Tensor:
        """Values held to `value_bounds`, where those hold."""
        return held(values, self.config, width) if self.bounded else values


class ValueAgent(BoundedAgent[V]):
    """A Q learner with values held to (4d) and Q held under its reward."""

    def finish(self, td: Tensor, error: Tensor, scores: Scores, batch: Episodes) -> tuple[Tensor, Logs]:
        """The TD loss plus hinge and leak."""
        loss, logs = super().finish(td, error, scores, batch)
        if not (self.config.hinge and self.bounded):
            return loss, logs
        assert batch.weights is not None
        q = objectives.levelled_q(scores.value, scores.log_policy, self.config.alpha)
        excess = average(objectives.hinge(q, batch.logp, batch.mask), batch.weights[:, None] * batch.states)
        return loss + self.config.hinge * excess, {**logs, "hinge": excess}


def held(values: Tensor, config: BoundedConfig, width: int = 1) -> Tensor:
    """Values held to `value_bounds` of these settings, where they say so."""
    if not config.clamp:
        return values
    return values.clamp(*objectives.value_bounds(config.gamma, config.min_mass, width))


@torch.no_grad()
def follow(target: Any, online: Any, rate: float) -> None:
    """Move a target network towards its online one: θ̄ ← θ̄ + rate·(θ − θ̄); rate 1 copies."""
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        slow.lerp_(fast, rate)
