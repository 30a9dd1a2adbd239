"""The way it is often done: replay of single transitions, each a row of its own with its whole context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from agents.base import Agent
from agents.episodes import Episodes
from agents.scores import Packed, Scores, unpack_scores
from agents.student import Student


class LastPosition(Student):
    """A student that reads each row's whole context and scores its last position alone.

    Competently so: the vocabulary head runs at that position only, values after the step come without it, and rows are
    padded to the longest of their own batch. Losses are those of `Student` on the same transitions.
    """

    def scores(self, episodes: Episodes, full: bool = False) -> Scores:
        rows = torch.arange(len(episodes), device=episodes.length.device)
        packed = Packed((rows, torch.zeros_like(rows)), episodes.prompt_length - 1)
        logits, value = self._forward(episodes.tokens, rows, packed.position)
        return unpack_scores(episodes, packed, logits, value, full)


def transitions(episodes: Episodes) -> Episodes:
    """Every step as an episode of its own: its text so far is the prompt, and one token follows.

    A step after which the text goes on keeps its successor's candidates, as a truncated episode does.
    """
    assert episodes.weights is not None and episodes.version is not None
    whole, step = episodes.steps.nonzero(as_tuple=True)
    end = episodes.prompt_length[whole] + step + 1
    beyond = torch.arange(episodes.tokens.shape[1], device=end.device) >= end[:, None]

    def here(values: Tensor) -> Tensor:
        return values[whole, step][:, None]

    def both(values: Tensor) -> Tensor:
        return torch.stack([values[whole, step], values[whole, step + 1]], 1)

    return Episodes(
        tokens=episodes.tokens[whole].masked_fill(beyond, 0),
        prompt_length=end - 1,
        length=torch.ones_like(end),
        ids=both(episodes.ids),
        logp=both(episodes.logp),
        mask=both(episodes.mask),
        slots=here(episodes.slots),
        rewards=here(episodes.rewards),
        discounts=here(episodes.discounts),
        in_set=here(episodes.in_set),
        behaviour_logp=here(episodes.behaviour_logp),
        teacher_logp_taken=here(episodes.teacher_logp_taken),
        from_teacher=episodes.from_teacher[whole],
        weights=episodes.weights[whole],
        version=episodes.version[whole],
    )


def step_in_parts(agent: Agent[Any], parts: Sequence[Episodes]) -> int:
    """One gradient step on all the parts, each forward and backward by itself; returns the transitions."""
    total = sum(map(len, parts))
    agent.optimiser.zero_grad(set_to_none=True)
    for part in parts:
        torch.autograd.backward(agent.loss(part)[0] * (len(part) / total))
    torch.nn.utils.clip_grad_norm_(agent.trainables(), agent.config.clip)
    agent.optimiser.step()
    agent.after_step()
    return total
