"""One agent, one seed, one top_p: learn from the shared episodes, log, checkpoint, measure once on the test prompts.

A cell that was stopped goes on from its last checkpoint to the weights it would have had; a finished one is read back.
No checkpoint is selected: the last weights are the ones measured, for every arm.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from agents import agent_class, learner_class, parallel
from agents.adapters import merged
from agents.base import Agent
from agents.episodes import Episodes
from agents.errors import DivergedError
from agents.loop import LoopAgent
from agents.replay import Replay
from agents.student import Student
from envs.errors import InputError
from experiments import budget, provenance
from experiments.arms import agent_of
from experiments.cell import build_agent, check_settings, last_checkpoint, new_checkpoint
from experiments.evaluate import check_rows, examine, measure
from experiments.flops import EVERY, counted, of_reading
from experiments.folder import full_disk_is_said, write
from experiments.labels import Labels
from experiments.loop import LoopTrainer
from experiments.replies import records
from experiments.rules.run import lay_beside
from experiments.schedules import least_mass
from experiments.store.source import min_mass_of, tokens_of
from experiments.walks import Walker
from experiments.workspace import Cell, Report, Workspace

START = "start"
"""Pseudo-agent of the row that measures where every arm begins."""
RESULT = "result.json"
REPLIES = "replies.json"
LOG_EVERY = 10  # updates between two points in TensorBoard


def run_cell(space: Workspace, cell: Cell, report: Report = lambda text, updates: None) -> dict[str, Any]:
    """Train, measure and save one cell, or read back what it gave.

    Returns: `agent`, `seed`, `top_p`, `updates`, costs, `settings`, the test `measures` and the validation `curve`.
    Raises: InputError: the cell was run with other settings of its agent, or the disk is full. DivergedError: see
        `Agent.update`. SpentError: see `budget.begun`.
    """
    with full_disk_is_said(space.out):
        return _run_cell(space, cell, report)


def _run_cell(space: Workspace, cell: Cell, report: Report) -> dict[str, Any]:
    folder = space.out / "cells" / cell.name
    settings = space.settings(cell.agent, None if cell.role else cell.top_p)
    if (finished := parallel.first(lambda: read_result(space, cell))) is not None:
        check_settings(folder, finished["settings"], settings)
        report("", finished["updates"])
        return finished
    training: dict[str, Any]
    if cell.agent == START:
        student, training = space.student(cell.seed), {"updates": 0, "curve": []}
    elif cell.trained_at is not None:
        student, training = _trained(space, replace(cell, top_p=cell.trained_at, trained_at=None))
        report("", training["updates"])
    else:
        trainer = trainer_of(cell)(space, cell, settings, folder)
        training = trainer.run(report)
        student = trainer.student
    student = student.whole()
    report("" if cell.role else "measuring on the test prompts", 0)
    training = {"settings": settings, "processes": parallel.size(), **training}
    return parallel.first(lambda: _finish(space, cell, student, training))


def _trained(space: Workspace, cell: Cell) -> tuple[Student, dict[str, Any]]:
    """The student of a finished cell and what its training gave; the curve stays that of its own mass."""
    found = read_result(space, cell)
    assert found is not None
    own = ("agent", "seed", "top_p", "threads", "measures")
    training = {key: value for key, value in found.items() if key not in own}
    student = Student.load(space.student_directory(cell), **space.reading)
    student.to(space.device)
    return student, training | {"trained_at": cell.top_p}


def _finish(space: Workspace, cell: Cell, student: Student, training: dict[str, Any]) -> dict[str, Any]:
    """Measure and keep what a cell has trained."""
    student.model = merged(student.model)
    folder = space.out / "cells" / cell.name
    measures, more = {}, {}
    if not cell.role:
        exam, teacher, rule = space.exam("test"), space.teacher, space.rule(cell.top_p)
        found = examine(student.model, exam, teacher, rule)
        measures, more = found.measures, found.more
        write(folder / REPLIES, json.dumps(records(exam, found.replies, teacher, rule), ensure_ascii=False))
    result = {
        "agent": cell.agent,
        "seed": cell.seed,
        "top_p": cell.top_p,
        "threads": torch.get_num_threads(),
        **training,
        "measures": measures,
        **more,
    }
    if cell.agent != START and not cell.role:
        _save_student(space, cell, student, result)
    write(folder / RESULT, json.dumps(result, indent=1))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result


def read_result(space: Workspace, cell: Cell) -> dict[str, Any] | None:
    """What a finished cell gave; None if it is not finished."""
    return read(space.out / "cells" / cell.name / RESULT)


def read(path: Path) -> dict[str, Any] | None:
    """What a file holds, if it is there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def trainer_of(cell: Cell) -> type[Trainer] | type[LoopTrainer]:
    """Who runs the cell's agent: the loop here, or the agent's own."""
    return LoopTrainer if issubclass(learner_class(agent_of(cell.agent)), LoopAgent) else Trainer


class Trainer:
    """The loop of one cell, and its state on disk."""

    def __init__(
        self, space: Workspace, cell: Cell, settings: dict[str, Any], folder: Path, student: Student | None = None
    ) -> None:
        self.space, self.cell, self.folder = space, cell, folder
        self.student = student or space.student(cell.seed)
        self.settings = settings
        kind = agent_class(agent_of(cell.agent))
        episodes = space.episodes(cell.seed, cell.top_p) if kind.data != "student" else None
        if episodes is not None and "min_mass" in {field.name for field in fields(kind.Config)}:
            settings = {"min_mass": least_mass(settings, cell.top_p, min_mass_of(episodes)), **settings}
        agent = build_agent(space.config, cell, self.student, settings)
        assert isinstance(agent, Agent)
        self.agent = agent
        walks = agent.walks
        self.walker = Walker(space, cell, agent, walks, folder) if walks is not None else None
        count = space.config.episodes if episodes is None else len(episodes)
        self.replay = Replay(count, seed=cell.seed)  # the same order for every agent of a seed
        self.labels = Labels(space.teacher, agent.needs)
        self.record: dict[str, Any] = {"seconds": 0.0, "tokens": 0, "teacher_tokens": 0, "flops": 0.0, "curve": []}
        if walks is not None:
            self.record |= {"student_tokens": 0, "walk_seconds": 0.0}
        if episodes is not None:
            self.replay.add(episodes.discounted(settings["gamma"]) if "gamma" in settings else episodes)
            self.record["teacher_tokens"] = tokens_of(episodes)
        self._restore()

    def run(self, report: Report) -> dict[str, Any]:
        """Learn until the last update; the record of costs and of the validation curve."""
        config, record = self.space.config, self.record
        report("", self.agent.updates)
        self._label(report)
        if "budget" not in record and not self.cell.role.startswith("warm"):  # a warm-up ends by itself
            record["budget"] = parallel.first(lambda: budget.begun(config, self._cost(config.budget)))
        saved = time.monotonic()
        with self._writer() as writer:
            if not record["curve"]:
                self._validate(writer)
            while not self._over():
                begin = time.monotonic()
                figures, tokens = self._update()
                seconds = time.monotonic() - begin
                record["seconds"] += seconds
                updates, last = self.agent.updates, self._over()
                if updates % LOG_EVERY == 0 or last:
                    self._log(writer, "train", {**figures, "tokens_per_second": tokens / seconds})
                if updates % config.eval_every == 0 or last:
                    report("measuring on the validation prompts", 0)
                    self._validate(writer)
                report(f"loss {figures['loss']:.3f}", 1)
                if self._is_due(time.monotonic() - saved >= config.checkpoint_seconds):
                    self._checkpoint()
                    saved = time.monotonic()
        self._checkpoint()
        report("", config.updates - self.agent.updates)
        return {"updates": self.agent.updates, **record, "flops": self._cost("flops")}

    def _over(self) -> bool:
        """Whether the last update is made; the agent is told how much of the budget is spent."""
        found = self.record.get("budget", {"of": budget.UPDATES})
        if found["of"] != budget.UPDATES:
            self.agent.spent = parallel.first(lambda: budget.share(found, self._cost(found["of"])))
        return self.agent.updates >= self.space.config.updates or self.agent.spent >= 1

    def _cost(self, kind: str) -> float:
        """What has been spent so far, of one kind of `budget.BUDGETS`."""
        record = self.record
        if kind != "flops":
            return float(self.agent.updates if kind == budget.UPDATES else record[kind])
        reading = of_reading(self.space.teacher, record["teacher_tokens"])
        return float(record["flops"] + reading + of_reading(self.student.model, record.get("student_tokens", 0)))

    def _writer(self) -> Any:
        """Of the event files; a resumed run logs again what came after its checkpoint, and nothing before."""
        if parallel.rank():
            return nullcontext()
        from torch.utils.tensorboard import SummaryWriter

        logs = self.space.out / "tensorboard" / self.cell.name
        return SummaryWriter(str(logs), purge_step=self.agent.updates + bool(self.record["curve"]))

    def _label(self, report: Report) -> None:
        """Ask the teacher once for what will be learnt from several times; a resumed run has paid for it before."""
        if not self.agent.needs or not len(self.replay):
            return
        begin, config = time.monotonic(), self.agent.config
        own = self.walker.walks.student_episodes(config.batch_size) if self.walker is not None else 0
        draws = (config.batch_size - own) * self.agent.total_updates
        episodes = self.space.episodes(self.cell.seed, self.cell.top_p)
        asked = self.labels.remember(episodes, draws, report) if isinstance(episodes, Episodes) else 0
        if not self.record["curve"]:
            self.record["teacher_tokens"] += asked
            self.record["seconds"] += time.monotonic() - begin

    def _update(self) -> tuple[dict[str, float], int]:
        """One batch, learnt from.

        Raises: DivergedError: as `Agent.update`; the batch has been saved, and the checkpoint is the last good one.
        """
        before = self.replay.state_dict()
        batch, asked = self.labels.attach(self._batch())
        check_rows(max(int(batch.ids.max()), int(batch.tokens.max())), self.student.vocab_size)
        tokens, batch = int(batch.length.sum()), batch.to(self.space.device)
        try:
            figures = self._priced(batch)
        except DivergedError as error:
            place = self.folder / "diverged.safetensors"
            if parallel.rank() == 0:
                batch.save(place)
            self.replay.load_state_dict(before)
            self._checkpoint()
            raise DivergedError(f"{error}; its batch is in {place}, the weights before it in checkpoints") from error
        self.record["tokens"] += tokens
        self.record["flops"] += self.record["update_flops"]
        self.record["teacher_tokens"] += asked
        figures["head_rows"] = self.student.head_rows
        if "log_inside" in figures:
            figures["leak"] = -math.expm1(figures.pop("log_inside"))
        return figures, tokens

    def _priced(self, batch: Episodes) -> dict[str, float]:
        """Update; `update_flops` of the record is what it took, or the last one of its kind that was counted."""
        kind, before = self.agent.kind_of_update, self.record.get("update_kind")
        if self.agent.updates % EVERY and kind == before:
            return self.agent.update(batch)
        figures, flops = counted(lambda: self.agent.update(batch))
        self.record |= {"update_flops": parallel.total(flops), "update_kind": kind}
        return figures

    def _batch(self) -> Episodes:
        """Episodes of the student, as many as the agent asks for, and of the teacher for the rest."""
        size = self.agent.config.batch_size
        if self.walker is None:
            return self.replay.sample(size)
        walker = self.walker
        own = parallel.first(lambda: walker.sample(self.record))
        return Episodes.concatenate([own, self.replay.sample(size - len(own))]) if len(own) < size else own

    def _validate(self, writer: Any) -> None:
        space = self.space
        exam, rule = space.exam("validation"), space.rule(self.cell.top_p)
        student = self.student.whole()
        figures = parallel.first(lambda: measure(student.model, exam, space.teacher, rule, quick=True))
        self.record["curve"].append({"updates": self.agent.updates, "seconds": self.record["seconds"], **figures})
        self._log(writer, "validation", figures)

    def _log(self, writer: Any, about: str, figures: dict[str, float]) -> None:
        if writer is not None:
            for name, value in figures.items():
                writer.add_scalar(f"{about}/{name}", value, self.agent.updates)
            writer.flush()

    def _is_due(self, here: bool) -> bool:
        """Whether to keep a checkpoint now: of weights that are spread, all processes do when process 0 says so."""
        return parallel.first(lambda: here) if self.student.is_spread else here

    def _checkpoint(self) -> None:
        learnt = self.agent.state() if self.student.is_spread or parallel.rank() == 0 else {}
        if parallel.rank():
            return
        with new_checkpoint(self.folder, self.agent.updates) as partial:
            if partial is None:
                return
            self.agent.save(partial, learnt)
            if self.walker is not None:
                self.walker.save(partial)
            state = {"replay": self.replay.state_dict(), "record": self.record, "settings": self.settings}
            torch.save(state, partial / "trainer.pt")

    def _restore(self) -> None:
        found = parallel.first(lambda: last_checkpoint(self.folder))
        if found is None:
            return
        if not found.is_dir():
            raise InputError(f"process {parallel.rank()} sees no {found}; put --out where all processes see it")
        state = torch.load(found / "trainer.pt", weights_only=True)
        check_settings(self.folder, state["settings"], self.settings)
        self.agent.load(found)
        if self.walker is not None and parallel.rank() == 0:
            self.walker.load(found)
        self.replay.load_state_dict(state["replay"])
        self.record = state["record"]


def _save_student(space: Workspace, cell: Cell, student: Student, result: dict[str, Any]) -> None:
    directory = space.student_directory(cell)
    keys = ("agent", "seed", "top_p", "updates", "seconds", "settings")
    card = {
        "teacher": space.config.teacher,
        "start": space.config.student,
        **{key: result[key] for key in keys},
        **{f"test {name}": value for name, value in result["measures"].items() if name != "parameters"},
        "made with": provenance.line(),
    }
    student.save(directory, card)
    lay_beside(space.config, directory)
    space.remember_prompts(directory)
