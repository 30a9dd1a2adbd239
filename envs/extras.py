"""Hybrid action sets: what joins the nucleus in every state, whatever its probability.

    A(s) = A_p(s) ∪ E(s),   E(s) = lexicon(s) ∪ copied(s) ∪ rare(s)

Words that must not be lost are often improbable just where they are to be said, so that a nucleus drops them. The
extra tokens keep the teacher's own log-probabilities and stand where these put them; one that has no probability at
all, log π_T = −∞, does not join, as in the nuclei. Plain data: whoever compiles a
lexicon (`envs.lexicon`) hands a callable and arrays to the environment and to what measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from envs.candidates import PAD_LOGP, Candidates, top_p, width_of
from envs.errors import InputError

Ids: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]
Text: TypeAlias = "tuple[npt.NDArray[Any] | Sequence[int], int]"  # prompt and reply so far; tokens of the prompt


@dataclass(frozen=True, eq=False)
class Extras:
    """What joins the nuclei; each part may be left out.

    Raises: InputError: `within` below 1 beside `rare`, or `most` below 0.
    """

    follow: Callable[[Any], Ids] | None = None
    """Text so far, a sequence of ids, to the ids that a lexicon offers next; see `envs.lexicon.Lexicon`."""
    most: int = 0
    """The most ids that `follow` gives anywhere."""
    copied: Flags | None = None
    """(V,) bool. Tokens of the prompt that are offered everywhere; None: no copying."""
    rare: Flags | None = None
    """(V,) bool. Tokens that are offered wherever they are among the teacher's `within` most probable; None: none."""
    within: int = 0
    """m ≥ 1 with `rare`: how far down the teacher's ranking (ties: lower id first) these are looked for."""

    def __post_init__(self) -> None:
        if self.rare is not None and self.within < 1:
            raise InputError(f"rare_within = {self.within} is below 1; 32 is a usual value, leave it out for none")
        if self.most < 0:
            raise InputError(f"most = {self.most} is below 0; it counts the ids that a lexicon offers at once")

    def room(self, longest_prompt: int) -> int:
        """The most ids that join a state, whatever the text."""
        return self.most + (longest_prompt if self.copied is not None else 0) + self.within

    def ids(self, text: Text) -> Ids:
        """What lexicon and prompt offer after a text, in increasing order."""
        tokens, prompt = text
        parts = [] if self.follow is None else [self.follow(tokens)]
        if self.copied is not None:
            said = np.asarray(tokens[:prompt], dtype=np.int64)
            parts.append(said[self.copied[said]])
        found: Ids = parts[0] if len(parts) == 1 else np.unique(np.concatenate([*parts, np.zeros(0, np.int64)]))
        return found if self.copied is None else np.unique(found)


def hybrid(
    logits: Tensor,
    p: float,
    max_candidates: int | None,
    *,
    log_norm: Tensor | None = None,
    extras: Extras | None = None,
    texts: Sequence[Text] = (),
) -> Candidates:
    """Candidate sets A_p(s) ∪ E(s), most probable first (ties: lower id first).

    Without extras, and at p = 1, where everything is in the set already, this is `top_p`, to the bit. Where K slots do
    not hold both, the tail of the nucleus goes first and the set is `cut`; what is protected always stays, and the most
    probable token too. The lost mass is that of the set as it is.

    Source: equation (1) of the design, enlarged; own derivation.
    Args:
        logits, p, max_candidates, log_norm: as `top_p`, of shape (N, V) and (N,).
        texts: of each row prompt and reply so far, and how many of its tokens are the prompt's; read with extras only.
    Returns: Candidates of (N, K).
    Raises: InputError: as `top_p`; or more ids would join a state than K − 1.
    >>> even = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    >>> hybrid(even, 0.5, 3, extras=Extras(lambda text: np.array([3]), 1), texts=[([0], 1)]).ids
    tensor([[0, 1, 3]])
    """
    found = top_p(logits, p, max_candidates, log_norm=log_norm)
    if extras is None or p == 1.0:
        return found
    width, vocabulary = width_of(logits.shape[-1], p, max_candidates), logits.shape[-1]
    rows = [extras.ids(text) for text in texts]
    joining = _padded(rows, vocabulary, logits.device)  # (N, E)
    if extras.rare is not None:
        joining = _with_rare(joining, logits, extras.rare, extras.within)
    joining = torch.where(logits.gather(1, joining.clamp(min=0)) > -torch.inf, joining, -1)
    return _joined(found, joining, logits, log_norm, width)


def fitting(extras: Extras | None, width: int, vocabulary: int, longest_prompt: int) -> Extras | None:
    """The same, if K slots hold it beside the most probable token, whatever the text.

    Raises: InputError: they may not.
    """
    if extras is None or width >= min(needed := extras.room(longest_prompt) + 1, vocabulary):
        return extras
    parts = {
        "lexicon": extras.most,
        f"prompt of {longest_prompt} tokens": longest_prompt if extras.copied is not None else 0,
        "rare tokens": extras.within,
    }
    said = ", ".join(f"{name}: {count}" for name, count in parts.items() if count)
    raise InputError(
        f"max_candidates = {width} does not hold what is protected beside the most probable token ({said}); give at "
        f"least {min(needed, vocabulary)}, or protect less"
    )


def texts_along(text: Sequence[int], prompt: int, steps: int) -> list[Text]:
    """The states along a reply: what stands before each of its first `steps` tokens."""
    tokens = np.asarray(text, dtype=np.int64)
    return [(tokens[: prompt + step], prompt) for step in range(steps)]


def _padded(rows: Sequence[Ids], vocabulary: int, device: torch.device) -> Tensor:
    """Ids of each row, −1 behind them; ids beyond the vocabulary (a student may have fewer rows) are left out."""
    kept = [row[row < vocabulary] for row in rows]
    wide = np.full((len(kept), max(map(len, kept), default=0)), -1, dtype=np.int64)
    for row, ids in zip(wide, kept, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(wide).to(device)


def _with_rare(joining: Tensor, logits: Tensor, rare: Flags, within: int) -> Tensor:
    """The ids and, behind them, those rare tokens among the `within` most probable that are not there yet."""
    count = min(within, logits.shape[-1])
    values, ids = torch.topk(logits, min(count + 1, logits.shape[-1]), -1)
    if count < logits.shape[-1] and bool((values[:, count - 1] == values[:, count]).any()):
        ids = torch.sort(logits, dim=-1, descending=True, stable=True).indices  # which of them is in is settled by id
    ids = ids[:, :count]
    flags = torch.from_numpy(rare).to(ids.device)[ids.clamp(max=len(rare) - 1)] & (ids < len(rare))
    known = (ids[:, :, None] == joining[:, None, :]).any(-1)
    return torch.cat([joining, torch.where(flags & ~known, ids, -1)], -1)


def _joined(found: Candidates, joining: Tensor, logits: Tensor, log_norm: Tensor | None, width: int) -> Candidates:
    """The sets, K = `width`, with these ids, (N, E) with −1 for none, each at most once in a row."""
    largest = int(found.mask.sum(-1).max())  # what lies behind is padding
    ids, logp, mask = (part[:, :largest] for part in (found.ids, found.logp, found.mask))
    found, valid = Candidates(ids, logp, mask, found.cut), joining >= 0
    same = (joining[:, :, None] == found.ids[:, None, :]) & valid[:, :, None] & found.mask[:, None, :]  # (N, E, K)
    new, kept = valid & ~same.any(2), same.any(1)
    free = width - new.sum(1) - kept.sum(1)  # slots for what the nucleus has besides
    if len(free) and int(free.min()) < (0 if width == logits.shape[-1] else 1):
        raise InputError(
            f"max_candidates = {width} does not hold the {width - int(free.min())} tokens that are protected in one "
            "state beside the most probable token; raise it, or protect less"
        )
    stays = found.mask & (kept | ((found.mask & ~kept).cumsum(1) <= free[:, None]))
    ids, there = torch.cat([found.ids, joining.clamp(min=0)], 1), torch.cat([stays, new], 1)
    ids, order = torch.sort(ids, dim=-1, stable=True)
    there = there.gather(1, order)
    scores = logits.gather(1, ids).float()
    rank = scores.masked_fill(~there, -torch.inf)
    order = torch.sort(rank, dim=-1, descending=True, stable=True).indices[:, :width]
    ids, there = ids.gather(1, order), there.gather(1, order)
    scores = scores.gather(1, order)
    logp = scores if log_norm is None else scores - log_norm[:, None]
    room, pad = (0, width - ids.shape[-1]), torch.nn.functional.pad
    return Candidates(
        ids=pad(ids.masked_fill(~there, 0), room),
        logp=pad(logp.clamp(min=PAD_LOGP, max=0.0).masked_fill(~there, PAD_LOGP), room, value=PAD_LOGP),
        mask=pad(there, room),
        cut=found.cut | (found.mask & ~stays).any(1),
    )
