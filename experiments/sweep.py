"""`--sweep NAME=V,V,…`: one comparison over every combination of some settings' values.

top_p=0.5,0.9      the masses of the candidate sets
gamma=0,0.9,1      of every agent that has this setting, an arm for each value: soft_q@gamma=0 soft_q@gamma=0.9 …
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields, replace

from agents import learner_class
from envs.errors import InputError
from experiments.arms import agent_of, split_arm
from experiments.config import CompareConfig

MASSES = "top_p"


def swept(config: CompareConfig) -> CompareConfig:
    """The same comparison with `sweep` written out as `top_p` and `agents`; several names multiply.

    An arm that fixes a setting itself, or whose agent has no such setting, stays one arm.

        (soft_q, kd), gamma=0,1 n=1,2  ->  soft_q@gamma=0,n=1  soft_q@gamma=0,n=2  soft_q@gamma=1,n=1  …  kd

    Raises: InputError: an item that is not name=value,value, a name or value given twice, a mass that is no number, or
        a setting that no agent has.
    """
    arms, masses, seen = list(config.agents), config.top_p, set[str]()
    for item in config.sweep:
        name, equals, rest = item.partition("=")
        values = rest.split(",")
        if not (name and equals and all(values)):
            raise InputError(f"sweep {item!r} is not of the form name=value,value, as gamma=0,0.9,1")
        if name in seen or len(set(map(_value, values))) < len(values):
            raise InputError(f"sweep {item!r} gives {name} or one of its values twice; name each once")
        seen.add(name)
        if name == MASSES:
            masses = tuple(_mass(item, value) for value in values)
        else:
            _check(name, arms)
            arms = [new for arm in arms for new in _split(arm, name, values)]
    return replace(config, agents=tuple(arms), top_p=masses, sweep=())


def _split(arm: str, name: str, values: Sequence[str]) -> list[str]:
    agent, own = split_arm(arm)
    if name in own or name not in _settings(agent):
        return [arm]
    return [f"{arm}{',' if own else '@'}{name}={value}" for value in values]


def _settings(agent: str) -> list[str]:
    return [field.name for field in fields(learner_class(agent).Config)]


def _check(name: str, arms: Sequence[str]) -> None:
    known = {MASSES, *(setting for arm in arms for setting in _settings(agent_of(arm)))}
    if name not in known:
        near = difflib.get_close_matches(name, sorted(known), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"sweep {name!r} is a setting of none of the agents{hint} (known: {', '.join(sorted(known))})")


def _value(text: str) -> float | str:
    """0 and 0.0 are one value."""
    try:
        return float(text)
    except ValueError:
        return text


def _mass(item: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise InputError(f"sweep {item!r}: {value!r} is no number; masses lie in (0, 1]") from None
