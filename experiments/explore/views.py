"""What can be said of one state: its nucleus, its rewards, and what every student makes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agents import objectives
from agents.scores import on_candidates
from envs.candidates import Candidates, top_p
from envs.rendering import token_text
from envs.rewards import Step, make_reward
from envs.teachers import Teacher
from experiments.explore.walk import Settings, Walk

END = "⏹"  # the text of a token that ends a text
SHOWN, BEYOND = 10, 3  # most candidates in full, and tokens behind them that are not in the set


@dataclass(frozen=True)
class Pupil:
    """A student by the name it is shown under."""

    name: str
    model: Any  # agents.student.Student or agents.table_student.TableStudent
    valued: bool = True  # whether its value head has learned; one that has not says v = 0


@dataclass(frozen=True)
class Opinion:
    """What a student makes of a token; nats. Q is defined on the set alone."""

    logp: float  # log π_S(a|s), its full softmax
    q: float | None = None  # v(s) + α log π_S^A(a|s)
    advantage: float | None = None  # Q − V
    td_error: float | None = None  # r + γ V(s·a) − Q(s, a)


@dataclass(frozen=True)
class Candidate:
    """A token that may come next."""

    token: int
    text: str
    logp: float  # log π_T(a|s), nats, the full softmax
    reward: float
    inside: bool  # the set holds it
    opinions: tuple[Opinion, ...] = ()  # of every student, in order
    exact_q: float | None = None  # Q*, on table teachers


@dataclass(frozen=True)
class Taken:
    """A step of the reply so far."""

    node: int
    token: int
    text: str
    logp: float  # log π_T, nats
    reward: float
    inside: bool


@dataclass(frozen=True)
class View:
    """A state."""

    steps: tuple[Taken, ...]
    candidates: tuple[Candidate, ...]  # the most probable first, then some outside the set
    size: int  # of the set
    cut: bool  # max_candidates shortened it
    retained: float  # Z(s)
    values: tuple[float, ...]  # v(s) of every student, nats
    leaks: tuple[float, ...]  # student mass outside the set
    ended: str  # "terminated", "truncated" or ""
    left: int  # tokens of the budget
    exact_value: float | None = None  # V* here, and of the prompt, on table teachers
    exact_start: float | None = None

    @property
    def lost(self) -> float:
        """1 − Z(s)."""
        return 1.0 - self.retained

    def gained(self, gamma: float) -> float:
        """Σ_k γ^k r_k of the reply so far, nats."""
        return sum(gamma**k * step.reward for k, step in enumerate(self.steps))


@torch.no_grad()
def look(teacher: Teacher, pupils: Sequence[Pupil], walk: Walk, settings: Settings, exact: Any = None) -> View:
    """The state in which a walk stands.

        Q(s, a) = v(s) + α log π_S^A(a|s),   A = Q − V_p,   δ = r + γ V(s·a) − Q(s, a),   V(terminal) = 0

    Source: equations (1)-(3) and (6) of the design.
    Args:
        exact: the `Solution` of a table teacher, shown beside.
    """
    reply = walk.reply()
    scores = teacher.score([[*walk.prompt, *reply]])[0].cpu().float()  # (L, V)
    steps = _steps(teacher, walk, scores, settings)
    ended = end_of(teacher, walk.prompt, reply, settings)
    left = max(0, settings.max_new_tokens - len(reply))
    start = None if exact is None else float(exact.value[_state(teacher, walk.prompt)])
    if ended:
        nothing, here = (0.0,) * len(pupils), 0.0 if exact is not None and ended == "terminated" else None
        return View(steps, (), 0, False, 0.0, nothing, nothing, ended, left, here, start)
    row = scores[-1]  # (V,)
    sets = top_p(row[None], settings.top_p, settings.max_candidates)
    shown = sets.ids[0][sets.mask[0]][:SHOWN]
    beyond = _beyond(row, sets)
    text = [*walk.prompt, *reply]
    tokens = [*shown.tolist(), *beyond]
    read = [_opinions(pupil, text, sets, shown, beyond, row, teacher, settings) for pupil in pupils]
    state = None if exact is None else _state(teacher, text)
    found = []
    for place, token in enumerate(tokens):
        inside = place < len(shown)
        q = None if state is None or not math.isfinite(exact.q[state, token]) else float(exact.q[state, token])
        found.append(
            Candidate(
                token=token,
                text=piece(teacher, text, token),
                logp=float(row[token]),
                reward=_reward(row[token], sets),
                inside=inside,
                opinions=tuple(one[0][place] for one in read),
                exact_q=q,
            )
        )
    return View(
        steps=steps,
        candidates=tuple(found),
        size=int(sets.sizes[0]),
        cut=bool(sets.cut[0]),
        retained=float(sets.log_mass[0].exp()),
        values=tuple(one[1] for one in read),
        leaks=tuple(one[2] for one in read),
        ended="",
        left=left,
        exact_value=None if state is None else float(exact.value[state]),
        exact_start=start,
    )


def _state(teacher: Any, text: Sequence[int]) -> int:
    return int(teacher.state_of(text))


def end_of(teacher: Teacher, prompt: Sequence[int], reply: Sequence[int], settings: Settings) -> str:
    """Whether a text is over: "terminated" by EOS, "truncated" by the budget or the context, or ""."""
    if reply and reply[-1] in teacher.eos_ids:
        return "terminated"
    full = len(reply) >= settings.max_new_tokens or len(prompt) + len(reply) >= min(
        teacher.context_limit, settings.context_limit
    )
    return "truncated" if full else ""


def piece(teacher: Teacher, before: Sequence[int], token: int) -> str:
    """The text of a token behind others: some tokenizers drop a text's first space."""
    if token in teacher.eos_ids:
        return END
    alone = teacher.decode(list(before[-1:]))
    both = teacher.decode([*before[-1:], token])
    return both[len(alone) :] if both.startswith(alone) and len(both) > len(alone) else token_text(teacher, token)


def judged(teacher: Teacher, prompt: Sequence[int], reply: Sequence[int], settings: Settings) -> tuple[Taken, ...]:
    """The teacher's opinion of every token of a reply, as `View.steps`; nodes are numbered from 0."""
    scores = teacher.score([[*prompt, *reply]])[0].cpu().float()
    return _steps(teacher, Walk(tuple(prompt)).follow(tuple(reply)), scores, settings)


def _steps(teacher: Teacher, walk: Walk, scores: Tensor, settings: Settings) -> tuple[Taken, ...]:
    way, reply = walk.way(), walk.reply()
    if not reply:
        return ()
    rows = scores[len(walk.prompt) - 1 : -1]  # (T, V)
    sets = top_p(rows, settings.top_p, settings.max_candidates)
    taken = torch.tensor(reply)[:, None]
    logp = rows.gather(1, taken)[:, 0].clamp(min=-1e4)
    inside = (sets.mask & (sets.ids == taken)).any(1)
    nothing = torch.zeros(len(reply), dtype=torch.bool)
    paid = make_reward("logprob", settings.gamma)(Step(logp, sets.log_mass, nothing, nothing))
    text = [*walk.prompt, *reply]
    return tuple(
        Taken(
            node=way[t],
            token=token,
            text=piece(teacher, text[: len(walk.prompt) + t], token),
            logp=float(logp[t]),
            reward=float(paid[t]),
            inside=bool(inside[t]),
        )
        for t, token in enumerate(reply)
    )


def _reward(logp: Tensor, sets: Candidates) -> float:
    one = torch.zeros(1, dtype=torch.bool)
    return float(make_reward("logprob")(Step(logp[None].clamp(min=-1e4), sets.log_mass, one, one))[0])


def _beyond(row: Tensor, sets: Candidates) -> list[int]:
    """The most probable tokens outside the set, where all of the set is shown."""
    size = int(sets.sizes[0])
    if size > SHOWN or size >= len(row):
        return []
    ranked = row.topk(min(len(row), size + BEYOND)).indices.tolist()
    inside = set(sets.ids[0][sets.mask[0]].tolist())
    return [token for token in ranked if token not in inside and math.isfinite(row[token])][:BEYOND]


def _opinions(
    pupil: Pupil,
    text: list[int],
    sets: Candidates,
    shown: Tensor,
    beyond: list[int],
    row: Tensor,
    teacher: Teacher,
    settings: Settings,
) -> tuple[list[Opinion], float, float]:
    """A student's opinion of the shown candidates and the tokens beyond, its v(s) and its leak."""
    model, few = pupil.model, shown.tolist()
    device = next(iter(model.parameters())).device
    context, length = torch.tensor([text], device=device), torch.tensor([len(text)], device=device)
    every = torch.arange(model.vocab_size, device=device)[None]
    logits, value = (found.cpu().float() for found in model.at_ids(context, length, every))  # (1, V), (1,)
    mask = sets.mask & (sets.ids < model.vocab_size)
    policy, inside = on_candidates(logits, torch.where(mask, sets.ids, 0), mask)  # (1, K), (1,)
    norm = logits.logsumexp(-1)  # (1,)
    q = objectives.levelled_q(value, policy, settings.alpha)[0]  # (K,)
    level = objectives.soft_value(q[None], mask, settings.alpha)[0] if bool(mask.any()) else value[0]
    rewards = torch.tensor([_reward(row[token], sets) for token in few])
    after = torch.tensor([[*text, token] for token in few], device=device)
    next_values = model.value_of(after, torch.full((len(after),), len(text) + 1, device=device)).cpu().float()
    goes_on = torch.tensor([token not in teacher.eos_ids for token in few])
    errors = objectives.bootstrap(rewards, settings.gamma * goes_on, next_values) - q[: len(few)]
    known = logits.shape[1]
    logp = [float(logits[0, token] - norm[0]) if token < known else -math.inf for token in [*few, *beyond]]
    found = [
        Opinion(logp[k], float(q[k]), float(q[k] - level), float(errors[k])) if k < len(few) else Opinion(logp[k])
        for k in range(len(logp))
    ]
    return found, float(level), float(-torch.expm1((inside - norm).clamp(max=0.0))[0])
