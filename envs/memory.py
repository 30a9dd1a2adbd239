"""Whether a model fits into memory, said before it is loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from envs.errors import InputError

GIB = 2**30
FLOAT32 = 4  # bytes
NAMES = {2: "half precision", FLOAT32: "float32"}


def free_memory() -> int | None:
    """Bytes that this machine, or the control group that this process is in, has left; None where it does not say."""
    found, group = [], Path("/sys/fs/cgroup")
    for key, size in _numbers(Path("/proc/meminfo")):
        if key == "MemAvailable:":
            found.append(size * 1024)
    limit, used = (_numbers(group / name) for name in ("memory.max", "memory.current"))
    if limit and used:  # "max" is no number; files that are cached are given back when they are needed
        cached = dict(_numbers(group / "memory.stat")).get("inactive_file", 0)
        found.append(limit[0][1] - used[0][1] + cached)
    return min(found) if found else None


def _numbers(path: Path) -> list[tuple[str, int]]:
    """The first number of every line, with the word before it; nothing of a file that is not there."""
    if not path.is_file():
        return []
    found = re.findall(r"^(\S*?)\s*(\d+)\b", path.read_text(encoding="ascii"), re.MULTILINE)
    return [(key, int(number)) for key, number in found]


def outline(config: Any, trust_remote_code: bool = False) -> Any:
    """The model of this configuration with shapes and no weights."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def check_fits(name: str, model: Any, size: int = FLOAT32) -> None:
    """Raises: InputError: the weights of an outline, of `size` bytes each, are more than the memory that is free."""
    free, weights = free_memory(), sum(value.numel() for value in model.parameters())
    if free is not None and weights * size > free:
        raise InputError(
            f"{name!r} has {weights:,} parameters, {weights * size / GIB:.1f} GiB in {NAMES[size]}; {free / GIB:.1f} "
            "GiB of memory are free: take a smaller model, or a machine with more memory"
        )
