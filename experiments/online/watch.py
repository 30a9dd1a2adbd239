"""Which signals have changed: ADWIN, and for scarce ones a CUSUM, on the rank of each among values that are usual."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.errors import InputError
from experiments.online.signals import OF_TEACHER, SIDES, UP, Usual

EFFECT = 0.1
"""Least change of a mean rank that is worth an alarm."""
DEVIATIONS = 3.0
ALLOWANCE, THRESHOLD = 0.25, 1.2
"""k of the CUSUM where infinitely many values say what is usual, and h."""
MOST = 4096
"""Values of a signal that are kept; up to twice as many."""
FEWEST = 64
"""Values of a signal that say what is usual."""
FRESH = 32
"""Those that are enough where there are none."""


@dataclass(frozen=True)
class Alarm:
    """A signal whose mean has changed, to the worse side."""

    signal: str
    mean: float
    """Mean rank in ADWIN's window; once all of it is new, the probability that a new value exceeds a usual one. Of
    `teacher_drift` nats."""
    by: str
    """What found it, "adwin", "cusum" or "control": a text of which it is known what the teacher says."""


class Watch:
    """A detector for each signal, which begins with what is usual as if it had just been seen.

    ADWIN keeps as long a window of the latest ranks as has one mean: where an older and a newer part differ by more
    than chance allows with confidence 1 − δ, for any way to cut it, the older one is dropped. The mean of usual ranks
    is ½, and that of new ones the probability that a new value exceeds a usual one: the alarm is given, once until the
    watch is rebased, as soon as the window's mean is off by max(.1, 3/√(12m)), of m usual values: 1/12 is the variance
    of a uniform rank, and so far few values may lie off what is usual by chance.

    ADWIN's bound takes some twenty values to believe even that every one is higher than all usual ones. The teacher's
    signals, of which there are few, have a CUSUM of their ranks r beside it,

        S ← max(0, S + r − ½ − k),    alarm if S > h,    k = ¼ + 1/√(12m), h = 1.2

    which six or seven such values raise. Where the m usual values lie off by up to one deviation, 1/√(12m), the mean of
    r is at most ½ + k − ¼, and sinh(θ/2) / (θ/2) = exp(θ/4) for θ = 8.61: between two false alarms lie exp(θh) ≈ 31,000
    values at the least, on the average. Where they lie off by two it is fewer, some 2,700 for m = 64.

    Source: Bifet and Gavaldà (2007), Learning from time-changing data with adaptive windowing; the implementation is
    `river.drift.ADWIN`. Page (1954), Continuous inspection schemes, and Lundberg's inequality for the CUSUM; it is not
    `river`'s Page-Hinkley, which estimates the mean that ranks are known to have.
    Args:
        usual: values of each signal, in their order.
        seen, raised: values since then, and signals whose alarm was given, of a watch that goes on.
    Raises: InputError: `river` is not installed.
    """

    def __init__(
        self,
        usual: Mapping[str, Iterable[float]],
        delta: float,
        seen: Mapping[str, Iterable[float]] | None = None,
        raised: Iterable[str] = (),
    ) -> None:
        self.delta, self._kind = delta, _adwin()
        self.usual = {name: list(values) for name, values in usual.items()}
        self.seen = {name: list((seen or {}).get(name, ())) for name in self.usual}
        self.raised = set(raised)
        self._ranks: dict[str, Usual] = {}
        self._detectors: dict[str, Any] = {}
        self._sums: dict[str, float] = {}
        for name in self.usual:
            self._prime(name)

    def see(self, signals: Mapping[str, float]) -> list[Alarm]:
        """Take in what was noticed about one prompt; alarms, if it makes some certain."""
        alarms = []
        for name, value in signals.items():
            self.seen[name].append(value)
            if name not in self._ranks:
                if len(self.seen[name]) == FRESH:
                    self.rebased({name: FRESH})
                continue
            self._take(name, value)
            if (by := self._changed(name)) and name not in self.raised:
                self.raised.add(name)
                alarms.append(Alarm(name, float(self._detectors[name].estimation), by))
            if len(self.seen[name]) >= 2 * MOST:
                self.seen[name] = self.seen[name][-MOST:]
                self._prime(name)
        return alarms

    def rebased(self, last: Mapping[str, int]) -> None:
        """Take the last so many values of these signals for what is usual; older ones fill up a few."""
        for name, count in last.items():
            values = [*self.usual[name], *self.seen[name]][-max(count, FEWEST) :]
            if len(values) < FRESH:
                continue
            self.usual[name], self.seen[name] = values, []
            self.raised.discard(name)
            self._prime(name)

    def forget(self, names: Iterable[str]) -> None:
        """Take the next `FRESH` values of these signals for what is usual, and watch them from then on."""
        for name in names:
            self.usual[name], self.seen[name] = [], []
            self.raised.discard(name)
            self._prime(name)

    def _prime(self, name: str) -> None:
        """Begin with what is usual, in no order: older and newer values are usual alike."""
        values = self.usual[name]
        if not values:
            self._ranks.pop(name, None)
            return
        self._ranks[name], self._detectors[name] = Usual.of(values), self._kind(delta=self.delta, clock=1)
        for value in np.random.default_rng(0).permutation(values).tolist():
            self._detectors[name].update(self._ranks[name].rank(value))
        self._sums[name] = 0.0
        for value in self.seen[name]:
            self._take(name, value)

    def _take(self, name: str, value: float) -> None:
        rank = self._ranks[name].rank(value)
        self._detectors[name].update(rank)
        self._sums[name] = max(0.0, self._sums[name] + rank - 0.5 - ALLOWANCE - self._deviation(name))

    def _deviation(self, name: str) -> float:
        """By which the mean rank of usual values is off by chance, one standard deviation."""
        return 1 / math.sqrt(12 * len(self.usual[name]))

    def _changed(self, name: str) -> str:
        """The test that says so; empty if none does."""
        mean = float(self._detectors[name].estimation)
        change = mean - 0.5 if SIDES[name] == UP else abs(mean - 0.5)
        if change >= max(EFFECT, DEVIATIONS * self._deviation(name)):
            return "adwin"
        return "cusum" if name in OF_TEACHER and self._sums[name] > THRESHOLD else ""

    def state(self) -> dict[str, Any]:
        """All that it depends on."""
        return {"usual": self.usual, "seen": self.seen, "raised": sorted(self.raised)}


def check_installed() -> None:
    """Raises: InputError: `river` is not installed."""
    _adwin()


def _adwin() -> Any:
    try:
        from river.drift import ADWIN
    except ImportError as error:
        raise InputError(
            f"tdistill online needs {error.name or 'river'}, which is not installed: pip install 'tdistill[online]'"
        ) from error
    return ADWIN
