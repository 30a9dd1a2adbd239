"""Actor-critic on the student's own walk: entropy inside the return, TD(λ), the value head as critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from torch import Tensor

from agents import objectives
from agents.base import FixedPoint, Logs, require
from agents.episodes import Episodes
from agents.objectives import average
from agents.scores import Scores
from agents.search import Range, Search
from agents.td import CriticConfig, TDAgent
from agents.walks import WalkConfig


@dataclass(frozen=True)
class ActorCriticConfig(WalkConfig, CriticConfig):
    """Settings of `actor_critic`."""

    walk_every: int = 2
    """Updates between two walks; with 64 episodes a walk and 32 a batch each episode is learnt from once."""
    reward: str = "logprob"
    """Reward the episodes were paid."""
    lam: float = 0.95
    """λ of the returns: 0 trusts the critic, 1 the path."""
    critic_weight: float = 0.5
    """Weight of the critic's loss."""

    SEARCH: ClassVar[Search] = {**CriticConfig.SEARCH, "lam": Range(0.5, 1.0)}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "lam", 0 <= self.lam <= 1, "must lie in [0, 1]")
        require(self, "critic_weight", self.critic_weight > 0, "must be positive")
        require(self, "student_share", self.student_share == 1, "must be 1: a policy gradient is its own walk's")
        require(self, "teacher_mix", self.teacher_mix == 0, "must be 0: a policy gradient is its own walk's")


A = TypeVar("A", bound=ActorCriticConfig)


class SoftActorCritic(TDAgent[A]):
    """What `actor_critic` and `ppo` share: λ-returns with −α log π inside; subclasses say how the actor climbs them.

    The walk samples from the full softmax, the policy that learns is π_S^A: a step outside the set cuts the traces, and
    it teaches the student through the leak alone. At the optimum G = V on every path, so the gradient has neither bias
    nor variance there, however old the walk. Advantages are centred over the batch.
    """

    data: ClassVar[Literal["teacher", "student", "either", "mixed"]] = "student"

    @property
    def fixed_point(self) -> FixedPoint:
        config = self.config
        return FixedPoint("soft", gamma=config.gamma, alpha=config.alpha, reward=config.reward)

    def actor(self, log_policy: Tensor, advantage: Tensor, scores: Scores, batch: Episodes) -> Tensor:
        """Loss of each token taken, given its advantage.  # (B, T)"""
        return objectives.policy_gradient(log_policy, advantage)

    def critic(self, target: Tensor, scores: Scores, batch: Episodes) -> Tensor:
        """Loss of each value, given its return.  # (B, T)"""
        return objectives.huber(scores.value[:, :-1] - target, self.config.huber)

    def loss(self, batch: Episodes) -> tuple[Tensor, Logs]:
        config, steps = self.config, batch.step_weights
        inside = steps * batch.in_set
        scores = self.student.scores(batch)
        log_policy = objectives.at_slots(scores.log_policy[:, :-1], batch.slots)  # (B, T)
        ahead = self.ahead(scores.value.detach(), batch)  # (B, T+1)
        path = (batch.rewards, batch.discounts, log_policy.detach(), ahead, batch.in_set)
        returns = objectives.lambda_returns(*path, lam=config.lam, alpha=config.alpha)
        advantage = returns - scores.value[:, :-1].detach()
        actor = average(self.actor(log_policy, objectives.centred(advantage, inside), scores, batch), inside)
        critic = average(self.critic(returns, scores, batch), inside)
        log_inside = average(scores.log_inside[:, :-1], steps)
        logs = {
            "actor": actor,
            "critic": critic,
            "td_error": average(advantage.abs(), inside),
            "entropy": average(-log_policy, inside),
            "v_mean": average(scores.value[:, :-1], steps),
            "log_inside": log_inside,
        }
        return actor + config.critic_weight * critic - config.leak_weight * log_inside, logs


class ActorCritic(SoftActorCritic[ActorCriticConfig]):
    """∇ E[Σ γ^t (r − α log π)] by log π times the TD(λ) advantage; its fixed point is the soft-optimal policy.

    Source: Sutton & Barto (2018), section 13.5; the entropy bonus of Mnih et al. (2016), arXiv:1602.01783, put inside
    the return, as in Haarnoja et al. (2018), arXiv:1812.05905, equation 1. Departures: whole episodes, a fixed α.
    """

    name: ClassVar[str] = "actor_critic"
    Config: ClassVar[type[Any]] = ActorCriticConfig
