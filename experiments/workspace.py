"""A run folder, and what all its cells share: teacher, prompts, teacher episodes, exams, where students start.

config.yaml             the settings
run.json                versions, commit, command, hardware and digests of every time it ran
results.csv results.md  one row per agent, seed and top_p; the table
report.html             one page with tables, figures, replies and how to repeat it; needs nothing else
figures/*.png *.csv     the page's figures, their numbers, and quality against top_p and price
tensorboard/            event files, a folder a cell, and summary/: arms over seeds, and the settings of cells
students/               plain Hugging Face directories
cells/                  results and checkpoints of single cells
shared/                 teacher episodes and exams
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from agents import parallel
from agents.adapters import adapted
from agents.episodes import Episodes
from agents.recompute import recomputing
from agents.student import Student, build_student
from agents.vocabulary import Head
from envs.errors import InputError
from envs.extras import Extras
from envs.prompts import Splits, embedded_splits, fitting, load_prompts, split_prompts
from envs.teachers import WARM_START, Teacher, load_teacher
from envs.vector_env import TopPTokenVectorEnv
from experiments import provenance
from experiments.arms import agent_settings
from experiments.collect import collect
from experiments.config import ABSENT, WARM_START_NAME, RunConfig, dump
from experiments.evaluate import Exam, Rule, check_context, set_exam
from experiments.folder import CONFIG, INPUTS, alone, check_folder, digest, write
from experiments.launch import spread_teacher
from experiments.limits import check_limits
from experiments.protect import digest_of, fitting_extras
from experiments.references import replies_of
from experiments.rules.run import under_rules
from experiments.seen import refuse_selection_prompts, refuse_training_prompts, remember

if TYPE_CHECKING:
    from experiments.share import Share
    from experiments.store.shards import Stored

Report = Callable[[str, int], None]  # (what is going on, updates done since the last call)
COLLECT_ROWS = 64


@dataclass(frozen=True)
class Cell:
    """One arm of a comparison."""

    agent: str
    seed: int
    top_p: float
    role: str = ""
    """"trial" of a search, or a round of a warm-up; empty: an arm that is measured on the test prompts."""
    trained_at: float | None = None
    """The mass whose student this cell measures again with its own sets; none: it trains one."""

    @property
    def name(self) -> str:
        """Name of the cell's folders; `module:Class` becomes module.Class."""
        name = f"{self.agent.replace(':', '.')}-p{self.top_p:g}-seed{self.seed}"
        return f"{self.role}-{name}" if self.role else name


class Workspace:
    """The run folder `config.out` and the shared parts of its run.

    Args:
        config: settings of the run; `top_p` may be one mass or several.
    Raises: InputError: a setting out of range.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config, self.out = config, Path(config.out)
        given = getattr(config, "top_p", ())
        self.masses: tuple[float, ...] = given if isinstance(given, tuple) else (given,)
        check_limits(config, self.masses)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Within, the folder is this run's alone: it is created with its config.yaml, or seen to hold this very run.

        Raises: InputError: it holds another run, other inputs or something else, or another command runs in it.
        """
        with ExitStack() as held:
            parallel.first(lambda: self._open(held))
            yield

    def _open(self, held: ExitStack) -> None:
        check_folder(self.config, self.out)
        inputs = self.inputs()  # what is wrong with these is said before anything is begun
        held.enter_context(alone(self.out, "running in"))
        self._check_inputs(inputs)
        write(self.out / CONFIG, dump(self.config))  # before anything else: a folder without it is no run's
        write(self.out / INPUTS, json.dumps(inputs))
        provenance.remember(self.out, self.config, inputs)

    def _check_inputs(self, inputs: dict[str, str]) -> None:
        record = self.out / INPUTS
        if record.is_file() and json.loads(record.read_text(encoding="utf-8")) != inputs:
            raise InputError(
                f"the prompts, the teacher's files or the student's have changed since {self.out} was begun; what it "
                "holds would not compare: give another --out"
            )

    def inputs(self) -> dict[str, str]:
        """Digests of what a run reads: prompts with what is known about them, and the files of local models."""
        digests = {name: digest(repr(prompts)) for name, prompts in zip(Splits._fields, self.splits, strict=True)}
        for name, place in (("teacher", Path(self.config.teacher)), ("student", self.start_directory)):
            weights = sorted(place.glob("*.safetensors")) if place.is_dir() else []
            digests[name] = digest(repr([(path.name, path.stat().st_size) for path in weights]))
            for path in weights:
                digests[f"{name} {path.name}"] = digest(path.read_bytes())
        if self.config.rules is not None:
            digests["rules"] = digest(self.config.rules.read_bytes())
        if self.stored is not None:
            digests["store"] = digest(json.dumps(self.stored.store.manifest.shards, sort_keys=True))
        if self.extras is not None:
            digests["protected"] = digest_of(self.config, self.extras)
        return digests

    @cached_property
    def share(self) -> Share | None:
        """The path that other machines fill together with this run, if there is one; of a folder that is open."""
        from experiments.share import Share

        return Share.of(self) if getattr(self.config, "share", "") else None

    @cached_property
    def device(self) -> str:
        """Where this process computes. Raises: InputError: a device that is not there."""
        asked = self.config.loading.device
        return f"cuda:{os.environ['LOCAL_RANK']}" if asked == "cuda" and parallel.size() > 1 else asked

    @property
    def reading(self) -> dict[str, Any]:
        """How students are read."""
        names = ("attn_implementation", "trust_remote_code")
        return {name: getattr(self.config, name) for name in names}

    @cached_property
    def teacher(self) -> Teacher:
        """Raises: InputError: no such teacher; or none is wanted and there is no store to learn from."""
        config = self.config
        if config.teacher != ABSENT and config.shard and parallel.size() > 1:  # read on the CPU, each keeps its part
            return spread_teacher(load_teacher(config.teacher, replace(config.loading, device="cpu")), self.device)
        if config.teacher != ABSENT:
            return load_teacher(config.teacher, replace(config.loading, device=self.device))
        if config.store is None:
            raise InputError("--teacher none learns from a store; give it with --store")
        from experiments.store.absent import AbsentTeacher

        return AbsentTeacher(config.store)

    @cached_property
    def stored(self) -> Stored | None:
        """The store to learn from, if there is one.

        Raises: InputError: one that does not fit this run.
        """
        from experiments.store.source import open_store

        config, splits = self.config, self.splits
        if config.store is None:
            return None
        own, held_out = digest_of(config, self.extras), [*splits.validation, *splits.test]
        return open_store(config.store, config, self.masses, self.teacher, held_out, own)

    @cached_property
    def splits(self) -> Splits:
        """Train, validation and test prompts, disjoint.

        Raises: InputError: a broken file, or a prompt that is too long for the teacher or for max_prompt_tokens.
        """
        config = self.config
        if config.prompts is None:
            splits = embedded_splits()
        else:
            splits = split_prompts(
                load_prompts(config.prompts, skip_bad=config.skip_bad, prompt_format=config.prompt_format)
            )
        splits = Splits(splits.train, splits.validation[: config.eval_prompts], splits.test[: config.eval_prompts])
        longest, skip_bad = config.max_prompt_tokens, config.skip_bad
        found = (
            fitting(prompts, self.teacher, longest=longest, skip_bad=skip_bad, what=f"{name} prompt")
            for name, prompts in zip(Splits._fields, splits, strict=True)
        )
        return Splits(*([prompt for prompt, _ in own] for own in found))

    def rule(self, top_p: float) -> Rule:
        """How every arm with this top_p is decoded and measured."""
        return Rule(top_p, self.config.max_candidates, self.config.max_new_tokens, self.extras)

    @cached_property
    def extras(self) -> Extras | None:
        """What joins the nuclei of every arm alike: nothing, or what is protected.

        Raises: InputError: a word that no tokens spell, or more than `max_candidates` holds.
        """
        return fitting_extras(self.config, self.teacher, (prompt for part in self.splits for prompt in part))

    def student(self, seed: int) -> Student:
        """A student as every arm of this seed begins; with a warm-up, which must be over, the one that it kept."""
        if self.config.warm_start:
            record = self.warm_start_record(seed)
            if kept := json.loads(record.read_text(encoding="utf-8"))["kept"]:
                return self.load(record.parent / kept, seed)
        return self.seedling(seed)

    def load(self, directory: Path, seed: int = 0) -> Student:
        """A student that this run has saved; `seed` is that of its adapters, if it is to learn by these."""
        student = Student.load(directory, **self.reading)
        student.tokenizer = student.tokenizer or getattr(self.teacher, "tokenizer", None)
        return self._set_up(student, seed)

    def warm_start_record(self, seed: int) -> Path:
        """What the warm-up of a seed says when it is over; its students lie beside it."""
        return self.out / "shared" / f"warm-start-seed{seed}" / "record.json"

    @property
    def tuned_file(self) -> Path:
        """What a search found, by arm and top_p."""
        return self.out / "shared" / "tuned.json"

    def settings(self, arm: str, top_p: float | None = None) -> dict[str, Any]:
        """Settings of an arm: what the run and the arm say; with `top_p`, what a search found there too."""
        given, file = agent_settings(self.config, arm), self.tuned_file
        if top_p is None or not getattr(self.config, "trials", 0) or not file.is_file():
            return given
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")).get(f"{arm} {top_p:g}", {})
        return given | found

    def seedling(self, seed: int) -> Student:
        """The student of this seed before any warm-up.

        Raises: InputError: no such student, or one with other tokens than the teacher's.
        """
        teacher, spec = self.teacher, self.config.student
        if spec == WARM_START_NAME:
            if self.config.teacher not in ("embedded", ABSENT):  # of an absent one the tokens are compared below
                raise InputError(
                    f"student {WARM_START_NAME!r} is a clone of the embedded teacher, the teacher here is "
                    f"{self.config.teacher!r}; give --student tiny, or a directory of the teacher's family"
                )
            spec = str(WARM_START)
        tokenizer = getattr(teacher, "tokenizer", None)
        student = build_student(spec, tokenizer=tokenizer, vocab_size=teacher.vocab_size, seed=seed, **self.reading)
        return self._set_up(student, seed)

    def _set_up(self, student: Student, seed: int) -> Student:
        """Tell a student how the run computes its scores."""
        config = self.config
        student.head = Head(config.head, config.negatives, config.resting_rows)
        student.micro_batch = config.micro_batch
        student.precision = getattr(torch, config.dtype)
        if config.lora:
            student.model = adapted(student.model, config.lora, seed)
        if config.gradient_checkpointing:
            student.model = recomputing(student.model)
        student.to(self.device)
        if config.shard:
            student.shard()
        return student

    @property
    def start_directory(self) -> Path:
        """Where students start, if that is a directory."""
        return WARM_START if self.config.student == WARM_START_NAME else Path(self.config.student)

    def check_student(self, student: Student) -> None:
        """Raises: InputError: a student that this run would break, or one that has seen prompts it is measured on.

        One that was selected on this run's validation prompts may be selected on them once more, not on those of its
        test: results are measured there.
        """
        refuse_training_prompts(self.start_directory, [*self.splits.validation, *self.splits.test])
        refuse_selection_prompts(self.start_directory, self.splits.test)
        every = [prompt for part in self.splits for prompt in part]
        check_context(student.model, self.config.student, every, self.teacher, self.config.max_new_tokens)
        if 1.0 in self.masses and student.vocab_size < self.teacher.vocab_size:
            raise InputError(
                f"top_p = 1 needs all {self.teacher.vocab_size} output rows of the teacher, student "
                f"{self.config.student!r} has {student.vocab_size}; take top_p below 1, or a size name"
            )

    def remember_prompts(self, directory: Path) -> None:
        """Write beside a student of this run which prompts it has seen, those of its store included."""
        chosen = bool(self.config.warm_start) or getattr(self.config, "trials", 0) > 0
        selected = self.splits.validation if chosen else ()
        more = self.stored.store.prompts if self.stored is not None else ()
        remember(directory, self.start_directory, self.splits.train, selected, more)

    def student_directory(self, cell: Cell) -> Path:
        """Where a cell's student is saved; with several top_p its name says which."""
        short = f"{cell.agent.replace(':', '.')}-seed{cell.seed}"
        return self.out / "students" / (short if len(self.masses) == 1 else cell.name)

    def episodes(self, seed: int, top_p: float) -> Episodes | Stored:
        """The teacher episodes that every arm of a seed learns from, drawn once for all; or those of the store."""
        if self.stored is not None:
            return self.stored
        path = self.out / "shared" / f"episodes-p{top_p:g}-seed{seed}.safetensors"
        self.once(path, lambda: self._walk(seed, top_p).save(path))
        return Episodes.load(path)

    def env(self, rows: int, top_p: float, gamma: float) -> TopPTokenVectorEnv:
        """The environment that episodes of the training prompts are walked in; under rules, if the run has some."""
        config = self.config
        kind, under = (
            (TopPTokenVectorEnv, dict[str, Any]()) if config.rules is None else under_rules(config, self.teacher)
        )
        return kind(
            rows,
            teacher=self.teacher,
            prompts=self.splits.train,
            top_p=top_p,
            max_candidates=config.max_candidates,
            max_new_tokens=config.max_new_tokens,
            reward=config.reward,
            gamma=gamma,
            extras=self.extras,
            **under,
        )

    def _walk(self, seed: int, top_p: float) -> Episodes:
        config = self.config
        env = self.env(min(COLLECT_ROWS, config.episodes), top_p, config.gamma)
        recited = replies_of(self.splits.train, self.teacher) if config.targets == "references" else None
        return collect(env, config.episodes, seed=seed, teacher_walk=config.teacher_walk, recited=recited)

    def exam(self, split: str) -> Exam:
        """The teacher's answers to the prompts of a held-out split, given once for all."""
        path = self.out / "shared" / f"exam-{split}.json"
        prompts = getattr(self.splits, split)

        def make() -> None:
            if self.config.teacher == ABSENT:
                exam = Exam(prompts, [self.teacher.encode(prompt.text) for prompt in prompts], [], [])
            else:
                exam = set_exam(self.teacher, prompts, self.rule(self.masses[0]), self.splits.train)
            names = ("ids", "samples", "greedy", "rare")
            write(path, json.dumps({name: getattr(exam, name) for name in names}))

        self.once(path, make)
        return Exam(prompts, **json.loads(path.read_text(encoding="utf-8")))

    def once(self, path: Path, make: Callable[[], None]) -> None:
        """See that a shared file is there, and make it if not; other processes wait meanwhile, unless this one dies."""

        def look() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.is_file():
                    make() if self.share is None else self.share.once(path, make)

        parallel.first(look)


def cells_of(agents: Sequence[str], seeds: Sequence[int], masses: Sequence[float]) -> list[Cell]:
    """All cells of a matrix; whole seeds come first, so that an unfinished comparison compares."""
    return [Cell(agent, seed, top_p) for seed in seeds for top_p in masses for agent in agents]
