"""Few texts at a time: the same loss and the same gradients, whatever the agent, and never more texts at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from agents import make_agent
from agents.episodes import Episodes
from agents.student import Student
from agents.vocabulary import Head
from tests.agents.test_episodes import fields
from tests.agents.test_student import model
from tests.agents.test_vocabulary import WIDE, gradients

AGENTS: list[tuple[str, dict[str, Any]]] = [
    ("bc", {}),
    ("kd", {"on": "vocabulary"}),
    ("kd", {"on": "set"}),
    ("gkd", {"on": "set", "divergence": "reverse"}),
    ("q_learning", {"gamma": 0.5}),
    ("soft_q", {"gamma": 0.5}),
    ("cql", {"gamma": 0.5}),
    ("bellman_distill", {"gamma": 0.5}),
    ("sac", {"gamma": 0.5}),
]


def batch() -> Episodes:
    """Five episodes of unequal length: steps, not texts, are what a mean is over."""
    own = Episodes(**fields())
    found = Episodes.concatenate([own, own.select([0]), own.select([1]), own.select([0])])
    generator = torch.Generator().manual_seed(0)
    logp = torch.randn(*found.slots.shape, WIDE, generator=generator).log_softmax(-1)
    return replace(found, teacher_logp=logp).discounted(0.5)


def student(head: Head, micro_batch: int, kind: str = "llama") -> Student:
    found = Student(model(kind, WIDE), head=head)
    torch.manual_seed(1)
    torch.nn.init.normal_(found.value_head.weight)
    found.micro_batch = micro_batch
    return found.double()


@pytest.mark.parametrize("head", [Head("all"), Head("candidates", 7)], ids=["all", "candidates"])
@pytest.mark.parametrize(("name", "settings"), AGENTS)
def test_an_update_of_parts_is_the_update_of_the_whole(name: str, settings: dict[str, Any], head: Head) -> None:
    episodes, found = batch(), []
    for micro_batch in (0, 2, 1):
        own = student(head, micro_batch)
        agent = make_agent(name, own, total_updates=10, **settings)
        loss, _ = agent.loss(episodes)
        found.append([loss.detach(), *gradients(own, loss)])
    for whole, *parts in zip(*found, strict=True):
        for part in parts:
            torch.testing.assert_close(part, whole, atol=1e-7, rtol=1e-6)
    assert any(value.abs().max() > 1e-3 for value in found[0][1:])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_no_forward_has_more_texts_and_no_text_is_padded_to_another_part(kind: str) -> None:
    own, seen = student(Head("all"), 2, kind), []
    own.model.register_forward_pre_hook(
        lambda module, args, given: seen.append(given["input_ids"].shape), with_kwargs=True
    )
    loss = own.scores(batch()).value.sum()
    assert [shape[0] for shape in seen] == [2, 2, 1]
    torch.autograd.backward(loss)
    assert sorted(shape[0] for shape in seen) == [1, 1, 2, 2, 2, 2]
    seen.clear()
    with torch.no_grad():
        own.scores(batch())
    assert [shape[0] for shape in seen] == [2, 2, 1]


def test_what_is_kept_for_the_backward_pass_is_less() -> None:
    """Of the forward, only the scores and what the loss makes of them are kept; a part is read again when it is due."""
    episodes, kept = batch(), []

    def count(value: torch.Tensor) -> torch.Tensor:
        kept[-1] += value.numel()
        return value

    for micro_batch in (0, 2):
        agent = make_agent("soft_q", student(Head("all"), micro_batch), total_updates=10, gamma=0.5)
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
            agent.loss(episodes)
    assert kept[1] < kept[0] / 5


def test_resting_rows_learn_the_same_in_parts() -> None:
    found = []
    for micro_batch in (0, 2):
        own = student(Head("candidates", 7, resting=True), micro_batch)
        agent = make_agent("soft_q", own, total_updates=10, gamma=0.5, lr=0.01, warmup=0)
        for _ in range(3):
            agent.update(batch())
        found.append(list(own.parameters()))
    for whole, part in zip(*found, strict=True):
        torch.testing.assert_close(part, whole, atol=1e-7, rtol=1e-5)
