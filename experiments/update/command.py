"""The command: a new store, and the student that goes on from it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from envs.errors import InputError
from envs.teachers import load_teacher
from experiments.config import ABSENT, WARM_START_NAME, DistillConfig
from experiments.folder import alone, full_disk_is_said
from experiments.store.shards import Store
from experiments.store.source import SHARED
from experiments.update.renew import Renewal, Search, begin


@dataclass(frozen=True)
class UpdateConfig(DistillConfig):
    """Follow a teacher that has changed: compare it with its old store, draw anew where it differs, go on learning.

    --store is the old store, --student the student of the old teacher, --teacher the new one. What the episodes depend
    on (top_p, max_candidates, reward, …) is the store's. The new store is in OUT/store, the run in OUT/run.
    """

    drift: float = 0.05
    """Nats: an episode on whose states the teachers differ by more, in the mean, is drawn anew."""
    round_size: int = 64
    """Episodes on which the teachers are compared at a time."""
    out: Path = Path("runs/update")
    """Folder of the update; the same command goes on where it stopped."""


def renew(config: UpdateConfig) -> dict[str, float]:
    """Make the new store.

    Returns: its figures; see `Renewal.figures`.
    Raises: InputError: bad settings, as `begin`, or another command that updates there.
    """
    if config.store is None:
        raise InputError("an update begins with the old teacher's store; give it with --store")
    if config.teacher == ABSENT:
        raise InputError("an update asks the new teacher; give it with --teacher")
    if config.student == WARM_START_NAME:
        raise InputError("an update goes on with a student; give its directory with --student")
    if not config.drift > 0:
        raise InputError(f"drift = {config.drift} nats must be above 0; 0.05 is a usual value")
    if config.round_size < 2:
        raise InputError(f"round_size = {config.round_size} is below 2; 64 is a usual value")
    old, teacher = Store(config.store), load_teacher(config.teacher, config.loading)
    out, search = config.out / "store", Search(config.drift, config.round_size, config.seed)
    manifest = begin(old, teacher, out, search)
    with full_disk_is_said(out), alone(config.out, "updating"):
        return Renewal(old, teacher, out, manifest, search).run()


def run_of(config: UpdateConfig) -> DistillConfig:
    """The run that the student goes on with, once the new store is there."""
    assert config.store is not None
    settings = Store(config.store).manifest.settings
    own: dict[str, Any] = {field.name: getattr(config, field.name) for field in fields(DistillConfig)}
    own |= {name: settings[name] for name in (*SHARED, "top_p")}
    return DistillConfig(**own | {"store": config.out / "store", "out": config.out / "run"})
