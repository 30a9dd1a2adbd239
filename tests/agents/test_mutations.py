"""The fixed-point tests notice each planted mistake: with it, an agent ends at least three tolerances away.

Cloning and `kd` look at no successor, so γ, truncation and EOS cannot break them (shown); their mistakes are others.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from agents import objectives
from agents.behavior_cloning import BehaviorCloning, FilteredCloning
from agents.errors import InputError
from envs.table_teacher import toy
from experiments.oracle import TOLERANCE, Gap, arm, train
from experiments.table_data import build, complete_paths
from tests.agents.test_objectives import PARTS

LOOKING_AHEAD: list[tuple[str, dict[str, Any]]] = [
    ("q_learning", {}),
    ("soft_q", {}),
    ("soft_q", {"n": 2, "anchor": 0.0}),
    ("bellman_distill", {}),
]
soft_value, bootstrap, path_target = objectives.soft_value, objectives.bootstrap, objectives.path_target
inverse_reward = objectives.inverse_reward
Patch = pytest.MonkeyPatch
PLACES = [objectives, *(importlib.import_module(f"agents.objectives.{part.name}") for part in PARTS)]


def plant(patch: Patch, name: str, mistake: Callable[..., Tensor]) -> None:
    """Put a wrong objective wherever its right one is read."""
    for place in PLACES:
        if hasattr(place, name):
            patch.setattr(place, name, mistake)


def mask_ignored(patch: Patch) -> None:
    """Soft values run over all slots, padding included; hard ones mask by product, so that padding counts as Q = 0."""
    plant(patch, "soft_value", lambda q, mask, alpha=1.0: soft_value(q, torch.ones_like(mask), alpha))
    hard_mask_by_product(patch)


def hard_mask_by_product(patch: Patch) -> None:
    """Of hard values alone."""
    plant(patch, "double_value", lambda selector, evaluator, mask: (evaluator * mask).amax(-1))


def gamma_off_by_one(patch: Patch) -> None:
    """A successor's value is discounted once too often."""
    plant(patch, "bootstrap", lambda r, d, v: bootstrap(r, d.square(), v))
    plant(patch, "inverse_reward", lambda v, p, d, ahead: inverse_reward(v, p, d.square(), ahead))


def far(found: Gap) -> bool:
    return found.policy > 3 * TOLERANCE.policy or found.q > 3 * TOLERANCE.q


@pytest.mark.parametrize("mutation", [mask_ignored, gamma_off_by_one])
@pytest.mark.parametrize(("name", "config"), LOOKING_AHEAD, ids=str)
def test_a_wrong_target_is_noticed(name: str, config: dict[str, Any], mutation: Callable[[Patch], None]) -> None:
    assert far(arm(name, mutation=mutation, **config))


@pytest.mark.parametrize("mistake", ["truncation_terminates", "eos_continues"])
@pytest.mark.parametrize(("name", "config"), LOOKING_AHEAD, ids=str)
def test_a_wrong_end_is_noticed(name: str, config: dict[str, Any], mistake: str) -> None:
    assert far(arm(name, mistakes={mistake: True}, **config))


def rewards_alone(patch: Patch) -> None:
    """n-step rewards without the log π terms (3)."""
    patch.setattr(
        objectives, "path_target", lambda r, d, p, *rest, n, alpha: path_target(r, d, p, *rest, n=n, alpha=0.0)
    )


def entropy_sign(patch: Patch) -> None:
    """+ α log π in place of −."""
    patch.setattr(
        objectives, "path_target", lambda r, d, p, *rest, n, alpha: path_target(r, d, p, *rest, n=n, alpha=-alpha)
    )


@pytest.mark.parametrize("mutation", [rewards_alone, entropy_sign])
@pytest.mark.parametrize("config", [{"n": 2, "anchor": 0.0}, {"n": 2}], ids=str)
def test_a_wrong_entropy_is_noticed(mutation: Callable[[Patch], None], config: dict[str, Any]) -> None:
    assert far(arm("soft_q", mutation=mutation, **config))


def test_a_trace_that_crosses_a_token_outside_is_noticed() -> None:
    def uncut(patch: Patch) -> None:
        def crossing(r: Tensor, d: Tensor, p: Tensor, v: Tensor, inside: Tensor, n: int, alpha: float) -> Tensor:
            return path_target(r, d, p, v, torch.ones_like(inside), n=n, alpha=alpha)

        plant(patch, "path_target", crossing)

    assert far(arm("soft_q", mutation=uncut, n=2, anchor=0.0))


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


def test_a_missing_detach_is_noticed_by_the_gradient() -> None:
    """V(s') is a target: a state met only as a successor gets no gradient, unless the gradient is residual."""
    teacher = toy()
    start = [path for path in complete_paths(teacher, 1) if path.state == 1 and path.tokens != (1,)]
    batch = build(teacher, start, 0.8, 0.8)
    still = {"leak_weight": 0.0, "hinge": 0.0, "gamma": 0.8}
    for name in ("q_learning", "soft_q"):
        agent = train(name, teacher, batch, updates=1, **still)
        agent.student.v.grad = None
        torch.autograd.backward(agent.loss(batch)[0])
        moved = agent.student.v.grad != 0
        assert moved.tolist() == [False, True, False, False, False, False]
    agent = train("soft_q", teacher, batch, updates=1, gradient="residual", clamp=False, **still)
    agent.student.v.grad = None
    torch.autograd.backward(agent.loss(batch)[0])
    assert int((agent.student.v.grad != 0).sum()) > 1
