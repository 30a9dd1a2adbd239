"""Equation (1): the candidate set, the shortest prefix of the teacher's tokens that holds the mass p."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from envs.errors import InputError

PAD_LOGP = -1e4  # finite: an infinite padding would poison learners that multiply by a mask
PREFILTER = 64


class Candidates(NamedTuple):
    """Candidate sets of any leading shape, most probable token first."""

    ids: Tensor  # (..., K) int64, token ids; 0 on padding
    logp: Tensor  # (..., K) float32, nats, the teacher's full softmax; PAD_LOGP on padding
    mask: Tensor  # (..., K) bool, True = candidate
    cut: Tensor  # (...,) bool, True = `max_candidates` shortened the set

    @property
    def sizes(self) -> Tensor:
        """Candidates per state, (...,) int64."""
        return self.mask.sum(-1)

    @property
    def log_mass(self) -> Tensor:
        """log Z(s) = log Σ_{a ∈ A_p(s)} π_T(a|s), nats, (...,); −∞ for a row without a candidate."""
        return torch.logsumexp(self.logp.masked_fill(~self.mask, -torch.inf), -1).clamp(max=0.0)

    @property
    def lost_mass(self) -> Tensor:
        """1 − Z(s), (...,), in [0, 1]."""
        return -torch.expm1(self.log_mass)


def check_top_p(p: float, max_candidates: int | None = None) -> None:
    """Raises: InputError: p outside (0, 1] or max_candidates below 1."""
    if not 0.0 < p <= 1.0:
        raise InputError(f"top_p = {p} is outside (0, 1]; 0.9 is a usual value, 1 keeps the whole vocabulary")
    if max_candidates is not None and max_candidates < 1:
        raise InputError(f"max_candidates = {max_candidates} is below 1; 64 is a usual value")


def normalise(logits: Tensor) -> Tensor:
    """Log-probabilities of logits (..., V), float32, nats.

    Raises: InputError: a row holds NaN or +∞, or nothing but −∞.
    """
    logp = torch.log_softmax(logits.float(), -1)
    # NaN, +∞ and a row of −∞ all make the whole row NaN, so that one column tells.
    broken = logp[..., 0].isnan()
    if broken.any():
        row = int(broken.flatten().nonzero()[0])
        raise InputError(
            f"the model's logits of row {row} hold NaN or +inf, or are all -inf; "
            "check the checkpoint (half precision may have overflowed: load it in float32)"
        )
    return logp


def width_of(vocabulary: int, p: float, max_candidates: int | None) -> int:
    """K: how many slots a state has; the whole vocabulary at p = 1, which overrides `max_candidates`."""
    return vocabulary if p == 1.0 or max_candidates is None else min(max_candidates, vocabulary)


def top_p(logp: Tensor, p: float, max_candidates: int | None = None) -> Candidates:
    """The candidate sets of next-token distributions.

        A_p(s) = the shortest prefix of tokens, by π_T(·|s) descending (ties: lower id first), of mass ≥ p

    Source: equation (1) of the design; Holtzman et al. (2020), arXiv:1904.09751, eq. 2-3.

    The vocabulary is not sorted: the 64 most probable tokens usually settle a row; rows they do not settle are sorted
    whole. Masses are summed in float64.

    Args:
        logp: (..., V) normalised log-probabilities, nats; −∞ allowed.
        p: mass in (0, 1]; 1 keeps the whole vocabulary, and then `max_candidates` does not apply.
        max_candidates: K, the most candidates kept; None = as many as the widest of these sets needs.
    Returns: Candidates of (..., K).
    Raises: InputError: p or max_candidates out of range, a row with NaN, or a row of nothing but −∞.
    >>> top_p(torch.tensor([0.2, 0.5, 0.3]).log(), 0.6, 2).ids
    tensor([1, 2])
    """
    check_top_p(p, max_candidates)
    shape, vocabulary = logp.shape[:-1], logp.shape[-1]
    rows = logp.reshape(-1, vocabulary)
    best = rows.max(-1).values
    if not bool(torch.isfinite(best).all()):
        row = int((~torch.isfinite(best)).nonzero()[0])
        raise InputError(f"row {row} of the log-probabilities holds NaN or is all -inf; normalise the logits first")
    if p == 1.0:
        keep = torch.full_like(best, vocabulary, dtype=torch.int64)
        values, ids = torch.sort(rows, dim=-1, descending=True, stable=True)
    else:
        values, ids, keep = _nuclei(rows, p)
    width = width_of(vocabulary, p, max_candidates) if max_candidates is not None or p == 1.0 else int(keep.max())
    values, ids = _fit(values, width), _fit(ids, width)
    mask = torch.arange(width, device=logp.device) < keep[:, None]  # (N, K)
    return Candidates(
        ids=ids.masked_fill(~mask, 0).reshape(*shape, width),
        logp=values.float().clamp(min=PAD_LOGP).masked_fill(~mask, PAD_LOGP).reshape(*shape, width),
        mask=mask.reshape(*shape, width),
        cut=(keep > width).reshape(shape),
    )


def _nuclei(rows: Tensor, p: float) -> tuple[Tensor, Tensor, Tensor]:
    """Sorted log-probabilities and ids of a prefix wide enough for every row's set, and the sets' sizes (N,)."""
    vocabulary = rows.shape[-1]
    if vocabulary <= 2 * PREFILTER:
        values, ids = torch.sort(rows, dim=-1, descending=True, stable=True)
        return values, ids, _sizes(values, p)
    values, ids = torch.topk(rows, PREFILTER + 1, -1)
    # topk leaves ties in any order: by id first, then stably by value.
    ids, order = torch.sort(ids, -1)
    values, by_value = torch.sort(values.gather(-1, order), dim=-1, descending=True, stable=True)
    ids = ids.gather(-1, by_value)
    # A tie at the last place may have left a lower id outside; such rows, and rows short of p, are not settled.
    mass = values[:, :PREFILTER].double().exp().sum(-1)
    keep = _sizes(values[:, :PREFILTER], p)
    edge = values.gather(-1, (keep - 1)[:, None])[:, 0]
    open_rows = ((mass < p) | (edge <= values[:, PREFILTER])).nonzero()[:, 0]
    if not len(open_rows):
        return values, ids, keep
    full_values, full_ids = torch.sort(rows[open_rows], dim=-1, descending=True, stable=True)
    full_keep = _sizes(full_values, p)
    width = max(PREFILTER, int(full_keep.max()))
    values, ids = _fit(values, width), _fit(ids, width)
    values[open_rows], ids[open_rows] = full_values[:, :width], full_ids[:, :width]
    keep[open_rows] = full_keep
    return values, ids, keep


def _sizes(sorted_logp: Tensor, p: float) -> Tensor:
    """How many leading tokens reach the mass p, at least 1 and at most those with any probability."""
    mass = sorted_logp.double().exp().cumsum(-1)
    possible = torch.isfinite(sorted_logp).sum(-1)
    return torch.minimum((mass < p).sum(-1) + 1, possible).clamp(min=1)


def _fit(values: Tensor, width: int) -> Tensor:
    """The first `width` columns, padded with zeros where there are fewer."""
    missing = width - values.shape[-1]
    return values[:, :width] if missing <= 0 else torch.nn.functional.pad(values, (0, missing))
