"""Every divergence against numbers worked by hand, its limits, and what it makes of padding and spare rows."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from agents import objectives
from agents.episodes import PAD_LOGP
from tests.agents.test_objectives import LOG2, LOG3, close, logs

TEACHER, STUDENT = logs(0.5, 0.5), logs(0.25, 0.75)
MASKED: list[Callable[[Tensor, Tensor, Tensor | None], Tensor]] = [
    objectives.forward_kl,
    objectives.reverse_kl,
    lambda p, q, mask: objectives.jensen_shannon(p, q, 0.5, mask),
    lambda p, q, mask: objectives.skew_forward_kl(p, q, 0.1, mask),
    lambda p, q, mask: objectives.skew_reverse_kl(p, q, 0.1, mask),
]


def test_reverse_kl() -> None:
    close(objectives.reverse_kl(TEACHER, STUDENT), 0.75 * LOG3 - LOG2)  # ¼ log ½ + ¾ log 3/2


def test_jensen_shannon() -> None:
    # m = (3/8, 5/8): ½ (½ log 4/3 + ½ log 4/5) + ½ (¼ log 2/3 + ¾ log 6/5)
    half = 0.25 * math.log(16 / 15) + 0.125 * math.log(2 / 3) + 0.375 * math.log(6 / 5)
    close(objectives.jensen_shannon(TEACHER, STUDENT, 0.5), half)
    # β = .2: m = (.3, .7)
    fifth = 0.2 * (0.5 * math.log(5 / 3) + 0.5 * math.log(5 / 7)) + 0.8 * (
        0.25 * math.log(0.25 / 0.3) + 0.75 * math.log(0.75 / 0.7)
    )
    close(objectives.jensen_shannon(TEACHER, STUDENT, 0.2), fifth)


def test_jensen_shannon_reaches_from_the_forward_to_the_reverse_kl() -> None:
    """The limits of the paper, and the ends as TRL defines them."""
    teacher, student = TEACHER.double(), STUDENT.double()
    forward, reverse = objectives.forward_kl(teacher, student), objectives.reverse_kl(teacher, student)
    tiny = 1e-6
    near = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(objectives.jensen_shannon(teacher, student, tiny) / tiny, forward, **near)
    torch.testing.assert_close(objectives.jensen_shannon(teacher, student, 1 - tiny) / tiny, reverse, **near)
    assert objectives.jensen_shannon(teacher, student, 0.0) == forward
    assert objectives.jensen_shannon(teacher, student, 1.0) == reverse


def test_skew_forward_kl() -> None:
    # α = ½: m = (3/8, 5/8): ½ log 4/3 + ½ log 4/5
    close(objectives.skew_forward_kl(TEACHER, STUDENT, 0.5), 0.5 * math.log(16 / 15))
    close(objectives.skew_forward_kl(TEACHER, STUDENT, 0.2), 0.5 * math.log(5 / 3) + 0.5 * math.log(5 / 7))
    close(objectives.skew_forward_kl(TEACHER, STUDENT, 0.0), LOG2 - 0.5 * LOG3)  # the forward KL


def test_skew_reverse_kl() -> None:
    # α = .2: m = .8 (½, ½) + .2 (¼, ¾) = (.45, .55)
    wanted = 0.25 * math.log(0.25 / 0.45) + 0.75 * math.log(0.75 / 0.55)
    close(objectives.skew_reverse_kl(TEACHER, STUDENT, 0.2), wanted)
    close(objectives.skew_reverse_kl(TEACHER, STUDENT, 0.0), 0.75 * LOG3 - LOG2)


def test_the_skew_bounds_a_divergence_where_the_other_side_has_no_mass() -> None:
    one, other = torch.tensor([0.0, PAD_LOGP]), torch.tensor([PAD_LOGP, 0.0])
    close(objectives.skew_forward_kl(one, other, 0.1), math.log(10))
    close(objectives.skew_reverse_kl(one, other, 0.1), math.log(10))
    close(objectives.jensen_shannon(one, other, 0.5), LOG2)


@pytest.mark.parametrize("divergence", MASKED)
def test_padding_counts_for_nothing_and_gets_no_gradient(divergence: Callable[..., Tensor]) -> None:
    teacher, student = torch.cat([TEACHER, torch.tensor([0.3])]), torch.cat([STUDENT, torch.tensor([0.7])])
    student.requires_grad_()
    found = divergence(teacher, student, torch.tensor([True, True, False]))
    close(found, divergence(TEACHER, STUDENT, None).item())
    found.backward()
    assert student.grad is not None and student.grad[2] == 0 and (student.grad[:2] != 0).any()


@pytest.mark.parametrize("divergence", MASKED)
def test_a_divergence_is_nothing_at_equality_alone(divergence: Callable[..., Tensor]) -> None:
    close(divergence(TEACHER, TEACHER, None), 0.0)
    assert divergence(TEACHER, STUDENT, None) > 0.01


def test_shared_vocabulary() -> None:
    wide = logs(0.1, 0.3, 0.6)  # mass .4 on the two shared rows
    teacher, student, inside = objectives.shared_vocabulary(TEACHER, wide)
    close(teacher, TEACHER.tolist())
    close(student, STUDENT.tolist())
    close(inside, math.log(0.4))
    close(objectives.forward_kl(teacher, student) - inside, objectives.forward_kl(TEACHER, wide[:2]).item())
    teacher, student, inside = objectives.shared_vocabulary(torch.cat([TEACHER, torch.tensor([PAD_LOGP])]), STUDENT)
    close(teacher, TEACHER.tolist())
    close(student, STUDENT.tolist())
    close(inside, 0.0)
