"""The contract's tests can fail: agents with one planted mistake each, and the test that notices it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from agents.base import Config, FixedPoint
from agents.behavior_cloning import BehaviorCloning
from agents.errors import InputError
from agents.knowledge_distillation import KnowledgeDistillation
from agents.soft_q import SoftQ
from experiments.contract import AgentContract


class EndsElsewhere(BehaviorCloning):
    """Declares the renormalised teacher and learns the teacher."""

    name = "ends_elsewhere"

    @property
    def fixed_point(self) -> FixedPoint:
        return FixedPoint("renormalised")


class SaysNothing(BehaviorCloning):
    """Has no fixed point and names no identity."""

    name = "says_nothing"

    @property
    def fixed_point(self) -> None:
        return None


class Noisy(BehaviorCloning):
    """Draws from a generator that the seed does not reach."""

    name, draws = "noisy", torch.Generator().manual_seed(0)

    def loss(self, batch: Any) -> Any:
        loss, logs = super().loss(batch)
        return loss * (1 + torch.rand((), generator=self.draws)), logs


class Forgetful(SoftQ):
    """Does not save its target network."""

    name = "forgetful"

    def extras(self) -> dict[str, Any]:
        return {}


class Unmasked(BehaviorCloning):
    """Chooses slots by the padding's leave."""

    name = "unmasked"

    def act(self, observation: Any, rng: Any = None) -> Any:
        return np.full(np.shape(observation["mask"])[:-1], np.shape(observation["mask"])[-1] - 1)


class Discountless(SoftQ):
    """Bootstraps with γ = 1 whatever its γ."""

    name = "discountless"

    def loss(self, batch: Any) -> Any:
        return super().loss(batch.discounted(1.0))


class Needy(KnowledgeDistillation):
    """Reads the teacher's logits without asking for them."""

    name = "needy"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()


@dataclass
class Loose:
    """Settings that anyone may change and nobody checks."""

    lr: float = 1e-3
    weight_decay: float = 0.0
    warmup: int = 20
    clip: float = 1.0
    batch_size: int = 32


class Unchecked(BehaviorCloning):
    name, Config = "unchecked", Loose


class Frozen(BehaviorCloning):
    """Moves no weight."""

    name = "frozen"

    def loss(self, batch: Any) -> Any:
        return super().loss(batch)[0].detach(), {}


NOTICED = [
    (EndsElsewhere, "test_its_fixed_point_is_reached"),
    (Discountless, "test_its_fixed_point_is_reached"),
    (SaysNothing, "test_it_says_where_it_ends_or_what_tests_it"),
    (Noisy, "test_seeded_runs_are_equal"),
    (Forgetful, "test_a_saved_agent_goes_on_as_if_never_stopped"),
    (Unmasked, "test_only_legal_slots_are_chosen"),
    (Needy, "test_a_missing_attachment_is_named"),
    (Unchecked, "test_its_config_is_frozen_and_checked"),
    (Frozen, "test_a_language_model_learns_by_the_same_calls"),
]


@pytest.mark.parametrize(("kind", "test"), NOTICED, ids=lambda value: getattr(value, "name", value))
def test_a_mistake_is_noticed(kind: type, test: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("planted")
    module.Agent = kind
    monkeypatch.setitem(sys.modules, "planted", module)
    contract = type("Contract", (AgentContract,), {"agent": "planted:Agent"})()
    arguments = (tmp_path,) if "saved" in test or "language" in test else ()
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        getattr(contract, test)(*arguments)


def test_an_agent_that_owns_its_loop_is_told_so() -> None:
    contract = type("Contract", (AgentContract,), {"agent": "sb3:a2c"})()
    with pytest.raises(InputError, match="owns its loop"):
        contract.fresh()


def test_settings_of_the_base_class_are_the_ones_checked() -> None:
    assert [field.name for field in fields(Loose)] == [field.name for field in fields(Config)]
