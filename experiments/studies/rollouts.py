"""What is met after a successor, by walking on from it: Monte-Carlo estimates, too dear for an agent to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from agents import objectives
from agents.episodes import Episodes
from agents.student import Student
from envs.teachers import Teacher
from envs.vector_env import TopPTokenVectorEnv
from experiments.collect import collect, numbers_of
from experiments.evaluate import Rule

ROWS = 128
TEXTS = 64  # read by the student at once


@dataclass(frozen=True)
class Successors:
    """The k most probable candidates of the branching states of B episodes, and the texts they lead to."""

    looked_at: Tensor  # (B, T+1, k) bool
    ends: Tensor  # (B, T+1, k) bool: the token ends the text
    texts: list[list[int]]  # U different ones
    number: Tensor  # (M,) int64: whose text each leaf leads to, leaves in the order of `leaves.nonzero()`

    @property
    def leaves(self) -> Tensor:
        """Successors after which the text goes on.  # (B, T+1, k) bool"""
        return self.looked_at & ~self.ends

    def spread(self, values: Tensor) -> Tensor:
        """A value of each text where it stands.  # (U,) -> (B, T+1, k), 0 off the leaves"""
        return values.new_zeros(self.leaves.shape).masked_scatter(self.leaves, values[self.number])


def successors(episodes: Episodes, width: int, eos_ids: Sequence[int]) -> Successors:
    """Those of every state before a step that has two candidates or more."""
    width = min(width, episodes.ids.shape[-1])
    branching = (episodes.mask.sum(-1) >= 2) & torch.nn.functional.pad(episodes.steps, (0, 1))
    looked_at = episodes.mask[..., :width] & branching[..., None]
    ends = torch.isin(episodes.ids[..., :width], torch.tensor(sorted(eos_ids))) & looked_at
    known: dict[tuple[int, ...], int] = {}
    number = []
    for episode, row, column in (looked_at & ~ends).nonzero().tolist():
        prefix = int(episodes.prompt_length[episode]) + row
        text = (*episodes.tokens[episode, :prefix].tolist(), int(episodes.ids[episode, row, column]))
        number.append(known.setdefault(text, len(known)))
    return Successors(looked_at, ends, [list(text) for text in known], torch.tensor(number, dtype=torch.int64))


def walks_from(
    texts: Sequence[Sequence[int]],
    each: int,
    teacher: Teacher,
    rule: Rule,
    *,
    seed: int,
    student: Any = None,
    teacher_walk: str = "full",
) -> tuple[Episodes, Tensor]:
    """Walk on from every text, `each` times; the student from its full softmax, or else the teacher.

    Args:
        texts: different ones.
        rule: candidate sets, and how many tokens a walk may have.
        student: a causal LM; None: the teacher walks, as `teacher_walk` says.
    Returns: the episodes, and the text that each began with (B,).
    """
    walker = {"teacher_walk": teacher_walk} if student is None else {"student": student, "student_share": 1.0}
    seeds = np.random.SeedSequence(seed)
    some = max(1, ROWS // each)
    parts, number = [], []
    for start in tqdm(range(0, len(texts), some), desc="walking on", unit="batch", leave=False):
        own = texts[start : start + some]
        # All copies of a text begin together, so that it is read once.
        env = TopPTokenVectorEnv(
            min(ROWS, len(own) * each),
            teacher=teacher,
            prompts=[list(text) for text in own for _ in range(each)],
            top_p=rule.top_p,
            max_candidates=rule.max_candidates,
            max_new_tokens=rule.max_new_tokens,
            extras=rule.extras,
        )
        drawn = collect(env, len(own) * each, seed=int(seeds.spawn(1)[0].generate_state(1)[0]), **walker)
        parts.append(drawn)
        number += [start + place for place in numbers_of(drawn, own)]
    return Episodes.concatenate(parts), torch.tensor(number)


@torch.no_grad()
def costs_of(student: Student, episodes: Episodes, limit: float) -> Tensor:
    """c(s) of every state before a step, `objectives.state_cost`.  # (B, T) nats, 0 beyond the end"""
    wide = torch.zeros(episodes.slots.shape)
    for start in range(0, len(episodes), TEXTS):
        part = episodes.select(range(start, min(start + TEXTS, len(episodes))))
        scores, mask = student.scores(part), part.mask[:, :-1]
        rows = (part.logp[:, :-1], scores.log_policy[:, :-1], scores.log_inside[:, :-1], mask)
        found = objectives.state_cost(*rows, limit) * part.steps
        wide[start : start + len(part), : found.shape[1]] = found
    return wide


def mean_by(number: Tensor, values: Tensor, count: int) -> Tensor:
    """Means of the values that have the same number.  # (B,), (B,) -> (count,)"""
    total = torch.zeros(count).index_add(0, number, values)
    return total / torch.bincount(number, minlength=count)
