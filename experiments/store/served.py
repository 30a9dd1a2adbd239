"""A shard of a teacher that is only served: whole replies, one request each, kept as they come."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.episodes import PAD_LOGP, Episodes
from envs.candidates import Candidates, top_p
from envs.errors import InputError
from envs.rewards import Sqil, Step, make_reward
from envs.served_http import ExhaustedError, Spent
from envs.served_protocol import Reply, Row
from envs.served_teacher import ServedTeacher
from envs.serving import Serving

COUNTS = ("requests", "failed_requests", "prompt_tokens", "completion_tokens", "unread_replies")
SEEDS = 3  # of a reply that cannot be read, in one command


class Journal:
    """What a server has said and what that took, a line each, on disk before anything else is done with it.

    A process that is killed has lost the answers on their way, no others; a line that it cut short is left out.

    Args:
        path: of the file; what it holds already is read.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        self.replies: dict[int, Reply] = {}
        self.unread: Counter[int] = Counter()
        self.spent = dict.fromkeys(COUNTS, 0)
        if path.is_file():
            whole = path.read_bytes()
            whole = whole[: whole.rfind(b"\n") + 1]
            os.truncate(path, len(whole))
            for number, line in enumerate(whole.splitlines(), 1):
                try:
                    self._take(json.loads(line))
                except (ValueError, KeyError, TypeError) as error:
                    raise InputError(f"line {number} of {path} cannot be read ({error}); take that line out") from error
        self._file = path.open("a", encoding="utf-8")

    def _take(self, told: dict[str, Any]) -> None:
        if "spent" in told:
            failed, prompt, completion = told["spent"]
            for name, more in zip(COUNTS, (1, int(failed), prompt, completion, 0), strict=True):
                self.spent[name] += more
        elif "unread" in told:
            self.replies.pop(told["unread"], None)
            self.unread[told["unread"]] += 1
            self.spent["unread_replies"] += 1
        else:
            rows = [Row(*row) for row in told["rows"]]
            self.replies[told["reply"]] = Reply(told["tokens"], told["logp"], rows, told["finish"])

    def has(self, number: int, teacher: ServedTeacher) -> bool:
        """Whether the reply to the prompt of this number is there, its end too."""
        return number in self.replies and not teacher.lacks_end(self.replies[number])

    def spend(self, spent: Spent) -> None:
        """Note one request."""
        self._write({"spent": list(spent)})

    def keep(self, number: int, reply: Reply) -> None:
        """Note the reply to the prompt of this number."""
        self._write({"reply": number, **reply._asdict()})

    def give_up(self, number: int) -> None:
        """Note that the reply to the prompt of this number, or its end, cannot be read: another takes its place."""
        self._write({"unread": number})

    def _write(self, told: dict[str, Any]) -> None:
        with self._lock:
            self._take(told)
            self._file.write(json.dumps(told) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()


@contextmanager
def journal(teacher: ServedTeacher, path: Path) -> Iterator[Journal]:
    """The journal of a shard, told of every request meanwhile."""
    own = Journal(path)
    teacher.client.record(own.spend)
    try:
        yield own
    finally:
        teacher.client.record(None)
        own.close()


def ask(teacher: ServedTeacher, texts: Sequence[list[int]], budget: int, seed: int, own: Journal) -> list[Reply]:
    """A reply to each of these prompts, those that the journal holds and the others.

    A request takes one prompt and a seed of its own, which follows from `seed` and the prompt's number; with more
    prompts (`serving.batch`) it takes those that have equal room, and no seed. An end that the server leaves out is
    asked for once the reply is kept. A reply that cannot be read in any attempt would come back so from the same
    seed, and is given up for one of another.

    Raises: InputError: a prompt that fills the context. And as `ServedTeacher.replies`.
    """
    room = [min(budget, teacher.context_limit - len(text)) for text in texts]
    tight = min(range(len(texts)), key=lambda number: room[number])
    if room[tight] < 1:
        raise InputError(
            f"a prompt has {len(texts[tight])} tokens, the served model sees {teacher.context_limit + 1}, two of which "
            "are for the reply; shorten it (or give served.context, if it sees more)"
        )
    missing = [number for number in range(len(texts)) if not own.has(number, teacher)]
    batch = teacher.serving.batch

    def draw(numbers: list[int]) -> None:
        drawn = np.random.SeedSequence([seed, numbers[0], own.unread[numbers[0]]]).generate_state(1)[0]
        asked = [texts[number] for number in numbers]
        found = teacher.replies(asked, room[numbers[0]], int(drawn) % 2**31 if batch == 1 else None)
        for number, reply in zip(numbers, found, strict=True):
            own.keep(number, reply)

    def one(numbers: list[int]) -> None:
        try:
            if new := [number for number in numbers if number not in own.replies]:
                draw(new)
            for number in numbers:
                if not own.has(number, teacher):
                    own.keep(number, teacher.ended(texts[number], own.replies[number], room[number]))
        except ExhaustedError as error:
            if error.status != 200:
                raise
            own.give_up(unread := next(number for number in numbers if not own.has(number, teacher)))
            if own.unread[unread] % SEEDS == 0:
                raise
            one(numbers)

    teacher.each(portions(missing, room, batch), one)
    return [own.replies[number] for number in range(len(texts))]


def portions(numbers: Sequence[int], room: Sequence[int], size: int) -> Iterator[list[int]]:
    """These numbers, at most `size` together and only those with equal room."""
    waiting: dict[int, list[int]] = {}
    for number in numbers:
        part = waiting.setdefault(room[number], [])
        part.append(number)
        if len(part) == size:
            yield waiting.pop(room[number])
    yield from waiting.values()


def episodes_of(
    teacher: ServedTeacher,
    texts: Sequence[list[int]],
    replies: Sequence[Reply],
    mass: float,
    max_candidates: int,
    reward: str,
    gamma: float,
) -> Episodes:
    """Replies as the episodes that the environment would have made of them.

    The set of a state is `envs.candidates.top_p` of the tokens that came back; a taken token that is none of it is
    outside, and paid the log-probability that came back with it.

    Args:
        mass: p of equation (1).
        reward: by name; an error if it needs more than episodes tell.
    """
    ended = [reply.tokens[-1] in teacher.eos_ids and reply.finish == "stop" for reply in replies]
    length = torch.tensor([len(reply.tokens) - (not end) for reply, end in zip(replies, ended, strict=True)])
    states = [len(reply.rows) for reply in replies]
    found = _sets([row for reply in replies for row in reply.rows], mass, max_candidates)
    there = torch.arange(int(length.max()) + 1) < torch.tensor(states)[:, None]  # (B, T+1)
    ids, logp, mask = (
        _placed(values, there, fill) for values, fill in zip(found[:3], (0, PAD_LOGP, False), strict=True)
    )
    steps = torch.arange(int(length.max())) < length[:, None]  # (B, T)
    taken, paid = torch.zeros(steps.shape, dtype=torch.int64), torch.zeros(steps.shape)
    for row, (reply, size) in enumerate(zip(replies, length.tolist(), strict=True)):
        taken[row, :size] = torch.tensor(reply.tokens[:size])
        paid[row, :size] = torch.tensor(reply.logp[:size]).clamp(PAD_LOGP, 0.0)
    here = (ids[:, :-1] == taken[..., None]) & mask[:, :-1] & steps[..., None]  # (B, T, K)
    in_set = here.any(-1)
    last = torch.arange(steps.shape[1]) == length[:, None] - 1
    over = last & torch.tensor(ended)[:, None]
    prompt_length = torch.tensor([len(text) for text in texts])
    tokens = torch.zeros(len(texts), int((prompt_length + length).max()), dtype=torch.int64)
    for row, (text, size) in enumerate(zip(texts, length.tolist(), strict=True)):
        tokens[row, : len(text) + size] = torch.tensor([*text, *taken[row, :size].tolist()])
    return Episodes(
        tokens=tokens,
        prompt_length=prompt_length,
        length=length,
        ids=ids,
        logp=logp,
        mask=mask,
        slots=torch.where(in_set, here.int().argmax(-1), -1),
        rewards=torch.where(steps, _paid(reward, gamma, paid, (ids, logp, mask), over, last & ~over), 0.0),
        discounts=torch.where(steps & ~over, gamma, 0.0),
        in_set=in_set,
        behaviour_logp=paid,
        teacher_logp_taken=paid.clone(),
        from_teacher=torch.ones(len(texts), dtype=torch.bool),
    )


def _sets(rows: Sequence[Row], mass: float, max_candidates: int) -> Candidates:
    """Equation (1) on what came back: the rows as a vocabulary of their own, whose order by probability is theirs."""
    width = max(len(row.ids) for row in rows)
    ids, logp = torch.zeros(len(rows), width, dtype=torch.int64), torch.full((len(rows), width), -torch.inf)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)], logp[place, : len(row.ids)] = torch.tensor(row.ids), torch.tensor(row.logp)
    found = top_p(logp, mass, min(max_candidates, width))
    return found._replace(ids=ids.gather(1, found.ids).masked_fill(~found.mask, 0))


def _placed(values: Tensor, there: Tensor, fill: float) -> Tensor:
    """States one after another, (S, K), where they belong, (B, T+1, K)."""
    wide = torch.full((*there.shape, values.shape[1]), fill, dtype=values.dtype)
    wide[there] = values
    return wide


def _paid(
    name: str, gamma: float, paid: Tensor, rows: tuple[Tensor, Tensor, Tensor], over: Tensor, cut: Tensor
) -> Tensor:
    """Equation (2) of every step.  # (B, T)"""
    reward = make_reward(name, gamma)
    if isinstance(reward, Sqil):
        return torch.full_like(paid, Sqil.teacher_step)
    ids, logp, mask = rows
    cut_by_k = torch.zeros(paid.numel(), dtype=torch.bool)  # no reward reads it
    before, after = (
        Candidates(ids[:, part].flatten(0, 1), logp[:, part].flatten(0, 1), mask[:, part].flatten(0, 1), cut_by_k)
        for part in (slice(None, -1), slice(1, None))
    )
    log_mass = torch.where(before.mask.any(-1), before.log_mass, 0.0)
    return reward(Step(paid.flatten(), log_mass, over.flatten(), cut.flatten(), after)).reshape(paid.shape)


def line_of(episodes: Episodes, mass: float, spent: dict[str, int]) -> dict[str, float]:
    """What a shard's line in the manifest says beside the usual: states, their lost mass, how many of them fall short
    of p, and what asking took."""
    log_mass = episodes.log_mass[episodes.states].double()
    lost = -torch.expm1(log_mass.clamp(max=0.0))
    short = int((log_mass.exp() < mass - 1e-6).sum())
    return {"states": len(lost), "lost_mass": float(lost.sum()), "short_states": short, **spent}


def figures(lines: Sequence[dict[str, Any]], serving: Serving) -> dict[str, float]:
    """What a store of a served teacher took and lost."""
    total = {
        name: float(sum(line.get(name, 0) for line in lines))
        for name in (*COUNTS, "states", "lost_mass", "short_states")
    }
    return {
        **{name: total[name] for name in COUNTS},
        "cost": serving.cost(total["prompt_tokens"], total["completion_tokens"]),
        "mean_lost_mass": total["lost_mass"] / total["states"],
        "states_short_of_top_p": total["short_states"] / total["states"],
    }
