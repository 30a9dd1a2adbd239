"""Planted mistakes, and the table of what each does to each agent: `python -m tests.agents.mutations` prints it.

A mistake is noticed if the agent ends three tolerances or more away from its fixed point, or diverges on the way.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from agents import objectives
from agents.base import FixedPoint
from agents.episodes import Episodes
from agents.errors import DivergedError
from agents.table_student import TableStudent
from envs.exact import solve
from experiments.oracle import TOLERANCE, Gap, Spoil, arm, beginner, case_for, depth_of, gap
from experiments.table_data import as_walked, mixed
from tests.agents.test_objectives import PARTS

Patch = pytest.MonkeyPatch
PLACES = [objectives, *(importlib.import_module(f"agents.objectives.{part.name}") for part in PARTS)]
soft_value, bootstrap, path_target = objectives.soft_value, objectives.bootstrap, objectives.path_target
inverse_reward, lambda_returns = objectives.inverse_reward, objectives.lambda_returns
expected_value = objectives.expected_value
UPDATES = 250

LOOKING_AHEAD: list[tuple[str, dict[str, Any]]] = [
    ("q_learning", {}),
    ("soft_q", {}),
    ("soft_q", {"n": 2, "anchor": 0.0}),
    ("soft_q", {"lam": 0.7, "anchor": 0.0}),
    ("bellman_distill", {}),
    ("cql", {}),
    ("sqil", {}),
    ("actor_critic", {}),
    ("ppo", {}),
    ("sac", {}),
]


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


def entropy_times(factor: float) -> Callable[[Patch], None]:
    """The log π terms of every return and expectation, times 0 or −1."""

    def planted(patch: Patch) -> None:
        plant(patch, "path_target", lambda r, d, p, v, i, n, alpha: path_target(r, d, p, v, i, n, factor * alpha))
        plant(
            patch,
            "lambda_returns",
            lambda r, d, p, v, i, lam, alpha: lambda_returns(r, d, p, v, i, lam, factor * alpha),
        )
        plant(patch, "expected_value", lambda q, p, m, alpha=1.0: expected_value(q, p, m, factor * alpha))

    return planted


def uncut(patch: Patch) -> None:
    """Traces run across tokens outside the set."""
    plant(patch, "path_target", lambda r, d, p, v, i, n, alpha: path_target(r, d, p, v, torch.ones_like(i), n, alpha))
    plant(
        patch,
        "lambda_returns",
        lambda r, d, p, v, i, lam, alpha: lambda_returns(r, d, p, v, torch.ones_like(i), lam, alpha),
    )


def slots_as_tokens(batch: Episodes) -> Episodes:
    """Token ids where slots belong, past the check that would refuse them."""
    spoiled = copy.copy(batch)
    tokens = batch.taken.clamp(max=batch.ids.shape[-1] - 1)
    object.__setattr__(spoiled, "slots", torch.where(batch.in_set, tokens, -1))
    return spoiled


@dataclass(frozen=True)
class Mutation:
    """One mistake, and which agents can make it."""

    name: str
    plant: Callable[[Patch], None] | None = None
    mistakes: dict[str, bool] = field(default_factory=dict)
    spoil: Spoil | None = None
    config: dict[str, Any] = field(default_factory=dict)
    spares: tuple[str, ...] = ()

    def applies(self, name: str, config: dict[str, Any]) -> bool:
        return name not in self.spares and (self.plant is not uncut or depth_of(name, config) > 1)


NO_ENTROPY = ("q_learning", "bellman_distill")
MUTATIONS = [
    Mutation("mask ignored", mask_ignored),
    Mutation("γ a step off", gamma_off_by_one),
    Mutation("truncation ends", mistakes={"truncation_terminates": True}),
    Mutation("EOS goes on", mistakes={"eos_continues": True}),
    Mutation("slot as token", spoil=slots_as_tokens),
    Mutation("no log π", entropy_times(0.0), spares=NO_ENTROPY),
    Mutation("+ log π", entropy_times(-1.0), spares=NO_ENTROPY),
    Mutation("trace uncut", uncut, spares=("sqil",)),
    Mutation("values shuffled", config={"shuffle": True}),
]
NONE = Mutation("none")


def outcome(name: str, config: dict[str, Any], mutation: Mutation) -> Gap | None:
    """Gap under a mutation; None: diverged."""
    run = sqil_arm if name == "sqil" else arm
    try:
        return run(
            name,
            mutation=mutation.plant,
            mistakes=mutation.mistakes,
            spoil=mutation.spoil,
            updates=UPDATES,
            **{**config, **mutation.config},
        )
    except DivergedError:
        return None


def noticed(found: Gap | None) -> bool:
    return found is None or far(found)


def far(found: Gap) -> bool:
    return found.policy > 3 * TOLERANCE.policy or found.q > 3 * TOLERANCE.q


def sqil_arm(
    name: str,
    mutation: Callable[[Patch], None] | None,
    mistakes: dict[str, bool],
    spoil: Spoil | None,
    updates: int,
    **config: Any,
) -> Gap:
    """`arm` for `sqil`: beside the teacher a walker that stays uniform, so that it has a fixed point (see `SQIL`)."""
    case = case_for(name, 1, 0.8, "logprob", **mistakes)  # one step: both walkers meet every state equally often
    uniform = TableStudent(case.teacher.vocab_size, case.teacher.order)
    batch = mixed(case.batch, as_walked(uniform, case.anyones), 0.5)
    with Patch.context() as patch:
        if mutation is not None:
            mutation(patch)
        agent = beginner(name, case.teacher, updates, gamma=0.8, target_rate=0.2, **config)
        for _ in range(updates):
            agent.update(batch if spoil is None else spoil(batch))
    own = case.teacher.probabilities
    solution = solve(case.teacher, "soft", top_p=case.p, gamma=0.8, reward=own / (own + 1 / case.teacher.vocab_size))
    return gap(agent, case.teacher, case.p, solution, FixedPoint("soft", gamma=0.8))


def main() -> None:
    columns = [NONE, *MUTATIONS]
    print("| agent |", " | ".join(mutation.name for mutation in columns), "|\n|---" * 1 + "|---" * len(columns) + "|")
    for name, config in LOOKING_AHEAD:
        cells = []
        for mutation in columns:
            if not mutation.applies(name, config):
                cells.append("–")
                continue
            found = outcome(name, config, mutation)
            cells.append("diverges" if found is None else f"{found.policy:.3f} / {found.q:.3g}")
        label = name + "".join(f" {key}={value:g}" for key, value in config.items() if key != "anchor")
        print(f"| {label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
