"""Who is at an entry of a shared path: a claim as its file says it."""

from __future__ import annotations

import json
import os
import platform
import uuid
from pathlib import Path
from typing import Any


def new_claim() -> dict[str, Any]:
    """That of this process; its token tells it from every other."""
    return {"host": platform.node(), "machine": machine(), "pid": os.getpid(), "token": uuid.uuid4().hex}


def machine() -> str:
    """This machine as processes number themselves: its boot and its space of process ids; unknown: like no other."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex


def ended(held: bytes) -> bool:
    """Whether a claim is that of a process of this machine that has ended."""
    try:
        claim = json.loads(held)
        if claim["machine"] != machine():
            return False
        os.kill(claim["pid"], 0)
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, OSError):  # half of a claim, or a process of somebody else
        return False
    return False


def who(held: bytes) -> str:
    """The owner of a claim, in words."""
    try:
        claim = json.loads(held)
        return f"process {claim['pid']} of {claim['host']}"
    except (ValueError, KeyError):
        return "another process"
