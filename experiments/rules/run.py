"""Rules in a training run: what it may combine them with, and the environment they make."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from envs.errors import InputError
from envs.ruled import RuledVectorEnv
from envs.teachers import Teacher
from envs.vector_env import TopPTokenVectorEnv
from experiments.config import RunConfig
from experiments.rules.rules import FILE, in_env, read_rules, rules_for

SHAPED = "shaped"
"""What agents are told of a reward with a potential: bounds of the plain reward hold no longer."""


def check_rules(config: RunConfig) -> None:
    """Raises: InputError: a rules file that is none, or settings under which rules would not be kept."""
    potential = config.rules_potential
    if not 0.0 <= potential < math.inf:
        raise InputError(f"rules_potential = {potential} must be a finite number from 0 on, in nats")
    if config.rules is None:
        if potential:
            raise InputError(f"rules_potential = {potential:g} has no phrases to pay for; give --rules FILE")
        return
    read_rules(config.rules)
    agents = (*getattr(config, "agents", ()), getattr(config, "agent", ""), config.warm_start)
    if looping := [agent for agent in agents if agent.startswith("sb3:")]:
        raise InputError(f"{looping[0]} walks in an environment of its own, which keeps no rules; leave it or them out")
    if config.store is not None or config.targets == "references":
        raise InputError("rules mask what the teacher walks; leave --store and --targets references out")
    if config.teacher_walk != "set":
        raise InputError(
            f"teacher_walk = {config.teacher_walk!r} takes tokens that the rules mask; give --teacher-walk set"
        )


def under_rules(config: RunConfig, teacher: Teacher) -> tuple[type[TopPTokenVectorEnv], dict[str, Any]]:
    """The environment's class and its additional settings; the plain one of a run without rules.

    Raises: InputError: as `rules_for`, or a teacher without a tokenizer.
    """
    if config.rules is None:
        return TopPTokenVectorEnv, {}
    tokenizer = getattr(teacher, "tokenizer", None)
    if tokenizer is None:
        raise InputError(f"teacher {teacher.name!r} has no tokenizer to find phrases with; leave --rules out")
    rules = rules_for(config.rules, tokenizer, teacher.eos_ids, config.max_new_tokens)
    allow, potential = in_env(rules, teacher.vocab_size, config.rules_potential)
    return RuledVectorEnv, {"allow": allow, "potential": potential}


def reward_of(config: RunConfig) -> str:
    """What agents are told that their reward is: by another name than the plain one where a potential is added."""
    return SHAPED if config.rules_potential else config.reward


def lay_beside(config: RunConfig, directory: Path) -> None:
    """Copy the rules of a run, if it has some, into a student's directory."""
    if config.rules is not None:
        shutil.copyfile(config.rules, directory / FILE)
