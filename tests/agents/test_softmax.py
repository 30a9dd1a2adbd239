"""Reading wide logits in one pass changes neither what is read nor its gradient."""

from __future__ import annotations

import pytest
import torch

from agents import softmax
from agents.softmax import picked


@pytest.mark.parametrize("part", [1, 20, 10**6])
def test_logits_picked_and_their_sum_are_those_of_gather_and_logsumexp(
    part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of rows at a time; an id that is named twice gets both gradients."""
    monkeypatch.setattr(softmax, "PART", part)
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(7, 9, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    ids = torch.tensor([[3, 3, 0]]).repeat(7, 1)
    weights = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    plain = (logits.gather(1, ids), logits.logsumexp(1))
    gradients = []
    for at_ids, everything in (plain, picked(logits, ids)):
        loss = (weights[:, :3] * at_ids.square()).sum() + (weights[:, 3] * everything.sin()).sum()
        gradients.append(torch.autograd.grad(loss, [logits])[0])
    torch.testing.assert_close(picked(logits, ids), plain, atol=0, rtol=0)
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-12)
    assert torch.autograd.gradcheck(lambda z: picked(z, ids), [logits])


def test_one_of_two_answers_is_enough_for_a_gradient() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[1], [0], [4]])
    for number in (0, 1):
        assert torch.autograd.gradcheck(lambda z, number=number: picked(z, ids)[number], [logits])


def test_a_second_derivative_is_refused() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    everything = picked(logits, torch.tensor([[1], [0], [4]]))[1]
    (slope,) = torch.autograd.grad(everything.square().sum(), [logits], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.backward(slope.sum())
