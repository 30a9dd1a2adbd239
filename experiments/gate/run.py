"""`tdistill evaluate`, with or without a gate."""

from __future__ import annotations

from dataclasses import dataclass

from envs.errors import InputError
from envs.teachers import load_teacher
from experiments import evaluate
from experiments.config import EvaluateConfig
from experiments.folder import check_writable
from experiments.gate.conditions import Gate, check_on, read_gate
from experiments.gate.judge import Judgement, judge
from experiments.gate.show import junit


@dataclass(frozen=True)
class Gated:
    """A student's figures, and what a gate makes of them."""

    figures: dict[str, float]
    gate: Gate
    judgement: Judgement


def run(config: EvaluateConfig) -> Gated:
    """Measure a student and hold it against its gate; writes the JUnit file.

    Raises: InputError: as `evaluate.run`, `read_gate` and `check_on`, the latter two before anything is measured.
    """
    assert config.gate is not None, "without a gate it is evaluate.run"
    gate = read_gate(config.gate)
    check_on(gate, evaluate.chosen_prompts(config), config.price)
    if config.junit is not None:
        check_writable(config.junit, "--junit")
    found = evaluate.run(config, gate.needs_teacher)
    judgement = judge(gate, found, load_teacher(config.teacher, config.loading))
    if config.junit is not None:
        config.junit.write_bytes(junit(judgement))
    return Gated(found.figures, gate, judgement)


def check_junit(config: EvaluateConfig) -> None:
    """Raises: InputError: a JUnit file without a gate to write there."""
    if config.junit is not None and config.gate is None:
        raise InputError(f"--junit {config.junit} has no gate to write; give --gate FILE.yaml too")
