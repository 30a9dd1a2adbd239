"""What a search may try of an agent's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agents.errors import InputError


@dataclass(frozen=True)
class Range:
    """Numbers between two ends, both included; whole numbers where both ends are whole (ints).

    Raises: InputError: ends in the wrong order, a logarithm of what is not positive, or a grid outside the ends.
    """

    low: float
    high: float
    log: bool = False
    """Whether equal ratios are equally likely to be drawn; else equal differences are."""
    grid: tuple[float, ...] = ()
    """What a search on a grid tries of it, beside the default; none: such a search leaves this setting alone."""

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise InputError(f"a range from {self.low} to {self.high} is empty; its low end must be below its high end")
        if self.log and self.low <= 0:
            raise InputError(
                f"a range from {self.low} to {self.high} has no logarithm; begin above 0, or leave log out"
            )
        if outside := [value for value in self.grid if value not in self]:
            raise InputError(f"{outside[0]} of a grid lies outside its range from {self.low} to {self.high}")

    @property
    def whole(self) -> bool:
        """Whether it holds whole numbers alone."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return False
        return self.low <= value <= self.high and (not self.whole or value == int(value))


Search = Mapping[str, Range | tuple[Any, ...]]
"""Setting -> its range, or the values to try beside the default."""
