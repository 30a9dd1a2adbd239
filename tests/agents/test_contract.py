"""What holds for every registered agent that learns from episodes, a newcomer included."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from agents import agent_class, make_agent
from agents.base import Agent, schedule
from agents.behavior_cloning import BehaviorCloning
from agents.episodes import Episodes
from agents.errors import DivergedError, InputError
from agents.student import Student
from agents.table_student import TableStudent
from tests.agents.oracle import EPISODIC, case_for, next_batch
from tests.agents.test_student import model, tokenizer

UPDATES = 150  # hard Q learners wait for their target network
LOOKING_AHEAD = [name for name in EPISODIC if "gamma" in {*agent_class(name).Config.__dataclass_fields__}]


def config_for(name: str) -> dict[str, Any]:
    return {"gamma": 0.8} if name in LOOKING_AHEAD else {}


def fresh(name: str, seed: int = 0, **config: Any) -> Agent[Any]:
    case = case_for(name, 1, 0.8, "logprob")
    student = TableStudent(case.teacher.vocab_size, 1)
    return make_agent(name, student, seed=seed, total_updates=UPDATES, lr=0.2, **{**config_for(name), **config})


def batch_of(name: str) -> Episodes:
    """Exact data of the kind an agent learns from; what a student walked is that of the uniform one."""
    return next_batch(fresh(name), case_for(name, 1, 0.8, "logprob"))


def weights(agent: Agent[Any]) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in agent.student.parameters()])


@pytest.mark.parametrize("name", [name for name in EPISODIC if fresh(name).fixed_point is not None])
def test_the_gap_to_the_fixed_point_falls(name: str) -> None:
    agent, case = fresh(name), case_for(name, 1, 0.8, "logprob")
    before = case.gap(agent)
    for _ in range(UPDATES):
        figures = agent.update(next_batch(agent, case))
    after = case.gap(agent)
    assert after.policy + after.q < 0.3 * (before.policy + before.q)
    assert all(isinstance(value, float) for value in figures.values()) and {"loss", "lr"} <= figures.keys()


@pytest.mark.parametrize("name", EPISODIC)
def test_seeded_runs_are_equal(name: str) -> None:
    agents = [fresh(name, seed=7) for _ in range(2)]
    for agent in agents:
        for _ in range(3):
            agent.update(batch_of(name))
    assert torch.equal(*map(weights, agents))


@pytest.mark.parametrize("name", EPISODIC)
def test_a_saved_agent_goes_on_as_if_never_stopped(name: str, tmp_path: Path) -> None:
    agent, again = fresh(name), fresh(name, seed=1)
    for _ in range(3):
        agent.update(batch_of(name))
    agent.save(tmp_path)
    again.load(tmp_path)
    for one in (agent, again):
        for _ in range(3):
            one.update(batch_of(name))
    assert torch.equal(weights(agent), weights(again)) and again.updates == 6
    with pytest.raises(InputError, match="saved by"):
        fresh("kd" if name != "kd" else "bc").load(tmp_path)


@pytest.mark.parametrize("name", EPISODIC)
def test_only_legal_slots_are_chosen(name: str) -> None:
    agent, rng = fresh(name), np.random.default_rng(0)
    batch = batch_of(name)
    agent.update(batch)
    observation = {
        "context": batch.tokens.numpy().astype(np.int32),
        "length": batch.prompt_length.numpy(),
        "ids": batch.ids[:, 0].numpy().astype(np.int32),
        "mask": batch.mask[:, 0].numpy().astype(np.int8),
    }
    rows = np.arange(len(batch))
    for draw in (None, rng, rng, rng):
        slots = agent.act(observation, draw)
        assert slots.shape == (len(batch),) and observation["mask"][rows, slots].all()
    single = {key: value[3] for key, value in observation.items()}
    assert int(agent.act(single)) == agent.act(observation)[3]
    ended = {**observation, "mask": np.zeros_like(observation["mask"])}
    assert (agent.act(ended, rng) == 0).all()


@pytest.mark.parametrize("name", EPISODIC)
def test_a_language_model_learns_by_the_same_calls(name: str, tmp_path: Path) -> None:
    batch = batch_of(name)
    agent = make_agent(name, Student(model(), tokenizer()), seed=0, total_updates=30, lr=5e-3, **config_for(name))
    first, *_, last = [agent.update(batch)["loss"] for _ in range(30)]
    assert last < first
    agent.save(tmp_path)
    agent.load(tmp_path)


@pytest.mark.parametrize("name", EPISODIC)
def test_an_agent_says_where_it_ends_or_what_tests_it(name: str) -> None:
    agent = fresh(name)
    assert agent.name == name and agent.data in ("teacher", "student", "either", "mixed")
    assert agent.fixed_point is not None or agent.identity


@pytest.mark.parametrize("name", LOOKING_AHEAD)
def test_episodes_of_another_discount_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"γ = 0\.5"):
        fresh(name, gamma=0.5).update(batch_of(name))


def test_a_missing_attachment_is_named() -> None:
    held = {key: value for key, value in batch_of("kd").fields().items() if key != "teacher_logp"}
    with pytest.raises(InputError, match="kd needs teacher_logits"):
        fresh("kd").update(Episodes(**held))


def test_a_loss_that_is_no_number_leaves_the_student_alone() -> None:
    agent = fresh("bc")
    with torch.no_grad():
        agent.student.z[0, 0] = torch.nan
    before = weights(agent)
    with pytest.raises(DivergedError, match="update 1"):
        agent.update(batch_of("bc"))
    assert torch.equal(before.nan_to_num(9), weights(agent).nan_to_num(9)) and agent.updates == 0


BAD = [
    ("bc", {"lr": 0.0}, "lr is 0.0"),
    ("bc", {"weight_decay": -1}, "weight_decay"),
    ("bc", {"warmup": -1}, "warmup"),
    ("bc", {"clip": 0}, "clip"),
    ("bc", {"batch_size": 0}, "batch_size"),
    ("bc", {"lrr": 1}, "did you mean lr"),
    ("kd", {"on": "top"}, "on is 'top'"),
    ("kd", {"leak_weight": -1}, "leak_weight"),
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
    batch, off = batch_of("soft_q"), {"c": float("inf")}
    one, other = scattered("bellman_distill", outside="full", **off), scattered("bc")
    torch.testing.assert_close(with_gradient(one, one.loss(batch)[0]), with_gradient(other, other.loss(batch)[0]))


def test_without_chi2_and_leak_bellman_distill_is_nucleus_likelihood_in_loss_and_gradient() -> None:
    batch = batch_of("soft_q")
    agent = scattered("bellman_distill", c=float("inf"), leak_weight=0.0)
    policy = agent.student.scores(batch).log_policy[:, :-1].gather(2, batch.slots.clamp(min=0)[..., None])[..., 0]
    wanted = -(policy * batch.step_weights * batch.in_set).sum() / batch.step_weights.sum()
    torch.testing.assert_close(with_gradient(agent, agent.loss(batch)[0]), with_gradient(agent, wanted))


def test_the_expected_linear_term_is_the_sampled_one_on_the_teachers_own_frequencies() -> None:
    batch = batch_of("soft_q")
    agents = [scattered("bellman_distill", linear=linear) for linear in ("sampled", "expected")]
    losses = [with_gradient(agent, agent.loss(batch)[0]) for agent in agents]
    torch.testing.assert_close(*losses, atol=1e-6, rtol=1e-5)


def test_a_padded_vocabulary_is_driven_out_by_kd() -> None:
    """A student with more rows than the teacher learns to leave them alone."""
    batch = batch_of("kd")
    agent = make_agent("kd", Student(model(vocabulary=12)), total_updates=150, lr=2e-2)
    for _ in range(150):
        agent.update(batch)
    logp = agent.student.scores(batch, full=True).logp
    assert logp is not None
    assert logp[:, 0, 6:].exp().sum(-1).max() < 0.02
