"""Small runs for the tests: a table teacher, a tiny student, prompts in a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.config import CompareConfig

PROMPTS = ["1", "2", "3", "4", "5", "1 2", "2 3", "3 4", "4 5", "5 1", "1 1", "2 2", "3 3", "4 4"]


def prompts_file(folder: Path) -> Path:
    """A text file of prompts for `table:toy`."""
    path = folder / "prompts.txt"
    path.write_text("\n".join(PROMPTS), encoding="utf-8")
    return path


def small(folder: Path, **changes: Any) -> CompareConfig:
    """Two agents, one seed, six updates on `table:toy`; seconds."""
    config = CompareConfig(
        teacher="table:toy",
        student="tiny",
        prompts=prompts_file(folder),
        agents=("bc", "soft_q"),
        seeds=1,
        max_new_tokens=6,
        episodes=24,
        updates=6,
        batch_size=4,
        eval_prompts=4,
        eval_every=3,
        checkpoint_seconds=0.0,
        threads=1,
        out=folder / "run",
    )
    return replace(config, **changes)
