"""Arms that are timed in turn, so that a noisy machine is noisy to all of them."""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, NamedTuple, Self

from tqdm import tqdm

MEGABYTE = 2**20


class Sample(NamedTuple):
    """One run of an arm."""

    steps: int
    seconds: float

    @property
    def rate(self) -> float:
        """Steps per second."""
        return self.steps / self.seconds


@dataclass
class Race:
    """What the arms of one comparison gave, round by round."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    """Megabytes that resident memory rose by in the round that warms up, at most."""

    def ratio(self, arm: str, other: str) -> dict[str, float]:
        """How many times as fast an arm is, by pairs of the same round: median, least and greatest."""
        pairs = zip(self.samples[arm], self.samples[other], strict=True)
        return spread([mine.rate / theirs.rate for mine, theirs in pairs])

    def rate(self, arm: str) -> dict[str, float]:
        """Steps per second: median, least and greatest."""
        return spread([sample.rate for sample in self.samples[arm]])


def spread(values: list[float]) -> dict[str, float]:
    """Median with an interval: of R rounds, least to greatest hold the true median with probability 1 − 2^(1−R)."""
    return {"value": median(values), "low": min(values), "high": max(values), "repeats": len(values)}


def race(arms: Mapping[str, Callable[[int], int]], repeats: int, bar: tqdm[Any]) -> Race:
    """Run every arm once a round; an arm takes the number of the round and returns the steps it made.

    Round 0 warms up: its time does not count, its memory does (watching it would disturb the time).
    """
    found = Race({name: [] for name in arms})
    for turn in range(repeats + 1):
        for name, arm in arms.items():
            bar.set_postfix_str(name, refresh=True)
            if not turn:
                with Resident() as memory:
                    arm(turn)
                found.peaks[name] = memory.rise
            else:
                begin = time.perf_counter()
                steps = arm(turn)
                found.samples[name].append(Sample(steps, time.perf_counter() - begin))
            bar.update()
    return found


class Resident:
    """Watches the resident memory of this process while a block runs."""

    def __enter__(self) -> Self:
        self._before = self._most = resident()
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self._most = max(self._most, resident())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._watch.join()
        self._most = max(self._most, resident())

    @property
    def rise(self) -> float:
        """Megabytes above what was resident at the beginning, at most."""
        return self._most - self._before


def resident() -> float:
    """Megabytes of this process in memory; where the system does not say, the most it ever had."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / MEGABYTE
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MEGABYTE if sys.platform == "darwin" else 1024)
