"""What the next trial of an arm is: drawn from a grid, or sampled where earlier trials did well.

A sampler proposes trials in rounds; those of a round follow from what the rounds before it gave, never from each other,
so that they may run side by side and any number of worker processes searches alike.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol

from agents import learner_class
from agents.search import Range, Search
from envs.errors import InputError
from experiments.arms import split_arm

Case = tuple[str, float]
"""An arm at a mass."""
GRID, TPE = "grid", "tpe"
SAMPLERS = (GRID, TPE)


class Sampler(Protocol):
    """Trials of the arms of a search; trial 0 of each is the arm as it was given."""

    def rounds(self) -> Sequence[Sequence[int]]: ...  # numbers of the trials, each once
    def trial(self, case: Case, number: int) -> str | None: ...  # as an arm; None: this arm has nothing more to try
    def tell(self, case: Case, number: int, score: float | None) -> None: ...  # None: it has diverged


class Grid:
    """Points of the grid that the agent's Config declares, less what the arm fixes, drawn without repetition.

    Arms with the same grid get the same draws.
    """

    def __init__(self, arms: Sequence[str], count: int) -> None:
        self.count, self.trials = count, {arm: trials_of(arm, count) for arm in arms}

    def rounds(self) -> Sequence[Sequence[int]]:
        """All at once."""
        return [range(self.count)]

    def trial(self, case: Case, number: int) -> str | None:
        """Trial 0 alone of an arm that leaves nothing open."""
        own = self.trials[case[0]]
        return own[number] if number < len(own) else None

    def tell(self, case: Case, number: int, score: float | None) -> None:
        """Nothing is learnt from it."""


def trials_of(arm: str, count: int) -> list[str]:
    """The trials of an arm on its grid, as arms; the first is the arm itself, the only one if its grid is empty.

    Raises: InputError: the grid has fewer points than trials.
    """
    agent, own = split_arm(arm)
    open_to = {name: tried for name, values in space_of(arm).items() if (tried := _points(values))}
    if not open_to:
        return [arm]
    points = [dict(zip(open_to, values, strict=True)) for values in itertools.product(*open_to.values())]
    if len(points) + 1 < count:
        raise InputError(
            f"{arm} has {len(points)} points to try beside itself ({', '.join(open_to)}), --trials {count} asks for "
            f"{count - 1}; lower it, so that every arm gets the same number, or take --sampler {TPE}"
        )
    random.Random(json.dumps(sorted(open_to))).shuffle(points)
    return [arm, *(arm_of(agent, own | point) for point in points[: count - 1])]


def _points(values: Range | tuple[Any, ...]) -> tuple[Any, ...]:
    return values.grid if isinstance(values, Range) else tuple(values)


def space_of(arm: str) -> Search:
    """What a search may try of an arm: what its agent declares, less what the arm fixes."""
    agent, own = split_arm(arm)
    return {name: values for name, values in learner_class(agent).Config.SEARCH.items() if name not in own}


def arm_of(agent: str, settings: Mapping[str, Any]) -> str:
    """The arm's text; `split_arm` reads it back."""
    return f"{agent}@{','.join(f'{name}={value}' for name, value in settings.items())}" if settings else agent


def defaults_of(arm: str) -> dict[str, Any]:
    """Settings of an arm's agent where nobody says otherwise."""
    return {field.name: field.default for field in fields(learner_class(split_arm(arm)[0]).Config)}


def given(arm: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Where a search of this arm begins: a value of everything that it leaves open."""
    usual = defaults_of(arm) | dict(settings)
    return {name: usual[name] for name in space_of(arm)}
