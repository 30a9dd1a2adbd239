"""The students: agents that learn from `Episodes`. Lazy: importing this loads no agent and no transformers."""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from agents.errors import InputError

if TYPE_CHECKING:
    from agents.base import Agent
    from agents.student import Scorer

GROUP = "tdistill.agents"
REGISTRY = {
    "bc": "agents.behavior_cloning:BehaviorCloning",
    "bc_filtered": "agents.behavior_cloning:FilteredCloning",
    "kd": "agents.knowledge_distillation:KnowledgeDistillation",
    "q_learning": "agents.q_learning:QLearning",
    "soft_q": "agents.soft_q:SoftQ",
    "bellman_distill": "agents.bellman_distill:BellmanDistill",
}


def agent_class(name: str) -> type[Agent[Any]]:
    """The class behind a registered name, an entry point of group `tdistill.agents`, or `module:Class`.

    Raises: InputError naming the nearest match.
    """
    places = {point.name: point.value for point in entry_points(group=GROUP)} | REGISTRY
    place = places.get(name, name)
    module, _, attribute = place.partition(":")
    if not attribute:
        near = difflib.get_close_matches(name, places, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"unknown agent {name!r}; known are {', '.join(sorted(places))}, or module:Class{hint}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"agent {name!r} cannot be loaded from {place}: {error}") from error
    from agents.base import Agent

    if not (isinstance(found, type) and issubclass(found, Agent)):
        raise InputError(f"agent {name!r}: {place} is not a subclass of agents.base.Agent")
    return found


def make_agent(name: str, student: Scorer, *, seed: int = 0, total_updates: int, **config: Any) -> Agent[Any]:
    """Build an agent around a student; `config` overrides fields of its frozen Config.

    Raises: InputError: an unknown agent or setting (with the nearest match), or a setting out of range.
    """
    kind = agent_class(name)
    return kind(student, kind.make_config(**config), seed=seed, total_updates=total_updates)
