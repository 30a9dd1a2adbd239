"""`value_tilt` ends at the teacher tilted by its student's exact values; at γ = 0 it is `gkd`; mistakes are noticed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents import make_agent, objectives
from agents.episodes import Episodes
from agents.errors import InputError
from agents.objectives import differential_returns, leaf_advantage, state_cost, tilted_teacher
from agents.student import Student
from agents.table_student import TableStudent
from agents.value_tilt import ValueTilt
from envs.table_teacher import TABLES
from experiments.table_data import as_walked, build, complete_paths
from tests.agents.mutations import gamma_off_by_one, mask_ignored
from tests.agents.own_walk import exact, gaps, learn, renormalised
from tests.agents.test_contract import exact as episodes
from tests.agents.test_contract import scattered, with_gradient
from tests.agents.test_student import model

POLICY, VALUE = 0.003, 0.003
DETOUR: dict[str, Any] = {"name": "detour", "p": 0.7, "gamma": 0.8, "updates": 100, "start": renormalised}
Patch = pytest.MonkeyPatch


def scatter(student: TableStudent, *_: Any) -> None:
    with torch.no_grad():
        student.z.normal_(generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("lam", [0.0, 0.95])
def test_the_critic_of_a_student_that_stands_still_solves_its_bellman_equation(lam: float) -> None:
    agent, teacher = learn(updates=1000, stop=200, start=scatter, critic_alone=200, lam=lam)
    wanted = exact(agent.student.z.detach().numpy(), teacher, 0.8, 0.8)
    assert gaps(agent, teacher)[1] < VALUE < np.abs(wanted.values).max() / 10
    assert agent.mean_cost.value == pytest.approx(wanted.mean, abs=1e-4)
    fresh = TableStudent(teacher.vocab_size, teacher.order)
    scatter(fresh)
    assert torch.equal(fresh.z, agent.student.z)  # it did stand still


@pytest.mark.parametrize(("name", "p", "gamma"), [("second_order", 0.8, 0.8), ("detour", 0.7, 1.0)])
def test_the_student_ends_at_the_teacher_tilted_by_its_own_exact_values(name: str, p: float, gamma: float) -> None:
    agent, teacher = learn(name, p, gamma, updates=200, lr=0.3, start=renormalised)
    policy, value = gaps(agent, teacher, p, gamma)
    assert policy < POLICY and value < VALUE, (policy, value)
    z = agent.student.z.detach().numpy()
    apart = np.abs(exact(z, teacher, p, gamma).policy - exact(z, teacher, p, 0.0).policy).max()
    assert apart > 10 * POLICY  # and that is not the renormalised teacher


def swapped(change: Callable[..., Tensor], name: str) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(objectives, name, change)


def learns_from_the_teacher_too(patch: Patch) -> None:
    teach = ValueTilt.teach

    def wrong(self: ValueTilt, batch: Episodes, *rest: Any) -> Any:
        return teach(self, dataclasses.replace(batch, from_teacher=torch.zeros_like(batch.from_teacher)), *rest)

    patch.setattr(ValueTilt, "teach", wrong)


def slot_for_token(patch: Patch) -> None:
    leaves = TableStudent.leaves

    def wrong(self: TableStudent, batch: Episodes, ids: Tensor, mask: Tensor, full: bool = False) -> Any:
        return leaves(self, batch, torch.arange(ids.shape[-1]).expand_as(ids), mask, full)

    patch.setattr(TableStudent, "leaves", wrong)


MUTATIONS: dict[str, Callable[[Patch], None]] = {
    "mask ignored": mask_ignored,
    "γ off by a step": gamma_off_by_one,
    "slot taken for token": slot_for_token,
    "no average": swapped(lambda c, mean, *rest: differential_returns(c, 0 * mean, *rest), "differential_returns"),
    "sign of the cost": swapped(lambda c, mean, *rest: differential_returns(-c, -mean, *rest), "differential_returns"),
    "sign of the tilt": swapped(lambda t, a, *rest: tilted_teacher(t, -a, *rest), "tilted_teacher"),
    "EOS tilted": swapped(lambda v, t, on, ends, c: leaf_advantage(v, t, on, ends & False, c), "leaf_advantage"),
    "values of the teacher's walk": learns_from_the_teacher_too,
}


def far(found: tuple[float, float]) -> bool:
    return found[0] > 3 * POLICY or found[1] > 3 * VALUE


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mistake_is_noticed(name: str) -> None:
    agent, teacher = learn(**DETOUR, mutation=MUTATIONS[name])
    assert far(gaps(agent, teacher, 0.7))


def test_a_cost_without_the_leak_or_the_lost_mass_is_noticed() -> None:
    """A leak is gone at the end, but not on the way there: seen at a student that stands still."""
    still: dict[str, Any] = {**DETOUR, "updates": 500, "stop": 100, "start": scatter, "critic_alone": 100}

    def no_leak(teacher: Tensor, policy: Tensor, inside: Tensor, mask: Tensor, limit: float) -> Tensor:
        return state_cost(teacher, policy, 0 * inside, mask, limit)

    def no_mass(teacher: Tensor, policy: Tensor, inside: Tensor, mask: Tensor, limit: float) -> Tensor:
        return state_cost(objectives.renormalise(teacher, mask), policy, inside, mask, limit)

    found = [gaps(*learn(**still, mutation=swapped(wrong, "state_cost")), 0.7)[1] for wrong in (no_leak, no_mass)]
    assert min(found) > 3 * VALUE
    assert gaps(*learn(**still), 0.7)[1] < VALUE


@pytest.mark.parametrize("mistake", ["truncation_terminates", "eos_continues"])
def test_a_wrong_end_is_noticed(mistake: str) -> None:
    agent, teacher = learn(**DETOUR, mistakes={mistake: True})
    assert far(gaps(agent, teacher, 0.7))


def test_without_a_mistake_the_same_run_is_near() -> None:
    agent, teacher = learn(**DETOUR)
    policy, value = gaps(agent, teacher, 0.7)
    assert policy < POLICY and value < VALUE, (policy, value)


def test_the_control_permutes_the_advantages_and_ends_elsewhere() -> None:
    agent, teacher = learn(**DETOUR, shuffle=True)
    policy, value = gaps(agent, teacher, 0.7)
    assert policy > 3 * POLICY and value < VALUE  # its critic is as good


def test_shuffling_keeps_the_advantages_and_moves_them() -> None:
    agent, _ = learn(**DETOUR)
    teacher = TABLES["detour"]()
    batch = as_walked(agent.student, build(teacher, complete_paths(teacher, 2), 0.7, 0.8))
    scores = agent.student.scores(batch)
    straight, _ = agent.look_ahead(batch, scores)
    object.__setattr__(agent.config, "shuffle", True)
    mixed, _ = agent.look_ahead(batch, scores)
    torch.testing.assert_close(mixed.flatten().sort().values, straight.flatten().sort().values)
    assert not torch.equal(mixed, straight) and torch.equal(mixed == 0, straight == 0)


@pytest.mark.parametrize(("divergence", "twin"), [("reverse", {"divergence": "reverse"}), ("jsd", {"beta": 0.5})])
def test_without_gamma_it_is_gkd_on_the_set_in_loss_and_gradient(divergence: str, twin: dict[str, Any]) -> None:
    batch = episodes().discounted(0.0)
    mine = scattered("value_tilt", gamma=0.0, divergence=divergence)
    other = scattered("gkd", on="set", **twin)
    torch.testing.assert_close(
        with_gradient(mine, mine.loss(batch)[0]), with_gradient(other, other.loss(batch)[0]), atol=1e-6, rtol=1e-6
    )
    for _ in range(5):
        for agent in (mine, other):
            agent.update(batch)
    torch.testing.assert_close(mine.student.z, other.student.z, atol=1e-6, rtol=0)
    assert mine.fixed_point == other.fixed_point


def test_no_gradient_reaches_the_student_from_its_critic() -> None:
    """The loss is the divergence to a target: the gradient is that of the same numbers held still."""
    agent, teacher = learn(**DETOUR, stop=60)
    batch = build(teacher, complete_paths(teacher, 2), 0.7, 0.8)
    batch = Episodes.concatenate([batch, as_walked(agent.student, batch)])
    found = with_gradient(agent, agent.loss(batch)[0])
    scores, mask = agent.student.scores(batch), batch.mask[:, :-1]
    advantage, _ = agent.look_ahead(batch, scores)
    goal = objectives.tilted_teacher(batch.logp[:, :-1], advantage, agent.strength, mask)
    apart = objectives.reverse_kl(goal, scores.log_policy[:, :-1], mask) - scores.log_inside[:, :-1]
    wanted = objectives.average(apart, batch.step_weights)
    assert agent.strength > 0 and advantage.abs().max() > 0.01
    torch.testing.assert_close(found, with_gradient(agent, wanted))
    assert agent.critic_optimiser.param_groups[0]["params"][0] is not agent.optimiser.param_groups[0]["params"][0]


def test_a_saved_agent_goes_on_with_its_critic_and_its_average(tmp_path: Path) -> None:
    teacher = TABLES["detour"]()
    batch = build(teacher, complete_paths(teacher, 2), 0.7, 0.8)
    agents = [
        make_agent("value_tilt", TableStudent(4, 1), seed=seed, total_updates=20, lr=0.1, gamma=0.8, shuffle=True)
        for seed in (0, 1)
    ]

    def go_on(agent: Any, updates: int) -> None:
        for _ in range(updates):
            agent.update(Episodes.concatenate([batch, as_walked(agent.student, batch)]))

    go_on(agents[0], 8)
    agents[0].save(tmp_path)
    agents[1].load(tmp_path)
    for agent in agents:
        go_on(agent, 8)
    for name, module in agents[0].extras().items():
        assert str(module.state_dict()) == str(agents[1].extras()[name].state_dict())
    assert torch.equal(agents[0].student.z, agents[1].student.z)
    assert agents[0].strength == pytest.approx(0.8)


def test_a_language_models_critic_learns_from_its_walk_alone_and_then_tilts() -> None:
    teacher = TABLES["toy"]()
    batch = build(teacher, [path for path in complete_paths(teacher, 3) if len(path.tokens) > 1][::9], 0.8, 0.9)
    own = dataclasses.replace(batch, from_teacher=torch.zeros_like(batch.from_teacher))
    agent = make_agent("value_tilt", Student(model()), seed=0, total_updates=40, lr=1e-3, gamma=0.9)
    first = agent.update(own)
    assert "critic_error" in first and agent.strength == 0 and first["gradient_norm"] == 0
    assert "critic_error" not in agent.update(batch)
    for _ in range(20):
        last = agent.update(Episodes.concatenate([batch, own]))
    assert last["tilt"] > 0 and last["critic_error"] < first["critic_error"] and last["gradient_norm"] > 0


def test_a_tilt_needs_walks() -> None:
    with pytest.raises(InputError, match="student_share is 0"):
        make_agent("value_tilt", TableStudent(3, 1), total_updates=1, student_share=0.0)
    make_agent("value_tilt", TableStudent(3, 1), total_updates=1, student_share=0.0, gamma=0.0)
