"""Measures by position in the reply, and how error grows along a student's own text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDING = 1e-6  # nats; less accumulated error than this is none
REACHED = 0.1  # share of replies that must still go on where the error is read


def places(lengths: Sequence[int]) -> Tensor:
    """The 0-based position in its reply of every token of all replies, one after another.  # (Σ lengths,)"""
    return torch.cat([torch.arange(length) for length in lengths])


def by_position(values: Tensor, at: Tensor) -> list[float]:
    """Mean of `values` (T,) at each position; replies that have ended are not in it."""
    return (torch.bincount(at, values) / torch.bincount(at)).tolist()


def excess_error(own: Sequence[float], beside: Sequence[float]) -> list[float]:
    """What a student's own text adds to the error that it would make on the teacher's, relative to that.

        ExAccErr(l) = (R(l) − l ε(l)) / (l ε(l)),   R(l) = Σ_{t<l} KL_t on its own prefixes,
        l ε(l) = Σ_{t<l} KL_t on the teacher's;   KL_t = E KL(π_T‖π_S) at position t, over replies that reach it

    In words: both sides of the text are drawn by sampling, prompt by prompt; R is the student's regret against the
    teacher along its own samples, ε its mean error per token along the teacher's, both as full-vocabulary divergences.
    Below 0 the student errs less on its own text than on the teacher's.

    Source: Arora et al. (2022), arXiv:2204.01171 (ExAccErr, there in per cent), as Gu et al. (2023), arXiv:2306.08543,
        measure distilled students by it. Departures: a share, not per cent; replies end, so that each KL_t is a mean
        over the replies that reach t, and their sum is of no one set of replies (the authors' code averages sums over
        the texts that reach l); one sample a prompt.
    Args:
        own, beside: mean KL(π_T‖π_S) by position, nats.
    Returns: ExAccErr(1), ExAccErr(2), …: as far as both sides reach and it is finite; 0 where neither has an error.
    """
    total = other = 0.0
    found = []
    for ours, theirs in zip(own, beside, strict=False):
        total, other = total + ours, other + theirs
        nothing = 0.0 if total < ROUNDING else math.inf
        value = nothing if other < ROUNDING else (total - other) / other
        if not math.isfinite(value):
            break
        found.append(value)
    return found


def at_the_end(excess: Sequence[float], *counts: Sequence[int]) -> float | None:
    """ExAccErr at the last position that a tenth of the replies of every side reach; None where it is not known."""
    last = min(sum(count >= REACHED * side[0] for count in side) for side in counts)
    return excess[last - 1] if last <= len(excess) else None
