"""Agents for the tests of searches: ranges of every kind, one to diverge in, and nothing to search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from agents.base import Config
from agents.behavior_cloning import BehaviorCloning
from agents.search import Range, Search


@dataclass(frozen=True)
class ManyConfig(Config):
    depth: int = 2
    kind: str = "plain"
    SEARCH: ClassVar[Search] = {"lr": Range(1e-4, 1e-2, log=True), "depth": Range(1, 8), "kind": ("fancy", "odd")}


class Many(BehaviorCloning):
    """A float, a whole number and a choice."""

    Config: ClassVar[type[Any]] = ManyConfig


@dataclass(frozen=True)
class FragileConfig(Config):
    SEARCH: ClassVar[Search] = {"lr": Range(1e-3, 1e30, log=True)}


class Fragile(BehaviorCloning):
    """Diverges in most of its range."""

    Config: ClassVar[type[Any]] = FragileConfig


@dataclass(frozen=True)
class SettledConfig(Config):
    SEARCH: ClassVar[Search] = {}


class Settled(BehaviorCloning):
    """Has nothing to search."""

    Config: ClassVar[type[Any]] = SettledConfig
