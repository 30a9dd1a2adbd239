"""Cells on Ray: on this machine's cores or on a cluster, with resources for each, and retries where a worker dies."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from agents import parallel
from envs.errors import InputError
from experiments.config import CompareConfig, RunConfig
from experiments.jobs import (
    ENDS_ALL,
    FailedCells,
    Failures,
    Progress,
    bar_of,
    run_one,
    set_threads,
)
from experiments.workspace import Cell, Workspace

EVERY = 0.5  # seconds between two reports of a cell


def check(config: RunConfig) -> None:
    """Raises: InputError: Ray is asked for and is not installed, or would not do what the other settings say."""
    if not isinstance(config, CompareConfig) or not config.ray:
        return
    if importlib.util.find_spec("ray") is None:
        raise InputError(f"--ray {config.ray} needs Ray: pip install 'tdistill[ray]', or take --jobs N")
    if parallel.size() > 1:
        raise InputError(f"--ray {config.ray} in {parallel.size()} processes of a launcher; launch a single one")
    if config.jobs > 1:
        raise InputError(f"jobs = {config.jobs} and --ray {config.ray} are two ways of running cells; give one of them")
    if config.device.startswith("cuda") and not config.cell_gpus:
        raise InputError(
            f"device = {config.device!r}, and Ray shows a cell no GPU that it does not ask for: --cell-gpus 1"
        )


class Board:
    """Where the workers write how far they are, and the driver reads it; an actor of Ray."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, str | None, int]] = []

    def say(self, name: str, text: str | None, updates: int) -> None:
        """A report of a cell; a text of None: it begins, perhaps again."""
        self.messages.append((name, text, updates))

    def take(self) -> list[tuple[str, str | None, int]]:
        """What was said since the last call."""
        taken, self.messages = self.messages, []
        return taken


def work(config: RunConfig, cell: Cell, board: Any, place: str, path: list[str]) -> Exception | None:
    """Run a cell in a worker of Ray, in the driver's folder and with its modules; how it failed, if it did."""
    with suppress(OSError):
        os.chdir(place)
    sys.path += [entry for entry in path if entry not in sys.path]
    set_threads(config, 1)
    board.say.remote(cell.name, None, 0)
    pending, last = 0, 0.0

    def report(text: str, updates: int) -> None:
        nonlocal pending, last
        pending += updates
        if (now := time.monotonic()) - last >= EVERY:
            board.say.remote(cell.name, text, pending)
            pending, last = 0, now

    try:
        run_one(Workspace(config), cell, report)
    except Exception as error:  # the driver says it, and decides whether the others go on
        return parallel.portable(error)
    board.say.remote(cell.name, "", pending)
    return None


def in_ray(space: Workspace, cells: Sequence[Cell], about: str) -> Failures:
    """Run these cells on Ray, and say which ended in an error; as `jobs.run_cells`.

    Raises: InputError: no cluster at the address, bad input, or a full disk.
    """
    import ray

    config = space.config
    assert isinstance(config, CompareConfig)
    try:
        local = {"include_dashboard": False} if config.ray == "local" else {}
        ray.init(address=config.ray, log_to_driver=False, logging_level="ERROR", **local)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"no Ray at {config.ray!r} ({' '.join(str(error).split())}); --ray local starts one"
        ) from error
    try:
        board = ray.remote(num_cpus=0)(Board).remote()
        resources = {"num_cpus": config.cell_cpus, "num_gpus": config.cell_gpus, "max_retries": config.retries}
        remote = ray.remote(**resources)(work)
        running = {remote.remote(config, cell, board, os.getcwd(), sys.path): cell for cell in cells}
        return _gather(ray, space, running, board, about)
    finally:
        ray.shutdown()  # which ends what still runs


def _gather(ray: Any, space: Workspace, running: dict[Any, Cell], board: Any, about: str) -> Failures:
    failures = Failures()
    with bar_of(space, list(running.values()), about) as bar:
        progress = Progress(bar)
        while running:
            ended, _ = ray.wait(list(running), timeout=0.5)
            for name, text, updates in ray.get(board.take.remote()):
                if text is None:
                    progress.again(name)
                else:
                    progress.report(name, text, updates)
            for reference in ended:
                cell = running.pop(reference)
                try:
                    error = ray.get(reference)
                except ray.exceptions.RayError as found:
                    error = FailedCells(f"Ray gave it up: {' '.join(str(found).split())}; run again to go on")
                if isinstance(error, ENDS_ALL):
                    raise error
                if error is not None:
                    failures.append((cell, error))
                    progress.failed(cell, error)
            bar.refresh()
    return failures
