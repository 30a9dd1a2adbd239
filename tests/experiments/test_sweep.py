"""A sweep is a comparison that is written out: masses, and an arm for each combination of values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from envs.errors import InputError
from experiments.compare import compare
from experiments.config import CompareConfig, read_yaml
from experiments.sweep import swept
from tests.envs.models import save_tiny
from tests.experiments.runs import small


def test_names_multiply_where_an_agent_has_them() -> None:
    config = CompareConfig(
        agents=("kd", "soft_q", "soft_q@gamma=0.5", "cql@n=3"), sweep=("top_p=0.5,1.0", "gamma=0,1", "n=1,2")
    )
    found = swept(config)
    assert found.top_p == (0.5, 1.0) and found.sweep == ()
    assert found.agents == (
        "kd",
        "soft_q@gamma=0,n=1",
        "soft_q@gamma=0,n=2",
        "soft_q@gamma=1,n=1",
        "soft_q@gamma=1,n=2",
        "soft_q@gamma=0.5,n=1",
        "soft_q@gamma=0.5,n=2",
        "cql@n=3,gamma=0",
        "cql@n=3,gamma=1",
    )
    assert swept(found) == found and config.top_p == (0.9,)


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        (("gama=0,1",), "did you mean gamma"),
        (("gamma",), "not of the form"),
        (("gamma=0,,1",), "not of the form"),
        (("=0",), "not of the form"),
        (("gamma=0,0",), "twice"),
        (("gamma=0,0.0",), "twice"),
        (("gamma=0", "gamma=1"), "twice"),
        (("top_p=high",), "'high' is no number"),
        (("clip_rewards=1",), "a setting of none of the agents"),
    ],
)
def test_a_sweep_that_says_nothing_is_refused(sweep: tuple[str, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        swept(CompareConfig(agents=("kd", "soft_q"), sweep=sweep))


def test_a_sweep_runs_and_goes_on_as_the_comparison_that_it_stands_for(tmp_path: Path) -> None:
    config = small(tmp_path, agents=("bc", "soft_q"), sweep=("top_p=0.8,0.9", "gamma=0,1"))
    arms = ["teacher", "start", "bc", "soft_q@gamma=0", "soft_q@gamma=1"]
    rows = compare(config)
    assert [(row.agent, row.top_p) for row in rows] == [(arm, p) for p in (0.8, 0.9) for arm in arms]
    assert read_yaml(config.out / "config.yaml")["agents"] == ["bc", "soft_q@gamma=0", "soft_q@gamma=1"]
    kept = (config.out / "cells/soft_q@gamma=0-p0.8-seed0/result.json").stat().st_mtime_ns
    again = compare(small(tmp_path, agents=tuple(arms[2:]), top_p=(0.8, 0.9)))
    assert [row.curve for row in again] == [row.curve for row in rows]
    assert (config.out / "cells/soft_q@gamma=0-p0.8-seed0/result.json").stat().st_mtime_ns == kept


@pytest.mark.parametrize("arm", ["bc", "kd", "gkd", "minillm", "kd@on=set", "bc_filtered"])
def test_an_agent_that_says_so_learns_the_same_at_every_mass(arm: str, tmp_path: Path) -> None:
    found, models = [], dict[str, Any]()
    if arm == "minillm":  # a reverse KL is infinite against a table, whose zeros a model does not have
        (tmp_path / "prompts.txt").write_text("\n".join(f"w{number} w7" for number in range(10, 40)))
        models = {"teacher": str(save_tiny("gpt2", tmp_path / "teacher")), "prompts": tmp_path / "prompts.txt"}
    for p in (0.5, 0.9):
        (tmp_path / str(p)).mkdir()
        config = small(tmp_path / str(p), agents=(arm,), top_p=(p,), student="tiny", **models)
        compare(config)
        found.append(load_file(config.out / f"students/{arm}-seed0/model.safetensors"))
    alike = all(torch.allclose(found[0][name], found[1][name], atol=1e-6) for name in found[0])
    assert alike == (arm in ("bc", "kd", "gkd", "minillm"))


def test_such_an_agent_is_trained_once_and_measured_at_every_mass(tmp_path: Path) -> None:
    config = small(tmp_path, agents=("kd", "soft_q"), top_p=(0.5, 0.9))
    first, second = (row for row in compare(config) if row.agent == "kd")
    assert first.costs == second.costs and first.measures["forward_kl"] == pytest.approx(second.measures["forward_kl"])
    assert first.measures["leak"] > second.measures["leak"]
    logs = sorted(path.name for path in (config.out / "tensorboard").iterdir() if path.name != "summary")
    assert logs == ["kd-p0.5-seed0", "soft_q-p0.5-seed0", "soft_q-p0.9-seed0"]
