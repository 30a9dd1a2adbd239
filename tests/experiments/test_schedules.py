"""Staged sets in a run: arms of a sweep, exact resumption, what a run refuses, and the bound that narrowing moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.errors import InputError as AgentInputError
from envs.errors import InputError
from experiments.compare import compare
from experiments.config import CompareConfig
from experiments.schedules import least_mass
from experiments.sweep import swept
from experiments.train import Trainer, run_cell
from experiments.workspace import Cell, Workspace
from tests.experiments.runs import small

ARM = "soft_q@p_schedule=leak:0.5..0.9:9,k_schedule=linear:2..6"


def test_a_stopped_staged_cell_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    spaces = [
        Workspace(small(tmp_path / name, agents=(ARM,), eval_prompts=2, eval_every=6)) for name in ("whole", "cut")
    ]
    cell = Cell(ARM, 0, 0.9)
    update = Trainer._update

    def stopped(self: Trainer) -> Any:
        if self.agent.updates == 4:
            assert self.agent.stages.widened > 0
            raise KeyboardInterrupt
        return update(self)

    with spaces[1].opened(), monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_update", stopped)
        run_cell(spaces[1], cell)
    for space in spaces:
        with space.opened():
            assert run_cell(space, cell)["top_p"] == 0.9  # what is measured stays at the run's own p
    one, other = (space.student_directory(cell) / "model.safetensors" for space in spaces)
    assert one.read_bytes() == other.read_bytes()
    events = EventAccumulator(str(spaces[0].out / "tensorboard" / cell.name))
    events.Reload()
    drawn = {name: [point.value for point in events.Scalars(f"train/{name}")] for name in ("top_p", "max_candidates")}
    assert drawn["max_candidates"] == [6.0] and drawn["top_p"] == pytest.approx([0.6])  # of update 6


def test_schedules_are_swept_like_other_settings() -> None:
    config = CompareConfig(agents=("bc", "soft_q", "sb3:dqn"), sweep=("p_schedule=fixed,mass:0.4..0.9",))
    assert swept(config).agents == ("bc", "soft_q@p_schedule=fixed", "soft_q@p_schedule=mass:0.4..0.9", "sb3:dqn")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"agents": ("soft_q@p_schedule=linear:0..0.9",)}, r"p of 0 is outside \(0, 1\]"),
        ({"agents": ("soft_q@p_schedule=linear:0.5..1.5",)}, r"p of 1.5 is outside \(0, 1\]"),
        ({"agents": ("soft_q@p_schedule=linear:0.5..0.95",)}, "wider sets than the run draws, 0.9; raise --top-p"),
        ({"agents": ("soft_q@p_schedule=fixed:0.7",), "top_p": (0.9, 0.5)}, "wider sets than the run draws, 0.5"),
        ({"agents": ("soft_q@k_schedule=fixed:65",)}, "wider sets than the run draws, 64; raise --max-candidates"),
        ({"agents": ("soft_q@p_schedule=fixed:0.5",), "reward": "topp_logprob"}, "depends on the whole set"),
        ({"agents": ("kd@p_schedule=fixed:0.5",)}, "take on=set"),
        ({"sweep": ("p_schedule=fixed,steps",)}, "schedule 'steps' is none of"),
        ({"agents": ("soft_q@p_schedule=fixed:0.5",), "copy_prompt": True}, "would drop what is protected"),
        ({"agents": ("sb3:dqn@p_schedule=fixed:0.5",)}, "no setting 'p_schedule'"),
    ],
)
def test_a_schedule_that_a_run_cannot_follow_is_refused_first(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    config = small(tmp_path, **changes)
    with pytest.raises((InputError, AgentInputError), match=says):
        compare(config)
    assert not config.out.exists()


def test_rules_and_schedules_exclude_each_other(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules:\n  - {name: a, must: [x]}\n")
    config = small(tmp_path, agents=("soft_q@p_schedule=fixed:0.5",), rules=rules, teacher_walk="set")
    with pytest.raises(InputError, match="the rules' masks depend on the whole set"):
        compare(config)


def test_the_least_mass_of_narrowed_sets() -> None:
    """.85: a set was cut below p = .9. Narrowed by p, a set holds that p or is the whole one."""
    assert least_mass({}, 0.9, 0.93) == 0.9 and least_mass({}, 0.9, 0.85) == 0.85
    assert least_mass({"p_schedule": "linear:0.5..0.8"}, 0.9, 0.85) == 0.5
    assert least_mass({"p_schedule": "leak:0.88..0.9"}, 0.9, 0.85) == 0.85
    assert least_mass({"p_schedule": "mass:0.5..0.8"}, 0.9, 0.93) is None
    assert least_mass({"k_schedule": "fixed:4"}, 0.9, 0.93) is None
