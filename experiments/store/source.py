"""A run that learns from a store: what has to agree for that, and what an agent may not ask for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from agents.base import Agent
from agents.episodes import Episodes
from envs.errors import InputError
from envs.prompts import Prompt
from envs.teachers import Teacher
from experiments.config import ABSENT, RunConfig
from experiments.store.shards import Store, Stored

SHARED = ("max_candidates", "max_new_tokens", "reward", "gamma", "teacher_walk", "chat_template")
"""Settings that the run and its store both have."""
PROTECTED = "protected"
"""Where the settings of a store say what joins its nuclei; not there in stores that are older than this."""


def open_store(
    folder: Path,
    config: RunConfig,
    masses: Sequence[float],
    teacher: Teacher,
    held_out: Iterable[Prompt],
    protected: str = "",
) -> Stored:
    """The episodes of a store that fits a run.

    Args:
        protected: what the run adds to its nuclei, as `protect.digest_of` says it.
    Raises: InputError: as `Store`, or settings that differ, or replies to prompts that the run measures on.
    """
    store = Store(folder, None if config.teacher == ABSENT else teacher)
    theirs, ours = store.manifest.settings, {name: getattr(config, name) for name in SHARED}
    if config.reward in ("logprob", "topp_logprob"):
        ours.pop("gamma")  # these rewards do not know it
    if len(masses) > 1:
        raise InputError(f"the store {folder} has one top_p, {theirs['top_p']:g}; the run has {list(masses)}")
    for name, value in {**ours, "top_p": masses[0]}.items():
        if theirs[name] != value:
            raise InputError(
                f"the store {folder} was drawn with {name} = {theirs[name]!r}, the run has {value!r}; give the run the "
                "store's, or draw another store"
            )
    if theirs.get(PROTECTED, "") != protected:
        raise InputError(
            f"the candidate sets of the store {folder} have {_protection(theirs.get(PROTECTED, ''))}, the run's "
            f"{_protection(protected)} (--protect, --copy-prompt, --rare-within); give the run the store's settings, "
            "or draw another store"
        )
    held = {tuple(teacher.encode(prompt.text)): prompt.text for prompt in held_out}
    prompts = store.columns["prompt"]
    for number in range(len(store)):
        if (text := held.get(tuple(prompts[number].tolist()))) is not None:
            raise InputError(
                f"the store {folder} holds replies to {text[:60]!r}, which the run measures on; draw it from the "
                "training prompts (--prompt-split train, of the same file)"
            )
    return Stored(store)


def _protection(known: str) -> str:
    return f"extra tokens of the digest {known}" if known else "no extra tokens"


def check_asks_nothing(config: RunConfig, arm: str, agent: Any) -> None:
    """Raises: InputError: an agent that asks the teacher while it learns, in a run without one."""
    if config.teacher != ABSENT:
        return
    own = isinstance(agent, Agent)
    if not own or agent.needs or agent.walks is not None:
        wish = "its whole distributions" if own and agent.needs else "about the student's own walks"
        raise InputError(
            f"{arm} asks the teacher {wish} while it learns, and --teacher none has none; give the teacher, or agents "
            "that learn from its episodes alone"
        )


def tokens_of(episodes: Episodes | Stored) -> int:
    """Tokens of all replies."""
    return int(episodes.length.sum()) if isinstance(episodes, Episodes) else episodes.tokens


def min_mass_of(episodes: Episodes | Stored) -> float:
    """The least that a candidate set retains."""
    if isinstance(episodes, Episodes):
        return float(episodes.log_mass[episodes.states].min().exp())
    return episodes.min_mass
