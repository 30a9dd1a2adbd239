"""Discrete soft actor-critic: the student is the actor, two copies of it are the critics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agents import objectives
from agents.base import FixedPoint, Logs, require
from agents.episodes import Episodes
from agents.objectives import average
from agents.scores import Scorer, Scores
from agents.search import Range, Search
from agents.td import BoundedConfig, TDAgent, follow, held
from agents.walks import WalkConfig


@dataclass(frozen=True)
class SACConfig(WalkConfig, BoundedConfig):
    """Settings of `sac`."""

    student_share: float = 0.5
    """Share of each batch's episodes that the student walked; 0: the teacher's alone, offline."""
    walk_keep: int = 16
    """Walks whose episodes may still be learnt from: a replay, for it is off-policy."""
    target_entropy: float | None = None
    """Mean entropy of π_S^A, in nats, that α is moved to; None keeps α."""
    temperature_rate: float = 0.1
    """Speed of log α as a share of lr: AdamW moves all parameters alike, and an α as fast as its policy swings."""

    SEARCH: ClassVar[Search] = {**BoundedConfig.SEARCH, "student_share": Range(0.1, 0.9)}

    def __post_init__(self) -> None:
        super().__post_init__()
        good = self.target_entropy is None or 0 <= self.target_entropy < math.inf
        require(self, "target_entropy", good, "must be finite and not negative, or None")
        require(self, "temperature_rate", self.temperature_rate > 0, "must be positive")


class SAC(TDAgent[SACConfig]):
    """Q_i(s, a) → r + γ Σ_a' π (min_i Q̄_i − α log π); π climbs Σ_a π (min_i Q_i − α log π), both sums over the set.

    The student is the actor and is what is saved; its value head is not used. The critics are two copies of it, each a
    levelled Q = v + α log π^A, so that a cloned student starts at critics whose optimum it is. Five networks in all,
    two of them target networks. Each step teaches one critic, by the toss of a coin: copies taught alike would never
    differ, and their minimum would be no smaller than either.

    Its fixed point is the soft-optimal policy, whoever walked; with `target_entropy` α is not known beforehand, and
    there is none.

    Source: Christodoulou (2019), arXiv:1910.07207, equations 10-12, on the set; Haarnoja et al. (2018),
    arXiv:1812.05905. Departures: whole episodes, target networks of whole students, coins, teacher episodes in the mix.
    """

    name: ClassVar[str] = "sac"
    Config: ClassVar[type[SACConfig]] = SACConfig
    identity: ClassVar[str | None] = "with target_entropy: the policy's mean entropy ends there"

    def prepare(self, student: Scorer, config: SACConfig) -> None:
        self.critics, self.targets = [student.copy(), student.copy()], [student.copy(), student.copy()]
        for critic in self.critics:
            for own, value in zip(student.parameters(), critic.parameters(), strict=True):
                value.requires_grad_(own.requires_grad)
        self.temperature = nn.ParameterDict({"drift": torch.zeros(())})

    @property
    def fixed_point(self) -> FixedPoint | None:
        config = self.config
        if config.target_entropy is not None:
            return None
        return FixedPoint("soft", gamma=config.gamma, alpha=config.alpha, reward=config.reward)

    def trainables(self) -> list[Tensor]:
        own = [value for critic in self.critics for value in critic.parameters() if value.requires_grad]
        tuned = [] if self.config.target_entropy is None else [self.temperature["drift"]]
        return [*super().trainables(), *own, *tuned]

    def extras(self) -> dict[str, Any]:
        networks = {"critic": self.critics, "target": self.targets}
        named = {f"{name}{i}": network for name, pair in networks.items() for i, network in enumerate(pair)}
        return {**named, "temperature": self.temperature}

    def after_step(self) -> None:
        if self.updates % self.config.target_period == 0:
            for target, critic in zip(self.targets, self.critics, strict=True):
                follow(target, critic, self.config.target_rate)

    @property
    def log_alpha(self) -> Tensor:
        """log α as it is now: where it began, and its drift at its own rate."""
        drift: Tensor = self.temperature["drift"]
        return math.log(self.config.alpha) + self.config.temperature_rate * drift

    @property
    def alpha(self) -> Tensor:
        """The temperature as it is now, without gradient."""
        return self.log_alpha.detach().exp()

    @property
    def bounded(self) -> bool:
        """(4d) holds for a fixed α <= 1."""
        config = self.config
        return config.reward == "logprob" and config.alpha <= 1 and config.target_entropy is None

    def loss(self, batch: Episodes) -> tuple[Tensor, Logs]:
        config, steps = self.config, batch.step_weights
        inside, mask = steps * batch.in_set, batch.mask
        scores = self.student.scores(batch)
        now = [self.q(critic, batch) for critic in self.critics]  # (B, T+1, K) each
        target = self.target(scores, batch)  # (B, T)
        errors = [objectives.at_slots(q[:, :-1], batch.slots) - target for q in now]
        coin = (torch.rand(batch.slots.shape, generator=self.generator) < 0.5).to(inside.device)
        shares = [torch.where(side, inside, 0) for side in (coin, ~coin)]
        losses = zip(errors, shares, strict=True)
        td = sum(average(objectives.huber(error, config.huber), share) for error, share in losses)
        worst = torch.minimum(*(q.detach() for q in now))
        climbed = objectives.expected_value(worst, scores.log_policy, mask, self.alpha)[:, :-1]  # (B, T)
        entropy = objectives.expected_value(torch.zeros_like(worst), scores.log_policy, mask)[:, :-1].detach()
        log_inside = average(scores.log_inside[:, :-1], steps)
        loss = td - average(climbed, steps) - config.leak_weight * log_inside
        if config.target_entropy is not None:
            tuned = objectives.temperature_loss(self.log_alpha, entropy, config.target_entropy)
            loss = loss + average(tuned, steps)
        logs = {
            "td_error": average(errors[0].abs(), inside),
            "twins_apart": average((errors[0] - errors[1]).abs(), inside),
            "v_mean": average(climbed, steps),
            "entropy": average(entropy, steps),
            "alpha": self.alpha,
            "log_inside": log_inside,
        }
        return loss, logs

    def q(self, critic: Scorer, batch: Episodes) -> Tensor:
        """Q of every candidate.  # (B, T+1, K)"""
        scores = critic.scores(batch)
        return objectives.levelled_q(scores.value, scores.log_policy, self.config.alpha)

    @torch.no_grad()
    def target(self, scores: Scores, batch: Episodes) -> Tensor:
        """r + γ V^π(s'), V^π by the smaller of the slow critics.  # (B, T)"""
        slow = torch.minimum(*(self.q(critic, batch) for critic in self.targets))
        values = objectives.expected_value(slow, scores.log_policy, batch.mask, self.alpha)  # (B, T+1)
        values = held(values, self.config) if self.bounded else values
        return objectives.bootstrap(batch.rewards, batch.discounts, self.ahead(values, batch)[:, 1:])
