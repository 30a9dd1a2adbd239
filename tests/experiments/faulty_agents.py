"""Agents for the tests of faults: one that raises, one whose process is killed, once or each time."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from agents.behavior_cloning import BehaviorCloning
from agents.episodes import Episodes

MARK = "TDISTILL_TEST_MARK"


class Raising(BehaviorCloning):
    """Fails at its third update with an error that nobody foresaw."""

    def update(self, batch: Episodes) -> dict[str, float]:
        if self.updates == 2:
            raise KeyError("no such row")
        return super().update(batch)


class Killed(BehaviorCloning):
    """Its process is killed at every fifth update."""

    def update(self, batch: Episodes) -> dict[str, float]:
        if self.updates == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().update(batch)


class KilledOnce(BehaviorCloning):
    """Its process is killed at its fifth update, unless that has happened before."""

    def update(self, batch: Episodes) -> dict[str, float]:
        mark = Path(os.environ[MARK])
        if self.updates == 4 and not mark.exists():
            mark.write_text(str(self.updates))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().update(batch)
