"""Small streams for `tdistill online`: a table teacher, a tiny student, prompts without tokens 3 and 5; seconds."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.online import command
from experiments.online.config import OnlineConfig
from experiments.online.loop import Online
from experiments.online.sources import Folder
from experiments.workspace import Workspace

USUAL = [" ".join(text) for size in (4, 5, 6) for text in itertools.product("124", repeat=size)]
STRANGE = [" ".join(text) for size in (4, 5, 6, 7, 8) for text in itertools.product("35", repeat=size)]


def prompts(count: int, seed: int = 0, of: list[str] = USUAL) -> list[str]:
    """Different ones, in any order; some are among the held-out prompts of the run."""
    return np.random.default_rng(seed).permutation(of)[:count].tolist()


def settings(folder: Path, stream: list[str], **changes: Any) -> OnlineConfig:
    """A run over a folder of two files."""
    place = folder / "stream"
    place.mkdir(exist_ok=True)
    half = len(stream) // 2
    for name, part in (("a.txt", stream[:half]), ("b.txt", stream[half:])):
        (place / name).write_text("\n".join(part), encoding="utf-8")
    (folder / "prompts.txt").write_text("\n".join(USUAL), encoding="utf-8")
    own = OnlineConfig(
        teacher="table:toy",
        student="tiny",
        prompts=folder / "prompts.txt",
        agent="bc",
        top_p=0.8,
        max_new_tokens=6,
        episodes=32,
        batch_size=4,
        eval_prompts=48,
        eval_every=12,
        label=0.5,
        hold=48,
        temperature=1.0,
        threads=1,
        stream=str(place),
        out=folder / "run",
    )
    return replace(own, **changes)


def ran(config: OnlineConfig) -> dict[str, float]:
    """The figures of a whole run."""
    return command.run(config)


def opened(config: OnlineConfig) -> Online:
    """A run that is ready, in a folder that is its own."""
    space = Workspace(config)
    (space.out / "shared").mkdir(parents=True, exist_ok=True)
    return Online(space, config)


def through(online: Online) -> dict[str, float]:
    """Go through its folder."""
    return online.run(Folder(Path(online.config.stream), online.journal, online.problem))
