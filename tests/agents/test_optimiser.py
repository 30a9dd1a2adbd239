"""The optimiser whose vocabulary rows rest: steps by hand, equality with AdamW, and what a student keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agents import make_agent
from agents.episodes import Episodes
from agents.errors import InputError
from agents.optimiser import RestingRows, clip_gradients, optimiser_of, touched
from agents.student import Student
from agents.vocabulary import Head, part_of
from tests.agents.test_episodes import fields
from tests.agents.test_student import model

WIDE = 40


def by_rows(rows: list[int], values: list[list[float]], count: int) -> Tensor:
    return torch.sparse_coo_tensor(torch.tensor([rows]), torch.tensor(values), (count, len(values[0])))


def test_steps_by_hand() -> None:
    """Adam's first step is lr against the sign; the second of row 0 has moments of both, that of row 2 of its first."""
    weight, lr = torch.zeros(3, 1), 0.1
    optimiser = RestingRows([weight], [weight], lr, 0.0)
    weight.grad = by_rows([0], [[2.0]], 3)
    optimiser.step()
    assert weight[:, 0].tolist() == pytest.approx([-0.1, 0, 0], abs=1e-6)
    weight.grad = by_rows([2, 0], [[-1.0], [4.0]], 3)
    optimiser.step()
    mean = {0: (0.9 * 0.1 * 2 + 0.1 * 4) / (1 - 0.9**2), 2: -0.1 / (1 - 0.9**2)}
    square = {0: (0.999 * 0.001 * 4 + 0.001 * 16) / (1 - 0.999**2), 2: 0.001 / (1 - 0.999**2)}
    ahead = {row: lr * mean[row] / square[row] ** 0.5 for row in mean}
    assert weight[:, 0].tolist() == pytest.approx([-0.1 - ahead[0], 0, -ahead[2]], abs=1e-6)
    kept = weight.clone()
    weight.grad = by_rows([1], [[1.0]], 3)
    optimiser.step()
    assert weight[0] == kept[0] and weight[2] == kept[2] and weight[1] != kept[1]


def test_where_all_rows_are_touched_adamw_steps_and_what_rested_goes_on_from_its_own_moments() -> None:
    rows, all_rows = torch.zeros(2, 1), torch.zeros(2, 1)
    resting, plain = RestingRows([rows], [rows], 0.1, 0.0), optimiser_of([all_rows], [], 0.1, 0.0)
    for gradient in ([[2.0], [-1.0]], [[1.0], [3.0]], [[0.5], [0.5]]):
        rows.grad, all_rows.grad = torch.tensor(gradient), torch.tensor(gradient)
        resting.step()
        plain.step()
        assert rows.grad is not None, "AdamW is to take this step"
    assert torch.equal(rows, all_rows)
    rows.grad, all_rows.grad = by_rows([0], [[4.0]], 2), torch.tensor([[4.0], [0.0]])
    kept = rows[1].clone()
    resting.step()
    plain.step()
    assert rows.grad is None and rows[1] == kept and all_rows[1] != kept
    assert rows[0].item() == pytest.approx(all_rows[0].item(), abs=1e-6)


def test_a_dense_gradient_touches_the_rows_that_are_not_0() -> None:
    gradient = torch.tensor([[0.0, 2.0], [0.0, 0.0], [3.0, -1.0]])
    rows, values = touched(gradient)
    assert rows.tolist() == [0, 2] and values.tolist() == [[0, 2], [3, -1]]
    rows, values = touched(by_rows([2, 0, 2], [[1.0, 1.0], [0.0, 2.0], [2.0, -2.0]], 3))
    assert rows.tolist() == [0, 2] and values.tolist() == [[0, 2], [3, -1]]
    weights = torch.zeros(3, 2), torch.zeros(3, 2)
    for weight, own in zip(weights, (gradient, gradient.to_sparse(1)), strict=True):
        optimiser = RestingRows([weight], [weight], 0.1, 0.0)
        weight.grad = own
        optimiser.step()
    assert torch.equal(*weights) and weights[0][1].eq(0).all() and weights[0][2].ne(0).all()


def test_with_every_row_touched_it_is_adamw() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = ([torch.ones(4, 3), torch.ones(2)] for _ in range(2))
    optimiser, other = RestingRows(ours, ours[:1], 0.01, 0.0), torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.0)
    for step in range(20):
        gradient, rest = torch.randn(4, 3, generator=generator), torch.randn(2, generator=generator)
        ours[0].grad = gradient.to_sparse(1) if step % 2 else gradient.clone()
        ours[1].grad, theirs[0].grad, theirs[1].grad = rest.clone(), gradient, rest
        optimiser.step()
        other.step()
        for mine, reference in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, reference, atol=1e-6, rtol=1e-6)


def test_gradients_are_clipped_by_their_common_norm() -> None:
    """Row 0 has 3 twice, the dense weight 8: a norm of 10."""
    weight, other, unused = torch.zeros(2, 1), torch.zeros(1), torch.zeros(1)
    weight.grad, other.grad = by_rows([0, 0], [[3.0], [3.0]], 2), torch.tensor([8.0])
    assert float(clip_gradients([weight, other, unused], 20.0)) == pytest.approx(10)
    assert weight.grad.to_dense()[:, 0].tolist() == [6, 0] and other.grad.item() == 8
    assert float(clip_gradients([weight, other, unused], 5.0)) == pytest.approx(10)
    assert weight.grad.to_dense()[:, 0].tolist() == pytest.approx([3, 0]) and other.grad.item() == pytest.approx(4)
    assert clip_gradients([unused], 1.0) == 0


def test_weight_decay_is_refused_and_a_student_that_rests_no_rows_has_adamw() -> None:
    with pytest.raises(InputError, match=r"weight_decay is 0.1, which moves every row.*set it to 0"):
        RestingRows([torch.zeros(2, 1)], [], 0.1, 0.1)
    assert type(optimiser_of([torch.zeros(1)], [], 0.1, 0.1)) is torch.optim.AdamW


def agent(kind: str, head: Head, name: str = "soft_q") -> Any:
    torch.manual_seed(0)
    student = Student(model(kind, WIDE), head=head).double()  # Adam makes much of how a gradient near 0 is rounded
    return make_agent(name, student, total_updates=100, lr=0.01, warmup=0)


def vocabulary(own: Student) -> list[Tensor]:
    return [own.model.get_input_embeddings().weight, own.model.get_output_embeddings().weight]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "phi"])
def test_rows_outside_the_batch_stay_as_they_are(kind: str) -> None:
    """Tied and untied; phi's head has a bias."""
    learner, batch = agent(kind, Head("candidates", 0, resting=True)), Episodes(**fields()).discounted(1.0)
    before = [weight.detach().clone() for weight in vocabulary(learner.student)]
    for _ in range(3):
        learner.update(batch)
    named = set(part_of(batch, WIDE, 0, seed=0).own.tolist())
    touched = named | set(batch.tokens.flatten().tolist())
    moved = set()
    for weight, old in zip(vocabulary(learner.student), before, strict=True):
        moved |= set((weight.detach() != old).any(1).nonzero()[:, 0].tolist())
    assert named <= moved <= touched < set(range(WIDE))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("rows", ["candidates", "all"])
def test_with_every_row_in_the_batch_a_student_learns_as_under_adamw(kind: str, rows: str) -> None:
    batch = Episodes(**fields()).discounted(1.0)
    resting, usual = (agent(kind, Head(rows, WIDE, resting=rests)) for rests in (True, False))
    for _ in range(5):
        ours, theirs = resting.update(batch), usual.update(batch)
        assert ours == pytest.approx(theirs, rel=1e-4)
    for mine, reference in zip(resting.student.parameters(), usual.student.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-7, rtol=1e-5)


def goes_on(first: Any, second: Any, batch: Episodes, folder: Path) -> None:
    """An agent that is loaded learns as the one that was saved would have."""
    first.update(batch)
    first.save(folder)
    second.load(folder)
    assert first.update(batch) == second.update(batch)
    for mine, reference in zip(first.student.parameters(), second.student.parameters(), strict=True):
        assert torch.equal(mine, reference)


@pytest.mark.parametrize("name", ["soft_q", "sac"])
def test_it_goes_on_as_if_it_had_not_stopped(name: str, tmp_path: Path) -> None:
    batch, head = Episodes(**fields()).discounted(1.0), Head("candidates", 8, resting=True)
    first, second = agent("llama", head, name), agent("llama", head, name)
    goes_on(first, second, batch, tmp_path)


def test_an_input_embedding_of_another_kind_is_refused() -> None:
    own = Student(model("llama", WIDE), head=Head(resting=True))
    own.model.set_input_embeddings(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="the input embedding is a Linear, not an Embedding"):
        own.let_rows_rest()
