"""The store of a teacher that has changed: what still holds is kept, the rest is read or drawn anew.

A round compares the two teachers on some episodes: the first on any, the later ones where drift is suspected, and when
suspicion finds little, on any of the rest, to see what it has missed. Of what was compared, episodes that have drifted
by more than the threshold, or have a token that the new teacher would hardly say, are drawn anew, and the others keep
their text and take the new teacher's sets; what was never compared stays as it was. Comparing reads as many tokens as
drawing does: where half of any episodes have drifted, the rest is drawn anew unseen.

store.json                   as of any store; `updated_from` says of which one, and how
rounds.json                  which episodes were compared in each round, and how far they and their tokens had moved
relabelled-000.arrow         of each round, what has drifted little
redrawn-000.arrow, kept-000.arrow
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from agents.episodes import Episodes
from envs.errors import InputError
from envs.teachers import Teacher
from envs.vector_env import TopPTokenVectorEnv
from experiments.collect import collect
from experiments.folder import digest, write
from experiments.store.columns import DERIVED
from experiments.store.fingerprint import fingerprint
from experiments.store.shards import MANIFEST, UPDATED, Manifest, Store, damage_of, write_beside, write_shard
from experiments.store.source import PROTECTED
from experiments.update.drift import FEATURES, Reading, Suspicion, features, packed, read, unpacked

ROUNDS = "rounds.json"
FEW = 1 / 8
"""Share of drifted episodes below which a round has found little."""
FALL = math.log(100)
"""Nats: a text with a token that has become less probable by more is drawn anew, however little the states moved."""
MANY = 1 / 2
"""Share of drifted ones among any from which on comparing does not pay."""
SHARD = 256
ROWS = 64
ANY, SUSPECTED = "any", "suspected"
Rows = list[int]


@dataclass(frozen=True)
class Search:
    """How drift is looked for."""

    drift: float
    """Nats from which on an episode is drawn anew, of the mean over its states."""
    round_size: int
    """Episodes that are compared at a time."""
    seed: int


@dataclass(frozen=True)
class Round:
    """Episodes on which the teachers were compared."""

    kind: str
    """"any" or "suspected"."""
    episodes: Rows
    drift: list[float]
    """Nats, the mean over an episode's states."""
    fall: list[float]
    """Nats that a token of its text has lost, the most."""

    def moved(self, threshold: float) -> npt.NDArray[np.bool_]:
        """Which of them are to be drawn anew."""
        return (np.array(self.drift) > threshold) | (np.array(self.fall) > FALL)

    def share(self, threshold: float) -> float:
        """Of those."""
        return float(np.mean(self.moved(threshold)))

    def strength(self, threshold: float) -> npt.NDArray[np.float64]:
        """How far they have moved; what has fallen alone counts as twice the threshold."""
        return np.maximum(self.drift, np.where(np.array(self.fall) > FALL, 2 * threshold, 0.0))


class Renewal:
    """The new store as far as it has come; whatever stops it, the next one goes on behind the last round or shard.

    Args:
        old: store of the teacher as it was.
        begun: manifest of the new store, in `out`.
    """

    def __init__(self, old: Store, teacher: Teacher, out: Path, begun: Manifest, search: Search) -> None:
        self.old, self.teacher, self.out, self.manifest, self.search = old, teacher, out, begun, search
        self.suspicion, self._learnt = Suspicion(), 0  # rounds
        path = out / ROUNDS
        self.rounds = [Round(**one) for one in json.loads(path.read_text(encoding="utf-8"))] if path.is_file() else []

    def run(self) -> dict[str, float]:
        """Look for drift, and write what is missing of the store.

        Returns: its figures.
        Raises: InputError: texts that the teacher cannot read.
        """
        prompts, replies = self._texts[1]
        longest, limit = int((prompts + replies).max()), self.teacher.context_limit
        if longest > limit:
            raise InputError(
                f"the longest text of the store {self.old.folder} has {longest} tokens, {self.teacher.name} reads "
                f"{limit}; draw a store of it with `tdistill collect --skip-bad`"
            )
        self._look()
        self._write("redrawn", self.drifted, self._drawn)
        self._write("kept", self.kept, lambda rows, number: self.old.select(rows))
        return self.figures()

    @property
    def compared(self) -> Rows:
        """Episodes on which the teachers were compared, round by round."""
        return [row for one in self.rounds for row in one.episodes]

    @property
    def unseen(self) -> Rows:
        """The others, ascending."""
        return sorted(set(range(len(self.old))) - set(self.compared))

    @property
    def everywhere(self) -> bool:
        """Whether so much has drifted that the unseen is drawn anew too."""
        return any(one.kind == ANY and one.share(self.search.drift) >= MANY for one in self.rounds)

    @property
    def drifted(self) -> Rows:
        """Episodes that are drawn anew, ascending."""
        found = [int(row) for one in self.rounds for row in np.array(one.episodes)[one.moved(self.search.drift)]]
        return sorted(found + (self.unseen if self.everywhere else []))

    @property
    def kept(self) -> Rows:
        """Episodes that stay as they were, ascending."""
        return [] if self.everywhere else self.unseen

    def figures(self) -> dict[str, float]:
        """What the teacher was asked, and what a new store would have asked it.

        `read` counts tokens that went through the teacher in whole texts, prompts included, and `walked` those it gave
        one after another, which take most of the time; `read_again` are the prompts that a whole new store would have
        read. `saved` and `saved_walked` compare with a whole new store whose replies are as long as those of this one.
        `drift_left` is the mean of the last round of any episodes, ± half of a 95 % interval (normal approximation): of
        the kept ones an estimate on the low side, as rounds go on until one of them finds little.
        """
        prompts, replies = self._texts[1]
        tokens = {name: int(line["tokens"]) for name, line in self.manifest.shards.items()}
        walked, whole = sum(tokens[name] for name in tokens if name.startswith("redrawn")), sum(tokens.values())
        seen, again = self.compared, self.drifted
        reading = prompts[seen].sum() + replies[seen].sum() + prompts[again].sum()
        last = np.array([one for one in self.rounds if one.kind == ANY][-1].drift)
        half = 1.96 * float(last.std(ddof=1)) / math.sqrt(len(last)) if len(last) > 1 else math.nan
        return {
            "episodes": float(len(self.old)),
            "compared": float(len(seen)),
            "redrawn": float(len(again)),
            "relabelled": float(len(self.old) - len(again) - len(self.kept)),
            "kept": float(len(self.kept)),
            "drift_compared": float(np.mean([drift for one in self.rounds for drift in one.drift])),
            **({"drift_left": float(last.mean()), "drift_left_half_width": half} if self.kept else {}),
            "read": float(reading),
            "read_again": float(prompts.sum()),
            "walked": float(walked),
            "saved": 1 - float(reading + walked) / float(prompts.sum() + whole),
            "saved_walked": 1 - float(walked) / float(whole),
        }

    def _look(self) -> None:
        with tqdm(total=len(self.old), desc="compare teachers", unit="episode") as bar:
            for number, one in enumerate(self.rounds):
                self._relabel(number, one, None)
                bar.update(len(one.episodes))
            while (kind := next_kind(self.rounds, self.search.drift)) and (unseen := self.unseen):
                rows = self._chosen(kind, np.array(unseen))
                found = self._read(rows)
                self.rounds.append(one := Round(kind, rows, found.drift.tolist(), found.fall.tolist()))
                write(self.out / ROUNDS, json.dumps([asdict(each) for each in self.rounds]))  # before what follows
                self._relabel(len(self.rounds) - 1, one, found)
                bar.update(len(rows))
                bar.set_postfix_str(f"{len(self.drifted)} have drifted")

    def _chosen(self, kind: str, unseen: npt.NDArray[np.int64]) -> Rows:
        """The next episodes to compare; they depend on the seed and on the rounds so far."""
        size = min(self.search.round_size, len(unseen))
        if kind == ANY:
            generator = np.random.default_rng([self.search.seed, len(self.rounds)])
            return sorted(generator.choice(unseen, size, replace=False).tolist())
        known = self._texts[0]
        for one in self.rounds[self._learnt :]:
            self.suspicion.learn(unpacked(known[one.episodes]), one.strength(self.search.drift))
        self._learnt = len(self.rounds)
        return sorted(unseen[self.suspicion.order(known[unseen])[:size]].tolist())

    def _read(self, rows: Rows) -> Reading:
        settings = self.manifest.settings
        sets = (settings["top_p"], settings["max_candidates"], settings["reward"])
        return read(self.old.select(rows), self.teacher, *sets)

    def _relabel(self, number: int, one: Round, found: Reading | None) -> None:
        """Write what a round has left of its episodes, unless it is there."""
        places = np.flatnonzero(~one.moved(self.search.drift)).tolist()

        def labels() -> Episodes:
            return (found or self._read(one.episodes)).episodes.select(places)

        if places:
            self._shard(f"relabelled-{number:03d}.arrow", labels)

    def _write(self, what: str, rows: Rows, make: Callable[[Rows, int], Episodes]) -> None:
        with tqdm(total=len(rows), desc=what, unit="episode") as bar:
            for number, start in enumerate(range(0, len(rows), SHARD)):
                some = rows[start : start + SHARD]
                self._shard(f"{what}-{number:03d}.arrow", partial(make, some, number))
                bar.update(len(some))

    def _shard(self, name: str, make: Callable[[], Episodes]) -> None:
        """Write a shard and then its line, unless both are there and whole."""
        line = self.manifest.shards.get(name)
        if line is None or damage_of(self.out / name, line):
            self.manifest.shards[name] = write_shard(self.out / name, make(), self.manifest.form)
            self.manifest.write(self.out)

    def _drawn(self, rows: Rows, number: int) -> Episodes:
        """New walks from the prompts of these episodes."""
        settings, column = self.manifest.settings, self.old.columns["prompt"]
        env = TopPTokenVectorEnv(
            min(ROWS, len(rows)),
            teacher=self.teacher,
            prompts=[column[row].tolist() for row in rows],
            top_p=settings["top_p"],
            max_candidates=settings["max_candidates"],
            max_new_tokens=settings["max_new_tokens"],
            reward=settings["reward"],
        )
        seed = int(np.random.SeedSequence([self.search.seed, number, len(self.rounds)]).generate_state(1)[0])
        return collect(env, len(rows), seed=seed, teacher_walk=settings["teacher_walk"])

    @cached_property
    def _texts(self) -> tuple[npt.NDArray[np.uint8], tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """`features` of every episode, and how many tokens its prompt and its reply have."""
        found = np.zeros((len(self.old), FEATURES // 8), dtype=np.uint8)
        prompts, replies = (np.zeros(len(self.old), dtype=np.int64) for _ in range(2))
        for start in range(0, len(self.old), SHARD):
            rows = range(start, min(start + SHARD, len(self.old)))
            episodes = self.old.select(rows)
            found[rows] = packed(features(episodes))
            prompts[rows], replies[rows] = episodes.prompt_length.numpy(), episodes.length.numpy()
        return found, (prompts, replies)


def next_kind(rounds: Sequence[Round], threshold: float) -> str:
    """Which episodes to compare next; empty where it is enough."""
    if not rounds:
        return ANY
    last, few = rounds[-1], rounds[-1].share(threshold) < FEW
    if last.kind == SUSPECTED:
        return ANY if few else SUSPECTED
    if last.share(threshold) >= MANY or (few and len(rounds) > 1):
        return ""
    return SUSPECTED


def check(old: Store, teacher: Teacher) -> dict[str, Any]:
    """The fingerprint of a teacher that the store can be updated to.

    Raises: InputError: the teacher that drew it, one with other tokens, one that is only served, or a store whose
        rewards or sets need more than the new teacher's log-probabilities.
    """
    if not getattr(teacher, "whole", True):
        raise InputError(
            f"{teacher.name} returns its most probable tokens only, and the teachers are compared on stored texts; "
            "draw a store of it with `tdistill collect`"
        )
    found, theirs, where = fingerprint(teacher), old.manifest.teacher, old.folder
    for name in ("tokenizer", "vocab_size", "eos_ids"):
        if found[name] != theirs[name]:
            raise InputError(
                f"the teacher of the store {where} has {name} {theirs[name]}, the new one {found[name]}: its texts are "
                "no texts of the new one's; draw a store with `tdistill collect`"
            )
    if found["weights"] == theirs["weights"]:
        raise InputError(f"{teacher.name} is the teacher that drew {where}; there is nothing to update")
    settings = old.manifest.settings
    if settings["reward"] not in DERIVED:
        raise InputError(
            f"the store {where} has the reward {settings['reward']!r}; only {' and '.join(sorted(DERIVED))} follow "
            "from log-probabilities alone: draw a store of the new teacher with `tdistill collect`"
        )
    if settings.get(PROTECTED):
        raise InputError(
            f"the store {where} has protected words, which an update does not know; use `tdistill collect`"
        )
    return found


def begin(old: Store, teacher: Teacher, out: Path, search: Search) -> Manifest:
    """The manifest of the new store: a new one, or that of this very update where it was stopped.

    Raises: InputError: a store or a teacher that no update is for, or a folder that holds something else.
    """
    found = check(old, teacher)
    own = {**asdict(search), "fall": FALL, "store": digest(json.dumps(old.manifest.shards, sort_keys=True))}
    settings = {**old.manifest.settings, "teacher": teacher.name, UPDATED: own}
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give another --out")
    if (out / MANIFEST).is_file():
        manifest = Manifest.read(out)
        if manifest.settings != settings or manifest.teacher != found:
            raise InputError(f"{out} holds another store, or one updated otherwise; give another --out")
    elif out.exists() and {path.name for path in out.iterdir()} - {f"{MANIFEST}.partial"}:
        raise InputError(f"{out} is not empty and holds no store; give another --out")
    else:
        out.mkdir(parents=True, exist_ok=True)
        manifest = Manifest(settings, found, {})
        manifest.write(out)
    write_beside(out, getattr(teacher, "tokenizer", None), old.prompts)
    return manifest
