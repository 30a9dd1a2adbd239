"""What a gate asks: the YAML file, checked before anything is measured."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.errors import InputError
from envs.prompts import Prompt
from experiments.config import from_mapping
from experiments.cost import TIMED
from experiments.metrics import task_each
from experiments.slices import BESIDE, FEWEST, OWN, RARE
from experiments.strict_yaml import read_mapping

TASK = ("task_score", "critical_pass", "computed_score", "rare_recall")
SHARES = {*TASK, "agreement", "leak", "rouge_l", "rouge_l_teacher", "distinct_1", "distinct_2", "repetition", "ece"}
"""Measures that lie in [0, 1]."""
SIGNED = {"excess_error", "repetition_matched"}
OF_REPLIES = {
    *BESIDE,
    *OWN,
    *SHARES,
    *SIGNED,
    *("greedy_length", "length", "length_sd", "length_p10", "length_p90", "self_bleu"),
    *("reverse_kl_sum", "reverse_kl_matched", "distinct_2_matched", "parameters"),
}
OF_COST = TIMED | {"flops_per_token"}
TEACHERS = {f"teacher_{name}" for name in OF_COST - {"speed_up", "price_of_million"}}
KNOWN = OF_REPLIES | OF_COST | TEACHERS
"""What `tdistill evaluate` reports, all of it."""
NEEDS = {
    "task_score": "has `copied` or `required` strings among its `checks`",
    "critical_pass": "has the tag `critical` and `required` phrases among its `checks`",
    "computed_score": "has `computed` strings among its `checks`",
    "rare_recall": "has `rare` names among its `checks`",
    "rouge_l": "has a reference",
}
"""What a prompt has that gives a measure of replies a value."""
IN_SLICES = {*BESIDE, *OWN, *TASK, "length", "prompts"}
IN_RARE = {*BESIDE, "prompts", "tokens"}


@dataclass(frozen=True)
class Condition:
    """One entry of a gate's `conditions`."""

    measure: str
    slice: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    between: tuple[float, ...] = ()
    of: str | None = None

    @property
    def limits(self) -> dict[str, float]:
        """Sense -> limit; `between` as its two."""
        named = {"at_least": self.at_least, "at_most": self.at_most}
        if self.between:
            named = dict(zip(named, self.between, strict=True))
        return {sense: limit for sense, limit in named.items() if limit is not None}

    @property
    def relative(self) -> bool:
        """Whether the limits are multiples of the teacher's value."""
        return self.of is not None


@dataclass(frozen=True)
class Gate:
    """Conditions, and how sure one wants to be of them."""

    conditions: tuple[Condition, ...]
    confidence: float | None = None

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher's own measures are asked for, those of its cost aside, which are at hand."""
        return any(own.relative and own.measure not in OF_COST for own in self.conditions)


def read_gate(path: Path) -> Gate:
    """A gate from its file; see `experiments.gate` for what that holds.

    Raises: InputError: no such file, no YAML, a key, measure or limit that makes no sense, conditions that contradict
        each other, or none.
    """
    values = read_mapping(path, "gate")
    known = ("confidence", "conditions")
    if unknown := [str(key) for key in values if key not in known]:
        raise InputError(f"{path}: a gate has no setting {unknown[0]!r} (known: {', '.join(known)})")
    entries = values.get("conditions")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: `conditions` must be a list of at least one condition; a gate without any is open")
    conditions = tuple(_condition(entry, f"{path}: condition {number}") for number, entry in enumerate(entries, 1))
    _refuse_contradictions(conditions, str(path))
    return Gate(conditions, _confidence(values.get("confidence"), str(path)))


def check_on(gate: Gate, prompts: Sequence[Prompt], price: float | None) -> None:
    """Raises: InputError: a slice that these prompts do not make, or a measure that they leave without a value."""
    counts = Counter(tag for prompt in prompts for tag in set(prompt.tags))
    there = sorted(tag for tag, count in counts.items() if count >= FEWEST)
    for own in gate.conditions:
        if own.slice is not None and own.slice not in (*there, RARE):
            found = counts[own.slice]
            raise InputError(
                f"slice {own.slice!r} has {found} of these {len(prompts)} prompts, and {FEWEST} make one "
                f"(slices here: {', '.join((*there, RARE))}); add prompts with this tag, or raise --eval-prompts"
            )
        if own.measure == "price_of_million" and price is None:
            raise InputError("the gate asks for price_of_million: say what an hour costs with --price")
        chosen = [prompt for prompt in prompts if own.slice in (None, RARE, *prompt.tags)]
        if own.measure in (*TASK, "rouge_l") and not _has(own.measure, chosen):
            where = "" if own.slice is None else f" of slice {own.slice!r}"
            raise InputError(
                f"the gate asks for {own.measure}, and none of these {len(chosen)} prompts{where} {NEEDS[own.measure]}"
            )


def _has(measure: str, prompts: Sequence[Prompt]) -> bool:
    """Whether any of the prompts gives the measure a value, whatever is replied."""
    if measure == "rouge_l":
        return any(prompt.references for prompt in prompts)
    return any(value is not None for value in task_each([""] * len(prompts), prompts)[measure])


def _condition(entry: Any, who: str) -> Condition:
    if not isinstance(entry, Mapping) or "measure" not in entry:
        raise InputError(f"{who} is {entry!r}; it must be a mapping with a `measure` and a limit")
    own = from_mapping(Condition, entry, who)
    known = KNOWN if own.slice is None else IN_RARE if own.slice == RARE else IN_SLICES
    if own.measure not in known:
        near = difflib.get_close_matches(own.measure, known, 1)
        where = "" if own.slice is None else f" of slice {own.slice!r}"
        raise InputError(
            f"{who}: measure {own.measure!r}{where} does not exist{f'; did you mean {near[0]}?' if near else ''} "
            f"(known: {', '.join(sorted(known))})"
        )
    if own.between and (len(own.between) != 2 or own.at_least is not None or own.at_most is not None):
        raise InputError(f"{who}: `between` takes two limits, [low, high], and stands in place of at_least and at_most")
    if not own.limits:
        raise InputError(f"{who}: {own.measure} has no limit; give at_least, at_most or between")
    _check_limits(own, who)
    return own


def _check_limits(own: Condition, who: str) -> None:
    if own.of not in (None, "teacher"):
        raise InputError(f"{who}: `of` is {own.of!r}; limits are absolute, or `of: teacher`")
    if own.relative and (own.measure in {"speed_up", "price_of_million"} | TEACHERS):
        raise InputError(f"{who}: {own.measure} has no value of the teacher's to be relative to; give it alone")
    highest = 1.0 if own.measure in SHARES and not own.relative else math.inf
    for sense, limit in own.limits.items():
        if not math.isfinite(limit):
            raise InputError(f"{who}: {sense} = {limit} is no limit; give a finite number")
        lowest = -math.inf if own.measure in SIGNED else 0.0
        if not lowest <= limit <= highest:
            raise InputError(f"{who}: {sense} = {limit:g} is outside [{lowest:g}, {highest:g}], where {own.measure} is")


def _refuse_contradictions(conditions: Sequence[Condition], who: str) -> None:
    ends: dict[tuple[str, str | None, bool], tuple[float, float]] = {}
    for own in conditions:
        place = own.measure, own.slice, own.relative
        low, high = ends.get(place, (-math.inf, math.inf))
        low, high = max(low, own.limits.get("at_least", low)), min(high, own.limits.get("at_most", high))
        if low > high:
            raise InputError(
                f"{who}: {own.measure} must be at least {low:g} and at most {high:g}: nothing is both; change one"
            )
        ends[place] = low, high


def _confidence(value: Any, who: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, float | int) or not 0.5 <= value < 1.0:
        raise InputError(f"{who}: confidence = {value!r} is outside [0.5, 1); 0.95 is a usual value")
    return float(value)
