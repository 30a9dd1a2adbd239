"""Lessons run as scripts, assert their own claims and draw their figures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LESSONS = ROOT / "experiments" / "lessons"


def test_identity_4c_is_learned_and_drawn(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.lessons.identity_4c", str(tmp_path / "identity_4c.png")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=1100)
    assert done.returncode == 0, done.stderr
    assert "the two targets are 0.1207 apart" in done.stdout
    for png in (tmp_path / "identity_4c.png", LESSONS / "identity_4c.png"):  # drawn now, and the one that is shown
        assert png.read_bytes().startswith(b"\x89PNG") and png.stat().st_size > 20_000
