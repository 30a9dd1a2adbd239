"""Equation (1): the candidate set, the shortest prefix of the teacher's tokens that holds the mass p."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from envs.errors import InputError

PAD_LOGP = -1e4  # finite: an infinite padding would poison learners that multiply by a mask
WINDOWS = (16, 64, 256, 1024, 4096)  # how many of the most probable tokens are looked at, in turn
BLOCK = 64  # tokens of a block of a wide vocabulary, of which the largest is found first
FEW = 4  # rows on the CPU up to which a row costs NumPy less than torch's operations cost


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
        return self.logp.exp().sum(-1).log_().clamp_(max=0.0)  # exp(PAD_LOGP) is 0

    @property
    def lost_mass(self) -> Tensor:
        """1 − Z(s), (...,), in [0, 1]."""
        return -torch.expm1(self.log_mass)

    def emptied(self, gone: Tensor) -> Candidates:
        """The same without any candidate where `gone`, (...,) bool."""
        wide = gone[..., None]
        return Candidates(
            ids=self.ids.masked_fill(wide, 0),
            logp=self.logp.masked_fill(wide, PAD_LOGP),
            mask=self.mask & ~wide,
            cut=self.cut & ~gone,
        )


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
    _refuse_broken(logp[..., 0].isnan())
    return logp


def log_norm(logits: Tensor) -> Tensor:
    """log Σ_v exp(logits), (...,) float32: what log-probabilities are short of their logits, without writing (..., V).

    Raises: InputError: a row holds NaN or +∞, or nothing but −∞.
    """
    rows = logits.reshape(-1, logits.shape[-1])
    few = 2**20 // rows.shape[1] + 1
    if len(rows) <= FEW and rows.device.type == "cpu" and not rows.requires_grad:
        scores = rows.float().numpy()
        with np.errstate(invalid="ignore"):  # it makes the NaN that is refused below
            most = scores.max(-1, keepdims=True)
            found = torch.from_numpy(most[:, 0] + np.log(np.exp(scores - most).sum(-1)))
    elif rows.device.type != "cpu" or len(rows) <= few:
        found = rows.float().logsumexp(-1)
    else:  # a few rows at a time stay in the processor's cache; a copy of all of them would not
        found = torch.cat([part.float().logsumexp(-1) for part in torch.split(rows, few)])
    _refuse_broken(~torch.isfinite(found))
    return found.reshape(logits.shape[:-1])


def _refuse_broken(broken: Tensor) -> None:
    if broken.any():
        row = int(broken.flatten().nonzero()[0])
        raise InputError(
            f"the model's logits of row {row} hold NaN or +inf, or are all -inf; "
            "check the checkpoint (half precision may have overflowed: load it in float32)"
        )


def width_of(vocabulary: int, p: float, max_candidates: int | None) -> int:
    """K: how many slots a state has; the whole vocabulary at p = 1, which overrides `max_candidates`."""
    return vocabulary if p == 1.0 or max_candidates is None else min(max_candidates, vocabulary)


def top_p(logits: Tensor, p: float, max_candidates: int | None = None, *, log_norm: Tensor | None = None) -> Candidates:
    """The candidate sets of next-token distributions.

        A_p(s) = the shortest prefix of tokens, by π_T(·|s) descending (ties: lower id first), of mass ≥ p

    Source: equation (1) of the design; Holtzman et al. (2020), arXiv:1904.09751, eq. 2-3.

    As a rule the vocabulary is neither sorted nor normalised: the few most probable tokens settle a row, and rows they
    do not settle are looked at through wider and wider windows. Masses are summed in float64.

    Args:
        logits: (..., V) log-probabilities, nats; −∞ allowed. With `log_norm`, any logits.
        p: mass in (0, 1]; 1 keeps the whole vocabulary, and then `max_candidates` does not apply.
        max_candidates: K, the most candidates kept; None = as many as the widest of these sets needs.
        log_norm: (...,) what `log_norm` says of these logits; None where they are log-probabilities.
    Returns: Candidates of (..., K).
    Raises: InputError: p or max_candidates out of range, a row with NaN, or a row of nothing but −∞.
    >>> top_p(torch.tensor([0.2, 0.5, 0.3]).log(), 0.6, 2).ids
    tensor([1, 2])
    """
    check_top_p(p, max_candidates)
    shape, vocabulary = logits.shape[:-1], logits.shape[-1]
    rows = logits.reshape(-1, vocabulary)
    norms = None if log_norm is None else log_norm.reshape(-1)
    wanted = width_of(vocabulary, p, max_candidates)
    if p == 1.0:
        keep = torch.full((len(rows),), vocabulary, device=rows.device)
        values, ids = torch.sort(rows, dim=-1, descending=True, stable=True)
        logp = _normalised(values, norms)
    elif len(rows) <= FEW and rows.device.type == "cpu":
        logp, ids, keep = _few_nuclei(rows, norms, p, wanted)
    else:
        logp, ids, keep = _nuclei(rows, norms, p, wanted)
    if norms is None and not bool((finite := torch.isfinite(logp[:, 0])).all()):
        row = int((~finite).nonzero()[0])
        raise InputError(f"row {row} of the log-probabilities holds NaN or is all -inf; normalise the logits first")
    width = wanted if max_candidates is not None or p == 1.0 else int(keep.max())
    logp, ids = _fit(logp, width), _fit(ids, width)
    padding = torch.arange(width, device=logits.device) >= keep[:, None]  # (N, K)
    return Candidates(
        ids=ids.masked_fill(padding, 0).reshape(*shape, width),
        logp=logp.clamp(min=PAD_LOGP, max=0.0).masked_fill_(padding, PAD_LOGP).reshape(*shape, width),
        mask=~padding.reshape(*shape, width),
        cut=(keep > width).reshape(shape),
    )


def _normalised(values: Tensor, norms: Tensor | None) -> Tensor:
    return values.float() if norms is None else values.float() - norms[:, None]


def _nuclei(rows: Tensor, norms: Tensor | None, p: float, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of every row the log-probabilities and ids of a sorted prefix, and the size (N,) of its set, or of a part of that
    larger than `wanted`; the prefix is the set, or its first `wanted` tokens."""
    vocabulary = rows.shape[-1]
    blocks = _Blocks.of(rows)
    windows = (*(size for size in WINDOWS if 2 * size < vocabulary), vocabulary)
    logp, ids, keep, settled = _look(rows, None, blocks, norms, p, wanted, windows[0])
    pending = None
    for window in windows[1:]:
        if bool(settled.all()):
            break
        pending = (~settled).nonzero()[:, 0] if pending is None else pending[~settled]
        few = None if norms is None else norms[pending]
        values, found, size, settled = _look(rows, pending, blocks, few, p, wanted, window)
        logp, ids = _fit(logp, values.shape[1]), _fit(ids, values.shape[1])
        logp[pending], ids[pending], keep[pending] = values, found, size
    return logp, ids, keep


def _few_nuclei(rows: Tensor, norms: Tensor | None, p: float, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `_nuclei`, of a few rows on the CPU, one by one."""
    scores, log_z = rows.float().numpy(), np.zeros(len(rows), np.float32) if norms is None else norms.float().numpy()
    sets = [_nucleus(row, norm, p, wanted) for row, norm in zip(scores, log_z, strict=True)]
    width = max(len(ids) for ids, _, _ in sets)
    logp, ids = np.full((len(sets), width), PAD_LOGP, np.float32), np.zeros((len(sets), width), np.int64)
    for row, (chosen, their_logp, _) in enumerate(sets):
        ids[row, : len(chosen)], logp[row, : len(chosen)] = chosen, their_logp
    return torch.from_numpy(logp), torch.from_numpy(ids), torch.tensor([size for _, _, size in sets])


def _nucleus(
    scores: npt.NDArray[np.float32], norm: np.float32, p: float, wanted: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], int]:
    """The most probable tokens of one row (V,) in order, at most `wanted`, their log-probabilities, and the size of the
    set, or of a part of it larger than `wanted`; a window holds all that ties with its last one."""
    if not np.isfinite(scores.max()):
        return np.array([scores.argmax()]), scores[[scores.argmax()]], 1  # NaN, or all −∞, for the caller to see
    for window in (*(size for size in WINDOWS[1:] if 2 * size < len(scores)), len(scores)):
        least = np.partition(scores, -window)[-window]
        ids = np.flatnonzero((scores >= least) & (scores > -np.inf))
        ids = ids[np.argsort(-scores[ids], kind="stable")]
        logp = scores[ids] - norm
        short = int((np.exp(logp, dtype=np.float64).cumsum() < p).sum())
        if short < len(ids) or len(ids) > wanted:
            break
    size = min(short + 1, len(ids))
    return ids[:wanted][:size], logp[:wanted][:size], size


def _look(
    rows: Tensor,
    pending: Tensor | None,
    blocks: _Blocks | None,
    norms: Tensor | None,
    p: float,
    wanted: int,
    window: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The pending rows, or all, through one window: log-probabilities, ids, sizes of the sets, which are settled."""
    vocabulary = rows.shape[-1]
    values, ids = _best(rows, blocks, pending, min(window + 1, vocabulary))
    values = _normalised(values, norms)
    size = _sizes(values, window, p)
    settled = size <= (window if window < wanted else vocabulary)  # beyond `wanted` a set is cut, whatever its size
    if window < vocabulary:
        # A tie of the last token taken with the first beyond the window may have left a lower id outside.
        last = values.gather(-1, size.clamp(max=min(wanted, window))[:, None] - 1)
        settled &= (last > values[:, window:])[:, 0]
    taken = min(window, wanted)
    return values[:, :taken], ids[:, :taken], size, settled


class _Blocks(NamedTuple):
    """A wide vocabulary in blocks, with the largest entry of each."""

    entries: Tensor  # (N, V / BLOCK, BLOCK), a view
    peaks: Tensor  # (N, V / BLOCK)

    @classmethod
    def of(cls, rows: Tensor) -> _Blocks | None:
        count = rows.shape[-1] // BLOCK
        if count <= 2 * BLOCK:
            return None
        entries = rows[:, : count * BLOCK].reshape(len(rows), count, BLOCK)
        return cls(entries, entries.amax(-1))


def _best(rows: Tensor, blocks: _Blocks | None, pending: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest entries of the pending rows and their ids, ties by id; which of the entries that tie with the
    last one are among them is open.

    In a wide vocabulary they lie in the `count` blocks with the largest peaks, or behind the last whole block.
    """
    if blocks is None or 2 * count > blocks.peaks.shape[1]:
        part = rows if pending is None else rows[pending]
        if count == rows.shape[-1]:
            values, ids = torch.sort(part, dim=-1, descending=True, stable=True)
            return values, ids
        values, ids = torch.topk(part, count, -1)
    else:
        row = torch.arange(len(rows), device=rows.device) if pending is None else pending
        chosen = blocks.peaks[row].topk(count, -1, sorted=False).indices  # (n, count)
        near = blocks.entries[row[:, None], chosen].flatten(1)
        behind = blocks.entries.shape[1] * BLOCK
        values, place = torch.cat([near, rows[:, behind:][row]], -1).topk(count, -1)
        inside = chosen.gather(-1, (place // BLOCK).clamp(max=count - 1)) * BLOCK + place % BLOCK
        ids = torch.where(place < near.shape[1], inside, place - near.shape[1] + behind)
    if bool((values[:, 1:] == values[:, :-1]).any()):
        ids, order = torch.sort(ids, -1)
        values, by_value = torch.sort(values.gather(-1, order), dim=-1, descending=True, stable=True)
        ids = ids.gather(-1, by_value)
    return values, ids


def _sizes(sorted_logp: Tensor, window: int, p: float) -> Tensor:
    """How many leading tokens of the window reach the mass p, at least 1 and at most those with any probability;
    window + 1 where they do not. The column beyond the window, if there is one, tells whether any follow."""
    short = sorted_logp[:, :window].double().exp_().cumsum(-1) < p
    after = torch.isfinite(sorted_logp[:, 1:])
    return (short[:, : after.shape[1]] & after).sum(-1) + 1


def _fit(values: Tensor, width: int) -> Tensor:
    """The first `width` columns, padded with zeros where there are fewer."""
    missing = width - values.shape[-1]
    return values[:, :width] if missing <= 0 else torch.nn.functional.pad(values, (0, missing))
