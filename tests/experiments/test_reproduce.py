"""A run records where it comes from, and is repeated from its folder to the same figures and weights."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch

from experiments import provenance
from experiments.compare import compare
from experiments.folder import INPUTS
from tests.experiments.runs import small


def test_a_run_records_where_it_comes_from(tmp_path: Path) -> None:
    config = small(tmp_path, agents=("bc",))
    compare(config)
    compare(replace(config, seeds=2))
    first, second = provenance.runs(config.out)
    assert first["versions"]["torch"] == metadata.version("torch") and first["hardware"]["threads"] == 1
    assert (first["settings"]["seeds"], second["settings"]["seeds"]) == (1, 2)
    assert second["inputs"] == json.loads((config.out / INPUTS).read_text())
    card = (config.out / "students/bc-seed0/README.md").read_text()
    assert f"torch {metadata.version('torch')}" in card


def test_the_commit_is_that_of_this_package_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(provenance, "ROOT", tmp_path.resolve())
    assert provenance.commit() is None
    git("init", "-q")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("one")
    git("add", "-A")
    git("commit", "-q", "-m", "one")
    head = git("rev-parse", "HEAD")
    assert provenance.commit() == {"id": head, "changed": False}
    (tmp_path / "code" / "a.py").write_text("two")
    assert provenance.commit() == {"id": head, "changed": True} and head[:12] + " (changed)" in provenance.line()
    monkeypatch.setattr(provenance, "ROOT", (tmp_path / "code").resolve())  # as an environment in some repository
    assert provenance.commit() is None


def test_hardware_says_how_many_threads_it_computes_with() -> None:
    found = provenance.hardware("cpu")
    assert found["cpu"] and found["cores"] >= 1 and found["threads"] == torch.get_num_threads()
