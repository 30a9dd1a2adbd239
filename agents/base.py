"""What every agent is: a student, a frozen Config, one update on a batch of whole episodes, and a declared fixed point.

An agent is one file: a `Config` and a class with `loss`. The update reads: scores, objective, step.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents import parallel, sharding
from agents.episodes import Episodes
from agents.errors import DivergedError, InputError
from agents.optimiser import clip_gradients, optimiser_of
from agents.scores import Scorer
from agents.search import Range, Search
from agents.staged import FIXED, Stages

if TYPE_CHECKING:
    from agents.walks import Walks

STATE = "agent.pt"
Logs = dict[str, Tensor]


@dataclass(frozen=True)
class Config:
    """Settings that every agent has; an agent adds its own.

    Raises: InputError naming the setting and its limit.
    """

    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    warmup: int = 20
    """Updates of linear warm-up, at most a tenth of the run; then a cosine to 0 at the last update."""
    clip: float = 1.0
    """Largest gradient norm."""
    batch_size: int = 32
    """Episodes per update."""

    SEARCH: ClassVar[Search] = {"lr": Range(3e-5, 1e-2, log=True, grid=(1e-4, 3e-4, 2e-3, 5e-3))}
    """What a search tries: name -> a range, or values beside the default; an agent adds its own."""

    def __post_init__(self) -> None:
        require(self, "lr", self.lr > 0, "must be positive")
        require(self, "weight_decay", self.weight_decay >= 0, "must not be negative")
        require(self, "warmup", self.warmup >= 0, "must not be negative")
        require(self, "clip", self.clip > 0, "must be positive")
        require(self, "batch_size", self.batch_size >= 1, "must be at least 1")


@dataclass(frozen=True)
class StagedConfig(Config):
    """Settings of agents that learn on candidate sets, which may widen meanwhile (`agents.staged`)."""

    p_schedule: str = FIXED
    """Mass of the sets that are learnt from, never above that of the run: fixed, fixed:V, linear:A..B[:SHARE],
    mass:A..B[:SHARE] or leak:A..B[:R]."""
    k_schedule: str = FIXED
    """Most candidates of these sets, likewise; of mass:A..B the ends are masses."""

    def __post_init__(self) -> None:
        super().__post_init__()
        Stages(self.p_schedule, self.k_schedule)

    @property
    def is_staged(self) -> bool:
        """Whether sets are narrowed at all."""
        return (self.p_schedule, self.k_schedule) != (FIXED, FIXED)


def require(config: Any, name: str, good: bool, limit: str) -> None:
    """Raise an InputError for one setting unless it is good (NaN never is)."""
    if not good:
        raise InputError(f"{type(config).__qualname__}.{name} is {getattr(config, name)!r}; it {limit}")


def checked(name: str, kind: type[Any], overrides: Mapping[str, Any]) -> Any:
    """A frozen Config of this kind with these fields set; `name` is the agent's.

    Raises: InputError: an unknown field (with the nearest match) or a value out of range.
    """
    known = [field.name for field in dataclasses.fields(kind)]
    hints = typing.get_type_hints(kind)
    for key, value in overrides.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"{name} has no setting {key!r}; it has {', '.join(known)}{hint}")
        if not _fits(hints[key], value):
            raise InputError(f"{name}.{key} is {value!r}; it must be {_kinds(hints[key])}")
    return kind(**overrides)


@dataclass(frozen=True)
class FixedPoint:
    """Where an agent ends on a table teacher; `kind` and the rest are what the exact solver takes."""

    kind: Literal["teacher", "renormalised", "conditioned", "hard", "soft", "conservative", "chi2"]
    gamma: float = 1.0
    alpha: float = 1.0
    c: float = math.inf
    weight: float = 0.0
    reward: str = "logprob"


C = TypeVar("C", bound=Config)


class Agent(ABC, Generic[C]):
    """A learner around a student. Subclasses set the class variables and write `loss`.

    `student` is trained in place. `needs` names what must be attached to its batches ("teacher_logits"); `data` says
    whose walk it may learn from ("mixed": of both in each batch) and `walks` what it asks of the student's own;
    `fixed_point` is where it ends, or None with `identity` naming the loss identity it is tested by.
    """

    name: ClassVar[str]
    Config: ClassVar[type[Config]]
    data: ClassVar[Literal["teacher", "student", "either", "mixed"]] = "either"
    identity: ClassVar[str | None] = None

    def __init__(self, student: Scorer, config: C, *, seed: int, total_updates: int) -> None:
        if total_updates < 1:
            raise InputError(f"total_updates is {total_updates}; it must be at least 1")
        self.student, self.config, self.total_updates = student, config, total_updates
        self.updates = 0
        self.spent = 0.0  # share of a budget other than updates; the run that has one says so before an update
        self.stages = Stages(getattr(config, "p_schedule", FIXED), getattr(config, "k_schedule", FIXED))
        self.generator = torch.Generator().manual_seed(seed)  # for agents that draw; saved with the rest
        self.optimiser = optimiser_of(self.trainables(), student.let_rows_rest(), config.lr, config.weight_decay)

    @classmethod
    def make_config(cls, **overrides: Any) -> Any:
        """The agent's Config with these fields set.

        Raises: InputError: an unknown field (with the nearest match) or a value out of range.
        """
        return checked(cls.name, cls.Config, overrides)

    @property
    def needs(self) -> frozenset[str]:
        """What must be attached to a batch: {"teacher_logits"} or nothing."""
        return frozenset()

    @property
    def walks(self) -> Walks | None:
        """The student's own episodes it asks a run for (`agents.walks`); None: the teacher's alone."""
        found: Walks | None = getattr(self.config, "walks", None)
        return found

    @property
    def depends_on_top_p(self) -> bool:
        """Whether the candidate sets enter its loss, where the vocabulary is scored whole."""
        return True

    @property
    def progress(self) -> float:
        """Where schedules stand, in units of updates: those made, or more where more of another budget is spent."""
        return max(float(self.updates), self.spent * self.total_updates)

    @property
    def kind_of_update(self) -> str:
        """Names what the next update computes, where an agent leaves out at times what it computes at others.

        Updates of one kind are taken to cost alike.
        """
        return ""

    @property
    @abstractmethod
    def fixed_point(self) -> FixedPoint | None:
        """Where this agent ends on a table teacher."""

    @abstractmethod
    def loss(self, batch: Episodes) -> tuple[Tensor, Logs]:
        """The scalar to descend and figures to log (scalars in nats unless their name says otherwise)."""

    def trainables(self) -> list[Tensor]:
        """Parameters the optimiser moves; agents with a critic of their own add its."""
        return [value for value in self.student.parameters() if value.requires_grad]

    def extras(self) -> dict[str, Any]:
        """Modules beside the student whose state is saved, such as a target network, by name."""
        return {}

    def after_step(self) -> None:
        """What follows an optimiser step, such as moving a target network."""

    def receive(self, walk: Episodes) -> Episodes:
        """What becomes of episodes that the student has just walked before they are learnt from: as they are.

        A place to recompute what the walk noted, such as old log-probabilities, in the forward that training uses.
        """
        return walk

    def update(self, batch: Episodes) -> dict[str, float]:
        """Learn from one batch and return figures to log.

        Raises: InputError: the batch does not fit this agent. DivergedError: the loss or its gradient is not finite.
        """
        self.check(batch)
        batch, staged = self.stages.narrow(batch, self.progress, self.total_updates)
        loss, logs = self.loss(batch)
        rate, norm = self._step(loss)
        self.after_step()
        self.stages.notice(float(logs["log_inside"].detach()) if "log_inside" in logs else None, batch)
        figures = {name: value.detach() for name, value in {"loss": loss, **logs, "gradient_norm": norm}.items()}
        return {name: float(value) for name, value in figures.items()} | {"lr": rate} | staged

    def check(self, batch: Episodes) -> None:
        """Raise an InputError unless the batch has what this agent needs, was built with its γ and is fresh enough."""
        if "teacher_logits" in self.needs and batch.teacher_logp is None:
            raise InputError(f"{self.name} needs teacher_logits: attach the teacher's log-probabilities to the batch")
        walks, own = self.walks, ~batch.from_teacher
        if self.data == "student" and walks is not None and bool(own.any()) and batch.version is not None:
            oldest = int(batch.version[own].min())
            if self.updates - oldest >= walks.max_age:
                raise InputError(
                    f"{self.name} is on-policy: episodes that the student drew at update {oldest} are stale at update "
                    f"{self.updates}, {walks.max_age} updates is the most (walk_every · walk_keep); draw new ones"
                )
        gamma = getattr(self.config, "gamma", None)
        if gamma is not None and not torch.allclose(batch.discounts, float(gamma) * batch.alive):
            raise InputError(
                f"{self.name} learns with γ = {gamma}, the episodes have discounts up to "
                f"{float(batch.discounts.max()):g}; build them with the same γ (Episodes.discounted)"
            )

    def _step(self, loss: Tensor) -> tuple[float, Tensor]:
        """One AdamW step with warm-up, cosine and clipped gradient; the rate used and the norm before clipping."""
        self.optimiser.zero_grad(set_to_none=True)
        if loss.requires_grad:
            torch.autograd.backward(loss)
        parallel.average_gradients(self.trainables(), getattr(self.optimiser, "rows", ()))
        norm = clip_gradients(self.trainables(), self.config.clip)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise DivergedError(
                f"{self.name}: loss {float(loss.detach()):g}, gradient norm {float(norm):g} at update "
                f"{self.updates + 1}; the student keeps its weights; lower lr"
            )
        rate = self.config.lr * schedule(self.progress, self.config.warmup, self.total_updates)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.updates += 1
        return rate, norm

    def act(
        self, observation: Mapping[str, npt.NDArray[Any]], rng: np.random.Generator | None = None
    ) -> npt.NDArray[np.int64]:
        """Slots for N observations (or one), sampled from π_S^A with `rng`, or the most probable without.  # (N,)"""
        single = np.ndim(observation["mask"]) == 1
        arrays = {key: np.asarray(observation[key])[None] if single else observation[key] for key in KEYS}
        tensors = {key: torch.as_tensor(np.asarray(value, dtype=np.int64)) for key, value in arrays.items()}
        device = next(iter(self.student.parameters())).device
        context, length, ids, mask = (tensors[key].to(device) for key in KEYS)
        policy = self.student.log_policy(context, length, ids, mask.bool()).double().cpu().numpy()  # (N, K)
        noise = np.zeros(policy.shape) if rng is None else rng.gumbel(size=policy.shape)
        legal = np.where(arrays["mask"].astype(bool), policy + noise, -np.inf)
        return np.asarray(legal.argmax(-1)[0] if single else legal.argmax(-1))

    def state(self) -> dict[str, Any]:
        """Everything the next update depends on; of weights that are spread over processes, all in process 0."""
        state = {
            "agent": self.name,
            "updates": self.updates,
            "student": self.student.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "stages": self.stages.state_dict(),
            "extras": {name: module.state_dict() for name, module in self.extras().items()},
        }
        found: dict[str, Any] = sharding.whole(state)
        return found

    def save(self, directory: str | Path, state: dict[str, Any] | None = None) -> None:
        """Write the state, that of now if none is given, whole or not at all."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        partial = directory / (STATE + ".partial")
        torch.save(state or self.state(), partial)
        os.replace(partial, directory / STATE)

    def load(self, directory: str | Path) -> None:
        """Go on from `save`: the next update equals the one that would have followed it.

        Raises: InputError: nothing saved there, or by another agent.
        """
        path = Path(directory) / STATE
        if not path.is_file():
            raise InputError(f"no saved agent at {path}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["agent"] != self.name:
            raise InputError(f"{path} was saved by {state['agent']}, not by {self.name}; use another directory")
        own = self.student.state_dict()
        found = {name: sharding.spread(value, own.get(name)) for name, value in state["student"].items()}
        self.student.load_state_dict(found)
        self.optimiser.load_state_dict(state["optimiser"])
        sharding.spread_moments(self.optimiser)
        self.generator.set_state(state["generator"])
        if "stages" in state:  # not in checkpoints older than they are
            self.stages.load_state_dict(state["stages"])
        for name, module in self.extras().items():
            module.load_state_dict(state["extras"][name])
        self.updates = state["updates"]


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value is of a field's type: an int does for a float, nothing but a bool for a bool."""
    if typing.get_origin(hint) is Literal:
        return True  # the Config names its choices itself
    kinds = typing.get_args(hint) or (hint,)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (float in kinds and number) or type(value) in kinds


def _kinds(hint: Any) -> str:
    names = typing.get_args(hint) or (hint,)
    return " or ".join(getattr(kind, "__name__", repr(kind)) for kind in names)


KEYS = ("context", "length", "ids", "mask")


def schedule(update: float, warmup: int, total: int) -> float:
    """Share of the peak rate at a 0-based update: linear warm-up over at most total/10, then a cosine to 0."""
    warm = min(warmup, total // 10)
    if update < warm:
        return (update + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * min((update - warm) / (total - warm), 1.0)))
