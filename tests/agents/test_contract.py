"""The contract of every registered agent that learns from episodes, and what only some of them promise."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from agents import agent_class, make_agent
from agents.base import Agent, schedule
from agents.behavior_cloning import BehaviorCloning
from agents.episodes import Episodes
from agents.errors import InputError
from agents.student import Student
from agents.table_student import TableStudent
from experiments.contract import AgentContract
from experiments.oracle import EPISODIC, case_for, looks_ahead
from tests.agents.test_student import model

LOOKING_AHEAD = [name for name in EPISODIC if looks_ahead(name)]

for registered in EPISODIC:
    case = f"Test_{registered}"
    globals()[case] = type(case, (AgentContract,), {"agent": registered})


def fresh(name: str, seed: int = 0, **config: Any) -> Agent[Any]:
    settings = {"gamma": 0.8} if name in LOOKING_AHEAD else {}
    return make_agent(name, TableStudent(6, 1), seed=seed, total_updates=150, lr=0.2, **{**settings, **config})


def exact() -> Episodes:
    return case_for("bc", 1, 0.8, "logprob").batch


def test_an_agent_saved_by_another_is_refused(tmp_path: Path) -> None:
    fresh("bc").save(tmp_path)
    with pytest.raises(InputError, match="saved by bc, not by kd"):
        fresh("kd").load(tmp_path)


BAD = [
    ("bc", {"lr": 0.0}, "lr is 0.0"),
    ("bc", {"weight_decay": -1}, "weight_decay"),
    ("bc", {"warmup": -1}, "warmup"),
    ("bc", {"clip": 0}, "clip"),
    ("bc", {"batch_size": 0}, "batch_size"),
    ("bc", {"lrr": 1}, "did you mean lr"),
    ("kd", {"on": "top"}, "on is 'top'"),
    ("kd", {"leak_weight": -1}, "leak_weight"),
    ("gkd", {"divergence": "js"}, "divergence is 'js'"),
    ("gkd", {"beta": 2}, "beta is 2"),
    ("gkd", {"skew": 1}, "skew is 1"),
    ("gkd", {"on": "top"}, "on is 'top'"),
    ("gkd", {"leak_weight": -1}, "leak_weight"),
    ("gkd", {"student_share": 2}, "student_share"),
    ("minillm", {"ratio_clip": 0}, "ratio_clip"),
    ("bellman_distill_released", {"gamma": 2}, "gamma is 2"),
    ("bellman_distill_released", {"c": 0}, "c is 0"),
    ("bellman_distill_released", {"top_p": 0}, "top_p"),
    ("bellman_distill_released", {"epsilon": 0}, "epsilon"),
    ("value_tilt", {"divergence": "forward"}, "divergence"),
    ("value_tilt", {"leaves": 1}, "leaves is 1"),
    ("value_tilt", {"lam": 2}, "lam is 2"),
    ("value_tilt", {"tilt_clip": 0}, "tilt_clip"),
    ("value_tilt", {"tilt_share": 2}, "tilt_share"),
    ("value_tilt", {"critic_rate": 0}, "critic_rate"),
    ("value_tilt", {"critic_width": -1}, "critic_width"),
    ("soft_q", {"gamma": 1.5}, "gamma is 1.5"),
    ("soft_q", {"leak_weight": -1}, "leak_weight"),
    ("soft_q", {"alpha": 0}, "alpha"),
    ("soft_q", {"target_period": 0}, "target_period"),
    ("soft_q", {"target_rate": 0}, "target_rate"),
    ("soft_q", {"huber": 0}, "huber"),
    ("soft_q", {"hinge": -1}, "hinge"),
    ("soft_q", {"min_mass": 2}, "min_mass"),
    ("soft_q", {"n": 0}, "n is 0"),
    ("soft_q", {"gradient": "full"}, "gradient"),
    ("soft_q", {"anchor": -1}, "anchor"),
    ("bellman_distill", {"c": 0}, "c is 0"),
    ("bellman_distill", {"outside": "add"}, "outside"),
    ("bellman_distill", {"linear": "both"}, "linear"),
]


@pytest.mark.parametrize(("name", "config", "says"), BAD, ids=lambda value: str(value))
def test_a_setting_out_of_range_is_named(name: str, config: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        fresh(name, **config) if "lr" not in config else agent_class(name).make_config(**config)


def test_bad_names_and_places_are_named(tmp_path: Path) -> None:
    cases = [
        ("softq", "did you mean soft_q"),
        ("nowhere:Agent", "cannot be loaded"),
        ("agents.episodes:Episodes", "not a subclass"),
    ]
    for name, says in cases:
        with pytest.raises(InputError, match=says):
            agent_class(name)
    with pytest.raises(InputError, match="no saved agent"):
        fresh("bc").load(tmp_path)
    with pytest.raises(InputError, match="total_updates is 0"):
        make_agent("bc", TableStudent(3, 1), total_updates=0)


def test_a_users_own_class_is_an_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("mine")
    module.Own = type("Own", (BehaviorCloning,), {"name": "own"})
    monkeypatch.setitem(sys.modules, "mine", module)
    assert make_agent("mine:Own", TableStudent(3, 1), total_updates=1).name == "own"


def test_the_rate_warms_up_and_ends_at_nothing() -> None:
    rates = [schedule(update, 4, 100) for update in range(101)]
    assert rates[:5] == [0.2, 0.4, 0.6, 0.8, 1.0] and rates[100] == 0
    assert schedule(0, 20, 5) == 1.0


def with_gradient(agent: Agent[Any], loss: torch.Tensor) -> tuple[float, torch.Tensor]:
    (gradient,) = torch.autograd.grad(loss, [agent.student.z])
    return loss.item(), gradient


def scattered(name: str, **config: Any) -> Agent[Any]:
    """An agent whose table student is far from everything, the same for every name."""
    agent, generator = fresh(name, **config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in agent.student.parameters():
            value.copy_(torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return agent


def test_without_chi2_bellman_distill_is_cloning_in_loss_and_gradient() -> None:
    """(5): γ cancels; with outside="full" every token counts, as in `bc` (4g)."""
    batch, off = exact(), {"c": float("inf")}
    one, other = scattered("bellman_distill", outside="full", **off), scattered("bc")
    torch.testing.assert_close(with_gradient(one, one.loss(batch)[0]), with_gradient(other, other.loss(batch)[0]))


def test_without_chi2_and_leak_bellman_distill_is_nucleus_likelihood_in_loss_and_gradient() -> None:
    batch = exact()
    agent = scattered("bellman_distill", c=float("inf"), leak_weight=0.0)
    policy = agent.student.scores(batch).log_policy[:, :-1].gather(2, batch.slots.clamp(min=0)[..., None])[..., 0]
    wanted = -(policy * batch.step_weights * batch.in_set).sum() / batch.step_weights.sum()
    torch.testing.assert_close(with_gradient(agent, agent.loss(batch)[0]), with_gradient(agent, wanted))


def test_the_expected_linear_term_is_the_sampled_one_on_the_teachers_own_frequencies() -> None:
    batch = exact()
    agents = [scattered("bellman_distill", linear=linear) for linear in ("sampled", "expected")]
    losses = [with_gradient(agent, agent.loss(batch)[0]) for agent in agents]
    torch.testing.assert_close(*losses, atol=1e-6, rtol=1e-5)


def test_a_padded_vocabulary_is_driven_out_by_kd() -> None:
    """A student with more rows than the teacher learns to leave them alone."""
    batch = exact()
    agent = make_agent("kd", Student(model(vocabulary=12)), total_updates=150, lr=2e-2)
    for _ in range(150):
        agent.update(batch)
    logp = agent.student.scores(batch, full=True).logp
    assert logp is not None
    assert logp[:, 0, 6:].exp().sum(-1).max() < 0.02
