"""Cells of a comparison that several machines fill: each is run by one of them, and taken over by the others."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.share import POLL, Elsewhere, files_of
from experiments.train import RESULT
from experiments.workspace import Cell, Workspace


def share_cell(space: Workspace, cell: Cell, settings: dict[str, Any], work: Callable[[], None]) -> None:
    """Run a cell, or take it over from the machine that has: `work` runs it, or reads it back if it is there.

    Raises: Elsewhere: another process is at it.
    """
    share, name, folder = space.share, f"cells/{cell.name}", space.out / "cells" / cell.name
    assert share is not None

    def paths() -> list[Path]:
        found = files_of(space.student_directory(cell), space.out / "tensorboard" / cell.name, folder)
        return [*(path for path in found if path != folder / RESULT), folder / RESULT]

    if not (folder / RESULT).is_file() and not share.fetch(name, settings):
        with share.claimed(name):
            if not share.fetch(name, settings):
                work()
                if not share.publish(name, paths(), settings):
                    share.fetch(name, settings)
                return
    work()
    if share.finished(name, settings) is None:
        share.publish(name, paths(), settings)


def share_cells(
    space: Workspace, cells: Sequence[Cell], run: Callable[[Sequence[Cell]], list[tuple[Cell, BaseException]]]
) -> list[tuple[Cell, BaseException]]:
    """Run cells until none is left with another machine; returns what failed.

    Args:
        run: runs cells and says which ended in an error; one that another machine is at ends in `Elsewhere`.
    """
    share, failures = space.share, list[tuple[Cell, BaseException]]()
    assert share is not None
    left, waiting = list(cells), list[Cell]()
    while left:
        found = run(left)
        failures += [(cell, error) for cell, error in found if not isinstance(error, Elsewhere)]
        waiting += [cell for cell, error in found if isinstance(error, Elsewhere)]
        if waiting:
            print(f"waiting for {len(waiting)} cells of other machines: {_some(waiting)}", file=sys.stderr, flush=True)
        left = []
        while waiting and not left:
            time.sleep(POLL)
            left = [cell for cell in waiting if share.ready(f"cells/{cell.name}")]
        waiting = [cell for cell in waiting if cell not in left]
    return failures


def _some(cells: Sequence[Cell]) -> str:
    return ", ".join(cell.name for cell in cells[:3]) + (", …" if len(cells) > 3 else "")
