"""Cells in worker processes and on Ray: faults of one cost the others nothing, and its own only what they must."""

from __future__ import annotations

import importlib.util
import io
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from agents.errors import DivergedError
from agents.parallel import portable
from envs.errors import InputError
from experiments import jobs
from experiments.compare import compare
from experiments.config import dump
from experiments.jobs import FailedCells, Progress, said
from experiments.reproduce import differences
from experiments.workspace import Workspace
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
    kept = portable(InputError("top_p = 2"))
    assert isinstance(kept, InputError) and str(kept) == "top_p = 2"
    assert str(portable(Unsendable())) == "Unsendable: a lambda"
    assert (said(DivergedError("loss nan")), said(ValueError("x"))) == ("loss nan", "ValueError: x")


def test_processes_that_outgrow_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = Workspace(small(tmp_path))
    student = space.seedling(0)
    each = 4 * 4 * sum(value.numel() for value in student.parameters())  # weights, gradients, two moments; no teacher
    monkeypatch.setattr(jobs, "free_memory", lambda: 3 * each + 1)
    jobs.check_memory(space, student, 3)
    with pytest.raises(InputError, match=r"jobs = 4 processes .* lower jobs to 3"):
        compare(replace(space.config, jobs=4))
    assert not space.out.exists()
    student.requires_grad_(False)  # what does not learn has weights alone
    jobs.check_memory(space, student, 4)


def test_a_cell_that_begins_again_is_counted_once() -> None:
    bar = tqdm(total=10, file=io.StringIO())
    progress = Progress(bar)
    progress.report("a", "", 4)
    progress.report("b", "", 1)
    progress.again("a")
    progress.report("a", "", 3)
    assert bar.n == 4  # 3 of a's checkpoint, 1 of b


def children_of(parent: int) -> list[int]:
    """The worker processes of a driver, by /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_kill_9_at_any_moment_changes_nothing(tmp_path: Path) -> None:
    """Killed over and over, driver or worker, a comparison ends with the weights and rows of one that never was."""
    (tmp_path / "whole").mkdir()
    whole = small(tmp_path / "whole", updates=40, seeds=2, episodes=64)
    compare(whole)
    settings, out, log = tmp_path / "settings.yaml", tmp_path / "killed", tmp_path / "log"
    settings.write_text(dump(replace(whole, out=out, jobs=2, retries=100)))
    command = [sys.executable, "-m", "experiments", "compare", "--config", str(settings)]
    draw, kills, process = random.Random(0), 0, None
    while kills < 20 or process is None or process.poll() is None:
        if process is None or process.poll() is not None:  # a folder that is finished is reported again: killed there
            process = subprocess.Popen(command, stdout=log.open("w"), stderr=subprocess.STDOUT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(1.0, 14.0) if kills < 20 else 240.0)
            assert process.returncode == 0, log.read_text()
            continue
        workers = children_of(process.pid)
        victim = draw.choice([process.pid, *workers])
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)  # the driver alone at times: its workers must notice
            kills += 1
        if victim == process.pid:
            process.wait()
            process = None
    for agent in whole.agents:
        for seed in (0, 1):
            assert same(whole.out / f"students/{agent}-seed{seed}", out / f"students/{agent}-seed{seed}")
    found = differences(whole.out, out)
    assert found.agrees and found.rows == 7, found
