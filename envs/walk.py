"""What a walk is: N texts that a model extends together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


class Walk(Protocol):
    """N texts that a model extends together, token by token."""

    @property
    def log_probs(self) -> Tensor:
        """(N, V) float32, nats: the next token of every row; unspecified for rows never started."""
        ...

    def start(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """Begin these rows anew with these prompts; the other rows stay as they are."""
        ...

    def step(self, tokens: Tensor, active: Tensor) -> None:
        """Append `tokens` (N,) int64 to the rows that are `active` (N,) bool."""
        ...

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Forget all rows but these; they are renumbered in this order."""
        ...


@runtime_checkable
class Expectant(Protocol):
    """A walk that can read prompts before they are started."""

    def expect(self, prompts: Sequence[Sequence[int]]) -> None:
        """Say which prompts are likely to be started next."""
        ...


def full_of(walk: Walk, rows: int) -> Tensor:
    """Rows (N,) bool of a walk to which no token can be appended, however many theirs are.

    Those that a walk names as `full`: it reads texts in other tokens than it is asked in (`envs.carried_teacher`).
    """
    full: Tensor | None = getattr(walk, "full", None)
    return torch.zeros(rows, dtype=torch.bool) if full is None else full


def scores_of(walk: Walk) -> tuple[Tensor, Tensor]:
    """Logits (N, V) of a walk, of any float type and on its device, and their log Σ exp (N,), float32.

    A walk that has `logits` and `log_norm` is read by these, so that (N, V) log-probabilities need not be written.
    """
    logits: Tensor | None = getattr(walk, "logits", None)
    if logits is None:
        return walk.log_probs, torch.zeros(len(walk.log_probs))
    norm: Tensor = getattr(walk, "log_norm")  # noqa: B009 - not of every Walk
    return logits, norm
