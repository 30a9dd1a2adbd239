"""Where the arms of a seed begin, if that is a student trained until it stops improving on the validation prompts.

Rounds of the run's number of updates, each with a learning rate that falls to 0; the last round that brought the
forward KL down by at least 1 % is kept. A stopped warm-up goes on from its last checkpoint. All seeds of a run are
warmed up with the same settings of the agent; a folder that holds a warm-up with others is refused.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from agents import parallel
from agents.student import Student
from envs.errors import InputError
from experiments.config import ABSENT
from experiments.folder import write
from experiments.train import RESULT, Trainer, read, trainer_of
from experiments.workspace import Cell, Report, Workspace

GAIN = 0.01  # share of the validation KL that a round must take off
MEASURE = "forward_kl"


def check(space: Workspace) -> None:
    """Raises: InputError: an agent that owns its loop, no teacher to measure by, or warm-ups with other settings."""
    config, agent = space.config, space.config.warm_start
    if not agent:
        return
    if trainer_of(Cell(agent, 0, space.masses[0])) is not Trainer:
        raise InputError(f"--warm-start {agent} walks by itself; take an agent that learns from episodes, as kd")
    if config.teacher == ABSENT:
        raise InputError(
            f"--warm-start {agent} goes on while the KL to the teacher falls, which --teacher none has no measure of; "
            "give the teacher, or leave --warm-start out"
        )
    for path in sorted(space.out.glob(f"shared/warm-start-seed*/round-*/{RESULT}")):
        _check_settings(space, path)


def _check_settings(space: Workspace, path: Path) -> None:
    """Raises: InputError: what this file says of a warm-up, or of a round of one, came about with other settings."""
    now = space.settings(space.config.warm_start)
    before = (read(path) or {}).get("settings", now)  # not in files that are older than this
    if before != now:
        raise InputError(
            f"{path.parent} was warmed up with agent settings {before}, now they are {now}; all seeds of a run begin "
            "alike: give those settings, or another --out"
        )


def warm_up(space: Workspace, seed: int, report: Report) -> None:
    """See that the student of this seed is warm; other processes wait meanwhile.

    Raises: InputError: another machine that shares the run has warmed it up with other settings.
    """
    record = space.warm_start_record(seed)

    def make() -> None:
        found = _rounds(space, seed, report)
        parallel.first(lambda: write(record, json.dumps(found, indent=1)))

    if parallel.size() == 1:
        space.once(record, make)
    elif not parallel.first(record.is_file):  # all of them train; the run's folder is theirs alone
        make()
    _check_settings(space, record)


def _rounds(space: Workspace, seed: int, report: Report) -> dict[str, Any]:
    config, folder = space.config, space.warm_start_record(seed).parent
    student, best, values = space.seedling(seed), "", list[float]()
    updates = seconds = 0.0
    for number in range(config.warm_start_rounds):
        result = _round(space, seed, number, student, report)
        updates, seconds = updates + result["updates"], seconds + result["seconds"]
        values = values or [result["curve"][0][MEASURE]]
        reached = result["curve"][-1][MEASURE]
        if reached > (1 - GAIN) * values[-1]:
            break
        values.append(reached)
        best = f"round-{number}"
        student = space.load(folder / best, seed)
    settings = space.settings(config.warm_start)
    return {"settings": settings, "kept": best, "updates": updates, "seconds": seconds, MEASURE: values}


def _round(space: Workspace, seed: int, number: int, student: Student, report: Report) -> dict[str, Any]:
    """Train the student for one round and save it, or read back what an earlier command has trained."""
    place = space.warm_start_record(seed).parent / f"round-{number}"
    found = parallel.first(lambda: read(place / RESULT))
    if found is not None:
        return found
    cell = Cell(space.config.warm_start, seed, space.masses[0], f"warm{number}")
    trainer = Trainer(space, cell, space.settings(cell.agent), place, student)
    result = trainer.run(lambda text, done: report(f"warming up, round {number + 1}: {text}", 0))
    result["settings"] = trainer.settings
    student = trainer.student.whole()

    def keep() -> None:
        student.save(place)
        space.remember_prompts(place)
        write(place / RESULT, json.dumps(result))
        shutil.rmtree(place / "checkpoints", ignore_errors=True)

    parallel.first(keep)
    return result
