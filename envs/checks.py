"""What the environments refuse before anything happens: arguments, reset options, seeds, actions."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.error import ClosedEnvironmentError, InvalidAction
from gymnasium.vector import AutoresetMode
from torch import Tensor

from envs.errors import InputError
from envs.teachers import Teacher, nearest

SHOWN = 60  # characters of a value that an error repeats


def whole(name: str, value: Any, *, least: int = 1) -> int:
    """A whole number of at least `least`. Raises: InputError: anything else, True and 2.0 included."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        raise InputError(f"{name} = {shown(value)} is no whole number; give an integer of at least {least}")
    if value < least:
        raise InputError(f"{name} = {value} is below {least}")
    return int(value)


def real(name: str, value: Any) -> float:
    """A number that is not NaN. Raises: InputError: anything else, True and "0.9" included."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real) or math.isnan(value):
        raise InputError(f"{name} = {shown(value)} is no number; give one in [0, 1], such as 0.9")
    return float(value)


def autoreset_of(mode: str | AutoresetMode) -> AutoresetMode:
    """The mode, by its name, `"next_step"`, or by Gymnasium's own word for it, `"NextStep"`."""
    if isinstance(mode, AutoresetMode):
        return mode
    names = {item.name.lower(): item for item in AutoresetMode}
    words = {item.value.lower(): item for item in AutoresetMode}
    found = (names | words).get(mode.lower()) if isinstance(mode, str) else None
    if found is None:
        raise InputError(f"autoreset_mode {shown(mode)} is none of {', '.join(names)}")
    return found


def stop_strings_of(given: str | Sequence[str]) -> tuple[str, ...]:
    """Texts that end a reply. Raises: InputError: an empty one, or no text."""
    strings = (given,) if isinstance(given, str) else tuple(given)
    for string in strings:
        if not isinstance(string, str):
            raise InputError(f"stop string {shown(string)} is a {type(string).__name__}; give texts")
    if not all(strings):
        raise InputError("a stop string is empty; it would end every text at once")
    return strings


def check_prompt_limit(longest: int | None, context: int) -> None:
    """Raises: InputError: max_prompt_tokens below 1, or so large that a prompt could leave no room for a token."""
    if longest is not None and whole("max_prompt_tokens", longest) > context - 1:
        raise InputError(
            f"max_prompt_tokens = {longest}, but the teacher's context of {context} tokens has room for a prompt of "
            f"{context - 1} and one token; lower it, or leave it out"
        )


def check_budget(budget: int, shortest: int, context: int) -> None:
    """Raises: InputError: a budget that no prompt leaves room for, so that every text would be cut by the context."""
    if shortest + budget > context:
        raise InputError(
            f"max_new_tokens = {budget} is more than the teacher's context of {context} tokens has room for after the "
            f"shortest prompt of {shortest}; lower it to {context - shortest}, or take a teacher with a longer context"
        )


def options_of(options: Any, known: Sequence[str]) -> dict[str, Any]:
    """Reset options, {} for None. Raises: InputError: no mapping, or a key that is not known, with the nearest one."""
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise InputError(f'options = {shown(options)} is no dict; give options={{"{known[0]}": ...}}')
    for key in options:
        if key not in known:
            raise InputError(f"reset has no option {key!r}{nearest(str(key), known)}")
    return dict(options)


def prompts_of(options: Mapping[str, Any], count: int) -> list[Any] | None:
    """The prompts that reset options choose, one a row; None where they choose none.

    `prompt` is for every row, as Gymnasium's own vector environments hand it on; `prompts` is one a row.
    """
    prompt, prompts = options.get("prompt"), options.get("prompts")
    if prompt is not None and prompts is not None:
        raise InputError("reset was given both 'prompt', one for every row, and 'prompts', one a row; give one of them")
    if prompt is not None:
        return [prompt] * count
    if isinstance(prompts, str) or not (prompts is None or hasattr(prompts, "__iter__")):
        raise InputError(f"prompts = {shown(prompts)} is no list; give one prompt a row, {count} of them")
    return None if prompts is None else list(prompts)


def reset_mask_of(mask: Any, rows: int) -> npt.NDArray[np.bool_]:
    """Which rows to reset, (N,) bool; all for None. Raises: InputError: another shape or dtype, or no row."""
    if mask is None:
        return np.ones(rows, dtype=bool)
    remedy = f"give a bool array of shape ({rows},) with one True at least"
    try:
        chosen = np.array(mask)
    except ValueError as error:
        raise InputError(f"reset_mask is no array ({error}); {remedy}") from error
    if chosen.dtype != np.bool_ or chosen.shape != (rows,):
        raise InputError(f"reset_mask is of shape {chosen.shape} and dtype {chosen.dtype}; {remedy}")
    if not chosen.any():
        raise InputError(f"reset_mask = {shown(chosen)} chooses no row; {remedy}")
    return chosen


def seed_of(seed: Any) -> int | None:
    """A seed as Gymnasium takes it. Raises: InputError: no whole number, or one below 0."""
    if isinstance(seed, (list, tuple)):
        raise InputError(f"seed = {shown(seed)}: one seed serves all rows, which are stepped together; give an int")
    return None if seed is None else whole("seed", seed, least=0)


def actions_of(actions: Any, rows: int, kind: Literal["slot", "token"]) -> Tensor:
    """One slot or token a row, (N,) int64, a copy.

    Raises: InvalidAction: another shape, or no integers: floats and flags are refused even where they are whole.
    """
    remedy = f"give one {kind} a row, integers of shape ({rows},)"
    try:
        given = actions.detach().cpu().numpy() if isinstance(actions, Tensor) else np.asarray(actions)
    except (TypeError, ValueError) as error:
        raise InvalidAction(f"actions {shown(actions)} are no array ({error}); {remedy}") from error
    if given.dtype.kind not in "iu":
        raise InvalidAction(f"actions {shown(actions)} are of dtype {given.dtype}; {remedy}")
    if given.shape != (rows,):
        raise InvalidAction(f"actions {shown(actions)} are of shape {given.shape}; {remedy}")
    return torch.from_numpy(given.astype(np.int64))


def action_of(action: Any, kind: Literal["slot", "token"]) -> int:
    """One slot or token, for one episode. Raises: InvalidAction: an array of other than 0 dimensions, or no integer."""
    try:
        given = action.detach().cpu().numpy() if isinstance(action, Tensor) else np.asarray(action)
    except ValueError:
        given = np.array(None)
    if given.dtype.kind not in "iu" or given.shape != ():
        raise InvalidAction(f"action {shown(action)} is no {kind}; give one integer")
    return int(given)


def known(logp: Tensor, ended: npt.NDArray[np.bool_], teacher: Teacher) -> Tensor:
    """The log-probabilities (N,) of tokens to be taken, as they are.

    Raises: InputError: a teacher that tells its most probable tokens only did not tell one of them.
    """
    if not getattr(teacher, "whole", True):
        untold = (logp == -torch.inf) & ~torch.from_numpy(ended)
        if untold.any():
            raise InputError(
                f"the token of row {int(untold.nonzero()[0])} is none of those that {teacher.name} returned: its "
                "log-probability is not known; take candidates (`step`, not `step_tokens`), or ask for more of them"
            )
    return logp


def check_open(closed: bool) -> None:
    """Raises: ClosedEnvironmentError: `close` was called."""
    if closed:
        raise ClosedEnvironmentError("the environment is closed; make a new one")


def shown(value: Any) -> str:
    """A value as an error repeats it: on one line, cut where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
