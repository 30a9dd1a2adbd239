"""What every cell of a run needs, whoever runs its loop: its agent, and where it is kept while it learns."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from agents import learner_class
from agents.base import Agent
from agents.loop import LoopAgent
from agents.student import Student
from agents.vocabulary import SHARE
from envs.errors import InputError
from envs.rewards import LogProb, TopPLogProb
from experiments.arms import split_arm
from experiments.config import RunConfig
from experiments.rules.run import reward_of
from experiments.schedules import check_schedules
from experiments.workspace import Cell


def build_agent(
    config: RunConfig, cell: Cell, student: Student, settings: dict[str, Any]
) -> Agent[Any] | LoopAgent[Any]:
    """The cell's agent, on the run's reward and batch size, and on its γ unless the arm has one of its own.

    An agent that owns its loop takes the run's γ; its batches are its own affair.

    Raises: InputError: an unknown agent or setting, or one that all agents of a run share.
    """
    name, own = split_arm(cell.agent)
    kind = learner_class(name)
    shared: dict[str, Any] = {"gamma": config.gamma}
    if issubclass(kind, Agent):
        shared |= {"reward": reward_of(config), "batch_size": config.batch_size}
    if clash := sorted(shared.keys() & settings.keys() - ({"gamma"} & own.keys())):
        arm = f", or give an arm of its own: {name}@gamma={settings['gamma']}" if clash == ["gamma"] else ""
        option = clash[0].replace("_", "-")
        raise InputError(f"{name}.{clash[0]} is the same for every agent of a run; set --{option}{arm}")
    if "gamma" in own and (reward := reward_of(config)) not in (LogProb.name, TopPLogProb.name):
        raise InputError(f"{cell.agent}: reward {reward!r} depends on γ, which all arms share then; set --gamma")
    known = {field.name for field in fields(kind.Config)}
    options = kind.make_config(**{key: value for key, value in shared.items() if key in known} | settings)
    check_schedules(config, cell.agent, options)
    if issubclass(kind, LoopAgent):
        return kind(student, options, seed=cell.seed)
    return kind(student, options, seed=cell.seed, total_updates=config.updates)


def trained_once(config: RunConfig, agent: Agent[Any] | LoopAgent[Any], student: Student) -> bool:
    """Whether an arm learns the same weights at every mass, so that one student of a seed is measured at all."""
    whole = config.head == "all" or config.negatives >= SHARE * student.vocab_size
    drawn = config.teacher_walk == "full" and config.store is None
    alike = drawn and whole and not getattr(config, "trials", 0)
    return alike and isinstance(agent, Agent) and not agent.depends_on_top_p


def check_settings(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises: InputError: a cell, finished or stopped, had other settings of its agent."""
    if before != now:
        raise InputError(
            f"{folder} was run with agent settings {before}, now they are {now}; give another --out, or remove that "
            "folder"
        )


@contextmanager
def new_checkpoint(folder: Path, number: int) -> Iterator[Path | None]:
    """A folder to fill: it takes its place, and that of all before it, once it is full; None if it is there."""
    place = folder / "checkpoints" / f"{number:08d}"
    if place.is_dir():
        yield None
        return
    partial = place.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    os.rename(partial, place)
    for other in place.parent.iterdir():
        if other != place:
            shutil.rmtree(other, ignore_errors=True)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole."""
    found = sorted(path for path in folder.glob("checkpoints/*") if path.suffix != ".partial")
    return found[-1] if found else None
