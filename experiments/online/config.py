"""Settings of `tdistill online`, and which of a run's it has no use for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from agents import learner_class
from agents.loop import LoopAgent
from envs.errors import InputError
from experiments.arms import agent_of
from experiments.config import ABSENT, DistillConfig
from experiments.explore.guard import is_loopback

STDIN, HTTP = "stdin", "http"
CHOICES = ("uncertainty", "leak", "drift")
"""How prompts are chosen for the teacher; see `labels.chosen`."""


@dataclass(frozen=True)
class OnlineConfig(DistillConfig):
    """Answer a stream of prompts, ask the teacher about a share of them, learn on, and watch for drift.

    An alarm holds the updates and goes back to the last student that passed the gate; OUT/student is always that one.
    `--episodes` of the teacher on the training prompts stay beside what the stream brings; the gate is tried on the
    validation prompts every `--eval-every` updates.
    """

    stream: str = STDIN
    """Where prompts come from: "stdin" (one a line, or a JSON object with `prompt`), "http", or a folder of .jsonl and
    text files, which are taken in the order of their names."""
    follow: bool = False
    """Of a folder: wait for further files when all are read."""
    host: str = "127.0.0.1"
    """Of http: the address to listen at; the default is this machine alone."""
    port: int = 8017
    """Of http; 0: any that is free."""
    most_prompts: int | None = None
    """Stop behind so many prompts in all; none: when the stream ends."""
    block: int = 16
    """Most prompts that are answered together, between two times of learning."""
    temperature: float = 0.0
    """Of the replies; 0 takes the most probable token."""
    label: float = 0.25
    """Share of the prompts that the teacher is asked about, in [0, 1]."""
    label_by: str = "uncertainty"
    """What the teacher is asked about: "uncertainty" (entropy of the student's reply), "leak" (foreseen from earlier
    labels), "drift" (how unlike the training prompts a prompt is)."""
    watched: float = 0.5
    """Share of the labels whose prompts are drawn instead, in (0, 1]: only these are watched, as chosen ones say
    nothing about the others."""
    updates_per_label: float = 1.0
    """Updates for each label."""
    anchor: float = 0.5
    """Share of a batch that comes from the training prompts, in [0, 1)."""
    memory: int = 2048
    """Labels of the stream that are learnt from, the newest."""
    gate: Path | None = None
    """A YAML file of conditions, as of `tdistill evaluate --gate`; none: KL(T‖S) and leak at most a tenth above, and
    task score at most a tenth below, what the student begins with (OUT/gate.yaml)."""
    watch: bool = True
    """Act on alarms and on the gate; without it they are only noted. A student that diverges goes back all the same."""
    delta: float = 0.05
    """Confidence of ADWIN for each signal, in (0, 1): the smaller, the fewer false alarms and the later true ones."""
    anomalous: float = 0.002
    """A prompt that is more unlike the training prompts than all but this share of them is not learnt from; where they
    are too few for such a share, none is."""
    hold: int = 128
    """Prompts that the updates are held for, again and again until the gate agrees with what came meanwhile."""
    eval_every: int = 50
    """Updates between two trials of the gate."""
    out: Path = Path("runs/online")
    """Folder; the same command goes on where it stopped, and answers what had come in."""


def check(config: OnlineConfig) -> None:
    """Raises: InputError: a setting out of range, or one that learning on line has no use for."""
    _check_shares(config)
    least = {"block": 1, "hold": 1, "memory": 1, "eval_every": 1}
    for name, low in least.items():
        if getattr(config, name) < low:
            raise InputError(f"{name} = {getattr(config, name)} is below {low}")
    if config.most_prompts is not None and config.most_prompts < 1:
        raise InputError(
            f"most_prompts = {config.most_prompts} is below 1; leave it out to go on until the stream ends"
        )
    if config.label_by not in CHOICES:
        raise InputError(f"label_by = {config.label_by!r} is none of {', '.join(CHOICES)}")
    if not 0 <= config.temperature < math.inf:
        raise InputError(f"temperature = {config.temperature} is outside [0, ∞); 0 takes the most probable token")
    if config.teacher == ABSENT:
        raise InputError("learning on line asks the teacher again and again; give it with --teacher")
    unused: dict[str, object] = {"lora": 0, "shard": False, "rules": None, "targets": "teacher", "price": None}
    unused |= {"updates": 300, "budget": "updates", "budget_size": 0.0, "warm_start": "", "warm_start_rounds": 8}
    for name, usual in unused.items():
        if getattr(config, name) != usual:
            raise InputError(f"--{name.replace('_', '-')} is not for learning on line; leave it out")
    if issubclass(learner_class(agent_of(config.agent)), LoopAgent):
        raise InputError(
            f"{config.agent} walks an environment by itself, and a stream is none; take one that learns from given "
            "episodes, as soft_q or bellman_distill"
        )
    _check_stream(config)


def _check_shares(config: OnlineConfig) -> None:
    ends = {
        "label": (config.label, 0 <= config.label <= 1, "[0, 1]"),
        "watched": (config.watched, 0 < config.watched <= 1, "(0, 1]"),
        "anchor": (config.anchor, 0 <= config.anchor < 1, "[0, 1)"),
        "delta": (config.delta, 0 < config.delta < 1, "(0, 1)"),
        "anomalous": (config.anomalous, 0 <= config.anomalous < 1, "[0, 1)"),
        "updates_per_label": (config.updates_per_label, 0 <= config.updates_per_label <= 1000, "[0, 1000]"),
    }
    for name, (value, good, limits) in ends.items():
        if not good:
            raise InputError(f"{name} = {value} is outside {limits}")


def _check_stream(config: OnlineConfig) -> None:
    if config.stream == HTTP:
        if not 0 <= config.port < 2**16:
            raise InputError(f"port = {config.port} is outside [0, 65535]")
        if not config.host:
            raise InputError("--host is empty; 127.0.0.1 is this machine alone")
    elif config.stream != STDIN and not Path(config.stream).is_dir():
        raise InputError(f"--stream {config.stream!r} is neither {STDIN!r}, {HTTP!r} nor a folder that exists")
    if config.follow and config.stream in (STDIN, HTTP):
        raise InputError(f"--follow is of a folder; {config.stream} ends by itself or not at all")
    if config.stream != HTTP and not is_loopback(config.host):
        raise InputError(f"--host {config.host} is of --stream {HTTP}, the stream here is {config.stream!r}")
