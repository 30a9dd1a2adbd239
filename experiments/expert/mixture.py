"""Student and expert in one distribution, and the gate between them fitted by likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.expert.counts import Evidence

STEPS = 60  # of a bisection: λ to 2^-60
QUANTILES = 20  # thresholds that are tried, besides 0
PARTS = 4
"""Weights of a gate: one for each quarter of the evidence."""


@dataclass(frozen=True)
class Gate:
    """When the expert is heard, and how much."""

    weights: tuple[float, ...]
    """(4,) λ in [0, 1]: where ε(s) < ¼, < ½, < ¾, and above; 0: never, the student alone."""
    threshold: float
    """h ≥ 0, nats of the student's entropy."""

    def weight(self, share: float) -> float:
        """λ of this evidence ε(s)."""
        return self.weights[int(part_of(share))]


def part_of(share: Any) -> Any:
    """Which quarter evidence is in, a number or an array of them: ⌊4ε⌋, at most 3."""
    return np.minimum(np.floor(np.multiply(share, PARTS)), PARTS - 1).astype(int)


SHUT = Gate((0.0,) * PARTS, 0.0)


def mixture(scores: Tensor, evidence: Sequence[Evidence], gate: Gate) -> Tensor:
    """The student's scores, and log-probabilities of the mixture in the rows where the gate is open.

        π(a|s) = (1 − g ε(s)) π_S(a|s) + g e(a|s),   g = λ(ε(s)) · 1[H(π_S(·|s)) > h],   ε(s) = Σ_a e(a|s)

    It sums to 1. A row whose gate is shut keeps its scores to the bit; with none open the very tensor is returned. A
    token that the scores rule out (−∞) stays out, and the expert's mass for it goes to the student.

    Source: the linear interpolation of kNN-LM, Khandelwal et al. (2020, arXiv:1911.00172, equation 3), with the gate of
    pointer sentinel mixtures (arXiv:1609.07843) as steps in the student's entropy and in the evidence.
    Args:
        scores: (N, V) logits or log-probabilities of the student, nats.
        evidence: e of each row; tokens beyond V count as ruled out.
    Returns: (N, V), float32 where a gate is open.
    """
    return opened(scores, evidence, gate)[0]


def opened(scores: Tensor, evidence: Sequence[Evidence], gate: Gate) -> tuple[Tensor, list[int]]:
    """`mixture`, and the rows whose gate is open."""
    weights = [gate.weight(own.share) if len(own.ids) else 0.0 for own in evidence]
    rows = [row for row, weight in enumerate(weights) if weight > 0]
    if not rows:
        return scores, []
    logp = scores[rows].double().log_softmax(-1)
    heard = entropy(logp) > gate.threshold
    rows = [row for row, is_heard in zip(rows, heard.tolist(), strict=True) if is_heard]
    if not rows:
        return scores, []
    found = scores.float().clone()
    found[rows] = _mixed(logp[heard], [evidence[row] for row in rows], [weights[row] for row in rows]).float()
    return found, rows


def _mixed(logp: Tensor, evidence: Sequence[Evidence], weights: Sequence[float]) -> Tensor:
    """(N, V) float64; all evidence in one list of entries, each with its row."""
    rows = np.repeat(np.arange(len(evidence)), [len(own.ids) for own in evidence])
    ids = np.concatenate([own.ids for own in evidence])
    mass = np.concatenate([weight * own.mass for own, weight in zip(evidence, weights, strict=True)])
    inside = ids < logp.shape[-1]
    row, token, added = (torch.from_numpy(part[inside]).to(logp.device) for part in (rows, ids, mass))
    added = added.masked_fill(logp[row, token] == -torch.inf, 0.0)
    heard = torch.zeros(len(logp), dtype=logp.dtype, device=logp.device).index_add_(0, row, added)
    found = logp + torch.log1p(-heard)[:, None]
    found[row, token] = torch.logaddexp(found[row, token], added.log())
    return found


def entropy(logp: Tensor) -> Tensor:
    """H = −Σ_a π(a) log π(a) of log-probabilities (..., V), in nats; a token without mass adds nothing."""
    return -torch.where(logp > -torch.inf, logp.exp() * logp, 0.0).sum(-1)


class States(NamedTuple):
    """What a gate is fitted on: T states and the tokens that came next there, each (T,) float64."""

    entropy: NDArray[np.float64]
    """H(π_S), nats."""
    student: NDArray[np.float64]
    """π_S(a_t|s_t)."""
    expert: NDArray[np.float64]
    """e(a_t|s_t)."""
    share: NDArray[np.float64]
    """ε(s_t)."""


def fitted(states: States) -> tuple[Gate, float]:
    """The gate that makes these tokens most likely, and what it gains, in nats a token.

        L(λ, h) = Σ_{t : H_t > h} log( 1 + λ(ε_t) (e_t(a_t) / π_S(a_t) − ε_t) )

    L is concave in each weight, whose best value is found by bisection of the derivative; h is the best of 0 and
    quantiles of the entropies where the expert has evidence. Weights of 0 gain 0: where nothing gains, the gate stays
    shut.

    Source: maximum likelihood of mixture weights; own derivation.
    Raises: ValueError: no state.
    """
    if not len(states.entropy):
        raise ValueError("a gate is fitted on at least one state")
    slope = states.expert / np.maximum(states.student, np.finfo(float).tiny) - states.share
    there, part = states.entropy[states.share > 0], part_of(states.share)
    levels = [0.0, *np.quantile(there, np.linspace(0, 1, QUANTILES, endpoint=False)).tolist()] if len(there) else [0.0]
    best, most = SHUT, 0.0
    for threshold in dict.fromkeys(levels):
        own = [slope[(states.entropy > threshold) & (part == number)] for number in range(PARTS)]
        weights = tuple(map(_best_weight, own))
        gain = sum(float(np.log1p(weight * x).sum()) for weight, x in zip(weights, own, strict=True))
        if gain > most:
            best, most = Gate(weights, threshold), gain
    return best, most / len(states.entropy)


def _best_weight(slope: NDArray[np.float64]) -> float:
    """argmax over λ in [0, 1] of Σ log(1 + λ·slope); the slopes are above −1."""

    def rising(weight: float) -> bool:
        return bool((slope / (1.0 + weight * slope)).sum() > 0)

    if not len(slope) or not rising(0.0):
        return 0.0
    low, high = 0.0, 1.0
    if rising(high):
        return high
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) else (low, middle)
    return low
