"""Equal budgets: what every arm may spend besides updates, and how much of it a record of costs has spent.

updates         `updates` of them, as always
teacher_tokens  tokens that the teacher has answered for, those of the shared episodes included
flops           operations of updates, of the teacher's reading and of the student's walks
seconds         wall-clock of learning, walks included and measures left out

`updates` is the most in any case. Learning rates follow the share of the budget that is spent since the first update.
A run by seconds is not the same weights again, bit by bit, when it is repeated or stopped; by the others it is.
"""

from __future__ import annotations

from typing import Any

from agents.loop import LoopAgent
from envs.errors import InputError
from experiments.config import RunConfig

UPDATES = "updates"
BUDGETS = (UPDATES, "teacher_tokens", "flops", "seconds")


class SpentError(RuntimeError):
    """What a cell pays for before its first update is all that it may spend; the other cells may spend less there."""


def check_budget(config: RunConfig) -> None:
    """Raises: InputError: an unknown budget, or a size that does not go with it."""
    if config.budget not in BUDGETS:
        raise InputError(f"budget = {config.budget!r} must be one of {', '.join(BUDGETS)}")
    if config.budget == UPDATES and config.budget_size:
        raise InputError(f"budget_size = {config.budget_size:g} of updates; set --updates, or another --budget")
    if config.budget != UPDATES and not config.budget_size > 0:
        raise InputError(f"budget_size = {config.budget_size:g} of {config.budget} must be positive")


def check_counts(config: RunConfig, arm: str, agent: Any) -> None:
    """Raises: InputError: an agent that owns its loop, which counts no operations, and a budget of these."""
    if config.budget == "flops" and isinstance(agent, LoopAgent):
        raise InputError(f"{arm} counts no flops; give --budget seconds or teacher_tokens, or leave it out")


def begun(config: RunConfig, cost: float) -> dict[str, Any]:
    """The `budget` of a record whose first update comes next: what it is of, its size, and what is spent `before`.

    Raises: SpentError: all of it.
    """
    if config.budget != UPDATES and cost >= config.budget_size:
        raise SpentError(
            f"{cost:,.0f} {config.budget} are spent before the first update, the budget is {config.budget_size:,.0f}; "
            "raise --budget-size, or lower --episodes"
        )
    size = float(config.updates) if config.budget == UPDATES else config.budget_size
    return {"of": config.budget, "size": size, "before": cost}


def share(budget: dict[str, Any], cost: float) -> float:
    """How much of a budget is spent since the first update, in [0, 1].

    >>> share({"of": "seconds", "size": 30.0, "before": 10.0}, 15.0)
    0.25
    """
    return float(min((cost - budget["before"]) / (budget["size"] - budget["before"]), 1.0))
