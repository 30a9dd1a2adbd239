"""Tuning on the validation prompts: the same number of trials for every arm, on a seed that no comparison uses.

Trial 0 is the arm as it was given; the others are drawn without repetition from the grid that the agent's Config
declares (`SEARCH`), less what the arm fixes. Arms with the same grid get the same draws. Test prompts are not touched.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from agents import learner_class
from envs.errors import InputError
from experiments.arms import split_arm
from experiments.cell import build_agent
from experiments.folder import write
from experiments.jobs import FailedCells, run_cells, said
from experiments.report import aligned
from experiments.train import read_result
from experiments.workspace import Cell, Workspace

SEED = 1_000_000
LOWER_IS_BETTER = {"forward_kl", "leak"}


def trials_of(arm: str, count: int) -> list[str]:
    """The trials of an arm, as arms; the first is the arm itself.

    Raises: InputError: the grid has fewer points than trials.
    """
    agent, own = split_arm(arm)
    grid = {name: values for name, values in learner_class(agent).Config.SEARCH.items() if name not in own}
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if len(points) + 1 < count:
        raise InputError(
            f"{arm} has {len(points)} points to try beside itself ({', '.join(grid) or 'nothing is left open'}), "
            f"--trials {count} asks for {count - 1}; lower it, so that every arm gets the same number"
        )
    random.Random(json.dumps(sorted(grid))).shuffle(points)
    return [arm, *(arm_of(agent, own | point) for point in points[: count - 1])]


def arm_of(agent: str, settings: Mapping[str, Any]) -> str:
    """The arm's text; `split_arm` reads it back."""
    return f"{agent}@{','.join(f'{name}={value}' for name, value in settings.items())}" if settings else agent


def check(space: Workspace, arms: Sequence[str], count: int) -> None:
    """Raises: InputError: too small a grid, or a point of it that the agent refuses."""
    student = space.seedling(SEED)
    for arm in arms:
        for trial in trials_of(arm, count):
            build_agent(space.config, Cell(trial, SEED, space.masses[0]), student, space.settings(trial))


def tune(space: Workspace, arms: Sequence[str], count: int, select: str, jobs: int) -> str:
    """Run every arm's trials, keep the best settings in the run folder, and return a table of what was chosen.

    Source: own derivation (equal tuning budgets).
    Args:
        select: the validation measure at the last update; the highest wins (the lowest of KL and leak).
    Raises: FailedCells: every trial of an arm failed. InputError: a measure that the validation prompts do not have.
    """
    cases = [(arm, top_p) for arm in arms for top_p in space.masses]
    trials = {(arm, p): [Cell(trial, SEED, p, "trial") for trial in trials_of(arm, count)] for arm, p in cases}
    failures = run_cells(space, [cell for cells in trials.values() for cell in cells], jobs, "tuning")
    chosen: dict[str, dict[str, Any]] = {}
    lines = [["arm", "top_p", "trials", f"validation {select}", "chosen"]]
    for (arm, top_p), cells in trials.items():
        scores = {cell: _score(space, cell, select) for cell in cells if read_result(space, cell) is not None}
        if not scores:
            raise FailedCells(f"every trial of {arm} failed; the last: {said(failures[-1][1])}", [])
        best = (min if select in LOWER_IS_BETTER else max)(scores, key=lambda cell: scores[cell])
        own, found = split_arm(arm)[1], split_arm(best.agent)[1]
        chosen[f"{arm} {top_p:g}"] = {name: value for name, value in found.items() if name not in own}
        picked = arm_of("", chosen[f"{arm} {top_p:g}"]).lstrip("@") or "as given"
        lines.append([arm, f"{top_p:g}", str(len(scores)), f"{scores[best]:.4f}", picked])
    write(space.tuned_file, json.dumps(chosen, indent=1))
    write(space.tuned_file.with_suffix(".md"), aligned(lines, markdown=True) + "\n")
    return aligned(lines, markdown=True)


def _score(space: Workspace, cell: Cell, select: str) -> float:
    result = read_result(space, cell)
    assert result is not None
    last: dict[str, float] = result["curve"][-1]
    if select not in last:
        raise InputError(f"--select {select} is no validation measure here; there are {', '.join(sorted(last))}")
    return last[select]
