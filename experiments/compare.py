"""Agents × seeds × top_p: run every cell, in worker processes if asked, and put what they give side by side."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from agents.errors import DivergedError
from agents.student import SIZES
from envs.errors import InputError
from experiments.arms import agent_of, agent_settings
from experiments.cell import build_agent, check_settings
from experiments.config import CompareConfig, DistillConfig, RunConfig
from experiments.evaluate import measure, parameters_of, speeds
from experiments.report import Row, write_report
from experiments.train import START, read_result, run_cell
from experiments.workspace import Cell, Workspace, cells_of, full_disk_is_said

FAILURES = (DivergedError, RuntimeError)
COSTS: tuple[str, ...] = ("seconds", "tokens", "teacher_tokens")


class FailedCells(RuntimeError):
    """Some cells ended in an error; the others are finished and kept, and `rows` is what they gave."""

    def __init__(self, message: str, rows: Sequence[Row] = ()) -> None:
        super().__init__(message)
        self.rows = list(rows)


def compare(config: CompareConfig) -> list[Row]:
    """`tdistill compare`: the main job.

    Returns: one row per finished cell, the start and the teacher among them.
    Raises: InputError: bad input, before anything runs where it can be seen then. FailedCells: naming what failed.
    """
    space = Workspace(config)
    cells = cells_of(config.agents, range(config.seeds), config.top_p)
    if len(set(cells)) < len(cells):
        raise InputError(f"agents {', '.join(config.agents)} name one twice; each is compared with itself by its seeds")
    # Students of a size name begin elsewhere with every seed.
    seeds = range(config.seeds) if config.student in SIZES else [0]
    starts = cells_of([START], seeds, config.top_p)
    return _run(space, starts + cells, config.jobs)


def distill(config: DistillConfig) -> list[Row]:
    """`tdistill distill`: one cell. Raises: as `compare`."""
    space = Workspace(config)
    start = Cell(START, config.seed if config.student in SIZES else 0, config.top_p)
    return _run(space, [start, Cell(config.agent, config.seed, config.top_p)], jobs=1)


def _run(space: Workspace, cells: list[Cell], jobs: int) -> list[Row]:
    config = space.config
    _set_threads(config, jobs)
    student = space.student(cells[-1].seed)
    for agent in dict.fromkeys(cell.agent for cell in cells if cell.agent != START):
        build_agent(config, Cell(agent, 0, space.masses[0]), student, agent_settings(config, agent))
        for cell in cells:
            if cell.agent == agent and (finished := read_result(space, cell)):
                check_settings(space.out / "cells" / cell.name, finished["settings"], agent_settings(config, agent))
    _check_settings(config, cells)
    space.check_student(student)
    with full_disk_is_said(space.out):
        space.open()
        failures = _in_processes(space, cells, jobs) if jobs > 1 else _in_turn(space, cells)
        rows = _rows(space, cells)
        write_report(space, rows)
    if failures:
        raise FailedCells("; ".join(f"{cell.name}: {error}" for cell, error in failures), rows)
    return rows


def _check_settings(config: RunConfig, cells: list[Cell]) -> None:
    agents = {agent_of(cell.agent) for cell in cells}
    for item in config.agent_config:
        agent = item.partition("=")[0].rpartition(".")[0]
        if agent not in agents:
            raise InputError(f"agent setting {item!r} is for an agent that does not run; agents: {', '.join(agents)}")


def _set_threads(config: RunConfig, jobs: int) -> None:
    torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 1) // jobs))


@contextmanager
def _bar(space: Workspace, cells: list[Cell]) -> Iterator[tqdm[Any]]:
    trained = sum(cell.agent != START for cell in cells)
    with tqdm(total=trained * space.config.updates, unit="update", desc="compare", mininterval=0.5) as bar:
        yield bar


def _in_turn(space: Workspace, cells: list[Cell]) -> list[tuple[Cell, BaseException]]:
    failures: list[tuple[Cell, BaseException]] = []
    with _bar(space, cells) as bar:
        for cell in cells:

            def report(text: str, updates: int, cell: Cell = cell) -> None:
                bar.set_postfix_str(f"{cell.name}: {text}" if text else cell.name, refresh=False)
                bar.update(updates)

            try:
                run_cell(space, cell, report)
            except FAILURES as error:
                failures.append((cell, error))
                bar.write(f"{cell.name} failed: {error}")
    return failures


_worker: tuple[Workspace, Any] | None = None


def _start_worker(config: RunConfig, jobs: int, messages: Any, parent: int) -> None:
    """Set a worker process up: it is ended by its parent, by no Ctrl-C of its own, and does not outlive it."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _set_threads(config, jobs)
    _worker = Workspace(config), messages


def _work(cell: Cell) -> None:
    assert _worker is not None
    space, messages = _worker
    run_cell(space, cell, lambda text, updates: messages.put((cell.name, text, updates)))


def _in_processes(space: Workspace, cells: list[Cell], jobs: int) -> list[tuple[Cell, BaseException]]:
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    arguments = (space.config, jobs, messages, os.getpid())
    failures: list[tuple[Cell, BaseException]] = []
    pool = ProcessPoolExecutor(jobs, context, initializer=_start_worker, initargs=arguments)
    try:
        running = {pool.submit(_work, cell): cell for cell in cells}
        with _bar(space, cells) as bar:
            while running:
                _show(messages, bar)
                for future in [future for future in running if future.done()]:
                    cell = running.pop(future)
                    if error := _error_of(future):
                        failures.append((cell, error))
                        bar.write(f"{cell.name} failed: {error}")
            _show(messages, bar)
    except BaseException:
        for process in list(pool._processes.values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return failures


def _error_of(future: Future[None]) -> BaseException | None:
    """How a cell failed. Bad input, a full disk and a dead worker end the whole comparison."""
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        raise FailedCells("a worker process died (killed, or out of memory); run again to go on, perhaps with --jobs 1")
    if error is None or isinstance(error, FAILURES):
        return error
    raise error


def _show(messages: Any, bar: tqdm[Any]) -> None:
    """Move the bar by what the workers have said; waits for half a second if nothing has been."""
    try:
        said = [messages.get(timeout=0.5)]
    except queue.Empty:
        bar.refresh()
        return
    with suppress(queue.Empty):
        while True:
            said.append(messages.get_nowait())
    name, text, _ = said[-1]
    bar.set_postfix_str(f"{name}: {text}" if text else name, refresh=False)
    bar.update(sum(updates for _, _, updates in said))


def _rows(space: Workspace, cells: list[Cell]) -> list[Row]:
    """What the finished cells gave, and the teacher; speeds are measured now that nothing else runs."""
    results = [result for cell in cells if (result := read_result(space, cell)) is not None]
    exam, teacher = space.exam("test"), space.teacher
    rows = []
    for top_p in space.masses:
        rule = space.rule(top_p)
        speed = speeds(space.student(0).model, exam, teacher, rule)
        own = {"tokens_per_second": speed["teacher_tokens_per_second"], "speed_up": 1.0}
        measures = {**measure(None, exam, teacher, rule), **own, "parameters": float(parameters_of(teacher))}
        rows.append(Row("teacher", 0, top_p, 0, {}, measures, []))
        for result in results:
            if result["top_p"] == top_p:
                costs = {key: float(result[key]) for key in COSTS if key in result}
                student = {key: speed[key] for key in ("tokens_per_second", "speed_up")}
                place = (result["agent"], result["seed"], top_p, result["updates"])
                rows.append(Row(*place, costs, {**result["measures"], **student}, result["curve"]))
    return rows


def tensorboard_line(out: Path) -> str:
    """How to look at the event files."""
    return f"curves: tensorboard --logdir {out / 'tensorboard'}"
