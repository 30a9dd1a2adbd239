"""How a study is run from the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import torch
import tyro

from agents.errors import InputError as AgentInputError
from envs.errors import InputError

Config = TypeVar("Config")


def run(kind: type[Config], about: str | None, study: Callable[[Config], str]) -> int:
    """Print what the study says of the settings on the command line.

    Returns: the exit code: 0 done, 2 bad input.
    """
    torch.set_num_threads(1)
    try:
        print(study(tyro.cli(kind, description=about)))
    except (InputError, AgentInputError) as error:
        print(f"{sys.argv[0]}: {error}", file=sys.stderr)
        return 2
    return 0
