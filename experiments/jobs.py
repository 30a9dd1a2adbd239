"""Many cells, one after another or in worker processes, with one bar; one that fails does not end the others."""

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
from typing import Any

import torch
from tqdm import tqdm

from agents import parallel
from agents.errors import DivergedError
from experiments.config import RunConfig
from experiments.folder import full_disk_is_said
from experiments.report import Row
from experiments.train import START, run_cell
from experiments.warm_up import warm_up
from experiments.workspace import Cell, Report, Workspace

FAILURES = (DivergedError, RuntimeError)
Failures = list[tuple[Cell, BaseException]]


class FailedCells(RuntimeError):
    """Some cells ended in an error; the others are finished and kept, and `rows` is what they gave."""

    def __init__(self, message: str, rows: Sequence[Row] = ()) -> None:
        super().__init__(message)
        self.rows = list(rows)


def run_cells(space: Workspace, cells: Sequence[Cell], jobs: int, about: str = "compare") -> Failures:
    """Run these cells, and say which ended in an error.

    Raises: FailedCells: a worker process died. InputError: bad input, or a full disk, which ends all of them.
    """
    if not cells:
        return []
    return _in_processes(space, cells, jobs, about) if jobs > 1 else _in_turn(space, cells, about)


def set_threads(config: RunConfig, jobs: int) -> None:
    """The threads that were asked for, or a fair share of the cores."""
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if parallel.size() > 1 else 1
    torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 1) // (jobs * beside)))


def _run(space: Workspace, cell: Cell, report: Report) -> None:
    if space.config.warm_start:
        with full_disk_is_said(space.out):
            warm_up(space, cell.seed, report)
    run_cell(space, cell, report)


@contextmanager
def _bar(space: Workspace, cells: Sequence[Cell], about: str) -> Iterator[tqdm[Any]]:
    trained = sum(cell.agent != START for cell in cells)
    silent, size = parallel.rank() > 0, trained * space.config.updates
    with tqdm(total=size, unit="update", desc=about, mininterval=0.5, disable=silent) as bar:
        yield bar


def _in_turn(space: Workspace, cells: Sequence[Cell], about: str) -> Failures:
    failures: Failures = []
    with _bar(space, cells, about) as bar:
        for cell in cells:

            def report(text: str, updates: int, cell: Cell = cell) -> None:
                bar.set_postfix_str(f"{cell.name}: {text}" if text else cell.name, refresh=False)
                bar.update(updates)

            try:
                _run(space, cell, report)
            except FAILURES as error:
                if parallel.size() > 1 and not isinstance(error, DivergedError):
                    raise  # which the others may know nothing of: their launcher ends them
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
    set_threads(config, jobs)
    _worker = Workspace(config), messages


def _work(cell: Cell) -> None:
    assert _worker is not None
    space, messages = _worker
    _run(space, cell, lambda text, updates: messages.put((cell.name, text, updates)))


def _in_processes(space: Workspace, cells: Sequence[Cell], jobs: int, about: str) -> Failures:
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    arguments = (space.config, jobs, messages, os.getpid())
    failures: Failures = []
    pool = ProcessPoolExecutor(jobs, context, initializer=_start_worker, initargs=arguments)
    try:
        running = {pool.submit(_work, cell): cell for cell in cells}
        with _bar(space, cells, about) as bar:
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
