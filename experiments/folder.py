"""A run's folder on disk: whose it is, files that are whole or not there, and a disk that is full."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from envs.errors import InputError
from experiments.config import CompareConfig, DistillConfig, RunConfig, dump, plain, read_yaml

CONFIG = "config.yaml"
LOCK = ".lock"
INPUTS = Path("shared") / "inputs.json"  # digests of what the run reads
FREE = set(
    "checkpoint_seconds threads json out micro_batch jobs agents seeds reference agent seed agent_config device "
    "gradient_checkpointing shard price resume retries ray cell_cpus cell_gpus share "
    "follow host port most_prompts".split()
)
"""Settings that may change between two runs in one folder: which cells there are, and what each cell checks itself."""


def teacher_file(top_p: float) -> Path:
    """Where a run keeps what was measured of the teacher itself beside its row of results.csv."""
    return Path("shared") / f"teacher-p{top_p:g}.json"


@contextmanager
def full_disk_is_said(out: Path) -> Iterator[None]:
    """Turns whatever a full disk raises (an OSError, or an error of torch's or safetensors' own) into an InputError."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        room = shutil.disk_usage(next(place for place in (out, *out.resolve().parents) if place.exists())).free
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        if full or ("PytorchStreamWriter" in str(error) and room < 2**24):
            raise InputError(
                f"no space is left on the disk of {out} ({room / 2**20:.0f} MiB free); free some and give the same "
                "command again: finished cells and checkpoints are kept"
            ) from error
        raise


@contextmanager
def alone(out: Path, doing: str) -> Iterator[None]:
    """Within, a folder is this command's; another that asks for it is told that this one is `doing` something there.

    It is created if it is not there.

    Raises: InputError: another command has it, or it cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = (out / LOCK).open("w")
    except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror}; give another folder") from error
    with held as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another command is {doing} {out}; wait for it, or give another --out") from None
        yield


def write(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def check_writable(path: Path, flag: str) -> None:
    """Raises: InputError: nothing can be written to this file; said before anything is computed that it is to hold."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
        if not path.stat().st_size:
            path.unlink()
    except OSError as error:
        raise InputError(f"{flag} {path} cannot be written: {error.strerror}; give another file") from error


def digest(content: str | bytes) -> str:
    """Sixteen hexadecimal digits that tell one content from another."""
    return hashlib.blake2b(content.encode() if isinstance(content, str) else content, digest_size=8).hexdigest()


def check_folder(config: RunConfig, out: Path) -> None:
    """Raises: InputError: the folder holds another run, or something else."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give another --out")
    if getattr(config, "resume", False) and not (out / CONFIG).is_file():
        raise InputError(f"--resume: {out} holds no run to go on with; leave --resume out to begin one there")
    begun = {LOCK, f"{CONFIG}.partial"}  # by a command that was killed before its settings were there
    if not out.exists() or {path.name for path in out.iterdir()} <= begun:
        return
    if not (out / CONFIG).is_file():
        raise InputError(f"{out} is not empty and holds no {CONFIG}, so it is no run folder; give another --out")
    theirs, ours = read_yaml(out / CONFIG), yaml.safe_load(dump(config))
    kinds: tuple[type[RunConfig], ...] = (CompareConfig, DistillConfig, type(config))
    # Of a folder that is older than a setting, or of the other kind of command.
    usual = {field.name: plain(field.default) for kind in kinds for field in fields(kind)}
    for key in (key for key in ours | theirs if key not in FREE):  # in order, so that the same one is named each time
        mine, before = (found.get(key, usual.get(key)) for found in (ours, theirs))
        if _listed(mine) != _listed(before):
            raise InputError(
                f"{out} holds a run with {key} = {before!r}, this one has {mine!r}; give another --out, or "
                "the same settings to go on with it"
            )


def _listed(value: Any) -> list[Any]:
    """One mass of `distill` is the list of one of `compare`."""
    return value if isinstance(value, list) else [value]
