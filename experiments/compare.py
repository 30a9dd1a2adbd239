"""Agents × seeds × top_p: tune if asked, run every cell, and put what they give side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from agents import parallel
from agents.student import SIZES
from envs.errors import InputError
from experiments import launch, ray_jobs, share, statistics, tuning, warm_up
from experiments.arms import agent_of
from experiments.budget import check_counts
from experiments.cell import build_agent, check_settings, trained_once
from experiments.config import ABSENT, CompareConfig, DistillConfig, RunConfig
from experiments.cost import TOKENS, check_price, costs, with_price
from experiments.evaluate import examine, parameters_of, speeds
from experiments.folder import full_disk_is_said, teacher_file, write
from experiments.jobs import FailedCells, check_memory, run_cells, said, set_threads
from experiments.report import Row, write_report
from experiments.statistics import TEACHER
from experiments.store.source import check_asks_nothing
from experiments.sweep import swept
from experiments.train import RESULT, START, read, read_result
from experiments.workspace import Cell, Workspace, cells_of

COSTS: tuple[str, ...] = ("seconds", "tokens", "teacher_tokens", "student_tokens", "walk_seconds", "flops")
MORE = ("slices", "positions", "calibration")


def compare(config: CompareConfig) -> list[Row]:
    """`tdistill compare`: the main job.

    Returns: one row per finished cell, the start and the teacher among them; none at 0 seeds, which only searches.
    Raises: InputError: bad input, before anything runs where it can be seen then. FailedCells: naming what failed.
    """
    config = swept(config)
    space = Workspace(config)
    if len(set(config.agents)) < len(config.agents):
        raise InputError(f"agents {', '.join(config.agents)} name one twice; each is compared with itself by its seeds")
    if config.reference and config.reference not in config.agents:
        raise InputError(f"reference {config.reference!r} is none of the agents {', '.join(config.agents)}")
    if not config.seeds and not config.trials:
        raise InputError("seeds = 0 compares nothing and trials = 0 searches nothing; raise one of them")
    return _run(space, config.agents, cells_asked(config), config)


def distill(config: DistillConfig) -> list[Row]:
    """`tdistill distill`: one cell. Raises: as `compare`."""
    return _run(Workspace(config), [config.agent], cells_asked(config), config)


def cells_asked(config: CompareConfig | DistillConfig) -> list[Cell]:
    """The cells of a command, the start first."""
    agents = [config.agent] if isinstance(config, DistillConfig) else [*config.agents]
    seeds = [config.seed] if isinstance(config, DistillConfig) else [*range(config.seeds)]
    masses = [config.top_p] if isinstance(config, DistillConfig) else [*config.top_p]
    # Students of a size name, and warm ones, begin elsewhere with every seed.
    starts = seeds if config.student in SIZES or config.warm_start else [0] * bool(seeds)
    return cells_of([START], starts, masses) + cells_of(agents, seeds, masses)


def check_distill(config: DistillConfig) -> None:
    """Raises: InputError: what `distill` would refuse, for a command that has something else to do first."""
    _checked(Workspace(config), [config.agent], cells_asked(config), config)


def _run(space: Workspace, arms: Sequence[str], cells: list[Cell], config: CompareConfig | DistillConfig) -> list[Row]:
    jobs, trials = getattr(config, "jobs", 1), getattr(config, "trials", 0)
    cells = _checked(space, arms, cells, config)
    with full_disk_is_said(space.out), space.opened():
        if space.share is not None:
            space.share.begin(space)
        notes = [tuning.tune(space, arms, trials, getattr(config, "select", ""), jobs)] if trials else []
        if not cells:
            return []
        failures = run_cells(space, [cell for cell in cells if cell.trained_at is None], jobs)
        failed = {(cell.agent, cell.seed) for cell, _ in failures if cell.top_p == space.masses[0]}
        again = [cell for cell in cells if cell.trained_at is not None and (cell.agent, cell.seed) not in failed]
        failures += run_cells(space, again, jobs, "measure")
        reference = getattr(config, "reference", "") or arms[0]
        rows = parallel.first(lambda: _report(space, cells, reference, notes))
    rows = [] if parallel.rank() else rows  # which process 0 prints
    if failures:
        raise FailedCells("; ".join(f"{cell.name}: {said(error)}" for cell, error in failures), rows)
    return rows


def _checked(
    space: Workspace, arms: Sequence[str], cells: list[Cell], config: CompareConfig | DistillConfig
) -> list[Cell]:
    """Raises: InputError: what can be seen before anything runs.

    Returns: the cells, with `trained_at` where another one trains their student.
    """
    jobs, trials = getattr(config, "jobs", 1), getattr(config, "trials", 0)
    set_threads(config, jobs)
    check_price(config.price)
    launch.check(arms, jobs, trials)
    ray_jobs.check(config)
    share.check(config)
    _ = space.stored  # a store that does not fit is refused before anything is written
    student = space.seedling(cells[-1].seed if cells else 0)
    check_memory(space, student, jobs)
    once = set()
    for arm in [*arms, *([config.warm_start] if config.warm_start else [])]:
        agent = build_agent(config, Cell(arm, 0, space.masses[0]), student, space.settings(arm))
        check_asks_nothing(config, arm, agent)
        check_counts(config, arm, agent)
        launch.check_spread(config, arm, agent)
        if trained_once(config, agent, student):
            once.add(arm)
    first = space.masses[0]
    cells = [replace(cell, trained_at=first) if cell.agent in once and cell.top_p != first else cell for cell in cells]
    warm_up.check(space)
    if trials:
        tuning.check(space, arms, trials, getattr(config, "select", ""))
    else:
        _check_finished(space, cells)
    _check_settings(config, [*arms, config.warm_start])
    space.check_student(student)
    return cells


def _report(space: Workspace, cells: list[Cell], reference: str, notes: Sequence[str]) -> list[Row]:
    """Report on all that is finished in the folder; the rows of these cells, and of the teacher."""
    earlier, asked = _earlier(space, cells), {(cell.agent, cell.seed, cell.top_p) for cell in cells}
    rows = _rows(space, sorted([*cells, *earlier], key=lambda cell: cell.agent != START))
    notes = [*statistics.notes(rows, reference, getattr(space.config, "trials", 0)), *notes]
    write_report(space, rows, notes, statistics.profiles(rows))
    return [row for row in rows if row.agent == TEACHER or (row.agent, row.seed, row.top_p) in asked]


def _earlier(space: Workspace, cells: list[Cell]) -> list[Cell]:
    """Cells that other commands have finished in this folder: what they gave is not lost to a narrower one."""
    asked, found = {cell.name for cell in cells}, []
    for path in space.out.glob(f"cells/*/{RESULT}"):
        result = read(path) or {}
        cell = Cell(result["agent"], result["seed"], result["top_p"])
        if cell.name == path.parent.name and cell.name not in asked:  # trials and warm-ups have names of their own
            found.append(cell)
    return sorted(found, key=lambda cell: (cell.seed, cell.agent, cell.top_p))


def _check_finished(space: Workspace, cells: list[Cell]) -> None:
    for cell in cells:
        if cell.agent != START and (finished := read_result(space, cell)):
            check_settings(space.out / "cells" / cell.name, finished["settings"], space.settings(cell.agent))


def _check_settings(config: RunConfig, arms: Sequence[str]) -> None:
    agents = {agent_of(arm) for arm in arms if arm}
    for item in config.agent_config:
        agent = item.partition("=")[0].rpartition(".")[0]
        if agent not in agents:
            raise InputError(f"agent setting {item!r} is for an agent that does not run; agents: {', '.join(agents)}")


def _rows(space: Workspace, cells: list[Cell]) -> list[Row]:
    """What the finished cells gave, and the teacher; speeds are measured now that nothing else runs."""
    results = [result for cell in cells if (result := read_result(space, cell)) is not None]
    price = space.config.price
    exam, teacher = space.exam("test"), space.teacher
    student_cost, teacher_cost = costs(
        space.seedling(0).model, exam.ids, teacher, max(2, min(TOKENS, space.config.max_new_tokens))
    )
    rows = []
    for top_p in space.masses:
        rule = space.rule(top_p)
        speed = speeds(space.seedling(0).model, exam, teacher, rule)
        if space.config.teacher != ABSENT:
            own = {"tokens_per_second": speed["teacher_tokens_per_second"], "speed_up": 1.0, **teacher_cost}
            own = with_price(own, price)
            found = examine(None, exam, teacher, rule)
            measures = {**found.measures, **own, "parameters": float(parameters_of(teacher))}
            write(space.out / teacher_file(top_p), json.dumps(found.more))
            rows.append(Row(TEACHER, 0, top_p, 0, {}, measures, [], found.more))
        for result in results:
            if result["top_p"] == top_p:
                spent = {key: float(result[key]) for key in COSTS if key in result}
                student = {key: value for key, value in speed.items() if not key.startswith("teacher")} | student_cost
                student = with_price(student, price)
                place = (result["agent"], result["seed"], top_p, result["updates"])
                more = {key: result[key] for key in MORE if key in result}  # not in folders older than they are
                rows.append(Row(*place, spent, {**result["measures"], **student}, result["curve"], more))
    return rows


def tensorboard_line(out: Path) -> str:
    """How to look at the event files."""
    return f"curves: tensorboard --logdir {out / 'tensorboard'}"
