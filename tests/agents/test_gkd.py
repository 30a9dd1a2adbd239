"""`gkd` is `kd` at its one end, on both kinds of supports, and drives a padded vocabulary out at the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from agents import make_agent
from agents.gkd import DIVERGENCES
from agents.student import Student
from agents.walks import Walks
from experiments.oracle import TOLERANCE, case_for
from tests.agents.test_contract import exact, scattered, with_gradient
from tests.agents.test_student import model


@pytest.mark.parametrize("on", ["vocabulary", "set"])
@pytest.mark.parametrize(
    "config", [{"divergence": "forward"}, {"beta": 0.0}, {"divergence": "skew_forward", "skew": 0.0}]
)
def test_the_forward_end_is_kd_in_loss_and_gradient(on: str, config: dict[str, Any]) -> None:
    batch, one, other = exact(), scattered("gkd", on=on, **config), scattered("kd", on=on)
    torch.testing.assert_close(with_gradient(one, one.loss(batch)[0]), with_gradient(other, other.loss(batch)[0]))


@pytest.mark.parametrize("config", [{"beta": 1.0}, {"divergence": "skew_reverse", "skew": 0.0}])
def test_the_reverse_end_is_the_reverse_kl(config: dict[str, Any]) -> None:
    batch, one, other = exact(), scattered("gkd", **config), scattered("gkd", divergence="reverse")
    torch.testing.assert_close(with_gradient(one, one.loss(batch)[0]), with_gradient(other, other.loss(batch)[0]))


@pytest.mark.parametrize("config", [{"divergence": "reverse"}, {"divergence": "skew_reverse"}, {"beta": 0.9}])
def test_the_reverse_divergences_reach_the_teacher_more_slowly(config: dict[str, Any]) -> None:
    """Their gradient on tokens that the teacher never says falls with the student's mass there."""
    case = case_for("gkd", 1, 0.8, "logprob")
    assert case.gap(case.learn("gkd", updates=500, **config)).policy < TOLERANCE.policy


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_padded_vocabulary_is_driven_out(divergence: str) -> None:
    """A reverse divergence on the shared rows alone is lowest with part of the mass on rows that are no tokens."""
    batch = exact()
    agent = make_agent("gkd", Student(model(vocabulary=12)), total_updates=150, lr=2e-2, divergence=divergence)
    for _ in range(150):
        agent.update(batch)
    logp = agent.student.scores(batch, full=True).logp
    assert logp is not None and logp[:, 0, 6:].exp().sum(-1).max() < 0.02


def test_half_of_a_batch_is_the_students_own() -> None:
    assert make_agent("gkd", Student(model()), total_updates=1).walks == Walks(0.5, every=4, episodes=64, keep=1)
    assert make_agent("gkd", Student(model()), total_updates=1, student_share=0.0).walks is None
