"""How far down the teacher's order a taken token stands: from this alone, what every p and every K would lose.

Let the tokens of a state stand in the order of equation (1), c_r the mass of the first r of them. A token of rank r is
in A_p, cut to K candidates, exactly if

    c_{r−1} < p  and  r ≤ K,   or p = 1

because A_p is the shortest prefix whose mass reaches p: it goes on past r − 1 tokens as long as these fall short of it.
So c_{r−1} is the largest p that loses the token, and r the smallest K that keeps it. A word is kept if all of its
tokens are: the largest c_{r−1} and the largest r of its tokens are the word's own.

Source: own derivation from equation (1) of the design.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.candidates import top_p

AT_ONCE = 2**22  # entries of the rows that are compared with a token at a time


class Reach(NamedTuple):
    """What N states and the tokens taken there say, for P masses and W widths."""

    before: Tensor  # (N,) float64 in [0, 1], c_{r−1}: mass of the tokens before the one taken
    rank: Tensor  # (N,) int64, r, 1 = the most probable token
    sizes: Tensor  # (N, P) int64, |A_p| without a cut
    kept: Tensor  # (N, P, W) float64, Z of A_p cut to each width


def inside(before: Any, rank: Any, p: float, width: int) -> Any:
    """Whether tokens, or words by their largest values, lie in A_p cut to `width` candidates; tensors or arrays.

    p = 1 keeps the whole vocabulary, whatever the width.

    >>> inside(torch.tensor([0.0, 0.5, 0.8]), torch.tensor([1, 2, 3]), 0.8, 64)
    tensor([ True,  True, False])
    """
    return ((before < p) & (rank <= width)) | (p == 1.0)


def reach(logp: Tensor, tokens: Tensor, masses: Sequence[float], widths: Sequence[int]) -> Reach:
    """Where the tokens taken stand, and how large every set is.

    The sets of all masses below 1 are prefixes of the widest of them, which `envs.candidates.top_p` finds; tokens
    outside it are compared with their whole row.

    Args:
        logp: (N, V) log-probabilities, nats; −∞ allowed.
        tokens: (N,) int64, the tokens taken.
        masses: p in (0, 1], P of them.
        widths: K ≥ 1, W of them; V cuts nothing.
    Raises: InputError: a mass outside (0, 1], or a row that is no distribution.
    """
    widest = max((p for p in masses if p < 1.0), default=0.5)
    found = top_p(logp, widest)
    mass = found.logp.double().exp().cumsum(-1)  # (N, widest), constant on padding
    held = found.sizes
    sizes, kept = [], []
    for p in masses:
        if p == 1.0:
            sizes.append(torch.full_like(held, logp.shape[-1]))
            kept.append(mass.new_ones(len(logp), len(widths)))
            continue
        size = torch.minimum((mass < p).sum(-1) + 1, held)
        cut = torch.minimum(size[:, None], torch.tensor(widths, device=size.device))  # (N, W)
        sizes.append(size)
        kept.append(mass.gather(1, cut - 1).clamp(max=1.0))
    before, rank = _places(logp, tokens, found.ids, found.mask, mass)
    return Reach(before, rank, torch.stack(sizes, 1), torch.stack(kept, 1))


def _places(logp: Tensor, tokens: Tensor, ids: Tensor, mask: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """c_{r−1} and r of the tokens taken; from the sums of the widest set where it holds them, to round as it does."""
    among = (ids == tokens[:, None]) & mask
    place = among.to(torch.uint8).argmax(-1)
    until = torch.nn.functional.pad(mass, (1, 0))  # (N, widest + 1): the mass of the first r − 1
    before, rank = until.gather(1, place[:, None])[:, 0], place + 1
    outside = (~among.any(-1)).nonzero()[:, 0]
    for rows in torch.split(outside, max(1, AT_ONCE // logp.shape[-1])):
        part, taken = logp[rows], tokens[rows, None]
        own = part.gather(1, taken)
        ahead = (part > own) | ((part == own) & (torch.arange(part.shape[1], device=part.device) < taken))
        total = torch.where(ahead, part, -torch.inf).double().exp().sum(-1)
        total = torch.where(own[:, 0].isfinite(), torch.maximum(total, mass[rows, -1]).clamp(max=1.0), 1.0)
        before[rows], rank[rows] = total, ahead.sum(-1) + 1
    return before, rank
