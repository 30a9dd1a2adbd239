"""An arm of a comparison: an agent by name, and what sets this arm of it apart.

AGENT                               soft_q
AGENT@setting=value,setting=value   soft_q@gamma=0    gkd@divergence=jsd,beta=0.5
"""

from __future__ import annotations

from typing import Any

import yaml

from envs.errors import InputError
from experiments.config import RunConfig


def agent_of(arm: str) -> str:
    """The agent's name."""
    return arm.partition("@")[0]


def split_arm(arm: str) -> tuple[str, dict[str, Any]]:
    """An agent's name, and the settings of this arm of it.

    Raises: InputError: settings that are not of the form setting=value, or one given twice.
    """
    agent, at, rest = arm.partition("@")
    found: dict[str, Any] = {}
    for item in rest.split(",") if at else ():
        setting, equals, value = item.partition("=")
        if not (agent and setting and equals and value):
            raise InputError(f"arm {arm!r} is not of the form agent@setting=value,…, as soft_q@gamma=0,n=3")
        if setting in found:
            raise InputError(f"arm {arm!r} gives {setting} twice")
        found[setting] = _number(value)
    return agent, found


def agent_settings(config: RunConfig, arm: str) -> dict[str, Any]:
    """What `agent_config` says about an arm's agent, and the arm about itself, which counts more.

    Raises: InputError: an item that is not agent.setting=value.
    """
    agent, own = split_arm(arm)
    found = {}
    for item in config.agent_config:
        place, equals, value = item.partition("=")
        name, dot, setting = place.rpartition(".")
        if not (equals and dot and name and setting):
            raise InputError(f"agent setting {item!r} is not of the form agent.setting=value, as soft_q.lr=3e-4")
        if name == agent:
            found[setting] = _number(value)
    return found | own


def _number(text: str) -> Any:
    """A YAML scalar; numbers like 3e-4, which YAML takes for text, are numbers here."""
    try:
        return float(text) if not text.lstrip("-").isdecimal() else int(text)
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"the value {text!r} of an agent setting is no YAML scalar; quote it") from error
