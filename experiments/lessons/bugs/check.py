"""Each exercise beside the production code: on which numbers the two differ, and on which they do not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agents import objectives
from agents.episodes import PAD_LOGP, Episodes
from experiments.lessons.bugs.actor_critic_loss import actor_critic_loss
from experiments.lessons.bugs.cloning_loss import END, cloning_loss
from experiments.lessons.bugs.episode_discounts import episode_discounts
from experiments.lessons.bugs.greedy_target import greedy_target
from experiments.lessons.bugs.taken_scores import taken_scores


@dataclass(frozen=True)
class Exercise:
    """One function with a bug, what production code says, and two inputs: one that shows it and one that hides it."""

    name: str
    yours: Callable[..., Tensor]
    right: Callable[..., Tensor]
    shows: tuple[Any, ...]
    hides: tuple[Any, ...]
    hint: str

    def distance(self, case: tuple[Any, ...]) -> float:
        """The largest difference from production, in the unit of the function."""
        return float((self.yours(*case) - self.right(*case)).abs().max())

    @property
    def solved(self) -> bool:
        return max(self.distance(self.shows), self.distance(self.hides)) < 1e-6


def _target(rewards: Tensor, discounts: Tensor, next_q: Tensor, next_mask: Tensor) -> Tensor:
    return objectives.bootstrap(rewards, discounts, objectives.double_value(next_q, next_q, next_mask))


def _discounts(length: Tensor, terminated: Tensor, truncated: Tensor, gamma: float, steps: int) -> Tensor:
    """Those of `Episodes`, which has no flag: a text that was cut still has candidates after its last token."""
    taken = torch.arange(steps) < length[:, None]  # (B, T)
    row = torch.arange(steps + 1)
    mask = ((row < length[:, None]) | ((row == length[:, None]) & truncated[:, None]))[..., None]  # (B, T+1, 1)
    logp = torch.where(taken, -1.0, 0.0)
    return (
        Episodes(
            tokens=torch.ones(len(length), steps + 1, dtype=torch.int64),
            prompt_length=torch.ones_like(length),
            length=length,
            ids=mask.long(),
            logp=torch.where(mask, -1.0, PAD_LOGP),
            mask=mask,
            slots=torch.where(taken, 0, -1),
            rewards=logp,
            discounts=torch.zeros(taken.shape),
            in_set=taken,
            behaviour_logp=logp,
            teacher_logp_taken=logp,
            from_teacher=torch.ones_like(terminated),
        )
        .discounted(gamma)
        .discounts
    )


def _taken(log_policy: Tensor, ids: Tensor, tokens: Tensor) -> Tensor:
    return objectives.at_slots(log_policy, (ids == tokens[..., None]).int().argmax(-1))


def _gradient(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The gradient of a loss with respect to log π and V, in place of its value."""

    def found(rewards: Tensor, discounts: Tensor, log_policy: Tensor, value: Tensor, ahead: Tensor) -> Tensor:
        leaves = [log_policy.clone().requires_grad_(), value.clone().requires_grad_()]
        return torch.cat(torch.autograd.grad(loss(rewards, discounts, *leaves, ahead), leaves))

    return found


def _actor_critic(rewards: Tensor, discounts: Tensor, log_policy: Tensor, value: Tensor, ahead: Tensor) -> Tensor:
    returns = objectives.bootstrap(rewards - log_policy.detach(), discounts, ahead)
    actor = objectives.policy_gradient(log_policy, returns - value)
    return (actor + objectives.huber(returns - value, math.inf)).mean()


def _cloning(log_policy: Tensor, targets: Tensor, length: Tensor) -> Tensor:
    steps = (torch.arange(targets.shape[1]) < length[:, None]).float()
    return objectives.average(-objectives.at_slots(log_policy, targets), steps)


def exercises() -> list[Exercise]:
    """All five, on numbers small enough to follow by hand."""
    t, half = torch.tensor, math.log(0.5)
    yes, no = t([True]), t([False])
    policy = t([[[0.5, 0.3, 0.2]]]).log()
    reply = t([[[0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.1, 0.4, 0.5]]]).log()
    step = (t([-0.5, -1.0]), t([0.8, 0.0]), t([-0.7, half]))  # rewards, discounts, log π
    return [
        Exercise(
            "greedy_target",
            greedy_target,
            _target,
            shows=(t([[-0.5]]), t([[1.0]]), t([[[-1.3, -0.4, 0.0]]]), t([[[True, True, False]]])),
            hides=(t([[-0.5]]), t([[1.0]]), t([[[-1.3, -0.4, -0.9]]]), t([[[True, True, True]]])),
            hint="−.5 + max(−1.3, −.4) = −.9. What does a product make of a slot that is no candidate?",
        ),
        Exercise(
            "episode_discounts",
            episode_discounts,
            _discounts,
            shows=(t([2]), no, yes, 0.9, 2),
            hides=(t([2]), yes, no, 0.9, 2),
            hint="a text that was cut after two tokens has the discounts .9 and .9",
        ),
        Exercise(
            "taken_scores",
            taken_scores,
            _taken,
            shows=(policy, t([[[2, 0, 1]]]), t([[1]])),
            hides=(policy, t([[[0, 1, 2]]]), t([[1]])),
            hint="token 1 is the third candidate: log .2. On which vocabularies is token 1 in slot 1?",
        ),
        Exercise(
            "actor_critic_loss",
            _gradient(actor_critic_loss),
            _gradient(_actor_critic),
            shows=(*step, t([-1.0, -0.2]), t([-0.6, 0.0])),
            hides=(*step[:2], t([0.0, 0.0]), t([-1.0, -0.2]), t([-0.6, 0.0])),
            hint="the loss is right; its gradient with respect to V is not. Whom does the actor's term teach?",
        ),
        Exercise(
            "cloning_loss",
            cloning_loss,
            _cloning,
            shows=(reply, t([[1, 1, END]]), t([3])),
            hides=(reply, t([[1, 1, 2]]), t([3])),
            hint="(−log .5 − log .3 − log .1) / 3 = 1.400 nats: three tokens, and one of them is the end",
        ),
    ]


def main() -> int:
    """Print what is still wrong; returns how many."""
    wrong = 0
    for exercise in exercises():
        wrong += not exercise.solved
        said = "solved" if exercise.solved else f"off by {exercise.distance(exercise.shows):.3f}; {exercise.hint}"
        print(f"{exercise.name:18} {said}")
    return wrong
