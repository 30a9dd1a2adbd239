"""The fixed-point tests notice each planted mistake: with it, an agent ends at least three tolerances away.

Cloning and `kd` look at no successor, so γ, truncation and EOS cannot break them (shown); their mistakes are others.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from agents.behavior_cloning import BehaviorCloning, FilteredCloning
from agents.errors import InputError
from envs.table_teacher import toy
from experiments.oracle import arm, train
from experiments.table_data import build, complete_paths
from tests.agents.mutations import (
    LOOKING_AHEAD,
    MUTATIONS,
    NONE,
    Mutation,
    Patch,
    far,
    hard_mask_by_product,
    mask_ignored,
    noticed,
    outcome,
    plant,
)

APPLYING = [
    pytest.param(name, config, mutation, id=f"{name}-{config}-{mutation.name}")
    for name, config in LOOKING_AHEAD
    for mutation in MUTATIONS
    if mutation.applies(name, config)
]


@pytest.mark.parametrize(("name", "config", "mutation"), APPLYING)
def test_a_mistake_is_noticed(name: str, config: dict[str, Any], mutation: Mutation) -> None:
    found = outcome(name, config, mutation)
    assert noticed(found), found


@pytest.mark.parametrize(("name", "config"), LOOKING_AHEAD, ids=str)
def test_without_a_mistake_there_is_nothing_to_notice(name: str, config: dict[str, Any]) -> None:
    assert not noticed(outcome(name, config, NONE))


@pytest.mark.parametrize("factor", [0.0, -0.1, 0.5], ids=["dropped", "flipped", "halved"])
def test_a_wrong_conservative_penalty_is_noticed(factor: float) -> None:
    def scaled(patch: Patch) -> None:
        plant(patch, "conservative_gap", lambda log_policy, alpha: factor * -alpha * log_policy)

    assert far(arm("cql", mutation=scaled, conservatism=2.0))


def test_a_mask_ignored_in_the_hard_target_alone_is_noticed() -> None:
    assert far(arm("q_learning", mutation=hard_mask_by_product))


def test_kd_on_the_set_needs_its_mask() -> None:
    assert far(arm("kd", mutation=mask_ignored, on="set"))


def test_filtered_cloning_needs_its_filter() -> None:
    def unfiltered(patch: Patch) -> None:
        patch.setattr(FilteredCloning, "episode_weights", BehaviorCloning.episode_weights)

    assert far(arm("bc_filtered", mutation=unfiltered))


@pytest.mark.parametrize("mistake", ["truncation_terminates", "eos_continues"])
@pytest.mark.parametrize("name", ["bc", "kd"])
def test_agents_that_do_not_look_ahead_are_indifferent_to_ends(name: str, mistake: str) -> None:
    assert not far(arm(name, mistakes={mistake: True}))


def test_a_slot_taken_for_a_token_is_refused() -> None:
    """The episodes themselves say so."""
    batch = build(toy(), complete_paths(toy(), 1), 0.8, 0.8)
    with pytest.raises(InputError, match="slots are not token ids"):
        type(batch)(
            **{**batch.fields(), "slots": batch.taken.clamp(max=batch.ids.shape[-1] - 1), "in_set": batch.steps}
        )


def test_a_residual_gradient_runs_through_the_successor() -> None:
    """The one loss with a gradient that is meant not to be detached; the others are tested beside their agents."""
    teacher = toy()
    start = [path for path in complete_paths(teacher, 1) if path.state == 1 and path.tokens != (1,)]
    batch = build(teacher, start, 0.8, 0.8)
    still = {"leak_weight": 0.0, "hinge": 0.0, "gamma": 0.8, "clamp": False}
    agent = train("soft_q", teacher, batch, updates=1, gradient="residual", **still)
    agent.student.v.grad = None
    torch.autograd.backward(agent.loss(batch)[0])
    assert int((agent.student.v.grad != 0).sum()) > 1
