"""Proximal policy optimisation on the student's own walk, entropy inside the return."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from agents import objectives
from agents.actor_critic import ActorCriticConfig, SoftActorCritic
from agents.base import require
from agents.episodes import PAD_LOGP, Episodes
from agents.scores import Scorer, Scores
from agents.search import Range, Search


@dataclass(frozen=True)
class PPOConfig(ActorCriticConfig):
    """Settings of `ppo`; a walk is learnt from walk_every · batch_size / walk_episodes times (4 by default)."""

    walk_every: int = 8
    """Updates between two walks."""
    epsilon: float = 0.2
    """How far the ratio π/π_old may stray from 1 before it earns nothing more."""
    value_clip: float | None = None
    """How many nats a value may stray from its old one before it earns nothing more; None: as far as it likes."""

    SEARCH: ClassVar[Search] = {**ActorCriticConfig.SEARCH, "epsilon": Range(0.05, 0.5, log=True)}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "epsilon", 0 < self.epsilon < 1, "must lie in (0, 1)")
        for name in ("p_schedule", "k_schedule"):
            require(self, name, not self.is_staged, "must be fixed: its ratio is of two policies on one set")
        require(self, "value_clip", self.value_clip is None or self.value_clip > 0, "must be positive, or None")


class PPO(SoftActorCritic[PPOConfig]):
    """The clipped surrogate over TD(λ) advantages; its fixed point is the soft-optimal policy.

    The ratio is π_S^A / π_old^A, of the policies on the set: one of the full softmaxes would clip whatever is learnt
    while mass moves inside. log π_old^A is computed when a walk arrives, in the forward that training uses, so that the
    first ratio is 1 to rounding; from then on `behaviour_logp` holds it where the token taken is a candidate.

    Source: Schulman et al. (2017), arXiv:1707.06347, equations 7 and 9. Departures: entropy inside the return, no
    normalisation by the standard deviation (it would blow up the noise of an advantage that vanishes at the optimum),
    advantages by the critic as it is now, not as it was.
    """

    name: ClassVar[str] = "ppo"
    Config: ClassVar[type[Any]] = PPOConfig

    def __init__(self, student: Scorer, config: PPOConfig, *, seed: int, total_updates: int) -> None:
        super().__init__(student, config, seed=seed, total_updates=total_updates)
        self.old = student.copy() if config.value_clip is not None else None

    def extras(self) -> dict[str, Any]:
        return {} if self.old is None else {"old": self.old}

    @torch.no_grad()
    def receive(self, walk: Episodes) -> Episodes:
        """The walk with log π_old^A of its candidates in `behaviour_logp`; values are old from here on."""
        if self.old is not None:
            self.old.load_state_dict(self.student.state_dict())
        device = next(iter(self.student.parameters())).device
        noted = walk.behaviour_logp.clone()
        for rows in torch.split(torch.arange(len(walk), device=noted.device), self.config.batch_size):
            part = walk.select(rows).to(device)
            own = objectives.at_slots(self.student.scores(part).log_policy[:, :-1], part.slots).clamp(PAD_LOGP, 0.0)
            kept = torch.where(part.in_set, own.to(noted.dtype), part.behaviour_logp)
            noted[rows, : kept.shape[1]] = kept.to(noted.device)
        return dataclasses.replace(walk, behaviour_logp=noted)

    def actor(self, log_policy: Tensor, advantage: Tensor, scores: Scores, batch: Episodes) -> Tensor:
        log_ratio = torch.where(batch.in_set, log_policy - batch.behaviour_logp, 0)
        return objectives.clipped_policy_gradient(log_ratio, advantage, self.config.epsilon)

    def critic(self, target: Tensor, scores: Scores, batch: Episodes) -> Tensor:
        config = self.config
        if self.old is None or config.value_clip is None:
            return super().critic(target, scores, batch)
        with torch.no_grad():
            old = self.old.values(batch)[:, :-1]
        return objectives.clipped_value_error(scores.value[:, :-1], old, target, config.value_clip, config.huber)
