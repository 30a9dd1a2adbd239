"""One run in several processes, as `torchrun` and `accelerate launch` start them; process 0 alone writes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from agents import learner_class, parallel, sharding
from agents.base import Agent
from agents.loop import LoopAgent
from envs.errors import InputError
from envs.teachers import Teacher
from experiments.arms import agent_of
from experiments.config import RunConfig

PATIENCE = timedelta(hours=12)  # for process 0 while it measures


def refuse(command: str) -> None:
    """Raises: InputError: several processes were launched for a command that one does by itself."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(f"{command} runs in one process; launch compare or distill, or give this command alone")


@contextmanager
def joined() -> Iterator[None]:
    """Within, this process is one of those that its launcher started; with no launcher, it is alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def check_spread(config: RunConfig, arm: str, agent: Agent[Any] | LoopAgent[Any]) -> None:
    """Raises: InputError: an agent lets a student walk whose weights are spread, while one process alone draws."""
    if config.shard and parallel.size() > 1 and isinstance(agent, Agent) and agent.walks is not None:
        raise InputError(f"{arm} lets its student walk, which one process does by itself; leave --shard out")


def spread_teacher(teacher: Teacher, device: str) -> Teacher:
    """The same teacher, its weights spread over the processes; a table has none. All processes call this together."""
    from envs.hf_teacher import HFTeacher

    if isinstance(teacher, HFTeacher):
        sharding.shard_frozen(teacher.model, torch.device(device).type)
    return teacher


def check(arms: Sequence[str], jobs: int, trials: int) -> None:
    """Raises: InputError: something that one process does by itself is asked of several."""
    if parallel.size() == 1:
        return
    for name, value, alone in (("jobs", jobs, 1), ("trials", trials, 0)):
        if value != alone:
            raise InputError(
                f"{name} = {value} in {parallel.size()} processes of a launcher, which learn as one; leave --{name} "
                "out, or launch a single process"
            )
    if walking := [arm for arm in arms if issubclass(learner_class(agent_of(arm)), LoopAgent)]:
        raise InputError(
            f"{walking[0]} walks by itself, in one process, and {parallel.size()} were launched; leave it out, or "
            "launch one"
        )
