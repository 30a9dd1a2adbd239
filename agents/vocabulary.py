"""Part of the vocabulary: the candidates of a batch, the tokens taken and a sample of the rest, and what they weigh.

A softmax over V tokens is a head of V rows at every state. Where a loss looks at candidates only, the rows of all the
batch's candidates are enough, and exact; what is over all of V, the log-partition, is estimated from a sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agents.episodes import Episodes
from agents.errors import InputError

SHARE = 0.5
"""Of the vocabulary: with more of it at hand, all of it is hardly dearer."""


@dataclass(frozen=True)
class Part:
    """U tokens of a vocabulary, in ascending order."""

    tokens: Tensor  # (U,) int64
    log_weight: Tensor  # (U,) nats: 0 of tokens that had to be there, log((V − C)/m) of m sampled from the other V − C

    def places(self, ids: Tensor) -> Tensor:
        """Where these tokens stand in the part; anything for a token that is not in it.  # (...) -> (...)"""
        found: Tensor = torch.searchsorted(self.tokens, ids)
        return found.clamp(max=len(self.tokens) - 1)


def needed(episodes: Episodes) -> Tensor:
    """The tokens whose logits a loss asks for: all candidates, and what was taken.  # (C,) int64, ascending"""
    found: Tensor = torch.unique(torch.cat([episodes.ids[episodes.mask], episodes.taken[episodes.steps]]))
    return found


def part_of(needed: Tensor, size: int, negatives: int, seed: int) -> Part:
    """These tokens and up to `negatives` others, drawn without replacement, each as likely.

        log Σ_{a ∈ V} exp z(a)  ≈  log Σ_{a ∈ part} w(a) exp z(a),   w = 1 or (V − C)/m

    The sum is unbiased, so its logarithm is too low by half its relative variance: about (1 − share of `needed`)² ·
    cv²/(2m), cv the coefficient of variation of exp z among the others. With m = V − C it is exact; with m = 0 the
    others count for nothing.

    Source: Jean et al. (2015), arXiv:1412.2007, with sampling among the others alone.
    Args:
        needed: (C,) int64, ascending; size: V.
        negatives: most tokens to draw.
        seed: of the draw; equal seeds draw equally.
    """
    others = torch.ones(size, dtype=torch.bool, device=needed.device)
    others[needed] = False
    rest = size - len(needed)
    count = min(negatives, rest)
    if count == rest:
        return Part(torch.arange(size, device=needed.device), torch.zeros(size, device=needed.device))
    drawn = torch.randperm(rest, generator=torch.Generator().manual_seed(seed))[:count].to(needed.device)
    tokens, order = torch.cat([needed, others.nonzero()[:, 0][drawn]]).sort()
    weight = math.log(rest / count) if count else 0.0
    return Part(tokens, torch.where(order < len(needed), 0.0, weight))


@dataclass(frozen=True)
class Head:
    """Which rows of its vocabulary head a student computes while it learns.

    Raises: InputError: another word than these three, or a negative number of negatives.
    """

    rows: str = "auto"
    """"auto" computes the candidates' rows where these and the negatives are at most a `SHARE` of the vocabulary."""
    negatives: int = 1024
    """Tokens sampled among the others, for the log-partition; 0 leaves it to the candidates, and no leak is seen."""

    def __post_init__(self) -> None:
        if self.rows not in ("auto", "all", "candidates"):
            raise InputError(f'head rows are {self.rows!r}; they must be "auto", "all" or "candidates"')
        if self.negatives < 0:
            raise InputError(f"{self.negatives} negatives; there must be at least 0")

    def part(self, episodes: Episodes, layer: Any) -> Part | None:
        """The part of the vocabulary for these episodes; None: all of it.

        What is drawn depends on the episodes alone, so that a target network sees the same part, and a run that was
        stopped goes on as it would have.

        Raises: InputError: rows are to be chosen of a head that is no plain linear layer.
        """
        if self.rows == "all" or (self.rows == "auto" and type(layer) is not nn.Linear):
            return None
        if type(layer) is not nn.Linear:
            raise InputError(f'the head is a {type(layer).__name__}, not a Linear; use head rows "all"')
        size = layer.weight.shape[0]
        if self.rows == "auto" and self.negatives >= SHARE * size:
            return None
        named = needed(episodes)
        if self.rows == "auto" and len(named) + self.negatives > SHARE * size:
            return None
        place = torch.arange(1, episodes.tokens.shape[1] + 1, device=named.device)
        return part_of(named, size, self.negatives, int((episodes.tokens * place).sum()) % 2**31)
