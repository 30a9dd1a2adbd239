"""Whether a student passes a gate: each condition with value, limit and bound, and each critical case."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.errors import InputError
from envs.prompts import Prompt
from envs.service_desk import score_reply
from envs.teachers import Teacher
from experiments.evaluate import Evaluation, Findings
from experiments.gate.conditions import OF_COST, Condition, Gate
from experiments.per_prompt import Parts

REPETITIONS = 2000
SEED = 0
SIGNS = {"at_least": "≥", "at_most": "≤"}
Pair = tuple[Parts, Parts | None]


class Failed(Exception):
    """A student that does not pass its gate."""


@dataclass(frozen=True)
class Verdict:
    """One limit of one condition."""

    name: str  # the condition in words
    value: float
    limit: float  # of the value; a multiple of the teacher's is multiplied out
    bound: float | None  # what was held against the limit in the value's place; None: nothing
    passed: bool


@dataclass(frozen=True)
class Case:
    """A critical message and whether its reply says what it must."""

    prompt: str
    reply: str
    missing: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing


@dataclass(frozen=True)
class Judgement:
    """All of it."""

    verdicts: tuple[Verdict, ...]
    cases: tuple[Case, ...]
    cases_decide: bool  # whether a condition on all critical cases was not met: then those that fail are failures

    @property
    def passed(self) -> bool:
        """Whether every condition is met."""
        return all(verdict.passed for verdict in self.verdicts)


def judge(gate: Gate, found: Evaluation, teacher: Teacher) -> Judgement:
    """Hold a student's figures against a gate.

    Raises: InputError: a measure that has no value on these prompts.
    """
    verdicts, decide = [], False
    for own in gate.conditions:
        met = [_verdict(own, sense, limit, found, gate.confidence) for sense, limit in own.limits.items()]
        decide |= own.measure == "critical_pass" and not all(verdict.passed for verdict in met)
        verdicts += met
    replies = [teacher.decode(reply) for reply in found.student.replies]
    return Judgement(tuple(verdicts), critical_cases(found.exam.prompts, replies), decide)


def critical_cases(prompts: list[Prompt], replies: list[str]) -> tuple[Case, ...]:
    """Every prompt with the tag `critical` whose checks require a phrase, and which of them its reply lacks."""
    cases = []
    for prompt, reply in zip(prompts, replies, strict=True):
        if "critical" in prompt.tags and prompt.checks.required:
            phrases = prompt.checks.required
            missing = [phrase for phrase in phrases if not score_reply(reply, type(prompt.checks)((phrase,))).copied]
            cases.append(Case(prompt.text, reply, tuple(missing)))
    return tuple(cases)


def _verdict(own: Condition, sense: str, limit: float, found: Evaluation, confidence: float | None) -> Verdict:
    where = f"{own.slice}: " if own.slice else ""
    value = _value(own, found.figures, found.student)
    name = f"{where}{own.measure} {SIGNS[sense]} {limit:g}"
    factor = None
    if own.relative:
        name, factor = f"{name} × teacher", limit
        limit *= _teachers(own, found)
    bound = None
    if confidence is not None and (pair := _parts(own, found)) is not None:
        bound = bound_of(pair, sense, limit, factor, confidence)
    held = value if bound is None else bound
    return Verdict(name, value, limit, bound, bool(held >= limit if sense == "at_least" else held <= limit))


def _value(own: Condition, figures: dict[str, float], of: Findings) -> float:
    there = figures if own.slice is None else of.more.get("slices", {}).get(own.slice, {})
    if own.measure not in there:
        where = f" in slice {own.slice!r}" if own.slice else ""
        raise InputError(
            f"the gate asks for {own.measure}{where}, which these prompts leave without a value "
            f"(measured: {', '.join(sorted(there)) or 'nothing'})"
        )
    return float(there[own.measure])


def _teachers(own: Condition, found: Evaluation) -> float:
    if own.measure in OF_COST:
        return found.figures[f"teacher_{own.measure}"]
    assert found.teacher is not None, "a gate that needs the teacher's measures asks for them"
    return _value(own, found.teacher.measures, found.teacher)


def _parts(own: Condition, found: Evaluation) -> Pair | None:
    """The measure's parts by prompt, the student's and, of a relative condition, the teacher's; None: it has none."""
    sides = [found.student] if not own.relative or own.measure in OF_COST else [found.student, found.teacher]
    chosen = np.array([own.slice is None or own.slice in prompt.tags for prompt in found.exam.prompts])
    parts = [side.parts[own.measure][chosen] for side in sides if side is not None and own.measure in side.parts]
    if len(parts) < len(sides) or not chosen.any() or not all(np.isfinite(part).all() for part in parts):
        return None
    return parts[0], parts[1] if own.relative else None


def bound_of(pair: Pair, sense: str, limit: float, factor: float | None, confidence: float) -> float:
    """The end of a one-sided interval that is nearer to failing, by bootstrap over prompts.

        x_b = Σ_i w_bi added_i / Σ_i w_bi count_i,   w_b ∼ Multinomial(n, 1/n)
        bound = quantile of x_b at 1 − confidence (at_least) or at confidence (at_most)

    Relative to the teacher, x_b is the student's minus `factor` times the teacher's on the same drawn prompts, and the
    bound is `limit` plus its quantile, so that it is held against the limit like any other.

    Source: Efron and Tibshirani (1993), section 13.3, the percentile interval.
    Args:
        pair: parts of the student, and of the teacher where `factor` is not None; (prompts, 2) each.
    """
    own, other = pair
    drawn = np.random.default_rng(SEED).multinomial(len(own), np.full(len(own), 1 / len(own)), REPETITIONS)
    values = _again(own, drawn)
    if factor is not None and other is not None:
        values = limit + values - factor * _again(other, drawn)
    return float(np.nanquantile(values, 1 - confidence if sense == "at_least" else confidence))


def _again(
    parts: Parts, drawn: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    sums = drawn @ parts  # (repetitions, 2)
    with np.errstate(invalid="ignore"):  # a draw without any prompt that counts has no value, and is left out
        return np.asarray(sums[:, 0] / sums[:, 1])


def failure_bound(cases: int, confidence: float) -> float:
    """How often critical cases might fail although all of so many passed: 1 − (1 − confidence)^(1/n).

    A bootstrap of passes alone knows of no failure; this does.
    Source: Clopper and Pearson (1934), for no failure in n.
    >>> round(failure_bound(59, 0.95), 3)
    0.05
    """
    return float(1 - (1 - confidence) ** (1 / cases))
