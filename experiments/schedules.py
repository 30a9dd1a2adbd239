"""Staged sets (`agents.staged`) in a run: what their schedules may ask of its episodes."""

from __future__ import annotations

from typing import Any

from agents.base import StagedConfig
from agents.staged import FIXED, parsed
from envs.errors import InputError
from envs.rewards import LogProb
from experiments.config import RunConfig
from experiments.protect import protects


def check_schedules(config: RunConfig, arm: str, options: Any) -> None:
    """Raises: InputError: sets wider than those that the run draws, or whose reward or mask narrowing would change."""
    if not isinstance(options, StagedConfig) or not options.is_staged:
        return
    given = getattr(config, "top_p", ())
    widest = {"p_schedule": min(given if isinstance(given, tuple) else (given,)), "k_schedule": config.max_candidates}
    for name, limit in widest.items():
        schedule = parsed(getattr(options, name), whole=name == "k_schedule")
        if schedule is not None and schedule.kind != "mass" and max(schedule.start, schedule.end) > limit:
            flag = "--top-p" if name == "p_schedule" else "--max-candidates"
            raise InputError(
                f"{arm}: {name} = {getattr(options, name)!r} asks for wider sets than the run draws, "
                f"{limit:g}; raise {flag}, or end the schedule there"
            )
    if config.reward != LogProb.name or config.rules is not None:
        what = f"reward {config.reward!r} depends" if config.reward != LogProb.name else "the rules' masks depend"
        raise InputError(f"{arm}: {what} on the whole set, a schedule narrows it; take reward logprob and no rules")
    if protects(config):
        raise InputError(
            f"{arm}: a schedule narrows sets to the teacher's most probable tokens, and would drop what is protected; "
            "leave out the schedule, or --protect, --copy-prompt and --rare-within"
        )


def least_mass(settings: dict[str, Any], top_p: float, smallest: float) -> float | None:
    """The least mass that a set will retain, `smallest` of the sets as they were drawn with `top_p`; None: unknown.

    A set that p alone narrows holds p, or is the whole set; where K narrows it, or the batch says what p is, no bound
    is known beforehand.
    """
    p, k = (parsed(settings.get(name, FIXED), name[0] == "k") for name in ("p_schedule", "k_schedule"))
    if k is not None or (p is not None and p.kind == "mass"):
        return None
    return min(top_p, smallest, *([] if p is None else [p.start, p.end]))
