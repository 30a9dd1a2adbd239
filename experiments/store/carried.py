"""What a store in a student's tokens says of what could not be carried there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from envs.carried_teacher import CarriedTeacher, Lost
from envs.teachers import Teacher

COUNTS = ("carried_states", "unwritten", "pruned")


@contextmanager
def counting(teacher: Teacher) -> Iterator[dict[str, float]]:
    """What a shard's line in the manifest says beside the usual, filled in once the shard is drawn; nothing of a
    teacher that is not carried."""
    found: dict[str, float] = {}
    if isinstance(teacher, CarriedTeacher):
        teacher.lost = Lost()
    yield found
    if isinstance(teacher, CarriedTeacher):
        lost = teacher.lost
        found.update(dict(zip(COUNTS, (lost.states, lost.unwritten, lost.pruned), strict=True)))
        found["most_lost"] = lost.most


def figures(lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Over all states of a store: the mean share of a state's probability that the student has no tokens for, that of
    the readings left out, and the most of both in one state."""
    own = [line for line in lines if "carried_states" in line]
    if not own:
        return {}
    states, unwritten, pruned = (sum(line[name] for line in own) for name in COUNTS)
    return {
        "mean_unwritten_mass": unwritten / states,
        "mean_pruned_mass": pruned / states,
        "most_not_carried": max(line["most_lost"] for line in own),
    }
