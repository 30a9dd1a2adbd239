"""`--dry-run`: what a run will take, from the models' configurations alone; nothing is loaded, drawn or written."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, fields
from typing import Any

import torch

from agents import learner_class
from agents.adapters import adapted
from agents.base import Agent
from agents.student import SIZES, Student, size_config
from envs.errors import InputError
from envs.hf_teacher import load_config
from envs.memory import FLOAT32, GIB, free_memory, outline
from envs.teachers import EMBEDDED, WARM_START
from experiments.arms import agent_of
from experiments.cell import build_agent, trained_once
from experiments.config import ABSENT, WARM_START_NAME, RunConfig
from experiments.flops import of_reading
from experiments.report import aligned
from experiments.workspace import Cell, Workspace

LAYER = 16  # numbers kept of a token and a unit of width in a layer, for the backward pass
INPUT = 1  # where layers are recomputed
PROMPT = 256  # tokens of a prompt where no limit is given
PARTS = ("weights", "gradients", "moments", "copies", "activations")
PROBE = 1024  # rows of the matrices that are multiplied to see how fast this machine is


@dataclass(frozen=True)
class Arm:
    """What one arm takes, in floats and operations."""

    name: str
    learnt: int  # parameters that the optimiser moves
    kept: int  # parameters beside the student: target networks and critics
    activations: int  # floats kept for a backward pass, at most
    operations: float  # of all its updates
    once: bool  # whether one student of a seed is measured at every mass


def plan(config: RunConfig) -> str:
    """Parameters, tokens, steps, memory by part and time of a run, as tables.

    Memory is that of one process of `jobs`; weights, gradients and the two moments of Adam are exact, activations are
    an estimate for the longest texts: 16 numbers a token, layer and unit of width, and three times the logits. Time is
    operations over what a probe of this machine does, which decoding and narrow models do not reach: at least that.
    Searches and warm starts come on top.

    Source: of the 16, Korthikanti et al. (2022), arXiv:2205.05198, section 4.1: 34 bytes of half precision, 2 of them
        dropout's masks, and attention's own matrices left out.
    Raises: InputError: a model or a setting that cannot be used.
    """
    space = Workspace(config)
    teacher = None if config.teacher == ABSENT else _outline(config, config.teacher)
    student = outline_of_student(config, teacher)
    arms = [_arm(space, Cell(agent, 0, space.masses[0]), student) for agent in agents_of(config)]
    frozen, speed = _count(teacher) * getattr(torch, config.loading.dtype).itemsize / FLOAT32, probe()
    seeds, masses = max(getattr(config, "seeds", 1), 1), len(space.masses)
    walked = seeds * (1 if all(arm.once for arm in arms) else masses)
    sizes = [["model", "from", "parameters", "layers", "width", "vocabulary"]]
    sizes += [_size(*row) for row in (("teacher", config.teacher, teacher), ("student", config.student, student.model))]
    lines = [["arm", *PARTS, "in all", "Tflop", "hours"]]
    for arm in arms:
        parts = [_count(student), arm.learnt, 2 * arm.learnt, arm.kept, arm.activations]
        memory = [*parts, sum(parts) + frozen]
        work = arm.operations * seeds * (1 if arm.once else masses)
        lines.append([arm.name, *(f"{part * FLOAT32 / GIB:.3g}" for part in memory)])
        lines[-1] += [f"{work / 1e12:,.1f}", f"{work / speed / 3600:,.2f}"]
    free, tokens = free_memory(), config.episodes * walked * text_limit(config)
    walking = 0.0 if teacher is None or config.store else of_reading(teacher, tokens)
    said = [
        _runs(config, arms, seeds, masses),
        f"memory in GiB of a process, the teacher's {frozen * FLOAT32 / GIB:.3g} in each sum"
        + ("" if free is None else f"; {free / GIB:.1f} are free here"),
        f"the teacher walks at most {tokens:,} tokens, {walking / 1e12:,.1f} Tflop" if walking else "no teacher walks",
        *(["searches (trials) and warm starts come on top"] if _more(config) else []),
        f"hours at the {speed / 1e9:,.0f} Gflop/s of a probe of this machine, one process: at least so many",
        f"texts are taken for {text_limit(config)} tokens long (max_prompt_tokens, or {PROMPT}, and max_new_tokens)",
    ]
    return "\n\n".join([aligned(sizes, markdown=True), aligned(lines, markdown=True), "\n".join(said)])


def _runs(config: RunConfig, arms: list[Arm], seeds: int, masses: int) -> str:
    """How often each arm learns, and for how long."""
    steps = f"of {config.updates:,} optimiser steps on {config.batch_size} episodes each, for every arm"
    once = [arm.name for arm in arms if arm.once] if masses > 1 else []
    but = f"; {seeds} of {', '.join(once)}, whose student of a seed is measured at every top_p" if once else ""
    return f"{seeds * masses} runs {steps}{but}"


def _more(config: RunConfig) -> bool:
    return bool(config.warm_start or getattr(config, "trials", 0))


def agents_of(config: RunConfig) -> list[str]:
    """The arms of a run."""
    return list(getattr(config, "agents", ())) or [str(getattr(config, "agent", ""))]


def text_limit(config: RunConfig) -> int:
    """Tokens of the longest texts."""
    return (config.max_prompt_tokens or PROMPT) + config.max_new_tokens


def _outline(config: RunConfig, spec: str) -> Any:
    """The outline of a teacher or a student by name, directory or hub id.

    Raises: InputError: there is none.
    """
    if spec.startswith("table:"):
        raise InputError(f"{spec!r} is a table of probabilities, which has no size to plan with; give a model")
    source, trust = {"embedded": EMBEDDED, WARM_START_NAME: WARM_START}.get(spec, spec), config.trust_remote_code
    return outline(load_config(source, trust), trust)


def outline_of_student(config: RunConfig, teacher: Any) -> Student:
    """The student with shapes and no weights."""
    if config.student not in SIZES:
        return _adapted(config, Student(_outline(config, config.student)))
    if teacher is None:
        raise InputError(f"a student of size {config.student!r} has the teacher's vocabulary, and there is no teacher")
    rows = teacher.get_output_embeddings().weight.shape[0]
    return _adapted(config, Student(outline(size_config(config.student, None, rows))))


def _adapted(config: RunConfig, student: Student) -> Student:
    if config.lora:
        student.model = adapted(student.model, config.lora)
    return student


def _arm(space: Workspace, cell: Cell, student: Student) -> Arm:
    config, kind = space.config, learner_class(agent_of(cell.agent))
    shape, width = student.model.config.get_text_config(), student.width
    own = learnt = sum(value.numel() for value in student.parameters() if value.requires_grad)
    kept, once = 0, False
    if issubclass(kind, Agent):
        settings = space.settings(cell.agent)
        if "min_mass" in {field.name for field in fields(kind.Config)}:
            settings = {"min_mass": cell.top_p, **settings}
        agent = build_agent(config, cell, copy.deepcopy(student), settings)
        assert isinstance(agent, Agent)
        once = trained_once(config, agent, student)
        moved = {id(value) for value in agent.trainables()}
        learnt = sum(value.numel() for value in agent.trainables())
        others = [module for module in agent.extras().values() if isinstance(module, torch.nn.Module)]
        kept = sum(value.numel() for module in others for value in module.parameters() if id(value) not in moved)
        kept += learnt - own  # critics are beside the student
    at_once = config.micro_batch or config.batch_size
    states = config.batch_size * config.max_new_tokens * student.vocab_size
    kept_of = INPUT if config.gradient_checkpointing else LAYER
    activations = kept_of * at_once * text_limit(config) * shape.num_hidden_layers * width + 3 * states
    tokens = config.updates * config.batch_size * text_limit(config)
    return Arm(cell.agent, learnt, kept, activations, 3 * of_reading(student.model, tokens), once)


def _size(name: str, spec: str, model: Any) -> list[str]:
    if model is None:
        return [name, spec, "", "", "", ""]
    shape, rows = model.config.get_text_config(), model.get_output_embeddings().weight.shape[0]
    own = (_count(model), shape.num_hidden_layers, shape.hidden_size, rows)
    return [name, spec, *(f"{value:,}" for value in own)]


def _count(model: Any) -> int:
    return 0 if model is None else sum(value.numel() for value in model.parameters())


def probe(seconds: float = 0.3) -> float:
    """Operations a second of matrix products in float32, on the threads that are set."""
    one = torch.ones(PROBE, PROBE)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds or not count:
        one @ one
        count += 1
    return 2.0 * PROBE**3 * count / (time.perf_counter() - begin)
