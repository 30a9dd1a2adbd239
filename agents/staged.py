"""Staged sets: candidate sets that begin with the head of the distribution and widen while an agent learns.

A set of smaller p (or K) is a prefix of a larger one, so episodes drawn at the widest sets hold all narrower ones, and
a schedule costs nothing but the choice of the prefix. Of p, or of K:

fixed            the sets as the episodes have them
fixed:V          V all the time
linear:A..B      from A in the first update to B in the last; linear:A..B:S reaches B after the share S of the updates
mass:A..B        the smallest p (or K) whose sets retain, on average over the batch's states, a mass that goes linearly
                 from A to B; mass:A..B:S as above
leak:A..B        from A by a twentieth of the way to B after every update at which the student's −log(1 − leak) was at
                 most the teacher's −log Z on the same sets: as soon as it keeps inside what the teacher keeps there;
                 leak:A..B:R at most R times that

Source: own design; widening by the learner's progress is a curriculum as in Bengio et al. (2009).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agents.episodes import Episodes
from agents.errors import InputError

FIXED = "fixed"
KINDS = (FIXED, "linear", "mass", "leak")
STEPS = 20  # of a schedule by the leak


@dataclass(frozen=True)
class Schedule:
    """What a text such as linear:0.5..0.95 says."""

    kind: str
    start: float
    end: float
    more: float = 1.0
    """Share of the updates by which `end` is reached, or R of a schedule by the leak."""

    def at(self, done: float, total: float, widened: int) -> float:
        """The value, or for kind "mass" the mass to retain, in an update with `done` of `total` behind it.

        >>> Schedule("linear", 0.5, 0.9).at(done=5, total=11, widened=0)
        0.7
        """
        steady = min(done / max(self.more * total - 1, 1.0), 1.0)
        way = widened / STEPS if self.kind == "leak" else steady
        return self.start + (self.end - self.start) * way if way < 1 else self.end


def parsed(text: str, whole: bool) -> Schedule | None:
    """The schedule that a text names, of p, or of K where `whole`; None for "fixed".

    Raises: InputError: another form, p or a mass outside (0, 1], K that is no whole number from 1 on, a share outside
        (0, 1], R that is not positive, or a schedule by the leak that narrows.
    """
    kind, colon, rest = text.partition(":")
    if text == FIXED:
        return None
    ends, *more = rest.split(":")
    start, dots, end = ends.partition("..")
    if not colon or kind not in KINDS or len(more) > 1 or (kind == FIXED) == bool(dots) or (kind == FIXED and more):
        example = "4..32" if whole else "0.5..0.95"
        raise InputError(
            f"schedule {text!r} is none of fixed, fixed:V, linear:A..B[:SHARE], mass:A..B[:SHARE], leak:A..B[:R]; "
            f"linear:{example} is one"
        )
    found = Schedule(
        kind, _number(text, start), _number(text, end if dots else start), *(_number(text, v) for v in more)
    )
    for value in (found.start, found.end):
        if whole and kind != "mass":
            if not (value >= 1 and value.is_integer()):
                raise InputError(f"schedule {text!r}: K = {value:g} must be a whole number of at least 1")
        elif not 0 < value <= 1:
            name = "a mass" if kind == "mass" else "p"
            raise InputError(f"schedule {text!r}: {name} of {value:g} is outside (0, 1]; 0.5..0.95 is usual")
    if kind in ("linear", "mass") and not 0 < found.more <= 1:
        raise InputError(f"schedule {text!r}: the share {found.more:g} of the updates is outside (0, 1]")
    if kind == "leak" and not (0 < found.more < math.inf and found.start <= found.end):
        raise InputError(f"schedule {text!r}: a schedule by the leak only widens, and R = {found.more:g} is positive")
    return found


def _number(text: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise InputError(f"schedule {text!r}: {value!r} is no number") from None


class Stages:
    """The schedules of an agent, and how far those by the leak have widened.

    Args:
        p, k: texts as of `parsed`.
    Raises: InputError: as `parsed`.
    """

    def __init__(self, p: str, k: str) -> None:
        self.p, self.k = parsed(p, whole=False), parsed(k, whole=True)
        self.widened = 0  # steps of a schedule by the leak, of both at once

    def narrow(self, batch: Episodes, done: float, total: float) -> tuple[Episodes, dict[str, float]]:
        """The batch with the sets of this moment, and for the log their p, K and mean retained mass."""
        figures = {}
        if self.p is not None:
            value = self.p.at(done, total, self.widened)
            figures["top_p"] = p_for(batch, value) if self.p.kind == "mass" else value
            batch = narrowed(batch, p=figures["top_p"])
        if self.k is not None:
            value = self.k.at(done, total, self.widened)
            k = k_for(batch, value) if self.k.kind == "mass" else round(value)
            figures["max_candidates"] = float(k)
            batch = narrowed(batch, k=k)
        if figures:
            figures["retained_mass"] = float(batch.log_mass[batch.states].exp().mean())
        return batch, figures

    def notice(self, log_inside: float | None, batch: Episodes) -> None:
        """Widen what goes by the leak, if the student kept as much inside these sets as they ask.

        Raises: InputError: an agent that does not log `log_inside`.
        """
        own = [schedule for schedule in (self.p, self.k) if schedule is not None and schedule.kind == "leak"]
        if not own:
            return
        if log_inside is None:
            raise InputError("a schedule by the leak needs an agent that logs log_inside; take linear or mass")
        weights = batch.step_weights
        teacher = float((batch.log_mass[:, :-1] * weights).sum() / weights.sum())
        if all(-log_inside <= schedule.more * -teacher for schedule in own):
            self.widened = min(self.widened + 1, STEPS)

    def state_dict(self) -> dict[str, Any]:
        """How far they have widened."""
        return {"widened": self.widened}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.widened = int(state["widened"])


def narrowed(episodes: Episodes, p: float = 1.0, k: int | None = None) -> Episodes:
    """The episodes with the sets that they would have had at a smaller p, or K.

        A_p'(s) = { a_j ∈ A_p(s) : Σ_{i<j} π_T(a_i|s) < p' },  j ≤ K

    Source: equation (1) of the design: sets are prefixes of the sorted tokens, hence nested in p.
    A token outside the narrower set keeps its place in the text and its reward, and is marked as outside. Rewards that
    depend on the set are those of the wider one.

    Args:
        p: mass in (0, 1]; at 1, or above the p that they were drawn with, the sets stay as they are.
        k: most candidates, at least 1; None: as many as there are.
    Raises: InputError: p or k out of range.
    """
    if not 0 < p <= 1 or (k is not None and k < 1):
        raise InputError(f"sets of p = {p} and K = {k}: p must lie in (0, 1] and K be at least 1")
    kept = episodes.mask.clone()
    if p < 1:
        kept &= _before(episodes) < p
    if k is not None:
        kept[..., k:] = False
    return episodes.narrowed(kept)


def p_for(episodes: Episodes, mass: float) -> float:
    """The largest p among those with the smallest sets that retain `mass` on average over the states; 1 if none do.

    Source: own derivation: slot j of a state enters as p passes Σ_{i<j} π_T(a_i|s), and brings π_T(a_j|s).
    """
    states = episodes.states
    mask = episodes.mask[states]  # (N, K)
    enters, order = _before(episodes)[states][mask].sort(stable=True)
    brought = _mass(episodes)[states][mask][order].cumsum(0) / len(mask)
    reached = int((brought < mass - 1e-12).sum())  # slots before the one that brings enough
    later = enters[enters > enters[reached]] if reached < len(enters) else enters[:0]
    return float(later[0]) if len(later) else 1.0


def k_for(episodes: Episodes, mass: float) -> int:
    """The smallest K whose sets retain `mass` on average over the states; all slots if none does."""
    found = _mass(episodes)[episodes.states].mean(0).cumsum(0)  # (K,)
    return min(int((found < mass - 1e-12).sum()) + 1, len(found))


def _mass(episodes: Episodes) -> Tensor:
    """π_T of each candidate, float64 as where sets are drawn; 0 on padding.  # (B, T+1, K)"""
    return torch.where(episodes.mask, episodes.logp.double().exp(), 0.0)


def _before(episodes: Episodes) -> Tensor:
    """Mass of the candidates before each slot.  # (B, T+1, K) float64"""
    return torch.nn.functional.pad(_mass(episodes).cumsum(-1)[..., :-1], (1, 0))
