"""The shuffled-value control permutes what targets are built from, goes on after a save, and is nothing at γ = 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from agents import make_agent
from agents.base import Agent
from agents.episodes import Episodes
from agents.table_student import TableStudent
from agents.td import TDAgent
from envs.table_teacher import toy
from experiments.table_data import build, complete_paths

AGENTS: list[tuple[str, dict[str, Any]]] = [
    ("q_learning", {}),
    ("soft_q", {}),
    ("soft_q", {"lam": 0.6}),
    ("cql", {}),
    ("bellman_distill", {"c": 1.0}),
]


def scattered(name: str, seed: int = 0, **config: Any) -> Agent[Any]:
    """An agent whose student and target network are far from everything, the same for every seed."""
    student, generator = TableStudent(toy().vocab_size, 1), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in student.parameters():
            value.copy_(torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return make_agent(name, student, seed=seed, total_updates=20, lr=0.1, **config)


def ahead(agent: Agent[Any], values: torch.Tensor, batch: Episodes) -> torch.Tensor:
    assert isinstance(agent, TDAgent)
    return agent.ahead(values, batch)


def test_the_values_of_successor_states_are_permuted_and_nothing_else() -> None:
    batch = build(toy(), complete_paths(toy(), 3), 0.8, 0.8)
    values = torch.arange(batch.states.numel(), dtype=torch.float32).view(batch.states.shape)
    found = ahead(scattered("soft_q", gamma=0.8, shuffle=True), values, batch)
    successors = batch.states.clone()
    successors[:, 0] = False
    assert torch.equal(found[~successors], values[~successors])
    assert torch.equal(found[successors].sort().values, values[successors])
    assert (found[successors] != values[successors]).float().mean() > 0.9
    again = ahead(scattered("soft_q", gamma=0.8, shuffle=True), values, batch)
    other = ahead(scattered("soft_q", seed=1, gamma=0.8, shuffle=True), values, batch)
    assert torch.equal(found, again) and not torch.equal(found, other)
    assert ahead(scattered("soft_q", gamma=0.8), values, batch) is values


@pytest.mark.parametrize(("name", "config"), AGENTS, ids=str)
def test_a_saved_agent_goes_on_with_its_permutations(name: str, config: dict[str, Any], tmp_path: Path) -> None:
    batch = build(toy(), complete_paths(toy(), 1), 0.8, 0.8)
    agent, again = (scattered(name, seed, gamma=0.8, shuffle=True, **config) for seed in (0, 1))
    for _ in range(3):
        agent.update(batch)
    agent.save(tmp_path)
    again.load(tmp_path)
    assert [agent.update(batch) for _ in range(3)] == [again.update(batch) for _ in range(3)]


@pytest.mark.parametrize(("name", "config"), AGENTS, ids=str)
def test_without_lookahead_there_is_nothing_to_shuffle(name: str, config: dict[str, Any]) -> None:
    """At γ = 0 the control and the arm it controls are one number, update by update."""
    batch = build(toy(), complete_paths(toy(), 3), 0.8, 0.0)
    agents = [scattered(name, gamma=0.0, shuffle=shuffle, **config) for shuffle in (False, True)]
    for _ in range(3):
        one, other = (agent.update(batch) for agent in agents)
        assert one == other
