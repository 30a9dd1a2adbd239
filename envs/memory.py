"""Whether a model fits into memory, said before it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from envs.errors import InputError

GIB = 2**30
FLOAT32 = 4  # bytes


def free_memory() -> int | None:
    """Bytes that this machine, or the control group that this process is in, has left; None where it does not say."""
    found = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = (line.split() for line in meminfo.read_text(encoding="ascii").splitlines())
        found += [int(line[1]) * 1024 for line in lines if line[0] == "MemAvailable:"]
    group = Path("/sys/fs/cgroup")
    limit, used = ((group / name) for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and (most := limit.read_text(encoding="ascii").strip()).isdigit():
        found.append(int(most) - int(used.read_text(encoding="ascii")))
    return min(found) if found else None


def outline(config: Any) -> Any:
    """The model of this configuration with shapes and no weights."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def check_fits(name: str, config: Any) -> None:
    """Raises: InputError: the model's weights in float32 are more than the memory that is free."""
    free = free_memory()
    if free is None:
        return
    weights = sum(value.numel() for value in outline(config).parameters())
    if weights * FLOAT32 > free:
        raise InputError(
            f"{name!r} has {weights:,} parameters, {weights * FLOAT32 / GIB:.1f} GiB in float32; {free / GIB:.1f} GiB "
            "of memory are free: take a smaller model, or a machine with more memory"
        )
