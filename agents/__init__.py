"""The students: agents that learn from `Episodes`. Lazy: importing this loads no agent and no transformers."""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from agents.errors import InputError

if TYPE_CHECKING:
    from agents.base import Agent
    from agents.loop import LoopAgent
    from agents.scores import Scorer
    from agents.student import Student

GROUP = "tdistill.agents"
EXTRAS = {"stable_baselines3": "sb3", "sb3_contrib": "sb3"}
"""Packages that only some agents need -> the extra of tdistill that installs them."""
REGISTRY = {
    "bc": "agents.behavior_cloning:BehaviorCloning",
    "bc_filtered": "agents.behavior_cloning:FilteredCloning",
    "kd": "agents.knowledge_distillation:KnowledgeDistillation",
    "gkd": "agents.gkd:GKD",
    "minillm": "agents.minillm:MiniLLM",
    "q_learning": "agents.q_learning:QLearning",
    "soft_q": "agents.soft_q:SoftQ",
    "cql": "agents.cql:CQL",
    "sqil": "agents.sqil:SQIL",
    "actor_critic": "agents.actor_critic:ActorCritic",
    "ppo": "agents.ppo:PPO",
    "sac": "agents.sac:SAC",
    "bellman_distill": "agents.bellman_distill:BellmanDistill",
    "bellman_distill_released": "agents.bellman_distill_released:BellmanDistillReleased",
    "value_tilt": "agents.value_tilt:ValueTilt",
    "sb3:dqn": "agents.sb3_agents:DQN",
    "sb3:soft_dqn": "agents.sb3_agents:SoftDQN",
    "sb3:a2c": "agents.sb3_agents:A2C",
    "sb3:ppo": "agents.sb3_agents:PPO",
    "sb3:maskable_ppo": "agents.sb3_agents:MaskablePPO",
}


def learner_class(name: str) -> type[Agent[Any]] | type[LoopAgent[Any]]:
    """The class behind a registered name, an entry point of group `tdistill.agents`, or `module:Class`.

    Raises: InputError naming the nearest match, or the extra that is not installed.
    """
    places = {point.name: point.value for point in entry_points(group=GROUP)} | REGISTRY
    place = places.get(name, name)
    module, _, attribute = place.partition(":")
    near = difflib.get_close_matches(name, places, n=1)
    hint = f"; did you mean {near[0]}?" if near and near[0] != name else ""
    if not attribute:
        raise InputError(f"unknown agent {name!r}; known are {', '.join(sorted(places))}, or module:Class{hint}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        extra = EXTRAS.get((getattr(error, "name", None) or "").partition(".")[0])
        if extra is not None:
            raise InputError(f"agent {name!r} needs {error.name}: pip install tdistill[{extra}]") from error
        raise InputError(f"agent {name!r} cannot be loaded from {place}: {error}{hint}") from error
    from agents.base import Agent
    from agents.loop import LoopAgent

    if not (isinstance(found, type) and issubclass(found, (Agent, LoopAgent))):
        raise InputError(
            f"agent {name!r}: {place} is not a subclass of agents.base.Agent, nor of agents.loop.LoopAgent"
        )
    return found


def agent_class(name: str) -> type[Agent[Any]]:
    """The class of an agent that learns from episodes; `name` as for `learner_class`.

    Raises: InputError: as `learner_class`, or an agent that owns its loop.
    """
    from agents.base import Agent

    found = learner_class(name)
    if not issubclass(found, Agent):
        raise InputError(f"agent {name!r} owns its loop: it learns from an environment, not from episodes")
    return found


def make_agent(name: str, student: Scorer, *, seed: int = 0, total_updates: int, **config: Any) -> Agent[Any]:
    """Build an agent around a student; `config` overrides fields of its frozen Config.

    Raises: InputError: an unknown agent or setting (with the nearest match), or a setting out of range.
    """
    kind = agent_class(name)
    return kind(student, kind.make_config(**config), seed=seed, total_updates=total_updates)


def make_loop_agent(name: str, student: Student, *, seed: int = 0, **config: Any) -> LoopAgent[Any]:
    """Build an agent that owns its loop; `config` overrides fields of its frozen Config.

    Raises: InputError: as `make_agent`, or an agent that learns from episodes.
    """
    from agents.loop import LoopAgent

    kind = learner_class(name)
    if not issubclass(kind, LoopAgent):
        raise InputError(f"agent {name!r} learns from episodes; make_agent builds it")
    return kind(student, kind.make_config(**config), seed=seed)
