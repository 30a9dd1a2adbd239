"""The command: open the stream, and go through it until it ends or is stopped."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from envs.errors import InputError
from experiments.explore.app import port_of
from experiments.folder import full_disk_is_said
from experiments.gate.conditions import read_gate
from experiments.online import show
from experiments.online.config import HTTP, STDIN, OnlineConfig, check
from experiments.online.gate import checked
from experiments.online.loop import Online
from experiments.online.server import Endpoint
from experiments.online.sources import Folder, Lines, Source
from experiments.online.watch import check_installed
from experiments.workspace import Workspace


def run(config: OnlineConfig) -> dict[str, float]:
    """`tdistill online`.

    Returns: `Online.figures`; OUT/online.png shows how they came about.
    Raises: InputError: bad settings, a folder that holds another run, a port that is taken, or a full disk.
    """
    check(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    space = Workspace(config)
    if not getattr(space.teacher, "whole", True):
        raise InputError(
            f"{space.teacher.name} returns its most probable tokens only, and the student's replies are read whole; "
            "learn on line from a teacher that is at hand"
        )
    _check_beforehand(space, config)
    with full_disk_is_said(space.out), space.opened():
        with (
            closing(Online(space, config)) as online,
            closing(source_of(config, online)) as source,
            _stoppable() as stopped,
        ):
            figures = online.run(source, stopped.is_set)
        show.draw(space.out)
    return figures


def _check_beforehand(space: Workspace, config: OnlineConfig) -> None:
    """Raises: InputError: what would be found wrong later, before a folder is begun."""
    check_installed()
    if config.gate is not None:
        checked(read_gate(config.gate), str(config.gate))
    if config.stream == HTTP:
        port_of(config.host, config.port)


def source_of(config: OnlineConfig, online: Online) -> Source:
    """Where the prompts of these settings come from.

    Raises: InputError: as `Endpoint`.
    """
    if config.stream == STDIN:
        return Lines(online.journal, online.problem)
    if config.stream != HTTP:
        return Folder(Path(config.stream), online.journal, online.problem, config.follow)
    found = Endpoint((config.host, config.port), online.journal, online.problem, online.status, "tdistill")
    print(f"tdistill online: {found.url}  (Ctrl-C ends it)", file=sys.stderr, flush=True)
    return found


@contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """Set by the first Ctrl-C or SIGTERM: the block at hand is finished; a second one ends at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(number: int, frame: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
