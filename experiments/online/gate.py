"""The gate of a student that learns on line: the conditions of `experiments.gate` on the validation prompts."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import yaml

from envs.errors import InputError
from experiments.evaluate import Evaluation, Findings, examine, glance
from experiments.folder import write
from experiments.gate.conditions import OF_COST, SHARES, TEACHERS, Condition, Gate, check_on, read_gate
from experiments.gate.judge import Judgement, judge
from experiments.online.config import OnlineConfig
from experiments.workspace import Workspace

FILE = "gate.yaml"
ROOM = 0.1
"""How much worse than at the beginning a student may be where no gate is given."""
LEAST = 1e-4
"""A limit below this one would be of rounding."""
USUAL = {"forward_kl": "at_most", "leak": "at_most", "task_score": "at_least"}
AT_A_GLANCE = {"forward_kl", "agreement", "leak", "entropy", "greedy_length"}
"""Measures that need no sample of the student's."""
TASK = {"task_score", "critical_pass", "computed_score", "rare_recall"}


class Trial:
    """Tries students on the validation prompts.

    Args:
        model: the student as it begins, which must pass; without a gate in the settings it makes one, in OUT/gate.yaml.
    Raises: InputError: as `read_gate` and `check_on`, a measure of cost, or a beginning that does not pass.
    """

    def __init__(self, space: Workspace, config: OnlineConfig, model: Any) -> None:
        self.teacher, self.rule = space.teacher, space.rule(config.top_p)
        self.exam, self.path = space.exam("validation"), config.gate or space.out / FILE
        if config.gate is None and not self.path.is_file():
            write(self.path, yaml.safe_dump({"conditions": self._usual(model)}, sort_keys=False))
        self.gate = checked(read_gate(self.path), str(self.path))
        check_on(self.gate, self.exam.prompts, None)
        self.quick = self.gate.confidence is None and all(_at_a_glance(own) for own in self.gate.conditions)

    def __call__(self, model: Any) -> tuple[Judgement, dict[str, float]]:
        """The verdict on a student, and its measures."""
        found = self._findings(model)
        evaluation = Evaluation(found.measures, self.exam, found, self._teachers if self.gate.needs_teacher else None)
        return judge(self.gate, evaluation, self.teacher), found.measures

    def check_beginning(self, model: Any) -> None:
        """Raises: InputError: the student that one begins with does not pass: there would be no way back."""
        judgement, _ = self(model)
        if failed := [own for own in judgement.verdicts if not own.passed]:
            first = failed[0]
            raise InputError(
                f"the student to begin with does not pass {self.path}: {first.name}, it has {first.value:.4g}; begin "
                "with a better one, or ask for less"
            )

    def _findings(self, model: Any) -> Findings:
        return (glance if self.quick else examine)(model, self.exam, self.teacher, self.rule)

    @cached_property
    def _teachers(self) -> Findings:
        return examine(None, self.exam, self.teacher, self.rule)

    def _usual(self, model: Any) -> list[dict[str, Any]]:
        found = glance(model, self.exam, self.teacher, self.rule).measures
        return [
            {"measure": name, sense: limit(found[name], name, sense)} for name, sense in USUAL.items() if name in found
        ]


def limit(value: float, measure: str, sense: str) -> float:
    """What a student may have that began with this value: a tenth worse, but for shares no more than 1."""
    if sense == "at_least":
        return round(value * (1 - ROOM), 6)
    worst = max(round(value * (1 + ROOM), 6), LEAST)
    return min(worst, 1.0) if measure in SHARES else worst


def _at_a_glance(own: Condition) -> bool:
    return own.slice is None and not own.relative and own.measure in AT_A_GLANCE | TASK


def checked(gate: Gate, who: str) -> Gate:
    """A gate that can be tried as a student learns.  Raises: InputError: it asks for a measure of cost."""
    for own in gate.conditions:
        if own.measure in OF_COST | TEACHERS:
            raise InputError(f"{who}: {own.measure} is no measure of what is learnt on line; leave it to `evaluate`")
    return gate
