"""What the C library does with freed memory: large vocabularies are fast or slow by it."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

TUNED = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 2**26)}
"""glibc's parameters (their numbers in malloc.h) and values that let a process keep what it has freed.

By default large buffers are given back to the system and paged in anew at every step.
"""


KEPT = "tuned"  # the name of an allocator after `keep_memory`


def allocator() -> str:
    """ "default", or the settings that this process was started with."""
    given = {name: value for name, value in os.environ.items() if name.startswith("MALLOC_") or name == "LD_PRELOAD"}
    return " ".join(f"{name}={value}" for name, value in sorted(given.items()) if value) or "default"


def keep_memory() -> bool:
    """Let this process keep what it frees from now on; False where the C library is not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(number, value) for number, value in TUNED.values())


def trim() -> None:
    """Give back to the system what is free, where the C library can."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
