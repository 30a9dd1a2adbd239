"""Episodes of a table teacher with exact weighted frequencies: every path is there, weighted by its probability."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from agents.episodes import PAD_LOGP, Episodes
from agents.scores import Scorer
from envs.candidates import Candidates, top_p
from envs.extras import Extras, hybrid
from envs.table_teacher import TableTeacher


@dataclass(frozen=True)
class Path:
    """One episode to be built: a start state, the tokens taken and its weight."""

    state: int
    tokens: tuple[int, ...]
    weight: float


def digits(teacher: TableTeacher, state: int) -> list[int]:
    """The text of `order` tokens whose state this is."""
    return [state // teacher.vocab_size**back % teacher.vocab_size for back in reversed(range(teacher.order))]


def candidates(teacher: TableTeacher, p: float, extras: Extras | None = None) -> Candidates:
    """Candidates of every state.  # (S, K)"""
    logp = torch.from_numpy(teacher.table).float()
    if extras is None:
        return top_p(logp, p)
    return hybrid(logp, p, teacher.vocab_size, extras=extras, texts=[(digits(teacher, s), 1) for s in range(len(logp))])


def complete_paths(teacher: TableTeacher, depth: int, *, anyones: bool = False) -> list[Path]:
    """Every path of `depth` tokens (fewer when EOS comes) from every state, weighted by the teacher's probability.

    With `anyones` every path that any walker could take, tokens the teacher never takes included, all of one weight;
    `as_walked` weights them.
    """

    def extend(state: int, left: int) -> Iterator[tuple[tuple[int, ...], float]]:
        for token, probability in enumerate(teacher.probabilities[state]):
            share = 1.0 if anyones else float(probability)
            if share == 0:
                continue
            if token == 0 or left == 1:
                yield (token,), share
            else:
                for rest, more in extend(int(teacher.successors()[state, token]), left - 1):
                    yield (token, *rest), share * more

    return [Path(s, *found) for s in range(teacher.states) for found in extend(s, depth)]


def ended_paths(teacher: TableTeacher, p: float, floor: float = 1e-6) -> list[Path]:
    """Every path that ends by EOS, or just after its first token outside the sets; rarer ones than `floor` left out."""
    inside = candidates(teacher, p)
    sets = [set(ids[mask].tolist()) for ids, mask in zip(inside.ids, inside.mask, strict=True)]

    def extend(state: int, share: float) -> Iterator[tuple[tuple[int, ...], float]]:
        for token, probability in enumerate(teacher.probabilities[state]):
            mass = share * float(probability)
            if mass < floor:
                continue
            if token == 0 or token not in sets[state]:
                yield (token,), mass
            else:
                for rest, final in extend(int(teacher.successors()[state, token]), mass):
                    yield (token, *rest), final

    return [Path(s, *found) for s in range(teacher.states) for found in extend(s, 1.0)]


def build(
    teacher: TableTeacher,
    paths: Sequence[Path],
    p: float,
    gamma: float,
    *,
    truncation_terminates: bool = False,
    eos_continues: bool = False,
    reward: str = "logprob",
    extras: Extras | None = None,
) -> Episodes:
    """Episodes of these paths; the two flags are the mistakes that the mutation tests plant."""
    inside, after = candidates(teacher, p, extras), teacher.successors()
    size, steps, width = len(paths), max(len(path.tokens) for path in paths), inside.ids.shape[1]
    rows = torch.zeros(size, steps + 1, dtype=torch.int64)  # state before each step
    live = torch.zeros(size, steps + 1, dtype=torch.bool)  # row has candidates
    tokens = torch.zeros(size, teacher.order + steps, dtype=torch.int64)
    taken, slots = torch.zeros(size, steps, dtype=torch.int64), torch.full((size, steps), -1)
    logp = torch.zeros(size, steps)
    discounts = torch.zeros(size, steps)
    for b, path in enumerate(paths):
        text = digits(teacher, path.state) + list(path.tokens)
        tokens[b, : len(text)] = torch.tensor(text)
        state = path.state
        for t, token in enumerate(path.tokens):
            rows[b, t], live[b, t], taken[b, t] = state, True, token
            found = ((inside.ids[state] == token) & inside.mask[state]).nonzero()
            slots[b, t] = int(found[0]) if len(found) else -1
            logp[b, t] = max(float(teacher.table[state, token]), PAD_LOGP)
            state, ended = int(after[state, token]), token == 0
            last = t == len(path.tokens) - 1
            stops = (ended and not eos_continues) or (last and not ended and truncation_terminates)
            discounts[b, t] = 0.0 if stops else gamma
            rows[b, t + 1], live[b, t + 1] = state, not stops
    mask = inside.mask[rows] & live[..., None]
    rewards = logp if reward == "logprob" else torch.where(slots >= 0, logp - inside.log_mass[rows[:, :-1]], logp)
    assert width == mask.shape[-1]
    return Episodes(
        tokens=tokens,
        prompt_length=torch.full((size,), teacher.order),
        length=torch.tensor([len(path.tokens) for path in paths]),
        ids=torch.where(mask, inside.ids[rows], 0),
        logp=torch.where(mask, inside.logp[rows], PAD_LOGP),
        mask=mask,
        slots=slots,
        rewards=rewards,
        discounts=discounts,
        in_set=slots >= 0,
        behaviour_logp=logp,
        teacher_logp_taken=logp,
        from_teacher=torch.ones(size, dtype=torch.bool),
        weights=torch.tensor([path.weight for path in paths]),
        teacher_logp=torch.from_numpy(teacher.table).float().clamp(min=PAD_LOGP)[rows[:, :-1]],
    )


@torch.no_grad()
def as_walked(student: Scorer, paths: Episodes, version: int = 0) -> Episodes:
    """The same paths as if the student had walked them: weighted by its full softmax, which `behaviour_logp` notes.

    Of `complete_paths(anyones=True)` this is its exact distribution from every state, to be taken anew before every
    update; `version` is how many the student has made. A path it never takes keeps a weight of 1e-12: weights are
    positive.
    """
    logp = student.scores(paths).logp_taken.float().clamp(PAD_LOGP, 0.0)  # (B, T)
    return dataclasses.replace(
        paths,
        behaviour_logp=logp,
        weights=logp.sum(1).exp().clamp(min=1e-12),
        from_teacher=torch.zeros_like(paths.from_teacher),
        version=torch.full_like(paths.length, version),
    )


def mixed(teachers: Episodes, students: Episodes, share: float) -> Episodes:
    """Both together, the student's counting for `share` in every mean; both parts weigh one per start state."""
    assert teachers.weights is not None and students.weights is not None
    return Episodes.concatenate(
        [
            dataclasses.replace(teachers, weights=(1 - share) * teachers.weights),
            dataclasses.replace(students, weights=share * students.weights),
        ]
    )


def every_text(vocabulary: int, order: int) -> list[list[int]]:
    """All texts of `order` tokens, in the order of their states."""
    return [list(text) for text in itertools.product(range(vocabulary), repeat=order)]
