"""Sets that widen while an agent learns: what a schedule says, and that narrowed sets are those of a smaller p."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents import agent_class, make_agent
from agents.episodes import PAD_LOGP, Episodes
from agents.errors import InputError
from agents.staged import Schedule, Stages, k_for, narrowed, p_for, parsed
from agents.table_student import TableStudent
from envs.teachers import load_teacher
from envs.vector_env import TopPTokenVectorEnv
from experiments.collect import collect
from experiments.oracle import TOLERANCE, case_of, declared, gap, next_batch

STAGED = ("soft_q", "q_learning", "cql", "bellman_distill", "sqil", "actor_critic", "sac", "value_tilt", "kd")


def three() -> Episodes:
    """One step from a state (.5, .3, .15) by its second candidate, to one of (.6, .3) where the text is cut."""
    pad = PAD_LOGP
    logs = [np.log([0.5, 0.3, 0.15]).tolist(), [*np.log([0.6, 0.3]).tolist(), pad]]
    return Episodes(
        tokens=torch.tensor([[9, 4]]),
        prompt_length=torch.tensor([1]),
        length=torch.tensor([1]),
        ids=torch.tensor([[[3, 4, 5], [6, 7, 0]]]),
        logp=torch.tensor([logs]),
        mask=torch.tensor([[[1, 1, 1], [1, 1, 0]]]).bool(),
        slots=torch.tensor([[1]]),
        rewards=torch.tensor([[-1.2]]),
        discounts=torch.tensor([[1.0]]),
        in_set=torch.tensor([[True]]),
        behaviour_logp=torch.tensor([[-1.2]]),
        teacher_logp_taken=torch.tensor([[-1.2]]),
        from_teacher=torch.tensor([True]),
    )


def test_narrower_sets_by_hand() -> None:
    wide = three()
    some = narrowed(wide, p=0.7)
    assert some.ids.tolist() == [[[3, 4], [6, 7]]] and some.slots.tolist() == [[1]]
    head = narrowed(wide, p=0.49)
    assert head.ids.tolist() == [[[3], [6]]]
    assert head.slots.tolist() == [[-1]] and head.in_set.tolist() == [[False]]
    assert head.rewards.tolist() == wide.rewards.tolist() and head.taken.tolist() == [[4]]
    torch.testing.assert_close(head.log_mass.exp(), torch.tensor([[0.5, 0.6]]))
    assert narrowed(wide, k=2).ids.tolist() == [[[3, 4], [6, 7]]]
    assert narrowed(wide, p=1.0).mask.tolist() == wide.mask.tolist() == narrowed(wide, p=0.99, k=7).mask.tolist()
    for bad in ({"p": 0.0}, {"p": 1.5}, {"k": 0}):
        with pytest.raises(InputError, match="must lie in"):
            narrowed(wide, **bad)


@pytest.mark.parametrize(("p", "most"), [(0.3, 64), (0.6, 64), (0.85, 64), (0.97, 64), (0.9, 3), (0.97, 2), (0.9, 1)])
@pytest.mark.parametrize("wide", [0.97, 1.0])
def test_narrowed_sets_are_those_drawn_at_that_p_and_k(p: float, most: int, wide: float) -> None:
    """Slots, what is in the set, lost masses and all else: field by field, to the bit."""

    def drawn(top_p: float, max_candidates: int) -> Episodes:
        env = TopPTokenVectorEnv(
            8,
            teacher=load_teacher("table:toy"),
            prompts=[[1], [2], [3]],
            top_p=top_p,
            max_candidates=max_candidates,
            max_new_tokens=6,
        )
        return collect(env, 24, seed=0)

    found, wanted = narrowed(drawn(wide, 64), p, most).fields(), drawn(p, most).fields()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def test_the_p_and_k_that_retain_a_mass_by_hand() -> None:
    """Mean masses: .55 of the first candidates alone; .7 with the .3 after .5, .85 with that after .6, .925 of all."""
    batch = three()
    assert p_for(batch, 0.54) == pytest.approx(0.5) and p_for(batch, 0.56) == pytest.approx(0.6)
    assert p_for(batch, 0.69) == pytest.approx(0.6) and p_for(batch, 0.71) == pytest.approx(0.8)
    assert p_for(batch, 0.86) == 1.0 == p_for(batch, 0.999)
    assert [k_for(batch, mass) for mass in (0.1, 0.54, 0.56, 0.84, 0.86, 0.99)] == [1, 1, 2, 2, 3, 3]
    for mass in (0.1, 0.55, 0.6, 0.7, 0.8, 0.85, 0.9):
        kept = narrowed(batch, p=p_for(batch, mass)).log_mass.exp().mean()
        assert kept >= mass - 1e-6, mass


def test_the_p_that_retains_a_mass_is_the_least_that_does() -> None:
    case = case_of("soft_q", {})
    for mass in (0.6, 0.8):
        p = p_for(case.batch, mass)
        kept = [float(narrowed(case.batch, p=q).log_mass[case.batch.states].exp().mean()) for q in (p, p - 1e-6)]
        smaller = narrowed(case.batch, p=p)
        assert kept[0] >= mass - 1e-6 and kept[1] == kept[0]  # the largest p of these sets …
        one_less = [q for q in np.linspace(0.01, 1, 12) if narrowed(case.batch, p=q).mask.sum() < smaller.mask.sum()]
        less = [float(narrowed(case.batch, p=q).log_mass[case.batch.states].exp().mean()) for q in one_less]
        assert all(value < mass for value in less)  # … and no smaller sets hold as much


def test_what_the_texts_say() -> None:
    assert parsed("fixed", whole=False) is None
    assert parsed("fixed:0.5", whole=False) == Schedule("fixed", 0.5, 0.5)
    assert parsed("mass:0.5..0.9:0.25", whole=False) == Schedule("mass", 0.5, 0.9, 0.25)
    linear = parsed("linear:0.5..0.9", whole=False)
    assert linear is not None
    assert [linear.at(done, 11, 0) for done in (0, 5, 10, 11)] == pytest.approx([0.5, 0.7, 0.9, 0.9])
    half = Schedule("linear", 4, 32, 0.5)  # of 21 updates: 10.5, the last of them after 9.5
    assert [half.at(done, 21, 0) for done in (0, 9.5, 20)] == [4, 32, 32]
    leak = Schedule("leak", 0.5, 0.9, 1.0)
    assert [leak.at(10, 11, widened) for widened in (0, 5, 20)] == pytest.approx([0.5, 0.6, 0.9])


@pytest.mark.parametrize(
    ("text", "whole", "says"),
    [
        ("", False, "is none of"),
        ("ramp:0.5..0.9", False, "is none of"),
        ("linear:0.5", False, "is none of"),
        ("fixed:0.5..0.9", False, "is none of"),
        ("linear:0.5..0.9:1:1", False, "is none of"),
        ("linear:a..0.9", False, "'a' is no number"),
        ("linear:0..0.9", False, r"p of 0 is outside \(0, 1\]"),
        ("linear:0.5..1.01", False, r"p of 1.01 is outside \(0, 1\]"),
        ("linear:nan..0.9", False, "p of nan is outside"),
        ("mass:0.5..2", True, "a mass of 2 is outside"),
        ("linear:0.5..8", True, "K = 0.5 must be a whole number"),
        ("linear:4..inf", True, "K = inf must be a whole number"),
        ("linear:0.5..0.9:0", False, "the share 0 of the updates"),
        ("leak:0.9..0.5", False, "only widens"),
        ("leak:0.5..0.9:0", False, "R = 0 is positive"),
    ],
)
def test_a_schedule_that_says_nothing_is_refused(text: str, whole: bool, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parsed(text, whole)
    setting = {"k_schedule" if whole else "p_schedule": text}
    with pytest.raises(InputError, match=says):
        agent_class("soft_q").make_config(**setting)


def test_agents_whose_sets_cannot_be_staged_say_so() -> None:
    for name, says in (("kd", "take on=set"), ("ppo", "two policies on one set"), ("bc", "no setting 'p_schedule'")):
        with pytest.raises(InputError, match=says):
            agent_class(name).make_config(p_schedule="fixed:0.5")


def settings_of(name: str) -> dict[str, Any]:
    own: dict[str, Any] = {"kd": {"on": "set"}, "value_tilt": {"critic_alone": 0}}.get(name, {})
    return own if name == "kd" else {"gamma": 0.8, **own}


@pytest.mark.parametrize("name", STAGED)
def test_a_staged_update_is_the_update_on_narrower_sets(name: str) -> None:
    settings, case = settings_of(name), case_of(name, settings_of(name))
    students = []
    for given in ("fixed:0.5", "fixed"):
        agent = make_agent(name, TableStudent(6, 1), seed=0, total_updates=5, lr=0.3, **settings, p_schedule=given)
        for _ in range(3):
            batch = next_batch(agent, case)
            figures = agent.update(batch if given != "fixed" else narrowed(batch, p=0.5))
        assert ("top_p" in figures) == (given != "fixed") and figures.get("top_p", 0.5) == 0.5
        students.append(agent.student.state_dict())
    assert all(torch.equal(value, students[1][key]) for key, value in students[0].items())


def test_where_a_staged_agent_ends_is_the_fixed_point_of_its_last_sets() -> None:
    case = case_of("kd", {"on": "set"})
    widening = case.learn("kd", on="set", p_schedule="linear:0.3..0.8:0.3")
    narrow = case.learn("kd", on="set", p_schedule="fixed:0.5")
    assert case.gap(widening).policy < TOLERANCE.policy < case.gap(narrow).policy
    at_half = declared(narrow, case.teacher, 0.5, np.ones(case.teacher.states))
    assert gap(narrow, case.teacher, 0.5, at_half).policy < TOLERANCE.policy


def test_a_schedule_by_the_leak_widens_when_the_student_keeps_as_much_as_the_teacher() -> None:
    stages, batch = Stages("leak:0.49..0.89", "leak:2..22"), three()
    narrow, figures = stages.narrow(batch, 0, 10)
    assert figures == {"top_p": 0.49, "max_candidates": 2.0, "retained_mass": pytest.approx(0.55)}
    stages.notice(np.log(0.49), narrow)  # the teacher keeps .5 where the step was taken
    assert stages.widened == 0
    stages.notice(np.log(0.51), narrow)
    assert stages.widened == 1
    assert stages.narrow(batch, 0, 10)[1] | {"retained_mass": 0} == pytest.approx(
        {"top_p": 0.51, "max_candidates": 3.0, "retained_mass": 0}
    )
    twice = Stages("leak:0.5..0.9:2", "fixed")
    twice.notice(2 * np.log(0.5) + 1e-4, narrow)
    assert twice.widened == 1
    with pytest.raises(InputError, match="logs log_inside"):
        stages.notice(None, narrow)


def test_a_saved_agent_goes_on_where_its_leak_had_brought_it(tmp_path: Path) -> None:
    settings = {"gamma": 0.8, "lr": 0.3, "p_schedule": "leak:0.4..0.8:1.5"}
    batch = case_of("soft_q", {}).batch

    def fresh() -> Any:
        torch.manual_seed(0)
        return make_agent("soft_q", TableStudent(6, 1), seed=0, total_updates=40, **settings)

    whole = fresh()
    ps = [whole.update(batch)["top_p"] for _ in range(30)]
    assert ps[0] == 0.4 and ps[20] > 0.4 and ps == sorted(ps)
    first = fresh()
    for _ in range(20):
        first.update(batch)
    first.save(tmp_path)
    second = fresh()
    second.load(tmp_path)
    assert [second.update(batch)["top_p"] for _ in range(10)] == ps[20:]
    assert all(
        torch.equal(value, second.student.state_dict()[key]) for key, value in whole.student.state_dict().items()
    )


def test_every_agent_with_the_setting_is_tried_here() -> None:
    from experiments.oracle import EPISODIC

    staged = {name for name in EPISODIC if "p_schedule" in {field.name for field in fields(agent_class(name).Config)}}
    assert staged == {*STAGED, "ppo"}
