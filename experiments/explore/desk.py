"""`tdistill explore`: its settings, and the teacher and students that lie on the desk."""

from __future__ import annotations

import difflib
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from agents.student import SIZES, Student, build_student
from envs.errors import InputError
from envs.exact import Solution, solve
from envs.prompts import embedded_prompts, load_prompts
from envs.sequences import context_limit_of
from envs.table_teacher import TABLES, TableTeacher
from envs.teachers import WARM_START, Teacher, load_teacher
from experiments.config import WARM_START_NAME, LoadConfig
from experiments.explore.returns import Outlook, Walks, outlook, walks_from
from experiments.explore.views import Pupil, end_of
from experiments.explore.walk import Settings, Walk

KEPT = 256  # sets of walks that are remembered
SAMPLES = 24  # prompts to pick from
MOST_STUDENTS = 6  # as many as the page has colours for


@dataclass(frozen=True)
class ExploreConfig(LoadConfig):
    """Walk the token MDP of a teacher in a page on this machine: candidates to click, and what students make of them.

    Needs the extra `explore`. Nothing is asked of a network; Ctrl-C ends it.
    """

    teacher: str = "embedded"
    """"embedded", "table:NAME", a directory, or a hub id."""
    students: tuple[str, ...] = ()
    """Directories, hub ids, sizes or "warm-start"; none: the warm start of the embedded teacher."""
    folder: Path = Path()
    """Students that are put beside in the page lie below it, or are sizes; the usual one is where the command runs."""
    prompts: Path | None = None
    """A .jsonl or text file to pick prompts from; none: the embedded test split, or the texts of a table."""
    prompt_format: str = "prompt"
    """What its records are: prompt, dolly, selfinst or vicuna."""
    top_p: float = 0.9
    """Mass of the candidate sets as the page opens."""
    temperature: float = 1.0
    """α as the page opens: entropy temperature of values, and what replies are drawn at."""
    gamma: float = 1.0
    """Discount as the page opens."""
    max_candidates: int = 64
    max_new_tokens: int = 64
    """Token budget of a reply; it truncates."""
    walks: int = 32
    """Walks of the teacher that the soft-optimal return of a state is estimated from."""
    seed: int = 0
    host: str = "127.0.0.1"
    """Where the page is served; the usual one is seen by this machine alone."""
    port: int = 7860
    """0: any that is free."""


class Desk:
    """A teacher with its students.

    Raises: InputError: a setting out of range, a model that cannot be loaded, or other tokens than the teacher's.
    """

    def __init__(self, config: ExploreConfig) -> None:
        self.config = config
        if config.walks < 2:
            raise InputError(f"walks = {config.walks} is below 2; 32 is a usual number")
        if not 0 <= config.port <= 65535:
            raise InputError(f"port = {config.port} is outside 0 to 65535; 0 takes any that is free")
        self.settings = Settings(
            config.top_p, config.temperature, config.gamma, config.max_new_tokens, config.max_candidates
        )
        self.teacher: Teacher = load_teacher(config.teacher, config.loading)
        self.pupils: list[Pupil] = []
        self.lock = threading.Lock()  # models and what is remembered are shared by all pages
        self._walks: OrderedDict[tuple[Any, ...], Walks] = OrderedDict()
        self._exact: OrderedDict[tuple[float, float, float], Solution] = OrderedDict()
        usual = (WARM_START_NAME,) if config.teacher == "embedded" else ()
        for spec in config.students or usual:
            self.add_student(spec)
        self.samples = self._samples()
        self.exact(self.settings)

    @property
    def table(self) -> TableTeacher | None:
        """The teacher, if it is a table that `table:NAME` names."""
        named = isinstance(self.teacher, TableTeacher) and self.teacher.name in TABLES
        return self.teacher if named and isinstance(self.teacher, TableTeacher) else None

    def admit(self, spec: str) -> None:
        """Put a student beside that the page names: a page is not to read what it was not given, nor ask a hub.

        Raises: InputError: no size, and no directory below `folder`; and as `add_student`.
        """
        if len(self.pupils) >= MOST_STUDENTS:
            raise InputError(f"{MOST_STUDENTS} students lie here already, as many as can be told apart; start anew")
        spec = spec.strip()
        if spec and spec not in (*SIZES, WARM_START_NAME):
            root, path = self.config.folder.resolve(), (self.config.folder / spec).resolve()
            if not path.is_dir() or not path.is_relative_to(root):
                near = difflib.get_close_matches(spec, SIZES, 1)
                hint = f" (did you mean {near[0]}?)" if near else ""
                raise InputError(
                    f"student {spec!r} is no directory below {root} and none of {', '.join(SIZES)}{hint}; start "
                    "with --folder DIR for others below DIR, or with --students for any, the hub's too"
                )
            spec = str(path)
        self.add_student(spec)

    def add_student(self, spec: str) -> None:
        """Put one more student on the desk.

        Raises: InputError: no such student, one that is there, or one with other tokens than the teacher's.
        """
        spec = spec.strip()
        if not spec:
            raise InputError("no student was named; give a directory or a size such as tiny")
        name = Path(spec).name or spec
        if any(pupil.name in (name, spec) for pupil in self.pupils):
            name = spec
        if any(pupil.name == name for pupil in self.pupils):
            raise InputError(f"student {spec!r} is here already; give another one")
        where = str(WARM_START) if spec == WARM_START_NAME else spec
        tokenizer = getattr(self.teacher, "tokenizer", None)
        options = {key: getattr(self.config, key) for key in ("attn_implementation", "trust_remote_code")}
        student = build_student(where, tokenizer=tokenizer, vocab_size=self.teacher.vocab_size, **options)
        student.to(self.config.device)
        self.pupils.append(Pupil(name, student, bool(student.value_head.weight.any())))
        limits = [context_limit_of(one.model.model) for one in self.pupils if isinstance(one.model, Student)]
        self.settings = replace(self.settings, context_limit=min([1_000_000, *limits]))

    def begin(self, text: str) -> Walk:
        """A walk from a prompt.

        Raises: InputError: an empty prompt, one that the teacher cannot read, or one that leaves no room for a reply.
        """
        if not text.strip():
            raise InputError("the prompt is empty; write a text, or pick one of the samples")
        ids = self.teacher.encode(text)
        limit = min(self.teacher.context_limit, self.settings.context_limit) - 1
        if len(ids) > limit:
            raise InputError(f"the prompt has {len(ids):,} tokens, {limit:,} is the most that is read here; shorten it")
        return Walk(tuple(ids))

    def recite(self, walk: Walk, reply: str) -> Walk:
        """Walk along a given reply, and end it if there is room for EOS.

        Raises: InputError: a reply that is longer than the budget.
        """
        tokens = self.reply_ids(reply)
        if len(tokens) > self.settings.max_new_tokens:
            raise InputError(
                f"the reply has {len(tokens)} tokens, the budget is {self.settings.max_new_tokens}; "
                "raise --max-new-tokens"
            )
        return walk.follow(tuple(tokens))

    def reply_ids(self, reply: str) -> list[int]:
        """The tokens of a reply, without what a tokenizer adds to a prompt."""
        tokenizer = getattr(self.teacher, "tokenizer", None)
        if tokenizer is None:
            return self.teacher.encode(reply) if reply.strip() else []
        found: list[int] = tokenizer(reply, add_special_tokens=False)["input_ids"]
        return found

    def check_tokens(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Raises: InputError: no tokens of the teacher, more than the budget, or some behind EOS."""
        for place, token in enumerate(tokens):
            if not 0 <= token < self.teacher.vocab_size:
                raise InputError(
                    f"token {token} is not of this teacher, whose vocabulary has {self.teacher.vocab_size}"
                )
            if token in self.teacher.eos_ids and place < len(tokens) - 1:
                raise InputError(f"the reply goes on behind token {token}, which ends it; leave the rest out")
        if len(tokens) > self.settings.max_new_tokens:
            raise InputError(f"the reply has {len(tokens)} tokens, the budget is {self.settings.max_new_tokens}")
        return tuple(tokens)

    def exact(self, settings: Settings) -> Solution | None:
        """Q* and V* of a table teacher, at an unlimited horizon; None of another teacher.

        Raises: InputError: values that do not exist, at γ = 1 where texts may never end inside the sets.
        """
        if self.table is None:
            return None
        key = (settings.top_p, settings.alpha, settings.gamma)
        if key not in self._exact:
            p, alpha, gamma = key
            _keep(self._exact, key, solve(self.table, "soft", top_p=p, gamma=gamma, alpha=alpha))
        return self._exact[key]

    def known_outlook(self, walk: Walk, settings: Settings) -> Outlook | None:
        """What soft-optimal walking is worth from where a walk stands; None as long as it has not been looked into."""
        found = self._walks.get(self._key(walk, settings))
        return None if found is None else outlook(found, settings.alpha, settings.gamma)

    def look_ahead(self, walk: Walk, settings: Settings) -> None:
        """Let the teacher walk on from there, so that `known_outlook` knows."""
        key, reply = self._key(walk, settings), walk.reply()
        if key in self._walks or end_of(self.teacher, walk.prompt, reply, settings):
            return
        left = settings.max_new_tokens - len(reply)
        with torch.no_grad():
            found = walks_from(
                self.teacher, [*walk.prompt, *reply], left, settings, self.config.walks, self.config.seed
            )
        _keep(self._walks, key, found)

    def _key(self, walk: Walk, settings: Settings) -> tuple[Any, ...]:
        return (*walk.prompt, -1, *walk.reply(), -1, settings.top_p, settings.alpha, settings.max_candidates)

    def _samples(self) -> list[str]:
        config = self.config
        if config.prompts is not None:
            prompts = load_prompts(config.prompts, prompt_format=config.prompt_format)
            return [prompt.text for prompt in prompts[:SAMPLES]]
        if self.table is not None:
            return [str(token) for token in range(1, self.table.vocab_size)]
        return [prompt.text for prompt in embedded_prompts("test", SAMPLES)]


def _keep(found: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    found[key] = value
    while len(found) > KEPT:
        found.popitem(last=False)


def is_number(value: object) -> bool:
    """Whether a value that came from a page is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
