"""Episodes: a checked batch of whole episodes, the one thing every agent learns from.

Symbols: B episodes, T steps of the longest, L context length, K slots, V vocabulary; log-probabilities and rewards in
nats. Row t of a (B, T+1, ...) field is the state before step t, so row `length` is the state after the last step. There
is no `done` flag: termination is discount 0 and an empty row `length`; truncation keeps discount and candidates.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from agents.errors import InputError

PAD_LOGP = -1e4  # nats; finite, so that 0 · log-probability stays 0
FILL: dict[str, float] = {"logp": PAD_LOGP, "slots": -1, "weights": 1}
ROOM = 1e-4  # nats a log-probability may lie above 0 by rounding
AXES = {
    "tokens": "BL",
    "prompt_length": "B",
    "length": "B",
    "ids": "BNK",
    "logp": "BNK",
    "mask": "BNK",
    "slots": "BT",
    "rewards": "BT",
    "discounts": "BT",
    "in_set": "BT",
    "behaviour_logp": "BT",
    "teacher_logp_taken": "BT",
    "from_teacher": "B",
    "weights": "B",
    "version": "B",
    "teacher_logp": "BTV",
}
INTEGERS = {"tokens", "prompt_length", "length", "ids", "slots", "version"}
FLAGS = {"mask", "in_set", "from_teacher"}


@dataclass(frozen=True, eq=False)
class Episodes:
    """B whole episodes, padded to one shape; the contract under each field is enforced at construction.

    Raises: InputError naming the field, the first episode and step that break its contract.
    """

    tokens: Tensor
    """(B, L) int64. Prompt, then reply, left-aligned; padding 0."""
    prompt_length: Tensor
    """(B,) int64 >= 1. Tokens of the prompt."""
    length: Tensor
    """(B,) int64 in 1..T. Steps; prompt_length + length <= L. T is the longest length."""
    ids: Tensor
    """(B, T+1, K) int64. Candidate token ids; padding 0."""
    logp: Tensor
    """(B, T+1, K) float32 nats. Full-softmax teacher log-probability of each candidate; padding PAD_LOGP."""
    mask: Tensor
    """(B, T+1, K) bool. True = candidate; at least one in rows < length; row `length` is empty if and only if the
    episode terminated; rows beyond are empty."""
    slots: Tensor
    """(B, T) int64. Slot of the token taken: ids[b, t, slots] is that token; -1 outside the set and beyond the end."""
    rewards: Tensor
    """(B, T) float32 nats. 0 beyond the end."""
    discounts: Tensor
    """(B, T) float32 in [0, 1]. γ(1 − terminated), formed once; 0 beyond the end and at a terminating step."""
    in_set: Tensor
    """(B, T) bool. The token taken was a candidate: slots >= 0."""
    behaviour_logp: Tensor
    """(B, T) float32 <= 0. Log-probability the walker gave the token it took."""
    teacher_logp_taken: Tensor
    """(B, T) float32 <= 0. Full log π_T(a_t|s_t), in or outside the set."""
    from_teacher: Tensor
    """(B,) bool. The teacher walked (else the student)."""
    weights: Tensor | None = None
    """(B,) float32 > 0. Weight of each episode in every mean; 1 if not given."""
    version: Tensor | None = None
    """(B,) int64 >= 0. Updates the student had made when it drew the episode; 0 if not given, and of no meaning where
    the teacher walked."""
    teacher_logp: Tensor | None = None
    """(B, T, V) float32, attached per micro-batch to agents with needs = {"teacher_logits"}: log π_T(·|s_t)."""

    def __post_init__(self) -> None:
        if self.weights is None:
            object.__setattr__(self, "weights", torch.ones(self.length.shape, device=self.length.device))
        if self.version is None:
            object.__setattr__(self, "version", torch.zeros_like(self.length))
        self._check_shapes()
        self._check_values()

    def __len__(self) -> int:
        return int(self.length.shape[0])

    @property
    def steps(self) -> Tensor:
        """Steps that happened.  # (B, T) bool"""
        return torch.arange(self.slots.shape[1], device=self.length.device) < self.length[:, None]

    @cached_property
    def states(self) -> Tensor:
        """States with candidates: rows < length, and row `length` of a truncated episode.  # (B, T+1) bool"""
        return self.mask.any(-1)

    @property
    def terminated(self) -> Tensor:
        """Episodes that ended by themselves, not by a budget.  # (B,) bool"""
        return ~self.states.gather(1, self.length[:, None])[:, 0]

    @property
    def alive(self) -> Tensor:
        """Steps after which the text goes on, or would but for a budget: discounts are γ there.  # (B, T) bool"""
        last = torch.arange(self.slots.shape[1], device=self.length.device) == self.length[:, None] - 1
        return self.steps & ~(last & self.terminated[:, None])

    @property
    def taken(self) -> Tensor:
        """Token taken at each step; 0 beyond the end.  # (B, T) int64"""
        return self.tokens.gather(1, self._positions()).masked_fill(~self.steps, 0)

    @property
    def log_mass(self) -> Tensor:
        """log Z(s) of each state's candidates; 0 where there are none.  # (B, T+1) float32"""
        mass = torch.logsumexp(self.logp.masked_fill(~self.mask, PAD_LOGP), -1)
        return torch.where(self.states, mass, torch.zeros_like(mass))

    @property
    def step_weights(self) -> Tensor:
        """Weight of each step in a mean; 0 beyond the end.  # (B, T) float32"""
        assert self.weights is not None
        return self.weights[:, None] * self.steps

    def _positions(self) -> Tensor:
        """Position in `tokens` of each step's token, held inside the row beyond the end.  # (B, T)"""
        steps = torch.arange(self.slots.shape[1], device=self.length.device)
        return (self.prompt_length[:, None] + steps).clamp(max=self.tokens.shape[1] - 1)

    def fields(self) -> dict[str, Tensor]:
        """Every tensor by name, absent ones left out."""
        pairs = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: value for name, value in pairs if value is not None}

    def select(self, index: Tensor | Sequence[int]) -> Episodes:
        """These episodes, trimmed to their own longest length, context and set."""
        rows = torch.as_tensor(index, dtype=torch.int64, device=self.length.device)
        return _trim({name: value[rows] for name, value in self.fields().items()})

    def discounted(self, gamma: float) -> Episodes:
        """The same episodes under another γ; rewards that depend on γ must be built anew.

        Raises: InputError: gamma outside [0, 1].
        """
        if not 0 <= gamma <= 1:
            raise InputError(f"gamma is {gamma}; it must lie in [0, 1]")
        return dataclasses.replace(self, discounts=gamma * self.alive.float())

    def narrowed(self, kept: Tensor) -> Episodes:
        """The same episodes with the candidates that are `kept` (B, T+1, K): the first ones of each set, at least one.

        A token taken that is no longer a candidate is marked; whatever else is known of it stays.
        """
        slots = torch.where(kept[:, :-1].gather(2, self.slots.clamp(min=0)[..., None])[..., 0], self.slots, -1)
        sets = {"ids": self.ids.masked_fill(~kept, 0), "logp": self.logp.masked_fill(~kept, PAD_LOGP), "mask": kept}
        return _trim({**self.fields(), **sets, "slots": slots, "in_set": slots >= 0})

    def to(self, device: torch.device | str) -> Episodes:
        """The same episodes on another device."""
        return Episodes(**{name: value.to(device) for name, value in self.fields().items()})

    @staticmethod
    def concatenate(parts: Sequence[Episodes]) -> Episodes:
        """All episodes of the parts in order, padded to the largest T, L and K among them.

        Raises: InputError: no parts, or teacher_logp in some parts only.
        """
        if not parts:
            raise InputError("no episodes to concatenate; collect at least one")
        names = [set(part.fields()) for part in parts]
        if any(own != names[0] for own in names):
            raise InputError("teacher_logp is attached to some of the episodes only; attach it to all or to none")
        joined = {}
        for name in parts[0].fields():
            values = [part.fields()[name] for part in parts]
            shape = [max(value.shape[axis] for value in values) for axis in range(1, values[0].dim())]
            joined[name] = torch.cat([padded(value, shape, FILL.get(name, 0)) for value in values])
        return Episodes(**joined)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all; ids are kept in 32 bits."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        tensors = {
            name: (value.to(torch.int32) if name in INTEGERS else value).cpu().contiguous()
            for name, value in self.fields().items()
        }
        save_file(tensors, partial)
        os.replace(partial, path)

    @staticmethod
    def load(path: str | Path, rows: Sequence[int] | None = None) -> Episodes:
        """Read a file that `save` wrote, or only some of its rows.

        Raises: InputError: the file is missing or is not such a file.
        """
        if not Path(path).is_file():
            raise InputError(f"no episodes at {path}; write them with Episodes.save")
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: _read(file, name, rows) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is not an episodes file ({error}); write it anew") from error
        return _trim({name: value.long() if name in INTEGERS else value for name, value in tensors.items()})

    def _check_shapes(self) -> None:
        sizes: dict[str, int] = {}
        sizes["N"] = self.slots.shape[1] + 1 if self.slots.dim() == 2 else -1
        for name, value in self.fields().items():
            axes = AXES[name]
            wanted = torch.int64 if name in INTEGERS else torch.bool if name in FLAGS else torch.float32
            if value.dtype != wanted or value.dim() != len(axes):
                raise InputError(
                    f"Episodes.{name} is {value.dtype} of shape {tuple(value.shape)}; it must be {wanted} over ({axes})"
                )
            for axis, size in zip(axes, value.shape, strict=True):
                if sizes.setdefault(axis, size) != size:
                    raise InputError(f"Episodes.{name} has {axis} = {size} where the others have {sizes[axis]}")
        if 0 in sizes.values():
            raise InputError(f"Episodes need at least one episode, step and slot; sizes are {sizes}")

    def _check_values(self) -> None:
        assert self.weights is not None and self.version is not None
        steps, states, rows = self.steps, self.states, torch.arange(self.mask.shape[1], device=self.mask.device)
        require = self._require
        require("length", (self.length >= 1) & (self.length <= self.slots.shape[1]), "must lie in 1..T")
        require("length", self.length.max() == self.slots.shape[1], "T must be the longest length")
        require("prompt_length", self.prompt_length >= 1, "must be at least 1")
        require("tokens", self.prompt_length + self.length <= self.tokens.shape[1], "must hold prompt and reply")
        require("tokens", self.tokens >= 0, "must not be negative")
        require("weights", self.weights > 0, "must be positive")
        require("version", self.version >= 0, "must not be negative")
        for name in ("logp", "rewards", "discounts", "behaviour_logp", "teacher_logp_taken", "weights"):
            require(name, torch.isfinite(getattr(self, name)), "must be finite")
        require("mask", states[:, :-1] | ~steps, "needs a candidate before every step")
        require("mask", ~states | (rows <= self.length[:, None]), "must be empty beyond the end")
        require("logp", self.mask | (self.logp == PAD_LOGP), f"must be {PAD_LOGP} at padding")
        require("ids", self.mask | (self.ids == 0), "must be 0 at padding")
        require("ids", self.ids >= 0, "must not be negative")
        for name in ("logp", "behaviour_logp", "teacher_logp_taken"):
            require(name, getattr(self, name) <= ROOM, "is a log-probability, at most 0")
        require("in_set", self.in_set == (self.slots >= 0), "must equal slots >= 0")
        require("in_set", steps | ~self.in_set, "must be False beyond the end")
        require("slots", (self.slots >= -1) & (self.slots < self.mask.shape[2]), "must lie in -1..K-1")
        slots = self.slots.clamp(min=0)[..., None]
        held = self.mask[:, :-1].gather(2, slots)[..., 0] & (self.ids[:, :-1].gather(2, slots)[..., 0] == self.taken)
        require("slots", held | ~self.in_set, "must point at the token taken (slots are not token ids)")
        there = (self.ids[:, :-1] == self.taken[..., None]) & self.mask[:, :-1]
        require("slots", self.in_set | ~steps | ~there.any(-1), "is -1 although the token taken is a candidate")
        self._check_ends(steps)

    def _check_ends(self, steps: Tensor) -> None:
        """Discounts: one γ an episode, 0 exactly at a terminating step and beyond the end."""
        require = self._require
        require("discounts", (self.discounts >= 0) & (self.discounts <= 1), "must lie in [0, 1]")
        for name in ("rewards", "discounts", "behaviour_logp", "teacher_logp_taken"):
            require(name, steps | (getattr(self, name) == 0), "must be 0 beyond the end")
        alive = self.alive
        require("discounts", alive | (self.discounts == 0), "must be 0 where the episode terminates")
        gamma = torch.where(alive, self.discounts, 0).amax()
        require("discounts", ~alive | (self.discounts == gamma), f"must be one γ ({float(gamma):g}) elsewhere")

    @staticmethod
    def _require(name: str, good: Tensor, contract: str) -> None:
        if not bool(good.all()):
            where = (~good).nonzero()[0].tolist() if good.dim() else []
            raise InputError(f"Episodes.{name} at {where}: {contract}")


def padded(value: Tensor, shape: Sequence[int], fill: float) -> Tensor:
    """`value` enlarged to (B, *shape) with `fill` on the far side."""
    if list(value.shape[1:]) == list(shape):
        return value
    wide = value.new_full((value.shape[0], *shape), fill)
    wide[tuple(slice(size) for size in value.shape)] = value
    return wide


def _trim(tensors: dict[str, Tensor]) -> Episodes:
    """Drop the steps, context and slots that none of the rows uses."""
    steps = int(tensors["length"].max())
    context = int((tensors["prompt_length"] + tensors["length"]).max())
    width = int(tensors["mask"].any(0).any(0).nonzero().max()) + 1
    keep = {"L": context, "N": steps + 1, "K": width, "T": steps}
    cut = {}
    for name, value in tensors.items():
        cut[name] = value[tuple(slice(keep.get(axis)) for axis in AXES[name])]
    return Episodes(**cut)


def _read(file: Any, name: str, rows: Sequence[int] | None) -> Tensor:
    if rows is None:
        whole: Tensor = file.get_tensor(name)
        return whole
    part = file.get_slice(name)
    return torch.cat([part[row : row + 1] for row in rows])
