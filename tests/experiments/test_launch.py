"""Several processes of a launcher: the weights of one, files from process 0 alone, and another number on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from agents import make_agent, parallel, sharding
from agents.episodes import Episodes
from agents.errors import InputError as AgentInputError
from agents.student import build_student
from agents.vocabulary import Head
from envs.errors import InputError
from experiments import launch
from experiments.__main__ import main
from experiments.compare import compare
from tests.envs.models import save_tiny
from tests.experiments.runs import prompts_file, small

SETTINGS = """--teacher table:toy --student tiny --max-new-tokens 6 --episodes 24 --batch-size 6 --eval-prompts 4
    --eval-every 10 --updates 20 --checkpoint-seconds 0 --threads 1""".split()
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]


def words(folder: Path, agent: str, launcher: list[str] | None = None, *more: str) -> list[str]:
    """The command of a run in `folder`."""
    own = ["distill", "--agent", agent, "--prompts", str(prompts_file(folder)), "--out", str(folder / "run")]
    return [sys.executable, *(launcher or []), "-m", "experiments", *own, *SETTINGS, *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(folder: Path, agent: str, launcher: list[str] | None = None, *more: str) -> str:
    """What a run prints; without a launcher it runs in this very process. Its folder is made."""
    folder.mkdir(exist_ok=True)
    command = words(folder, agent, launcher, *more)
    if launcher is None:
        with redirect_stdout(StringIO()) as said:
            assert main(command[3:]) == 0
        return said.getvalue()
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def stop_at_a_checkpoint(folder: Path, command: list[str]) -> None:
    """Kill a run, launcher and workers, without warning, as soon as it has kept a checkpoint."""
    with subprocess.Popen(command, env=environment()) as process:
        deadline = time.monotonic() + 200
        while not list(folder.glob("run/cells/*/checkpoints/*[0-9]")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        launched = psutil.Process(process.pid)
        doomed = [launched, *launched.children(recursive=True)]
        for one in doomed:
            one.kill()
    psutil.wait_procs(doomed)
    assert list(folder.glob("run/cells/*/checkpoints/*[0-9]"))
    assert not [path for path in folder.glob("run/cells/*/result.json") if "start" not in path.parent.name]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (student,) = (folder / "run" / "students").iterdir()
    return load_file(student / "model.safetensors")


def files(folder: Path) -> set[str]:
    """Every file of a run by its place; event files by their folder, as their names hold time and process."""
    found = {path.relative_to(folder / "run") for path in (folder / "run").rglob("*") if path.is_file()}
    return {str(path.parent if path.name.startswith("events") else path) for path in found}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process; half of its batches are the student's own walk."""
    place = tmp_path_factory.mktemp("alone")
    run(place, "gkd")
    return place


def test_two_processes_are_one_run(alone: Path, tmp_path: Path) -> None:
    said = run(tmp_path, "gkd", TORCHRUN)
    assert_same(weights(tmp_path), weights(alone))
    assert files(tmp_path) == files(alone)
    assert said.count("KL(T‖S)") == 1  # one table, of process 0
    one, two = (json.loads(next(place.glob("run/cells/gkd*/result.json")).read_text()) for place in (alone, tmp_path))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["measures"].keys() == two["measures"].keys()
    for cost in ("tokens", "teacher_tokens", "student_tokens"):
        assert one[cost] == two[cost]
    assert two["flops"] == pytest.approx(one["flops"], rel=0.1)  # shares are padded less


def test_a_run_killed_in_two_processes_goes_on_in_one(alone: Path, tmp_path: Path) -> None:
    stop_at_a_checkpoint(tmp_path, words(tmp_path, "gkd", TORCHRUN))
    run(tmp_path, "gkd")
    assert_same(weights(tmp_path), weights(alone))


@pytest.mark.long
def test_a_run_of_one_goes_on_in_two_under_accelerate(alone: Path, tmp_path: Path) -> None:
    stop_at_a_checkpoint(tmp_path, words(tmp_path, "gkd"))
    run(tmp_path, "gkd", ACCELERATE)
    assert_same(weights(tmp_path), weights(alone))


def test_spread_weights_are_the_same_run_and_go_on_whole(tmp_path: Path) -> None:
    """`kd` in one process; spread over two; and spread until it is killed, then by one process.

    The teacher is spread with the student: it walks and is examined in process 0, and labels texts in both.
    """
    prompts = tmp_path / "p.txt"
    prompts.write_text("\n".join(f"w{number} w{number % 7 + 3}" for number in range(3, 27)))
    own = ("--teacher", str(save_tiny("llama", tmp_path / "teacher")), "--prompts", str(prompts))
    run(tmp_path / "alone", "kd", None, *own)
    run(tmp_path / "spread", "kd", TORCHRUN, *own, "--shard")
    assert_same(weights(tmp_path / "spread"), weights(tmp_path / "alone"))
    assert files(tmp_path / "spread") == files(tmp_path / "alone")
    drawn = [
        Episodes.load(next((tmp_path / name / "run" / "shared").glob("episodes*.safetensors")))
        for name in ("spread", "alone")
    ]
    assert torch.equal(drawn[0].tokens, drawn[1].tokens) and torch.equal(drawn[0].ids, drawn[1].ids)
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    stop_at_a_checkpoint(stopped, words(stopped, "kd", TORCHRUN, *own, "--shard"))
    run(stopped, "kd", None, *own)
    assert_same(weights(stopped), weights(tmp_path / "alone"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"jobs": 2}, "jobs = 2 in 2 processes .* leave --jobs out"),
        ({"trials": 2}, "trials = 2 in 2 processes"),
        ({"agents": ("bc", "sb3:dqn")}, "sb3:dqn walks by itself, in one process, and 2 were launched"),
    ],
)
def test_what_one_process_does_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(parallel, "size", lambda: 2)
    with pytest.raises(InputError, match=said):
        compare(small(tmp_path, **changes))
    assert not (tmp_path / "run").exists()


def test_other_commands_are_for_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["evaluate", "--student", "anywhere"]) == 2
    assert "evaluate runs in one process; launch compare or distill" in capsys.readouterr().err


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with launch.joined():
        assert parallel.size() == 1


@pytest.mark.parametrize(
    ("agent", "changes", "said"),
    [
        ("gkd", {}, "gkd lets its student walk, which one process does by itself; leave --shard out"),
        ("kd", {"lora": 2}, "lora = 2 leaves little to spread; leave --shard out"),
        ("kd", {"micro_batch": 2}, "micro_batch = 2 of weights that are spread .* --gradient-checkpointing"),
    ],
)
def test_what_cannot_be_spread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: str, changes: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(parallel, "size", lambda: 2)
    monkeypatch.setattr(sharding, "shard", lambda model: None)
    with pytest.raises(InputError, match=said):
        compare(small(tmp_path, agents=(agent,), shard=True, **changes))
    assert not (tmp_path / "run").exists()


def test_a_student_whose_weights_are_spread_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "size", lambda: 2)
    monkeypatch.setattr(sharding, "shard", lambda model: None)
    for head, agent, said in (
        (Head(), "soft_q", "a target network copies its student, whose weights are spread; leave --shard out"),
        (Head(resting=True), "kd", "rows of weights that are spread over processes cannot rest"),
    ):
        student = build_student("tiny", tokenizer=None, vocab_size=8)
        student.head = head
        student.shard()
        with pytest.raises(AgentInputError, match=said):
            make_agent(agent, student, total_updates=1)
