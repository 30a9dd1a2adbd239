"""Part of the vocabulary: the candidates of an episode, the tokens taken and a sample of the rest, and what they weigh.

A softmax over V tokens is a head of V rows at every state. Where a loss looks at candidates only, the rows of its
episode's candidates are enough, and exact; what is over all of V, the log-partition, is estimated from a sample.
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
    """The tokens whose logits are computed: every episode's own C of them, and M that all episodes share.

    Logits of a state have M + max C columns: the shared tokens, its episode's own, and nothing.
    """

    shared: Tensor  # (M,) int64
    own: Tensor  # (ΣC,) int64, one episode after another
    sizes: list[int]  # C of each episode
    log_weight: Tensor  # (B, M + max C) nats: what a column counts for in the log-partition; −inf for nothing
    ids: Tensor  # (B, T+1, K) int64 columns of the candidates
    taken: Tensor  # (B, T) int64 columns of the tokens taken

    @property
    def width(self) -> int:
        """M + max C."""
        return int(self.log_weight.shape[1])

    def logits(self, hidden: Tensor, row: Tensor, weight: Tensor, bias: Tensor | None, sparse: bool = False) -> Tensor:
        """W h + b of packed states, in these columns.  # (N, D) -> (N, M + max C)

        Args:
            row: (N,) episode of each state, ascending.
            weight: (V, D); bias: (V,).
            sparse: gradients of `weight` by rows.
        """
        tokens = torch.cat([self.shared, self.own])
        shared, *own = self._split(nn.functional.embedding(tokens, weight, sparse=sparse))
        offset, *offsets = self._split(bias[tokens] if bias is not None else weight.new_zeros(len(tokens)))
        width, parts = self.width - len(self.shared), []
        states = torch.split(hidden, row.bincount(minlength=len(self.sizes)).tolist())
        for some, rows, shift in zip(states, own, offsets, strict=True):
            parts.append(nn.functional.pad(nn.functional.linear(some, rows, shift), (0, width - len(rows))))
        return torch.cat([nn.functional.linear(hidden, shared, offset), torch.cat(parts)], 1)

    def select(self, rows: Tensor, states: int, candidates: int) -> Part:
        """That of these episodes, of so many states with so many candidates; its columns stay where they are."""
        names = torch.split(self.own, self.sizes)
        own, sizes = torch.cat([names[row] for row in rows.tolist()]), [self.sizes[row] for row in rows.tolist()]
        ids, taken = self.ids[rows, :states, :candidates], self.taken[rows, : states - 1]
        return Part(self.shared, own, sizes, self.log_weight[rows], ids, taken)

    def _split(self, values: Tensor) -> tuple[Tensor, ...]:
        return torch.split(values, [len(self.shared), *self.sizes])


def part_of(episodes: Episodes, size: int, negatives: int, seed: int) -> Part:
    """What the episodes name, and up to `negatives` other tokens, drawn without replacement.

    An episode names its candidates and what was taken. Of the tokens that it does not name, those that another episode
    of the batch does are likelier than the rest: they are drawn apart, up to half of the negatives, and

        log Σ_{a ∈ V} exp z(a)  ≈  log Σ_{a ∈ part} w(a) exp z(a),   w = 1 of named ones, n/m of m drawn among n

    Each sum is unbiased, so the logarithm is too low by half its relative variance, about Σ_s share_s² · cv_s² ·
    (1/m_s − 1/n_s)/2 over the two kinds s, with the share of all exp z and its coefficient of variation among a kind.
    Where all are drawn it is exact; with no negatives, others count for nothing.

    Source: Jean et al. (2015), arXiv:1412.2007, with stratified sampling among the others alone.
    Args:
        size: V; negatives: most tokens to draw; seed: of the draw, equal seeds draw equally.
    """
    device = episodes.tokens.device
    named, columns, taken = _own(episodes, size)
    others = torch.ones(size, dtype=torch.bool, device=device)
    others[torch.cat(named)] = False
    known, unknown = (~others).nonzero()[:, 0], others.nonzero()[:, 0]
    first = min(len(known), max(negatives // 2, negatives - len(unknown)))
    generator = torch.Generator().manual_seed(seed)
    drawn = [_draw(known, first, generator), _draw(unknown, negatives - first, generator)]
    shared = torch.cat(drawn)
    width = max(len(own) for own in named)
    weights = torch.full((len(named), len(shared) + width), -math.inf, device=device)
    mine = torch.zeros(size, dtype=torch.bool, device=device)
    for row, own in enumerate(named):
        mine[own] = True
        fresh = ~mine[drawn[0]]
        mine[own] = False
        weights[row, : len(fresh)][fresh] = math.log(max(len(known) - len(own), 1) / max(int(fresh.sum()), 1))
        weights[row, len(fresh) : len(shared)] = math.log(max(len(unknown), 1) / max(len(drawn[1]), 1))
        weights[row, len(shared) : len(shared) + len(own)] = 0.0
    own, sizes = torch.cat(named), [len(own) for own in named]
    return Part(shared, own, sizes, weights, len(shared) + columns, len(shared) + taken)


def _own(episodes: Episodes, size: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """The tokens that each episode names, ascending; where its candidates (B, T+1, K) and its tokens (B, T) stand."""
    seen = torch.zeros(size, dtype=torch.bool, device=episodes.tokens.device)
    place = torch.zeros(size, dtype=torch.int64, device=seen.device)
    named, columns, taken = [], torch.zeros_like(episodes.ids), torch.zeros_like(episodes.taken)
    for row in range(len(episodes)):
        seen[episodes.ids[row][episodes.mask[row]]] = True
        seen[episodes.taken[row][episodes.steps[row]]] = True
        own = seen.nonzero()[:, 0]
        seen[own] = False
        place[own] = torch.arange(len(own), device=seen.device)
        columns[row] = torch.where(episodes.mask[row], place[episodes.ids[row]], 0)
        taken[row] = torch.where(episodes.steps[row], place[episodes.taken[row]], 0)
        named.append(own)
    return named, columns, taken


def _draw(tokens: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Up to that many of these, each as likely."""
    if count >= len(tokens):
        return tokens
    return tokens[torch.randperm(len(tokens), generator=generator)[:count].to(tokens.device)]


@dataclass(frozen=True)
class Head:
    """Which rows of its vocabulary head a student computes while it learns.

    Raises: InputError: another word than these three, or a negative number of negatives.
    """

    rows: str = "auto"
    """"auto" computes the candidates' rows where these and the negatives are at most a `SHARE` of the vocabulary."""
    negatives: int = 1024
    """Tokens sampled among the others, for the log-partition; 0 leaves it to the candidates, and no leak is seen."""
    resting: bool = False
    """Let the vocabulary's rows that a batch does not touch rest, as in `agents.optimiser.RestingRows`."""

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
        place = torch.arange(1, episodes.tokens.shape[1] + 1, device=episodes.tokens.device)
        found = part_of(episodes, size, self.negatives, int((episodes.tokens * place).sum()) % 2**31)
        return None if self.rows == "auto" and found.log_weight.shape[1] > SHARE * size else found
