"""The command: a new store, and the student that goes on from it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from envs.errors import InputError
from envs.teachers import load_teacher
from experiments.compare import check_distill
from experiments.config import ABSENT, WARM_START_NAME, DistillConfig
from experiments.folder import alone, check_folder, full_disk_is_said
from experiments.protect import digest_of
from experiments.store.shards import Manifest, Store
from experiments.store.source import SHARED, open_store
from experiments.update.renew import Renewal, Search, begin, check
from experiments.workspace import Workspace

OF_EPISODES = (*(name for name in SHARED if name != "gamma"), "top_p")
"""Settings of the run that are the store's; γ is the agent's, as its rewards do not know it (`check`)."""


@dataclass(frozen=True)
class UpdateConfig(DistillConfig):
    """Follow a teacher that has changed: compare it with its old store, draw anew where it differs, go on learning.

    --store is the old store, --student the student of the old teacher, or where that one began, --teacher the new one.
    What the episodes depend on (top_p, max_candidates, reward, …) is the store's. The new store is in OUT/store, the
    run in OUT/run.
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
        raise InputError(
            "an update goes on with a student; give its directory, or that of what it began as, with --student"
        )
    if not config.drift > 0:
        raise InputError(f"drift = {config.drift} nats must be above 0; 0.05 is a usual value")
    if config.round_size < 2:
        raise InputError(f"round_size = {config.round_size} is below 2; 64 is a usual value")
    old, run = Store(config.store), run_of(config)
    teacher, out = load_teacher(config.teacher, run.loading), config.out / "store"
    check(old, teacher)
    _check_run(run, config.store)
    search = Search(config.drift, config.round_size, config.seed)
    with full_disk_is_said(out), alone(config.out, "updating"):
        return Renewal(old, teacher, out, begin(old, teacher, out, search), search).run()


def _check_run(run: DistillConfig, old: Path) -> None:
    """Raises: InputError: what the student's run would refuse, were the new store there: said before it is paid for."""
    space = Workspace(run)
    check_folder(run, run.out)
    held_out = [*space.splits.validation, *space.splits.test]
    unknown = replace(run, teacher=ABSENT)  # who drew the old store is another one
    open_store(old, unknown, space.masses, space.teacher, held_out, digest_of(run, space.extras))
    check_distill(replace(run, store=None))


def run_of(config: UpdateConfig) -> DistillConfig:
    """The run that the student goes on with, once the new store is there.

    Raises: InputError: a setting that the episodes depend on, and that the store has otherwise.
    """
    assert config.store is not None
    settings, usual = Manifest.read(config.store).settings, UpdateConfig()
    own: dict[str, Any] = {field.name: getattr(config, field.name) for field in fields(DistillConfig)}
    for name in OF_EPISODES:
        if own[name] not in (getattr(usual, name), settings[name]):
            raise InputError(
                f"{name} = {own[name]!r}: the store {config.store} has {settings[name]!r}, and an update keeps it; "
                "leave it out"
            )
        own[name] = settings[name]
    return DistillConfig(**own | {"store": config.out / "store", "out": config.out / "run"})
