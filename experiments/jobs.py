"""Cells one after another, in worker processes or on Ray, with one bar; one that fails does not end the others."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from tqdm import tqdm

from agents import parallel
from agents.errors import DivergedError
from agents.errors import InputError as AgentInputError
from agents.student import Student
from envs.errors import InputError
from envs.memory import GIB, free_memory
from experiments.budget import SpentError
from experiments.config import RunConfig
from experiments.folder import full_disk_is_said, write
from experiments.report import Row
from experiments.share import Elsewhere, ShareError
from experiments.shared_cells import share_cell, share_cells
from experiments.train import START, run_cell
from experiments.warm_up import warm_up
from experiments.workspace import Cell, Report, Workspace

ENDS_ALL = (InputError, AgentInputError)  # bad input and a full disk, which the other cells would meet too
ENDS_ONE = (DivergedError, SpentError)  # foreseen, and due to the cell's own settings; the text says all
Failures = list[tuple[Cell, BaseException]]


class FailedCells(RuntimeError):
    """Some cells ended in an error; the others are finished and kept, and `rows` is what they gave."""

    def __init__(self, message: str, rows: Sequence[Row] = ()) -> None:
        super().__init__(message)
        self.rows = list(rows)


def run_cells(space: Workspace, cells: Sequence[Cell], jobs: int, about: str = "compare") -> Failures:
    """Run these cells, and say which ended in an error.

    A cell whose process dies goes on from its checkpoint in another one, `retries` times at most.

    Raises: InputError: bad input, or a full disk, which ends all of them.
    """
    if not cells:
        return []
    if space.share is not None:
        return share_cells(space, cells, lambda left: _run_cells(space, left, jobs, about))
    return _run_cells(space, cells, jobs, about)


def _run_cells(space: Workspace, cells: Sequence[Cell], jobs: int, about: str) -> Failures:
    if getattr(space.config, "ray", ""):
        from experiments.ray_jobs import in_ray

        return in_ray(space, cells, about)
    return _in_processes(space, cells, jobs, about) if jobs > 1 else _in_turn(space, cells, about)


def set_threads(config: RunConfig, jobs: int) -> None:
    """The threads that were asked for, or a fair share of the cores."""
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if parallel.size() > 1 else 1
    share = (os.cpu_count() or 1) // (jobs * beside)
    if getattr(config, "ray", ""):
        share = int(getattr(config, "cell_cpus", 1))
    torch.set_num_threads(config.threads or max(1, share))


def check_memory(space: Workspace, student: Student, jobs: int) -> None:
    """Raises: InputError: so many worker processes are sure to outgrow the memory that is free.

    Each holds the teacher's weights, and of a student the weights and, of what learns, a gradient and Adam's two
    moments. Activations, target networks and critics come on top, so that what passes may still be too much.
    """
    free = free_memory()
    elsewhere = bool(getattr(space.config, "ray", "")) or space.config.device != "cpu"
    if jobs < 2 or free is None or elsewhere:
        return
    model = getattr(space.teacher, "model", None)
    held = [*model.parameters()] if isinstance(model, torch.nn.Module) else []
    learnt = [value for value in student.parameters() if value.requires_grad]
    each = sum(value.numel() * value.element_size() for value in [*held, *student.parameters(), *3 * learnt])
    if jobs * each > free:
        raise InputError(
            f"jobs = {jobs} processes with the teacher's weights and a student's, its gradients and Adam's moments "
            f"take {jobs * each / GIB:.1f} GiB, {each / GIB:.2f} each; {free / GIB:.1f} GiB of memory are free: lower "
            f"jobs to {max(1, free // each)}"
        )


def run_one(space: Workspace, cell: Cell, report: Report) -> None:
    """Run a cell alone: a process that a killed driver has left at it is waited for.

    Whatever ends it unforeseen is kept beside it, in error.txt. Of a shared comparison it may be taken over instead.

    Raises: Elsewhere: another machine is at it.
    """
    with _alone(space, cell):
        if space.share is None:
            _run_here(space, cell, report)
        else:
            settings = space.settings(cell.agent, None if cell.role else cell.top_p)
            with full_disk_is_said(space.out):
                share_cell(space, cell, settings, lambda: _run_here(space, cell, report))


def _run_here(space: Workspace, cell: Cell, report: Report) -> None:
    folder = space.out / "cells" / cell.name
    try:
        if space.config.warm_start:
            with full_disk_is_said(space.out):
                warm_up(space, cell.seed, report)
        run_cell(space, cell, report)
    except (ShareError, *ENDS_ONE, *ENDS_ALL):
        raise
    except Exception:  # an agent of a user's own may raise anything; it is written down, and raised
        with suppress(OSError):
            write(folder / "error.txt", traceback.format_exc())
        raise
    (folder / "error.txt").unlink(missing_ok=True)


@contextmanager
def _alone(space: Workspace, cell: Cell) -> Iterator[None]:
    if parallel.rank():
        yield
        return
    path = space.out / "cells" / f".{cell.name}.lock"
    with full_disk_is_said(space.out):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def said(error: BaseException) -> str:
    """An error in one line; its kind too where its text does not speak for itself."""
    text = str(error)
    return text if isinstance(error, (FailedCells, *ENDS_ONE)) else f"{type(error).__name__}: {text}"


class Progress:
    """The bar of all cells; one that begins again takes back what it had counted."""

    def __init__(self, bar: tqdm[Any]) -> None:
        self.bar, self.counted = bar, Counter[str]()

    def report(self, name: str, text: str, updates: int) -> None:
        """Count updates of a cell."""
        self.counted[name] += updates
        self.bar.set_postfix_str(f"{name}: {text}" if text else name, refresh=False)
        self.bar.update(updates)

    def again(self, name: str) -> None:
        """A cell begins again from its checkpoint, and will report what it finds there."""
        self.bar.update(-self.counted.pop(name, 0))

    def failed(self, cell: Cell, error: BaseException) -> None:
        """Say so at once; the end of the command says it again."""
        if not isinstance(error, Elsewhere):  # which is looked at again
            self.bar.write(f"{cell.name} failed: {said(error)}")


@contextmanager
def bar_of(space: Workspace, cells: Sequence[Cell], about: str) -> Iterator[tqdm[Any]]:
    trained = sum(cell.agent != START for cell in cells)
    silent, size = parallel.rank() > 0, trained * space.config.updates
    with tqdm(total=size, unit="update", desc=about, mininterval=0.5, disable=silent) as bar:
        yield bar


def _in_turn(space: Workspace, cells: Sequence[Cell], about: str) -> Failures:
    failures: Failures = []
    with bar_of(space, cells, about) as bar:
        progress = Progress(bar)
        for cell in cells:
            try:
                run_one(space, cell, partial(progress.report, cell.name))
            except ENDS_ALL:
                raise
            except Exception as error:  # whatever ends one cell, the others are to finish; all are said in the end
                if parallel.size() > 1 and not isinstance(error, ENDS_ONE):
                    raise  # which the others may know nothing of: their launcher ends them
                failures.append((cell, error))
                progress.failed(cell, error)
    return failures


def _serve(config: RunConfig, jobs: int, pipe: Connection, parent: int) -> None:
    """A worker process: it is ended by its parent, by no Ctrl-C of its own, and does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    set_threads(config, jobs)
    space = Workspace(config)
    while (cell := pipe.recv()) is not None:
        error: Exception | None = None
        try:
            run_one(space, cell, lambda text, updates: pipe.send((text, updates)))
        except Exception as found:  # the parent says it, and decides whether the others go on
            error = parallel.portable(found)
        pipe.send(error)


class _Worker:
    """A process that runs a cell at a time. Its pipe is its own: killed while it writes, it breaks no other's."""

    def __init__(self, config: RunConfig, jobs: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(config, jobs, theirs, os.getpid()))
        self.process.start()
        theirs.close()  # so that the pipe ends with the process
        self.cell: Cell | None = None

    def begin(self, cell: Cell | None) -> None:
        """Hand it a cell, or None to end; that it is dead is seen when it is listened to."""
        self.cell = cell
        with suppress(OSError):
            self.pipe.send(cell)


def _in_processes(space: Workspace, cells: Sequence[Cell], jobs: int, about: str) -> Failures:
    waiting, deaths, failures = list(cells), Counter[Cell](), Failures()
    workers = [_Worker(space.config, jobs) for _ in range(min(jobs, len(cells)))]
    try:
        with bar_of(space, cells, about) as bar:
            progress = Progress(bar)
            while True:
                for worker in workers:
                    if worker.cell is None and waiting:
                        worker.begin(waiting.pop(0))
                busy = [place for place, worker in enumerate(workers) if worker.cell is not None]
                if not busy:
                    break
                heard = wait([workers[place].pipe for place in busy], 0.5)
                for place in busy:
                    if workers[place].pipe not in heard or _listen(workers[place], progress, failures):
                        continue
                    cell = _dead(workers[place], deaths, getattr(space.config, "retries", 0), progress, failures)
                    waiting[:0] = [cell] if cell is not None else []
                    workers[place] = _Worker(space.config, jobs)
                bar.refresh()
        for worker in workers:
            worker.begin(None)
    except BaseException:
        for worker in workers:
            worker.process.terminate()
        raise
    finally:
        for worker in workers:
            worker.process.join()
    return failures


def _listen(worker: _Worker, progress: Progress, failures: Failures) -> bool:
    """Take one message of a busy worker; False if it has died. Raises: InputError: what ends all cells."""
    assert worker.cell is not None
    try:
        message = worker.pipe.recv()
    except (EOFError, OSError):
        return False
    if isinstance(message, tuple):
        progress.report(worker.cell.name, *message)
        return True
    if isinstance(message, ENDS_ALL):
        raise message
    if message is not None:
        failures.append((worker.cell, message))
        progress.failed(worker.cell, message)
    worker.cell = None
    return True


def _dead(worker: _Worker, deaths: Counter[Cell], retries: int, progress: Progress, failures: Failures) -> Cell | None:
    """The cell of a dead worker if it is to be tried again; else it has failed."""
    cell = worker.cell
    assert cell is not None
    worker.process.join()
    worker.pipe.close()
    deaths[cell] += 1
    progress.again(cell.name)
    if deaths[cell] <= retries:
        return cell
    how = f"its process died {deaths[cell]} times, the last with exit code {worker.process.exitcode}"
    error = FailedCells(f"{how} (-9: killed, or out of memory); run again to go on, perhaps with fewer --jobs")
    failures.append((cell, error))
    progress.failed(cell, error)
    return None
