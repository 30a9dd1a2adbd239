"""Block by block: answer, watch, label, learn; held while something has changed, and back to what is known to be good.

OUT/student      the last student that passed the gate, an ordinary model directory
OUT/passed/      the same with its optimiser
OUT/checkpoints/ the state of everything behind some block
OUT/labels/      what the teacher said
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from agents.errors import DivergedError
from envs.decode import decode
from envs.errors import InputError
from envs.prompts import prompt_hash
from envs.sequences import context_limit_of
from experiments.cell import check_settings, last_checkpoint, new_checkpoint
from experiments.config import plain
from experiments.evaluate import ROWS
from experiments.folder import digest
from experiments.online.config import OnlineConfig
from experiments.online.desk import Asked, Chooser, Desk
from experiments.online.gate import Trial
from experiments.online.journal import Block, Journal, Log, lines
from experiments.online.learner import Learner
from experiments.online.signals import (
    OF_PROMPTS,
    OF_REPLIES,
    OF_TEACHER,
    SIDES,
    TEACHER_DRIFT,
    Lately,
    Usual,
    of_replies,
)
from experiments.online.sources import Source
from experiments.online.usual import MOST, usual_of
from experiments.online.watch import Alarm, Watch
from experiments.update.drift import hashed
from experiments.workspace import Workspace

LEARNING, HELD = "learning", "held"
WAIT = 0.2
"""Seconds between two looks at a stream that has nothing."""
STATE = "online.pt"
LEARNT = "learnt.jsonl"
KEPT = "mode left owed blocks surprises".split()
COUNTED = "prompts unlike labels teacher_tokens alarms rolled_back failed passed".split()


class Online:
    """A student on line, in the folder of its run; whatever stops it, the next one goes on behind the last checkpoint.

    Blocks that were closed after that are gone through again, to the same student: their prompts are in the journal,
    the teacher's answers on disk, and replies that were given are not given again.

    Raises: InputError: as `Learner`, `Trial`, `usual_of` and `Watch`.
    """

    def __init__(self, space: Workspace, config: OnlineConfig) -> None:
        self.space, self.config, self.out = space, config, space.out
        self.desk, self.chooser = Desk(space, config), Chooser(config)
        self.learner = Learner(space, config, self.desk)
        self.model = self.learner.student.model
        self.trial = Trial(space, config, self.model)
        self.held_out = {prompt_hash(prompt.text) for part in space.splits[1:] for prompt in part}
        self.counts = Counter[str]()
        self.mode, self.left = LEARNING, 0  # prompts left of the hold
        self.since = Counter[str]()  # values of each signal since the hold began
        self.owed = 0.0  # share of an update
        self.blocks = 0  # done
        self.width = min(config.max_candidates, space.teacher.vocab_size)
        self.bigrams, usual = usual_of(space, config, self.model)
        self.watch, self.lately = Watch(usual, config.delta), Lately()
        self.surprises = usual["surprise"]  # of prompts that may be learnt from
        self._encoding = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        found = last_checkpoint(self.out)
        if found is None:
            self.trial.check_beginning(self.model)
            self.learner.adopt(0)
        else:
            self._restore(found)
        self.journal = Journal(self.out / "prompts.jsonl", self.blocks)
        self.replies = Log(self.out / "replies.jsonl")
        self.events = Log(self.out / "events.jsonl", self.counts["events"])
        self.learnt = Log(self.out / LEARNT, self.counts["learnt"])
        self.learner.export_passed(self.out / "student", self._learnt(), found)

    def run(self, source: Source, stopped: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """Go through the stream until it ends, enough has come, or one is `stopped`.

        Returns: `figures`.
        Raises: InputError: the disk is full.
        """
        saved, most = time.monotonic(), self.config.most_prompts
        with tqdm(total=most, desc="online", unit="prompt", initial=self.counts["prompts"]) as bar:
            while not stopped() and (most is None or self.counts["prompts"] < most):
                size = self.config.block if most is None else min(self.config.block, most - self.counts["prompts"])
                over = source.over
                if (block := self._next(source, size)) is None:
                    if over:
                        break
                    continue
                passed = self.learner.passed
                self._block(block, source)
                bar.update(len(block.texts))
                bar.set_postfix_str(f"{self.mode}, {self.counts['labels']} labels, {self.counts['alarms']} alarms")
                if time.monotonic() - saved >= self.config.checkpoint_seconds or self.learner.passed != passed:
                    self.checkpoint()
                    saved = time.monotonic()
        if not stopped() and self.mode == LEARNING and self.learner.updates > self.learner.tried:
            self._try()
        self.checkpoint()
        return self.figures()

    def _next(self, source: Source, size: int) -> Block | None:
        """The next block: one that was closed before, or a new one of what has come."""
        if (block := self.journal.next(0)) is None:
            source.pump(size, WAIT)
            block = self.journal.next(size)
        return block

    def figures(self) -> dict[str, float]:
        """What has come, what was asked of the teacher, and what was done about it."""
        learner = self.learner
        counts = {name: float(self.counts[name]) for name in COUNTED} | {"refused": float(self.journal.refused)}
        counts["teacher_tokens"] += learner.asked
        for name in ("waiting", "quarantined"):
            counts[name] = float(sum(count for _, count in getattr(learner, name)))
        return {**counts, "updates": float(learner.updates)}

    def status(self) -> dict[str, Any]:
        """The same, and whether the updates are held."""
        return {"state": self.mode, **self.figures()}

    def problem(self, text: str) -> str:
        """Why a prompt cannot be answered; empty if it can."""
        teacher, config = self.space.teacher, self.config
        if not text.strip():
            return "the prompt is empty; give it text"
        if any("\ud800" <= character <= "\udfff" for character in text):
            return "the prompt holds half of a surrogate pair, which is no text; mend it"
        try:
            with self._encoding:
                size = len(teacher.encode(text))
        except InputError as error:
            return str(error)
        room = min(teacher.context_limit, context_limit_of(self.model)) - config.max_new_tokens
        limit = min(config.max_prompt_tokens or room, room)
        if (extras := self.space.extras) is not None:  # whose ids must fit beside one of the teacher's
            limit = min(limit, next(n for n in range(limit, -1, -1) if not n or extras.room(n) < self.width))
        return f"the prompt has {size} tokens, the limit is {limit}; shorten it" if size > limit else ""

    def checkpoint(self) -> None:
        """Keep the state of everything."""
        self.events.sync()
        self.replies.sync()
        self.learnt.sync()
        self.counts["checkpoints"] += 1
        with new_checkpoint(self.out, self.counts["checkpoints"]) as partial:
            assert partial is not None, "checkpoints are numbered"
            state: dict[str, Any] = {name: getattr(self, name) for name in KEPT}
            state |= {"counts": dict(self.counts), "since": dict(self.since), "lately": list(self.lately.hashes)}
            state |= {"watch": self.watch.state(), "chooser": self.chooser.state(), "own": self._own()}
            torch.save(state | {"learner": self.learner.save(partial)}, partial / STATE)
        self.learner.forget_students()

    def close(self) -> None:
        """Close the files."""
        for file in (self.journal, self.replies, self.events, self.learnt):
            file.close()

    def _restore(self, found: Path) -> None:
        state = torch.load(found / STATE, weights_only=True)
        check_settings(self.out, state["own"], self._own())
        for name in KEPT:
            setattr(self, name, state[name])
        self.counts, self.since = Counter(state["counts"]), Counter(state["since"])
        self.lately = Lately(state["lately"])
        self.watch = Watch(**state["watch"], delta=self.config.delta)
        self.chooser.restore(state["chooser"])
        self.learner.load(found, state["learner"])

    def _own(self) -> dict[str, Any]:
        """Settings that may change in the folder of a comparison, and may not here."""
        names = ("agent", "agent_config", "seed")
        gate = {"gate": digest(self.trial.path.read_bytes())}
        return {name: plain(getattr(self.config, name)) for name in names} | gate

    def _block(self, block: Block, source: Source) -> None:
        """Answer a block, look at it, have some of it labelled, and learn."""
        with self._encoding:
            prompts = [self.space.teacher.encode(text) for text in block.texts]
        replies = self._answered(block, prompts)
        texts = [self.space.teacher.decode(reply) for reply in replies]
        for place, (reply, text) in enumerate(zip(replies, texts, strict=True)):
            source.deliver(block.first + place, text, reply[-1] in self.space.teacher.eos_ids)
        signals = self._signals(block, prompts, replies)
        for place, (prompt, text) in enumerate(zip(block.texts, texts, strict=True)):
            if block.first + place >= self.replies.count:
                self.replies.add({"n": block.first + place, "prompt": prompt, "reply": text, **signals[place]})
        unlike = self._unlike(signals)
        alarms = [alarm for own in signals for alarm in self._see(own)]
        known = hashed(prompts, replies)
        rows = [row for row, text in enumerate(block.texts) if prompt_hash(text) not in self.held_out]
        if self.mode == LEARNING:
            rows = [row for row in rows if not unlike[row]]
        reading = None
        if (chosen := self.chooser.chosen(block.number, rows, signals, known))[0]:
            reading = self.desk.ask(block, chosen, self.model, prompts, replies)
            alarms += self._noticed(reading)
            if not reading.misled:
                self.chooser.learn(known[reading.rows], [own["leak"] for own in reading.signals])
            self.counts.update(labels=len(reading.rows), teacher_tokens=reading.tokens)
        self.counts.update(prompts=len(block.texts), unlike=sum(unlike))
        self._react(block, alarms, reading)
        self.blocks = block.number + 1

    def _answered(self, block: Block, prompts: list[list[int]]) -> list[list[int]]:
        """The student's replies, tokens."""
        teacher, config = self.space.teacher, self.config
        return decode(
            self.model,
            prompts,
            eos_ids=teacher.eos_ids,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=int(np.random.SeedSequence([config.seed, block.number]).generate_state(1)[0]),
            rows=ROWS,
            vocabulary=teacher.vocab_size,
        )

    def _signals(self, block: Block, prompts: list[list[int]], replies: list[list[int]]) -> list[dict[str, float]]:
        """What is noticed about each prompt and its reply."""
        of_prompts = [
            {
                "surprise": self.bigrams.surprise(prompt),
                "prompt_length": float(len(prompt)),
                "seen_before": self.lately.see(text),
            }
            for prompt, text in zip(prompts, block.texts, strict=True)
        ]
        return [own | more for own, more in zip(of_prompts, of_replies(self.model, prompts, replies), strict=True)]

    def _unlike(self, signals: list[dict[str, float]]) -> list[bool]:
        """Which prompts are too unlike the usual ones to be learnt from."""
        usual = Usual.of(self.surprises)
        return [usual.p(own["surprise"]) <= self.config.anomalous for own in signals]

    def _see(self, signals: Mapping[str, float]) -> list[Alarm]:
        self.since.update(signals.keys())
        return self.watch.see(signals)

    def _noticed(self, reading: Asked) -> list[Alarm]:
        """What the teacher says of replies; of one that is not what it was, that alone."""
        if reading.misled:
            return [Alarm(TEACHER_DRIFT, reading.teacher_drift, "control")]
        return [alarm for own in reading.signals[: reading.by_chance] for alarm in self._see(own)]

    def _react(self, block: Block, alarms: list[Alarm], reading: Asked | None) -> None:
        """Learn from what was labelled, or keep it while the updates are held."""
        portion = None if reading is None else (block.number, len(reading.rows))
        for alarm in alarms:
            self._note("alarm", signal=alarm.signal, mean=alarm.mean, by=alarm.by, state=self.mode)
        if portion and reading and reading.misled and self.config.watch:
            self.learner.quarantined.append(portion)
            portion = None
        if self.mode == HELD:
            self.learner.waiting += [portion] if portion else []
            self.left -= len(block.texts)
            if self.left <= 0:
                self._end_hold()
            return
        self.counts["alarms"] += bool(alarms)
        if alarms and self.config.watch:
            self._hold(quarantine=False)
            self.learner.waiting += [portion] if portion else []
        elif portion:
            self.learner.take(*portion)
            self._learn(portion[1])

    def _learn(self, labels: int) -> None:
        """The updates that so many labels are worth, and a trial of the gate if one is due."""
        self.owed += labels * self.config.updates_per_label
        updates, self.owed = int(self.owed), self.owed % 1
        if self._update(updates) and self.learner.updates - self.learner.tried >= self.config.eval_every:
            self._try()

    def _update(self, updates: int) -> bool:
        """Whether they went well; where the student diverged, it goes back."""
        try:
            self.learner.learn(updates)
        except DivergedError as error:
            self._note("diverged", why=str(error))
            self._hold(quarantine=True)
            return False
        return True

    def _try(self) -> bool:
        """Hold the student against the gate: it is the last that passed, or goes back to that one."""
        judgement, measures = self.trial(self.model)
        lacking = [own.name for own in judgement.verdicts if not own.passed]
        self._note("failed" if lacking else "passed", **({"lacking": lacking} if lacking else {}), measures=measures)
        self.counts["failed" if lacking else "passed"] += 1
        if lacking and self.config.watch:
            self._hold(quarantine=True)
            return False
        for number, _ in self.learner.fresh:
            self.learnt.add({"hashes": self.desk.reading(number).hashes})
            self.counts["learnt"] += 1
        self.learner.adopt(self.counts["passed"] + self.counts["failed"])
        self.watch.rebased(dict.fromkeys([*OF_REPLIES, *OF_TEACHER], 0))  # it answers otherwise than the one before
        self._export(measures)
        return True

    def _hold(self, *, quarantine: bool) -> None:
        """Go back to the last student that passed, and let the updates rest.

        Args:
            quarantine: put away for good what was learnt from since; else it waits.
        """
        self.learner.go_back(quarantine=quarantine)
        self.mode, self.left, self.owed = HELD, self.config.hold, 0.0
        self.since.clear()
        self.counts["rolled_back"] += 1
        self._note("held")

    def _end_hold(self) -> None:
        """Learn from what waits, on trial; if the gate agrees, what has changed is usual from now on."""
        labels = self.learner.release()
        if labels and not (self._update(round(labels * self.config.updates_per_label)) and self._try()):
            return
        self.surprises = [*self.surprises, *self.watch.seen["surprise"][-self.since["surprise"] :]][-MOST:]
        self.watch.rebased({name: self.since[name] for name in (OF_PROMPTS if labels else SIDES)})
        if labels:  # another student than the one that answered meanwhile
            self.watch.forget([*OF_REPLIES, *OF_TEACHER])
        self.mode, self.left = LEARNING, 0
        self._note("resumed", labels=labels)

    def _export(self, measures: dict[str, float]) -> None:
        self.learner.export(self.out / "student", self._learnt(), measures)

    def _learnt(self) -> Iterator[str]:
        """Hashes of the prompts of the stream that the student that passed has learnt from."""
        return (one for _, line in lines(self.out / LEARNT) for one in line["hashes"])

    def _note(self, event: str, **more: Any) -> None:
        self.events.add({"prompts": self.counts["prompts"], "event": event, **more})
        self.counts["events"] += 1
