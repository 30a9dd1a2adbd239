"""The wheel, installed outside the repository, distils a model."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.long
def test_the_installed_wheel_runs_a_tiny_compare(tmp_path: Path) -> None:
    """Weights and presets travel as package data; nothing is read from the repository."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("tdistill-*.whl")
    # The dependencies are those of this environment; the project itself must come from the wheel.
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    (here,) = (Path(sys.prefix) / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(f"{here}\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = ["-m", "experiments", "compare", "--preset", "demo", "--agents", "bc", "--seeds", "1", "--updates", "2"]
    command += ["--episodes", "16", "--eval-prompts", "4", "--jobs", "1", "--out", "run"]
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    where = subprocess.run(
        [python, "-c", "import envs; print(envs.__file__)"],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert str(tmp_path) in where.stdout, where
    subprocess.run([python, *command], cwd=elsewhere, env=environment, check=True, timeout=280)
    with (elsewhere / "run" / "results.csv").open() as file:
        assert "bc" in {row["agent"] for row in csv.DictReader(file)}
