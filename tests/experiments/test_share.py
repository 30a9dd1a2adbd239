"""Several machines and one matrix: each cell is run once, whatever dies, is half there or was of another run."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest

from envs.errors import InputError
from experiments import claims, share
from experiments.compare import compare
from experiments.config import CompareConfig
from experiments.cost import TIMED
from experiments.jobs import FailedCells
from experiments.report import Row
from experiments.share import Elsewhere, Share
from tests.experiments.runs import small

STRANGER = {"host": "far", "machine": "another", "pid": 1, "token": "theirs"}


@pytest.fixture
def url() -> Iterator[str]:
    """A folder in memory."""
    name = f"/{uuid.uuid4().hex}"
    yield f"memory:/{name}"
    if fsspec.filesystem("memory").exists(name):
        fsspec.filesystem("memory").rm(name, recursive=True)


def machine(folder: Path, name: str, url: str, **changes: Any) -> CompareConfig:
    """The one command on a machine of this name."""
    usual = {"agents": ("bc",), "updates": 2, "eval_every": 2}
    return small(folder, share=url, out=folder / name, **{**usual, **changes})


def same(ours: list[Row], theirs: list[Row]) -> bool:
    """Whether rows agree in everything but how fast the machine is."""

    def figures(row: Row) -> Any:
        return replace(row, measures={name: value for name, value in row.measures.items() if name not in TIMED})

    return [figures(row) for row in ours] == [figures(row) for row in theirs]


def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("experiments.train.Trainer.run", refuse)
    monkeypatch.setattr("experiments.workspace.Workspace._walk", refuse)


def files(folder: Path) -> set[str]:
    kinds = ("cells/**/*.json", "students/**/*", "shared/*.safetensors", "shared/*/*", "tensorboard/bc*/*")
    found = {path for kind in kinds for path in folder.glob(kind) if path.is_file() and path.suffix != ".lock"}
    return {path.relative_to(folder).as_posix() for path in found}


def test_a_second_machine_takes_everything_over(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = machine(tmp_path, "a", url, agents=("bc", "soft_q"), top_p=(0.5, 0.9), warm_start="kd")
    rows = compare(config)
    no_training(monkeypatch)
    assert same(compare(replace(config, out=tmp_path / "b")), rows)
    assert (
        "students/bc-p0.5-seed0/model.safetensors"
        in files(tmp_path / "a")
        == files(tmp_path / "b")
        | {
            name
            for name in files(tmp_path / "a")
            if name.startswith("shared/episodes")  # which nobody needed again
        }
    )
    held = fsspec.filesystem("memory").find(url.removeprefix("memory:/"))
    assert not [name for name in held if name.endswith(("claim.json", ".partial", ".lock"))]
    assert len([name for name in held if name.endswith("/done.json") and "/cells/" in name]) == 2 + 2 * 2


def read(url: str, name: str) -> bytes:
    return bytes(fsspec.filesystem("memory").cat_file(f"{url.removeprefix('memory:/')}/{name}"))


def write(url: str, name: str, content: bytes) -> None:
    fsspec.filesystem("memory").pipe_file(f"{url.removeprefix('memory:/')}/{name}", content)


def test_a_cell_that_is_half_there_is_run_again(tmp_path: Path, url: str) -> None:
    rows = compare(machine(tmp_path, "a", url))
    cell = "cells/bc-p0.9-seed0"
    before = json.loads(read(url, f"{cell}/done.json"))
    weights = f"{cell}/{before['token']}/students/bc-seed0/model.safetensors"
    write(url, weights, read(url, weights)[:-9])
    again = compare(machine(tmp_path, "b", url))
    assert [row.curve[-1]["forward_kl"] for row in again[2:]] == [row.curve[-1]["forward_kl"] for row in rows[2:]]
    after = json.loads(read(url, f"{cell}/done.json"))
    assert after["token"] != before["token"]
    assert Share(url, tmp_path / "c", after["fingerprint"]).fetch(cell, {})


@pytest.mark.parametrize("harm", ["no marker", "half a marker", "a file is gone", "a file is cut"])
def test_what_is_half_there_does_not_count(tmp_path: Path, url: str, harm: str) -> None:
    for name in ("weights", "result.json"):
        (tmp_path / "a" / "cells" / "x").mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / "cells" / "x" / name).write_text("content", encoding="utf-8")
    ours, theirs = Share(url, tmp_path / "a", "f"), Share(url, tmp_path / "b", "f")
    paths = [tmp_path / "a" / "cells" / "x" / name for name in ("weights", "result.json")]
    assert ours.publish("cells/x", paths)
    marker = json.loads(read(url, "cells/x/done.json"))
    uploaded = f"cells/x/{marker['token']}/cells/x/result.json"
    if harm in ("no marker", "a file is gone"):
        gone = "cells/x/done.json" if harm == "no marker" else uploaded
        fsspec.filesystem("memory").rm_file(f"{url.removeprefix('memory:/')}/{gone}")
    else:
        cut = "cells/x/done.json" if harm == "half a marker" else uploaded
        write(url, cut, read(url, cut)[:-3])
    assert not theirs.fetch("cells/x") and not [path for path in (tmp_path / "b").rglob("*") if path.is_file()]
    assert replace(theirs, out=ours.out).publish("cells/x", paths)
    assert Share(url, tmp_path / "c", "f").fetch("cells/x")
    assert (tmp_path / "c/cells/x/weights").read_text(encoding="utf-8") == "content"


def test_results_of_other_settings_and_inputs_are_refused(tmp_path: Path, url: str) -> None:
    """Whatever is elsewhere, prompts are known by what they say."""
    config = machine(tmp_path, "a", url)
    compare(config)
    assert config.prompts is not None
    text = config.prompts.read_text(encoding="utf-8")
    (tmp_path / "more.txt").write_text(text + "\n2 1\n3 2\n4 3\n1 5\n", encoding="utf-8")
    (tmp_path / "moved.txt").write_text(text, encoding="utf-8")
    lr = ("bc.lr=1e-4",)
    for number, (changes, says) in enumerate(
        [
            ({"updates": 7}, "updates = 2, this one has 7"),
            ({"prompts": tmp_path / "more.txt"}, "the digest of"),
            (
                {"prompts": tmp_path / "moved.txt", "agent_config": lr},
                r"bc-p0.9-seed0 with settings {} .* {'lr': 0.0001}",
            ),
        ]
    ):
        with pytest.raises(InputError, match=says):
            compare(replace(config, out=tmp_path / str(number), **changes))
        assert not list((tmp_path / str(number)).glob("cells/bc*/result.json"))


def test_bad_paths_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    fsspec.register_implementation("nowhere", "no_such_backend.System", errtxt="Install it", clobber=True)
    (tmp_path / "file").write_text("", encoding="utf-8")
    cases = {
        "nowhere://bucket/run": "pip install no_such_backend",
        "nonsense://run": "Protocol not known",
        f"file://{tmp_path}/file/run": "cannot be written",
        "ftp://me:secret@host/run": "holds a password",
    }
    for url, says in cases.items():
        with pytest.raises(InputError, match=says) as caught:
            compare(machine(tmp_path, "a", url))
        assert "secret" not in str(caught.value)
    with pytest.raises(InputError, match="memory of one process"):
        compare(machine(tmp_path, "a", "memory://run", jobs=2))
    assert not (tmp_path / "a").exists()


def test_a_claim_is_one_process_and_dies_with_it(tmp_path: Path, url: str) -> None:
    ours, theirs = Share(url, tmp_path, "f"), Share(url, tmp_path, "f")
    with ours.claimed("cells/x"):
        with pytest.raises(Elsewhere, match="cells/x is run by process"), theirs.claimed("cells/x"):
            pass
        assert not theirs.ready("cells/x")
    assert theirs.ready("cells/x")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    write(url, "cells/x/claim.json", json.dumps({**claims.new_claim(), "pid": ended.pid}).encode())
    with theirs.claimed("cells/x"):  # at once
        assert json.loads(read(url, "cells/x/claim.json"))["token"] != STRANGER["token"]


def test_a_claim_that_no_longer_changes_is_dead(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two minutes of the observer's own clock since it last changed; a stranger's process cannot be asked."""
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("experiments.share.time", clock)
    ours = Share(url, tmp_path, "f", lease=120.0)
    write(url, "cells/x/claim.json", json.dumps(STRANGER).encode())
    assert not ours.ready("cells/x")
    now[0] = 119.0
    write(url, "cells/x/claim.json", json.dumps({**STRANGER, "alive": 1}).encode())
    assert not ours.ready("cells/x")
    now[0] = 238.0
    assert not ours.ready("cells/x")
    with pytest.raises(Elsewhere, match="process 1 of far"), ours.claimed("cells/x"):
        pass
    now[0] = 240.0
    assert ours.ready("cells/x")
    with ours.claimed("cells/x"):
        pass


def test_a_process_says_that_it_lives(tmp_path: Path, url: str) -> None:
    ours = Share(url, tmp_path, "f", renew=0.01)
    with ours.claimed("cells/x"):
        while "alive" not in json.loads(read(url, "cells/x/claim.json")):
            pass  # the suite's limit ends it


def test_a_cell_of_another_machine_is_left_to_it(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rest is run meanwhile; what the other finishes is taken over, what it gives up is run."""
    config = machine(tmp_path, "a", url, agents=("bc", "soft_q"), seeds=2)
    other = replace(config, out=tmp_path / "other", share="")
    rows = compare(other)
    cells = [f"{arm}-p0.9-seed0" for arm in ("bc", "soft_q")]
    for cell in cells:
        write(url, f"cells/{cell}/claim.json", json.dumps(STRANGER).encode())
    done = []

    def slept(seconds: float) -> None:
        done.append({path.parent.name for path in config.out.glob("cells/*/result.json")})
        claim = f"{url.removeprefix('memory:/')}/cells/{cells[0]}/claim.json"
        if len(done) == 1:  # the stranger finishes its bc
            theirs = Share(url, other.out, Share.of(workspace(config)).fingerprint)
            paths = [*share.files_of(other.out / "students/bc-seed0"), other.out / f"cells/{cells[0]}/result.json"]
            assert theirs.publish(f"cells/{cells[0]}", paths, {})
            fsspec.filesystem("memory").rm_file(claim)
        elif len(done) == 2:  # and lets its soft_q go
            fsspec.filesystem("memory").rm_file(claim.replace("bc-", "soft_q-"))

    monkeypatch.setattr("experiments.shared_cells.time", SimpleNamespace(sleep=slept))
    found = compare(config)
    assert [row.measures["forward_kl"] for row in found] == [row.measures["forward_kl"] for row in rows]
    assert not done[0] & set(cells) and {"bc-p0.9-seed1", "soft_q-p0.9-seed1"} <= done[0]
    assert cells[0] in done[1] and cells[1] not in done[1]
    theirs, ours = (path / "cells" / cells[0] / "result.json" for path in (other.out, config.out))
    assert theirs.read_bytes() == ours.read_bytes()
    said = capsys.readouterr()
    assert "waiting for 2 cells of other machines: bc-p0.9-seed0" in said.err and "failed" not in said.out


def workspace(config: CompareConfig) -> Any:
    from experiments.workspace import Workspace

    return Workspace(config)


def test_a_path_that_fails_midway_loses_nothing(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = machine(tmp_path, "a", url)
    with monkeypatch.context() as broken:

        def fails(*_: Any, **__: Any) -> None:
            raise OSError("the network is down")

        broken.setattr(fsspec.get_filesystem_class("memory"), "put_file", fails)
        with pytest.raises(FailedCells, match=r"ShareError: .*network is down"):
            compare(config)
    kept = config.out / "cells/start-p0.9-seed0/result.json"
    compare(config)
    assert kept.is_file() and "/cells/bc-p0.9-seed0/done.json" in " ".join(
        fsspec.filesystem("memory").find(url.removeprefix("memory:/"))
    )


def test_a_photo_finish_leaves_one_result(tmp_path: Path, url: str) -> None:
    """Whoever comes second throws its upload away."""
    (tmp_path / "cells/x").mkdir(parents=True)
    (tmp_path / "cells/x/result.json").write_text("1", encoding="utf-8")
    paths, ours = [tmp_path / "cells/x/result.json"], Share(url, tmp_path, "f")
    assert ours.publish("cells/x", paths) and not ours.publish("cells/x", paths)
    held = fsspec.filesystem("memory").find(url.removeprefix("memory:/"))
    assert sorted(name.rpartition("/")[2] for name in held) == ["done.json", "result.json"]


@pytest.mark.long
def test_two_processes_split_a_matrix(tmp_path: Path) -> None:
    config = machine(tmp_path, "a", f"file://{tmp_path}/share", agents=("bc", "soft_q"), seeds=2, updates=20)
    words = [sys.executable, "-m", "experiments", "compare", "--teacher", "table:toy", "--student", "tiny"]
    words += ["--prompts", str(config.prompts), "--agents", "bc", "soft_q", "--seeds", "2", "--max-new-tokens", "6"]
    words += ["--episodes", "24", "--updates", "20", "--batch-size", "4", "--eval-prompts", "4", "--threads", "1"]
    both = [subprocess.Popen([*words, "--share", config.share, "--out", str(tmp_path / name)]) for name in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    tables = [list(csv.DictReader((tmp_path / name / "results.csv").open(encoding="utf-8"))) for name in "ab"]
    first, second = ([(row["agent"], row["seed"], row["forward_kl"], row["seconds"]) for row in t] for t in tables)
    assert first == second and len(first) == 1 + 2 + 4
    cells = sorted(path for path in (tmp_path / "share" / "cells").iterdir())
    assert len(cells) == 2 + 4 and all(len(list(cell.iterdir())) == 2 for cell in cells)  # a marker, and one upload
    makers = {json.loads((cell / "done.json").read_text(encoding="utf-8"))["pid"] for cell in cells}
    assert makers == {process.pid for process in both}
