"""Cells in worker processes and on Ray: faults of one cost the others nothing, and its own only what they must."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from agents.errors import DivergedError
from envs.errors import InputError
from experiments.compare import compare
from experiments.jobs import FailedCells, Progress, said, sendable
from tests.experiments.faulty_agents import MARK
from tests.experiments.runs import small
from tests.experiments.test_compare import same, table_rows

AGENTS = "tests.experiments.faulty_agents"
WAYS: list[Any] = [
    pytest.param({"jobs": 2}, id="processes"),
    pytest.param(
        {"ray": "local"},
        id="ray",
        marks=[
            pytest.mark.long,
            pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra `ray` is not installed"),
        ],
    ),
]


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_workers_cell_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: dict[str, Any]
) -> None:
    monkeypatch.setenv(MARK, str(tmp_path / "mark"))
    config = small(tmp_path, agents=("bc", f"{AGENTS}:KilledOnce"), **way)
    rows = compare(config)
    assert (tmp_path / "mark").read_text() == "4"
    assert [row.agent for row in rows] == ["teacher", "start", *config.agents]
    killed = f"{AGENTS}.KilledOnce-seed0"
    assert same(config.out / "students/bc-seed0", config.out / f"students/{killed}")
    assert [point["updates"] for point in rows[-1].curve] == [0, 3, 6]


@pytest.mark.parametrize("way", WAYS)
def test_what_dies_too_often_or_raises_costs_only_itself(tmp_path: Path, way: dict[str, Any]) -> None:
    agents = (f"{AGENTS}:Killed", f"{AGENTS}:Raising", "bc")
    config = small(tmp_path, agents=agents, retries=1, **way)
    with pytest.raises(FailedCells) as failed:
        compare(config)
    message = str(failed.value)
    assert "Raising-p0.9-seed0: KeyError: 'no such row'" in message and "Killed-p0.9-seed0: " in message
    if "jobs" in way:
        assert "its process died 2 times, the last with exit code -9" in message
    assert [row["agent"] for row in table_rows(config.out)] == ["teacher", "start", "bc"]
    assert "in update" in (config.out / f"cells/{AGENTS}.Raising-p0.9-seed0/error.txt").read_text()


def test_a_cell_that_raises_in_turn_costs_only_itself(tmp_path: Path) -> None:
    config = small(tmp_path, agents=(f"{AGENTS}:Raising", "bc"))
    with pytest.raises(FailedCells, match="KeyError: 'no such row'"):
        compare(config)
    assert [row["agent"] for row in table_rows(config.out)] == ["teacher", "start", "bc"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"retries": -1}, "retries = -1 is below 0; 0 tries each cell once"),
        ({"cell_cpus": 0.0}, r"cell_cpus = 0\.0 must be above 0"),
        ({"cell_gpus": -1.0}, r"cell_gpus = -1\.0 is below 0"),
    ],
)
def test_limits(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        compare(small(tmp_path, **changes))


def test_ray_is_refused_where_it_cannot_do_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: Any = None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(InputError, match=r"pip install 'tdistill\[ray\]'"):
        compare(small(tmp_path, ray="local"))
    found = object()
    with pytest.raises(InputError, match="jobs = 2 and --ray local are two ways"):
        compare(small(tmp_path, ray="local", jobs=2))
    assert not (tmp_path / "run").exists()


class Unsendable(Exception):
    """Its state cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("a lambda")
        self.state = lambda: 1


def test_errors_cross_processes_as_what_they_say() -> None:
    kept = sendable(InputError("top_p = 2"))
    assert isinstance(kept, InputError) and str(kept) == "top_p = 2"
    assert str(sendable(Unsendable())) == "Unsendable: a lambda"
    assert (said(DivergedError("loss nan")), said(ValueError("x"))) == ("loss nan", "ValueError: x")


def test_a_cell_that_begins_again_is_counted_once() -> None:
    bar = tqdm(total=10, file=io.StringIO())
    progress = Progress(bar)
    progress.report("a", "", 4)
    progress.report("b", "", 1)
    progress.again("a")
    progress.report("a", "", 3)
    assert bar.n == 4  # 3 of a's checkpoint, 1 of b
