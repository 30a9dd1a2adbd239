"""The wheel, installed outside the repository, distils a model, and takes an agent of another package."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.experiments.runs import PROMPTS
from tests.test_readme import files

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "experiments/docs/pages/own_agent.md"

PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
PROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "theirs"
version = "0.1"

[project.entry-points."tdistill.agents"]
theirs = "munchausen:Munchausen"

[tool.setuptools]
py-modules = ["munchausen"]
"""


class Installed(NamedTuple):
    """A virtual environment that holds the wheel, outside the repository, and a folder to work in."""

    python: Path
    site: Path
    folder: Path

    def run(self, *words: str) -> str:
        """What `python WORDS` prints."""
        environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [self.python, *words], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=1100
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The dependencies are those of this environment; the project itself must come from the wheel."""
    base = tmp_path_factory.mktemp("wheel")
    subprocess.run([*PIP, "wheel", "--no-deps", "--wheel-dir", str(base), str(ROOT)], check=True)
    (wheel,) = base.glob("tdistill-*.whl")
    venv.create(base / "venv", with_pip=False)
    (site,) = (base / "venv" / "lib").glob("python*/site-packages")
    subprocess.run([*PIP, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    (here,) = (Path(sys.prefix) / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(f"{here}\n")
    folder = base / "elsewhere"
    folder.mkdir()
    found = Installed(base / "venv" / "bin" / "python", site, folder)
    assert str(base) in found.run("-c", "import envs; print(envs.__file__)")
    return found


@pytest.mark.long
def test_the_installed_wheel_runs_a_tiny_compare(installed: Installed) -> None:
    """Weights, presets and lessons travel as package data; nothing is read from the repository."""
    command = ["-m", "experiments", "compare", "--preset", "demo", "--agents", "bc", "--seeds", "1", "--updates", "2"]
    command += ["--episodes", "16", "--eval-prompts", "4", "--jobs", "1", "--threads", "1", "--out", "run"]
    installed.run(*command)
    with (installed.folder / "run" / "results.csv").open() as file:
        assert "bc" in {row["agent"] for row in csv.DictReader(file)}
    assert "Lesson 05" in installed.run("-m", "experiments", "lesson")
    assert "drawn: lesson_00.png" in installed.run("-m", "experiments", "lesson", "00")
    assert (installed.site / "experiments" / "lessons" / "READING.md").is_file()


@pytest.mark.long
def test_an_agent_of_another_package_plugs_in(installed: Installed, tmp_path: Path) -> None:
    """By the name of its entry point and by module:Class, in a comparison and in the contract's tests."""
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "munchausen.py").write_text(files(PAGE)["munchausen.py"])
    subprocess.run([*PIP, "install", "--no-deps", "--target", str(installed.site), str(tmp_path)], check=True)
    (installed.folder / "prompts.txt").write_text("\n".join(PROMPTS))
    command = ["-m", "experiments", "compare", "--teacher", "table:toy", "--student", "tiny", "--seeds", "1"]
    command += ["--prompts", "prompts.txt", "--agents", "theirs", "munchausen:Munchausen", "--updates", "2"]
    command += ["--episodes", "8", "--eval-prompts", "2", "--max-new-tokens", "4", "--threads", "1", "--out", "theirs"]
    installed.run(*command)
    with (installed.folder / "theirs" / "results.csv").open() as file:
        assert {"theirs", "munchausen:Munchausen"} <= {row["agent"] for row in csv.DictReader(file)}
    mine = files(PAGE)["test_munchausen.py"].replace("munchausen:Munchausen", "theirs")
    (installed.folder / "test_theirs.py").write_text(mine)
    assert "passed" in installed.run("-m", "pytest", "-q", "test_theirs.py")
