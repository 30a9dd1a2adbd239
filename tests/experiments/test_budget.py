"""Arms end when an equal budget is spent, schedules follow it, and a stopped arm goes on to the same end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from agents import make_agent
from agents.base import schedule
from agents.errors import InputError as AgentInputError
from agents.table_student import TableStudent
from envs.errors import InputError
from experiments import train
from experiments.budget import share
from experiments.compare import compare
from experiments.config import CompareConfig
from experiments.flops import of_reading
from experiments.jobs import FailedCells
from experiments.train import Trainer
from experiments.workspace import Workspace
from tests.experiments.runs import small


def result(config: CompareConfig, arm: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((config.out / f"cells/{arm}-p0.9-seed0/result.json").read_text())
    return found


def test_the_share_counts_from_the_first_update() -> None:
    budget = {"of": "flops", "size": 50.0, "before": 10.0}
    assert [share(budget, cost) for cost in (10.0, 20.0, 50.0, 70.0)] == [0.0, 0.25, 1.0, 1.0]


def test_the_schedule_stands_where_the_budget_does() -> None:
    agent = make_agent("bc", TableStudent(3, 1), total_updates=100)
    agent.updates, agent.spent = 10, 0.55
    assert agent.progress == pytest.approx(55) and schedule(agent.progress, 10, 100) == pytest.approx(0.5)
    agent.spent = 0.0
    assert agent.progress == 10


def test_an_arm_ends_when_it_has_spent_its_operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("free", "whole", "cut"):
        (tmp_path / name).mkdir()
    free = small(tmp_path / "free", agents=("bc",))
    compare(free)
    assert result(free, "bc")["updates"] == 6 and result(free, "bc")["budget"]["of"] == "updates"
    size = result(free, "bc")["flops"] / 2
    whole, cut = (
        small(tmp_path / name, agents=("bc",), updates=50, budget="flops", budget_size=size)
        for name in ("whole", "cut")
    )
    compare(whole)
    found = result(whole, "bc")
    assert found["updates"] in (3, 4) and found["flops"] >= size and found["curve"][-1]["updates"] == found["updates"]
    assert found["budget"] == {"of": "flops", "size": size, "before": 0.0}
    update = Trainer._update

    def stopped(self: Trainer) -> Any:
        if self.agent.updates == 2:
            raise KeyboardInterrupt
        return update(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_update", stopped)
        compare(cut)
    compare(cut)
    ours, theirs = (load_file(config.out / "students/bc-seed0/model.safetensors") for config in (whole, cut))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_each_kind_of_update_has_its_own_price(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 updates of `value_tilt` the critic learns alone in 4, the tilt is 0 in the fifth and stands in 15."""
    prices = iter([1e9, 1e10, 1e11])
    monkeypatch.setattr(train, "counted", lambda work: (work(), next(prices)))
    config = small(tmp_path, agents=("value_tilt",), updates=20, eval_every=20)
    compare(config)
    found, student = result(config, "value_tilt"), Workspace(config).student(0).model
    walked = of_reading(student, found["student_tokens"])
    assert found["flops"] == pytest.approx(4 * 1e9 + 1e10 + 15 * 1e11 + walked, rel=1e-12)


def test_seconds_end_both_kinds_of_loop(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3")
    config = small(
        tmp_path,
        agents=("bc", "sb3:a2c"),
        agent_config=("sb3:a2c.steps=100000", "sb3:a2c.num_envs=4"),
        updates=100000,
        eval_every=100000,
        budget="seconds",
        budget_size=1.0,
        checkpoint_seconds=60.0,
    )
    compare(config)
    trained, walked = result(config, "bc"), result(config, "sb3.a2c")
    assert 1.0 <= trained["seconds"] < 5.0 and trained["updates"] < 100000
    assert 1.0 <= walked["seconds"] < 5.0 and walked["teacher_tokens"] < 100000 and walked["budget"]["size"] == 1.0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"budget": "tokens", "budget_size": 1.0}, "must be one of updates, teacher_tokens, flops, seconds"),
        ({"budget": "seconds"}, "budget_size = 0 of seconds must be positive"),
        ({"budget_size": 3.0}, "set --updates"),
    ],
)
def test_a_budget_that_buys_nothing_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises((InputError, AgentInputError), match=says):
        compare(small(tmp_path, agents=("bc",), **changes))


def test_a_loop_that_counts_no_flops_is_refused_before_anything_begins(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3")
    config = small(tmp_path, agents=("bc", "sb3:a2c"), budget="flops", budget_size=1e9)
    with pytest.raises(InputError, match="sb3:a2c counts no flops; give --budget seconds or teacher_tokens"):
        compare(config)
    assert not config.out.exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_arm_whose_labels_are_all_of_the_budget_costs_only_itself(tmp_path: Path, jobs: int) -> None:
    """An arm on the student's own walks asks the teacher as it goes; one on the shared episodes has paid before."""
    config = small(tmp_path, agents=("bc", "actor_critic"), budget="teacher_tokens", budget_size=2.0, jobs=jobs)
    with pytest.raises(FailedCells) as failed:
        compare(config)
    assert str(failed.value).startswith("bc-p0.9-seed0: ") and "spent before the first update" in str(failed.value)
    assert [row.agent for row in failed.value.rows] == ["teacher", "start", "actor_critic"]
    assert result(config, "actor_critic")["updates"] == 1
    assert not (config.out / "cells/bc-p0.9-seed0/error.txt").exists()


def test_a_loop_may_spend_a_budget_of_teacher_tokens_whole(tmp_path: Path) -> None:
    """More than the shared episodes have tokens, of which it takes none; its own setting stays the most."""
    pytest.importorskip("stable_baselines3")
    own = ("sb3:a2c.num_envs=4", "sb3:a2c.n_steps=1", "sb3:ppo.num_envs=4", "sb3:ppo.n_steps=2", "sb3:ppo.steps=40")
    config = small(tmp_path, agents=("sb3:a2c", "sb3:ppo"), agent_config=own, episodes=4, eval_every=6)
    compare(replace(config, budget="teacher_tokens", budget_size=202.0))
    assert int(Workspace(config).episodes(0, 0.9).length.sum()) < 100
    assert [result(config, arm)["teacher_tokens"] for arm in ("sb3.a2c", "sb3.ppo")] == [200, 40]


def test_a_loop_that_was_stopped_when_all_was_spent_learns_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("stable_baselines3")
    own = ("sb3:a2c.steps=100000", "sb3:a2c.num_envs=4")
    config = small(tmp_path, agents=("sb3:a2c",), agent_config=own, budget="seconds", budget_size=0.3, eval_every=6)

    examine, measured = train.examine, []

    def stopped(*given: Any) -> Any:
        """The start is measured, and the end of the process comes where the trained student would be."""
        measured.append(given)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return examine(*given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "examine", stopped)
        compare(config)
    (place,) = (config.out / "cells/sb3.a2c-p0.9-seed0/checkpoints").iterdir()
    compare(config)
    found = result(config, "sb3.a2c")
    assert found["teacher_tokens"] == int(place.name) and len(found["curve"]) == 2
