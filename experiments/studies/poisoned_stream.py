"""Whether a shift and a poisoned stretch of a stream are noticed, and what the watch saves the student from.

    python -m experiments.studies.poisoned_stream --out runs/streams

The warm-start student answers messages of the embedded corpus that no split holds and learns on. After `calm` of them
comes a stretch of `stretch` that is otherwise, then `calm` usual ones again:

    nothing   usual messages, to count false alarms
    phone     messages as they are typed on a phone, in lower case and without punctuation: a shift to be learnt
    garbled   messages whose letters are shuffled: prompts that teach nothing
    misled    usual messages, but the teacher's words are swapped for others: wrong labels

Every stream is gone through with the watch and without it, by the same seed: paired. Where the watch has noticed
nothing the two are one run, bit by bit, and it is not done twice. Students are measured on the test messages, which
have no part in any of it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.student import Student
from envs.errors import InputError
from envs.prompts import EMBEDDED_COUNTS
from envs.service_desk import messages
from envs.teachers import Teacher
from experiments.evaluate import glance
from experiments.folder import write
from experiments.metrics import mean_and_interval
from experiments.online.config import OnlineConfig
from experiments.online.journal import lines
from experiments.online.loop import Online
from experiments.online.sources import Folder
from experiments.report import aligned
from experiments.studies.command import run
from experiments.workspace import Workspace

KINDS = ("nothing", "phone", "garbled", "misled")
Figures = dict[str, float]
MEASURES = {"forward_kl": "KL(T‖S)", "task_score": "task"}


@dataclass(frozen=True)
class PoisonedStreamConfig:
    """Settings of the study."""

    out: Path
    """Folder of its runs; the same command goes on where it stopped."""
    seeds: int = 3
    calm: int = 512
    """Prompts before the stretch, and as many behind it."""
    stretch: int = 256
    agent: str = "soft_q"
    """One that learns from episodes alone: what others ask the teacher for is not misled."""
    eval_prompts: int = 128


def study(config: PoisonedStreamConfig) -> str:
    """The table of what was noticed, and that of what it saved.

    Raises: InputError: fewer than two seeds, or as a run.
    """
    if config.seeds < 2:
        raise InputError(f"seeds = {config.seeds} gives no interval; give at least 2")
    found: dict[tuple[str, bool], list[Figures]] = {}
    for kind in KINDS:
        found[kind, True] = [one_run(config, kind, True, seed) for seed in range(config.seeds)]
        found[kind, False] = [
            one_run(config, kind, False, seed) if own["alarms"] or own["failed"] else own
            for seed, own in enumerate(found[kind, True])
        ]
    return said(config, found)


def one_run(config: PoisonedStreamConfig, kind: str, watch: bool, seed: int) -> Figures:
    """What came of a stream: alarms and their delay, what was done, and the student on the test messages."""
    out = config.out / f"{kind}-{'watched' if watch else 'unwatched'}-seed{seed}"
    if (record := out / "figures.json").is_file():
        found: Figures = json.loads(record.read_text(encoding="utf-8"))
        return found
    stream = config.out / f"stream-{kind}-seed{seed}"
    write(stream / "messages.jsonl", "".join(json.dumps({"prompt": text}) + "\n" for text in texts(config, kind, seed)))
    own = OnlineConfig(
        agent=config.agent,
        seed=seed,
        eval_prompts=config.eval_prompts,
        threads=1,
        stream=str(stream),
        watch=watch,
        out=out / "run",
    )
    space = Workspace(own)
    with space.opened():
        online = Online(space, own)
        ends = config.calm, config.calm + config.stretch
        if kind == "misled":
            honest = space.teacher
            space.teacher = Misled(honest, lambda: ends[0] <= online.counts["prompts"] < ends[1])
        figures = online.run(Folder(stream, online.journal, online.problem))
        online.close()
        if kind == "misled":
            space.teacher = honest
        student = Student.load(own.out / "student")
        measures = glance(student.model, space.exam("test"), space.teacher, space.rule(own.top_p)).measures
    figures |= {name: measures[name] for name in MEASURES} | noticed(own.out, *ends)
    write(record, json.dumps(figures, indent=1))
    return figures


def noticed(out: Path, begin: int, end: int) -> Figures:
    """Alarms of the whole stream; prompts of the stretch until an alarm or a failed gate, if there was one."""
    told = [(event["prompts"], event) for _, event in lines(out / "events.jsonl")]
    stops = [
        (at, event)
        for at, event in told
        if event["event"] == "failed" or (event["event"] == "alarm" and event["state"] == "learning")
    ]
    within = [at - begin for at, _ in stops if begin < at <= end]
    return {
        "alarmed": float(len({at for at, event in stops if event["event"] == "alarm"})),
        "found": float(bool(within)),
        **({"delay": float(within[0])} if within else {}),
    }


def texts(config: PoisonedStreamConfig, kind: str, seed: int) -> list[str]:
    """The stream's prompts."""
    count = 2 * config.calm + config.stretch
    usual = np.random.default_rng(seed).permutation(fresh(2 * count))[:count].tolist()
    begin, end = config.calm, config.calm + config.stretch
    change = {"phone": typed, "garbled": garbled}.get(kind)
    return usual if change is None else [*usual[:begin], *map(change, usual[begin:end]), *usual[end:]]


@lru_cache(1)
def fresh(count: int) -> list[str]:
    """Messages behind the training split's, each once."""
    first = EMBEDDED_COUNTS["train"]
    return sorted({message.prompt for message in messages("train", first + count)[first:]})


def typed(text: str) -> str:
    """A message as it is typed on a phone."""
    return "".join(letter for letter in text.lower() if letter.isalnum() or letter.isspace())


def garbled(text: str) -> str:
    """As many letters, in any order: the same for the same message."""
    letters = list(text)
    random.Random(text).shuffle(letters)
    return " ".join("".join(letters).split()) or "?"


class Misled:
    """A teacher whose words are swapped for others while something holds; texts end where they would have.

    Args:
        wrong: whether it is misled now.
    """

    def __init__(self, teacher: Teacher, wrong: Callable[[], bool]) -> None:
        self._teacher, self._wrong = teacher, wrong
        order = torch.arange(teacher.vocab_size)
        others = torch.tensor([token for token in range(teacher.vocab_size) if token not in teacher.eos_ids])
        order[others] = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(0))]
        self._order = order

    def __getattr__(self, name: str) -> Any:
        return getattr(self._teacher, name)

    def __deepcopy__(self, memo: object) -> Misled:
        return self

    def walk(self, rows: int) -> Any:
        """As of a teacher."""
        walk = self._teacher.walk(rows)
        return _MisledWalk(walk, self._order) if self._wrong() else walk

    def score(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """As of a teacher."""
        scores = self._teacher.score(sequences)
        return scores[..., self._order] if self._wrong() else scores


class _MisledWalk:
    def __init__(self, walk: Any, order: Tensor) -> None:
        self._walk, self._order = walk, order

    @property
    def log_probs(self) -> Tensor:
        return torch.as_tensor(self._walk.log_probs[:, self._order])

    def start(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        self._walk.start(rows, prompts)

    def step(self, tokens: Tensor, active: Tensor) -> None:
        self._walk.step(tokens, active)

    def keep_rows(self, rows: Sequence[int]) -> None:
        self._walk.keep_rows(rows)


def said(config: PoisonedStreamConfig, found: dict[tuple[str, bool], list[Figures]]) -> str:
    """Both tables."""
    heads = ["stretch", "found", "after prompts", "alarms", "rolled back", "gate failed", "put away"]
    lines = [heads]
    for kind in KINDS:
        own = found[kind, True]
        delays = sorted(one["delay"] for one in own if "delay" in one)
        lines.append(
            [
                kind,
                f"{sum(one['found'] for one in own):.0f} of {len(own)}",
                ", ".join(f"{delay:.0f}" for delay in delays) or "none",
                *(f"{sum(one[name] for one in own):.0f}" for name in ("alarmed", "rolled_back", "failed")),
                f"{sum(one['quarantined'] for one in own) / len(own):.0f}",
            ]
        )
    quality = [["stretch", *(f"{name}, {who}" for name in MEASURES.values() for who in ("watched", "not", "paired"))]]
    for kind in KINDS:
        cells = []
        for name in MEASURES:
            watched, not_watched = ([one[name] for one in found[kind, watch]] for watch in (True, False))
            gaps = [one - other for one, other in zip(watched, not_watched, strict=True)]
            cells += [_cell(watched), _cell(not_watched), _cell(gaps, "+")]
        quality.append([kind, *cells])
    prompts = config.seeds * (2 * config.calm + config.stretch)
    return "\n\n".join(
        [
            aligned(lines, markdown=True),
            f"{config.seeds} seeds, sums over them, labels put away in the mean; alarms of `nothing`, in {prompts:,} "
            "usual prompts, are false",
            aligned(quality, markdown=True),
            "test messages, ± half of a 95 % interval",
        ]
    )


def _cell(values: Sequence[float], sign: str = "") -> str:
    mean, half = mean_and_interval(values)
    return f"{mean:{sign}.3f}±{half:.3f}"


if __name__ == "__main__":
    raise SystemExit(run(PoisonedStreamConfig, __doc__, study))
