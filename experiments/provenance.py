"""Where a run comes from: versions, commit, command, settings, hardware and digests, an entry for each time it ran."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from experiments.config import RunConfig, dump
from experiments.folder import write
from experiments.samplers import TPE

RUN = "run.json"
PACKAGES = ("tdistill", "torch", "transformers", "numpy", "gymnasium")
ROOT = Path(__file__).resolve().parents[1]


def remember(out: Path, config: RunConfig, inputs: dict[str, str]) -> None:
    """Append this run to `run.json` of its folder, whole or not at all.

    Args:
        inputs: digests of the prompts, the teacher's files and the student's.
    """
    entry = {
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": versions(*(["optuna"] if getattr(config, "sampler", "") == TPE else [])),
        "commit": commit(),
        "hardware": hardware(config.device),
        "inputs": inputs,
        "settings": yaml.safe_load(dump(config)),
    }
    write(out / RUN, json.dumps({"runs": [*runs(out), entry]}, indent=1))


def runs(out: Path) -> list[dict[str, Any]]:
    """The entries of a folder, the first run's first; none of a folder older than they."""
    file = out / RUN
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["runs"] if file.is_file() else []
    return found


def versions(*others: str) -> dict[str, str]:
    """Of Python and the packages that figures depend on, and of others; a package that is run uninstalled has none."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *others):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> dict[str, Any] | None:
    """The git commit of this package's own repository, and whether tracked files differ from it; None without one."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT:  # a repository that holds the environment
            return None
        return {"id": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def hardware(device: str) -> dict[str, Any]:
    """Cores, the name of the CPU, threads of a process and where it computes."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = (line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines())
        name = next((value.strip() for key, _, value in lines if key.strip() == "model name"), name)
    found = {"cpu": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "device": device}
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def line() -> str:
    """Versions and commit in one line, for a model card."""
    found, code = versions(), commit()
    words = ", ".join(f"{name} {version}" for name, version in found.items())
    return f"{words}, commit {code['id'][:12]}{' (changed)' if code['changed'] else ''}" if code else words
