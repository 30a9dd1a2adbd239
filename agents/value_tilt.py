"""Value tilt: distil towards the teacher tilted by what the student's own future will cost, against its average."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from agents import objectives
from agents.base import Agent, FixedPoint, Logs, require, schedule
from agents.critic import Critic, RunningMean
from agents.episodes import Episodes
from agents.leaves import Leaves
from agents.objectives import average
from agents.scores import Scorer, Scores
from agents.search import Range, Search
from agents.td import TDConfig, follow
from agents.walks import WalkConfig


@dataclass(frozen=True)
class ValueTiltConfig(WalkConfig, TDConfig):
    """Settings of `value_tilt`; γ is the strength of the tilt and the discount of its values: 0 is `gkd`."""

    student_share: float = 0.5
    """Share of each batch's episodes that the student walked; the critic learns from these alone."""
    walk_every: int = 20
    """Updates between two walks."""
    divergence: Literal["reverse", "jsd"] = "reverse"
    """What is descended to the tilted teacher: the reverse KL, or JSD with β = .5."""
    leaves: int = 4
    """Most probable successors looked at in each state, where there are at least two candidates."""
    tilt_clip: float = 2.0
    """Nats by which a successor's value may differ from the usual one."""
    tilt_share: float = 0.2
    """Share of the run over which the tilt grows from nothing to γ."""
    shuffle: bool = False
    """Control: every successor is tilted by another's advantage, drawn from the batch."""
    cost_clip: float = 10.0
    """Nats that a state may cost."""
    average_rate: float = 0.01
    """How fast the average cost per token forgets."""
    lam: float = 0.95
    """λ of the critic's returns."""
    huber: float = 1.0
    """The critic's errors beyond this many nats count linearly; ∞ squares them all."""
    critic_alone: int = 500
    """Updates of the critic before the student's first, at most a fifth of the run."""
    critic_lr: float = 1e-3
    """Peak learning rate of the critic."""
    critic_width: int = 128
    """Neurons of the critic's hidden layer; 0: none, a table for a tabular student."""
    critic_rate: float = 0.005
    """Share of the way that the slow critic, which is what is asked for values, follows the critic at each update."""

    SEARCH: ClassVar[Search] = {**TDConfig.SEARCH, "tilt_clip": Range(0.5, 5.0, log=True)}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self, "student_share", self.student_share > 0 or self.gamma == 0, "must be positive: values are its own"
        )
        require(self, "divergence", self.divergence in ("reverse", "jsd"), 'must be "reverse" or "jsd"')
        for name in ("tilt_clip", "cost_clip", "huber", "critic_lr"):
            require(self, name, getattr(self, name) > 0, "must be positive")
        require(self, "leaves", self.leaves >= 2, "must be at least 2")
        require(self, "lam", 0 <= self.lam <= 1, "must lie in [0, 1]")
        for name in ("average_rate", "critic_rate"):
            require(self, name, 0 < getattr(self, name) <= 1, "must lie in (0, 1]")
        require(self, "tilt_share", 0 <= self.tilt_share <= 1, "must lie in [0, 1]")
        for name in ("critic_alone", "critic_width"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")


class ValueTilt(Agent[ValueTiltConfig]):
    """D(π̂, π_S^A) − log(1 − leak) at every state of both walks, π̂ ∝ π_T exp(ηγΔ) on the set (6b).

    Δ(a) is how much better than usual the student fares after s·a: the value of −(c − ρ) along its own walk, c what a
    state costs it and ρ its average cost per token. Without ρ every token would cost something and ending early would
    look good; with it an average token is free and V(EOS) = 0 neutral. The critic learns by TD(λ) from the student's
    episodes, on hidden states that it leaves alone, with an optimiser of its own; leaves are packed (`agents.leaves`).
    With the optimal values in the critic's place the tilt is the exact one (4c). At γ = 0 nothing is tilted, no critic
    learns, and it is `gkd` with the same divergence on the set.

    Source: (6b) of the design, 1; differential TD: arXiv:2006.16318. Episodes up to walk_every · walk_keep updates old
    count as the student's own.
    """

    name: ClassVar[str] = "value_tilt"
    Config: ClassVar[type[ValueTiltConfig]] = ValueTiltConfig
    data: ClassVar[Literal["teacher", "student", "either", "mixed"]] = "mixed"
    identity: ClassVar[str | None] = (
        "on a table the critic solves (I − γP)V = ρ − c and the student is the teacher tilted by that V"
    )

    def __init__(self, student: Scorer, config: ValueTiltConfig, *, seed: int, total_updates: int) -> None:
        super().__init__(student, config, seed=seed, total_updates=total_updates)
        device = next(iter(student.parameters())).device
        self.critic = Critic(student.width, config.critic_width, seed).to(device)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.critic_optimiser = torch.optim.AdamW(self.critic.parameters(), lr=config.critic_lr, weight_decay=0)
        self.mean_cost = RunningMean(config.average_rate)
        self._lesson: tuple[Tensor, float] | None = None  # the critic's loss and the mean cost of the batch in hand

    @property
    def fixed_point(self) -> FixedPoint | None:
        return None if self.config.gamma else FixedPoint("renormalised")

    def extras(self) -> dict[str, Any]:
        return {
            "critic": self.critic,
            "slow_critic": self.slow_critic,
            "critic_optimiser": self.critic_optimiser,
            "mean_cost": self.mean_cost,
        }

    @property
    def alone(self) -> int:
        """Updates in which only the critic learns."""
        return min(self.config.critic_alone, self.total_updates // 5) if self.config.gamma else 0

    @property
    def strength(self) -> float:
        """ηγ at this update."""
        ramp = self.config.tilt_share * self.total_updates
        return (
            self.config.gamma * min(max((self.progress - self.alone) / ramp, 0.0), 1.0) if ramp else self.config.gamma
        )

    @property
    def kind_of_update(self) -> str:
        if self.progress < self.alone:
            return "critic alone"
        return "tilted" if self.strength > 0 else "not tilted"

    def loss(self, batch: Episodes) -> tuple[Tensor, Logs]:
        config, weights, mask = self.config, batch.step_weights, batch.mask[:, :-1]
        scores = self.student.scores(batch)
        log_policy, log_inside = scores.log_policy[:, :-1], scores.log_inside[:, :-1]
        advantage, logs = self.look_ahead(batch, scores) if config.gamma else (torch.zeros_like(log_policy), {})
        teacher = objectives.tilted_teacher(batch.logp[:, :-1], advantage, self.strength, mask)
        if config.divergence == "reverse":
            apart = objectives.reverse_kl(teacher, log_policy, mask)
        else:
            apart = objectives.jensen_shannon(teacher, log_policy, 0.5, mask)
        loss = average(apart - config.leak_weight * log_inside, weights)
        logs |= {"divergence": average(apart, weights), "log_inside": average(log_inside, weights)}
        return loss.detach() if self.progress < self.alone else loss, logs

    @torch.no_grad()
    def look_ahead(self, batch: Episodes, scores: Scores) -> tuple[Tensor, Logs]:
        """Δ of every candidate (B, T, K); on the way, the critic's loss on the student's own steps."""
        config, width = self.config, min(self.config.leaves, batch.ids.shape[-1])
        ends = torch.isin(batch.ids, torch.tensor(sorted(self.student.eos_ids), device=batch.ids.device))
        branching = (batch.mask.sum(-1) >= 2) & torch.nn.functional.pad(batch.steps, (0, 1)) & (self.strength > 0)
        looked_at = batch.mask[..., :width] & branching[..., None]
        found = self.student.leaves(batch, batch.ids[..., :width], looked_at & ~ends[..., :width])
        logs = self.teach(batch, scores, found)
        values = self.slow_critic(found.leaf_hidden)  # (B, T+1, k)
        advantage = objectives.leaf_advantage(
            values, batch.logp[..., :width], looked_at, ends[..., :width], config.tilt_clip
        )[:, :-1]
        if config.shuffle:
            moved = (looked_at & ~ends[..., :width])[:, :-1]
            order = torch.randperm(int(moved.sum()), generator=self.generator)
            advantage[moved] = advantage[moved][order.to(advantage.device)]
        leaves = (looked_at[:, :-1] * batch.step_weights[..., None]).float()
        logs |= {"tilt": average(advantage.abs(), leaves)}
        return torch.nn.functional.pad(advantage, (0, batch.ids.shape[-1] - width)), logs

    def teach(self, batch: Episodes, scores: Scores, found: Leaves) -> Logs:
        """Prepare the critic's step from the student's own episodes."""
        config, own = self.config, batch.step_weights * ~batch.from_teacher[:, None]
        rows = (batch.logp[:, :-1], scores.log_policy[:, :-1], scores.log_inside[:, :-1], batch.mask[:, :-1])
        costs = objectives.state_cost(*rows, config.cost_clip).float()
        if not own.any():
            self._lesson = None
            return {}
        cost = average(costs, own)
        mean = torch.full_like(cost, self.mean_cost.after(float(cost)))
        slow = self.slow_critic(found.hidden)  # (B, T+1)
        target = objectives.differential_returns(costs, mean, batch.discounts, slow, batch.steps, config.lam)
        with torch.enable_grad():
            error = self.critic(found.hidden)[:, :-1] - target
            loss = average(objectives.huber(error, config.huber), own)
        self._lesson = (loss, float(cost))
        return {
            "cost": cost,
            "mean_cost": mean,
            "critic_loss": loss.detach(),
            "critic_error": average(error.abs(), own),
        }

    def after_step(self) -> None:
        if self._lesson is None:
            return
        (loss, cost), self._lesson = self._lesson, None
        self.critic_optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.critic.parameters(), self.config.clip)
        for group in self.critic_optimiser.param_groups:
            group["lr"] = self.config.critic_lr * schedule(self.updates - 1, self.config.warmup, self.total_updates)
        self.critic_optimiser.step()
        self.mean_cost.see(cost)
        follow(self.slow_critic, self.critic, self.config.critic_rate)
