"""`bellman_distill_released` gives the published code's number, its oddities included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from agents import make_agent
from agents.base import Agent
from agents.episodes import Episodes
from agents.table_student import TableStudent
from envs.table_teacher import TABLES
from experiments.table_data import Path, build

SETTINGS: dict[str, Any] = {"gamma": 0.8, "c": 0.1, "top_p": 0.8, "epsilon": 0.01}


def agent_on(*texts: tuple[int, ...]) -> tuple[Agent[Any], Episodes]:
    teacher = TABLES["toy"]()
    batch = build(teacher, [Path(1, text, 1.0) for text in texts], 0.8, 0.8)
    student = TableStudent(6, 1)
    with torch.no_grad():
        student.z.normal_(generator=torch.Generator().manual_seed(0)).mul_(4)
    return make_agent("bellman_distill_released", student, seed=0, total_updates=1, **SETTINGS), batch


def published(z: Any, sets: Any, unmasked: Any) -> float:
    """The loss of one padded response as the code has it, in numpy: rows of Q, of the top-p mask, of the pad mask."""
    q = np.maximum(z - z.max(1, keepdims=True), -10)
    student = np.exp(q) / np.exp(q).sum(1, keepdims=True)
    projected = student * sets / SETTINGS["top_p"] + SETTINGS["epsilon"]
    projected /= projected.sum(1, keepdims=True)
    value = (projected * (q - np.log(projected))).sum(1) * unmasked
    ahead = SETTINGS["gamma"] * value[1:] * unmasked[1:]
    count = unmasked[:-1].sum()
    x = sets[:-1] * q[:-1] * unmasked[:-1, None] - ahead[:, None]
    first = x.mean(1).sum() / count - (value[:-1] * unmasked[:-1] - ahead).sum() / count
    return float(-first + (x**2).mean(1).sum() / count / (4 * SETTINGS["c"]))


def sets_of(batch: Episodes, row: int, steps: int) -> Any:
    sets = np.zeros((steps, 6))
    for t in range(steps):
        sets[t, batch.ids[row, t][batch.mask[row, t]].numpy()] = 1
    return sets


@pytest.mark.parametrize(
    ("text", "unmasked", "padded"),
    [((3, 1, 4, 0), [1, 1, 1, 0, 0], 1), ((3, 1, 4, 2), [1, 1, 1, 1], 0)],
    ids=["ends: EOS and what follows it are padding", "fills the response: its last token has no next one"],
)
def test_the_loss_is_the_published_number(text: tuple[int, ...], unmasked: list[int], padded: int) -> None:
    agent, batch = agent_on(text)
    steps = len(text)
    with torch.no_grad():
        z = agent.student.scores(batch, full=True).logp[0, :steps].numpy()
    garbage = np.full((padded, 6), 3.0)  # rows of padding, which the code computes and masks
    rows = np.concatenate([z, garbage]), np.concatenate([sets_of(batch, 0, steps), garbage > 0])
    assert agent.loss(batch)[0].item() == pytest.approx(published(*rows, np.array(unmasked)), rel=1e-6)


def test_neither_eos_nor_the_token_taken_is_a_target() -> None:
    agent, batch = agent_on((3, 1, 4, 0))
    agent.loss(batch)[0].backward()
    moved = agent.student.z.grad.abs().sum(1) > 0
    assert moved.tolist() == [False, True, False, True, False, False]  # 4 comes before EOS: neither side of a step
    losses = [agent.loss(agent_on((3, 1, 4, last))[1])[0].item() for last in (1, 2, 3)]
    assert losses[0] == losses[1] == losses[2] != agent.loss(batch)[0].item()


def test_a_text_without_two_steps_teaches_nothing() -> None:
    agent, batch = agent_on((0,), (2,))
    assert agent.loss(batch)[0].item() == 0.0
