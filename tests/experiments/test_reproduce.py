"""A run records where it comes from, and is repeated from its folder to the same figures and weights."""

from __future__ import annotations

import csv
import json
import subprocess
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch

from envs.errors import InputError
from experiments import provenance
from experiments.__main__ import main
from experiments.compare import compare, distill
from experiments.config import DistillConfig, read_yaml
from experiments.folder import INPUTS
from experiments.reproduce import ReproduceConfig, earlier, reproduce
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


def test_a_run_comes_out_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small(tmp_path, seeds=2)
    compare(replace(config, agents=("kd",)))  # left in the folder, and no part of what the last command says
    compare(config)
    assert main(["reproduce", str(config.out)]) == 0
    printed = capsys.readouterr().out
    assert "agrees: 7 rows × " in printed  # teacher, two starts, two agents × two seeds
    assert f"2 commands ran in {config.out}, with different settings; the last is repeated alone (agents = " in printed
    assert "(agents = ['kd'] then ['bc', 'soft_q'])" in printed
    again = tmp_path / "run-reproduced"
    ours, theirs = (out / "students/soft_q-seed1/model.safetensors" for out in (config.out, again))
    assert ours.read_bytes() == theirs.read_bytes()
    assert read_yaml(again / "config.yaml")["threads"] == 1


def test_one_agent_alone_comes_out_again(tmp_path: Path) -> None:
    shared = {name: value for name, value in vars(small(tmp_path)).items() if hasattr(DistillConfig, name)}
    config = DistillConfig(**{**shared, "top_p": 0.9, "agent": "bc", "seed": 3})
    distill(config)
    found = reproduce(ReproduceConfig(config.out, tmp_path / "again"))
    assert found.agrees and found.students == 2 and found.rows == 3  # weights and value head; teacher, start, bc


def test_what_differs_is_named_with_its_largest_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small(tmp_path, agents=("bc",), seeds=2)
    compare(config)
    table = list(csv.DictReader((config.out / "results.csv").open()))
    for row, moved in zip(table[-2:], (0.25, 0.5), strict=True):
        row["forward_kl"] = str(float(row["forward_kl"]) + moved)
        row["seconds"] = "1000"
    with (config.out / "results.csv").open("w") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
    weights = config.out / "students/bc-seed0/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    log = json.loads((config.out / "run.json").read_text())
    log["runs"][-1]["versions"]["torch"] = "1.0"
    (config.out / "run.json").write_text(json.dumps(log))
    figures = tmp_path / "figures.json"
    assert main(["reproduce", str(config.out), "--json", str(figures)]) == 1
    said = capsys.readouterr().out
    assert "note: torch was 1.0, now it is" in said and "not promised" in said
    assert "other bytes: students/bc-seed0/model.safetensors" in said
    found = {point["name"]: point["value"] for point in json.loads(figures.read_text())["figures"]}
    expected = {"differing_figures": 1, "differing_weights": 1, "missing_rows": 0, "forward_kl": 0.5}
    assert found == pytest.approx(expected)
    assert "seconds" not in found


def test_what_cannot_be_repeated_is_refused(tmp_path: Path) -> None:
    config = small(tmp_path, agents=("bc",))
    with pytest.raises(InputError, match="holds no config"):
        reproduce(ReproduceConfig(config.out))
    with pytest.raises(InputError, match="holds no run to go on with"):
        compare(replace(config, resume=True))
    compare(config)
    compare(replace(config, resume=True))
    assert earlier(config.out) == []  # the same command twice
    with pytest.raises(InputError, match="is the run itself"):
        reproduce(ReproduceConfig(config.out, config.out))
    other = replace(config, out=tmp_path / "other", seeds=2)
    compare(other)
    with pytest.raises(InputError, match="holds another run: seeds is 2 there and 1"):
        reproduce(ReproduceConfig(config.out, other.out))
    assert config.prompts is not None
    config.prompts.write_text(config.prompts.read_text() + "\n5 5\n")
    with pytest.raises(InputError, match=r"has changed since \(.*train"):
        reproduce(ReproduceConfig(config.out))
    (config.out / "results.csv").unlink()
    with pytest.raises(InputError, match="has not ended"):
        reproduce(ReproduceConfig(config.out))
