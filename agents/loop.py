"""Learners that own their loop: they walk an environment themselves instead of being handed episodes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

from agents.base import FixedPoint, checked, require
from agents.search import Range, Search
from agents.student import Student


@dataclass(frozen=True)
class LoopConfig:
    """Settings that every learner with a loop of its own has; it adds its own.

    Raises: InputError naming the setting and its limit.
    """

    lr: float = 1e-4
    """Learning rate; small, for a student that has been cloned."""
    gamma: float = 1.0
    """Discount; a run gives its own."""
    steps: int | None = None
    """Steps in the environment, each paid by one label of the teacher; none: as many as the run's teacher episodes, or
    its budget of teacher tokens, have, so that every arm pays for as many labels."""
    num_envs: int = 32
    """Episodes walked side by side."""

    SEARCH: ClassVar[Search] = {"lr": Range(3e-6, 3e-3, log=True, grid=(1e-5, 3e-5, 3e-4, 1e-3))}
    """What a search tries: name -> a range, or values beside the default; an agent adds its own."""

    def __post_init__(self) -> None:
        require(self, "lr", self.lr > 0, "must be positive")
        require(self, "gamma", 0 <= self.gamma <= 1, "must lie in [0, 1]")
        require(self, "steps", self.steps is None or self.steps >= 1, "must be at least 1")
        require(self, "num_envs", self.num_envs >= 1, "must be at least 1")


C = TypeVar("C", bound=LoopConfig)


class LoopAgent(ABC, Generic[C]):
    """A student with a learner that walks by itself. Subclasses set the class variables and write the methods.

    `fixed_point` is where it ends on a table teacher, or None with `identity` naming what it is tested by.
    """

    name: ClassVar[str]
    Config: ClassVar[type[LoopConfig]]
    data: ClassVar[Literal["student"]] = "student"
    identity: ClassVar[str | None] = None

    def __init__(self, student: Student, config: C, *, seed: int) -> None:
        self.config, self.seed = config, seed
        self._student = student

    @classmethod
    def make_config(cls, **overrides: Any) -> Any:
        """The agent's Config with these fields set.

        Raises: InputError: an unknown field (with the nearest match) or a value out of range.
        """
        return checked(cls.name, cls.Config, overrides)

    @property
    @abstractmethod
    def fixed_point(self) -> FixedPoint | None:
        """Where this agent ends on a table teacher."""

    @property
    @abstractmethod
    def student(self) -> Student:
        """The student as it is now; another object than before after `load`."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Environment steps taken so far."""

    @property
    @abstractmethod
    def gradient_steps(self) -> int:
        """Updates of its weights so far, as the learner counts them."""

    @property
    @abstractmethod
    def episode_return(self) -> float:
        """Mean return of the latest episodes, as the environment paid it; NaN while there is none."""

    @abstractmethod
    def learn(
        self, vec_env: Any, budget: int, *, watch: Callable[[], None] | None = None, logs: Path | None = None
    ) -> None:
        """Learn in `vec_env` until this agent has taken as many of `budget` steps as its rollouts divide it into.

        Args:
            vec_env: observations, slots and masks of the token MDP, N episodes side by side.
            budget:  most environment steps, those before `load` included.
            watch:   called between updates, when the student may be looked at and the agent saved.
            logs:    folder for event files.
        Raises: InputError: an environment that does not fit, or a budget of not one step. DivergedError: the weights
            are no numbers any more.
        """

    @abstractmethod
    def save(self, directory: str | Path) -> None:
        """Write what is needed to go on."""

    @abstractmethod
    def load(self, directory: str | Path) -> None:
        """Go on from `save`.

        Raises: InputError: nothing saved there, or by another agent.
        """
