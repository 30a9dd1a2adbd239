"""Replies of a teacher behind HTTP, one request at a time and several, against its own walk in this process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tqdm import tqdm

from envs.candidates import check_top_p
from envs.errors import InputError
from envs.prompts import embedded_prompts
from envs.served_teacher import ServedTeacher
from envs.serving import Serving
from envs.teachers import EMBEDDED, load_teacher
from envs.vector_env import TopPTokenVectorEnv
from experiments.bench.env import Figure
from experiments.bench.loopback import Loopback
from experiments.bench.timing import race
from experiments.collect import collect
from experiments.store.served import ask, episodes_of, journal

LOCAL = "in the process"


@dataclass(frozen=True)
class BenchServedConfig:
    """Time replies of the embedded teacher over HTTP on the loopback against its own walk, and count the requests.

    Server and client share this machine; the server continues as many texts together as there are requests in flight.
    """

    concurrency: tuple[int, ...] = (1, 16)
    """Requests in flight, and texts that walk together in the process."""
    episodes: int = 32
    """Replies of a round."""
    max_new_tokens: int = 48
    top_p: float = 0.9
    logprobs: int = 20
    repeats: int = 5
    """Rounds that count; one more warms up."""
    threads: int | None = 1
    """CPU threads; none: as many as torch takes."""
    json: Path | None = None
    """Write the figures to this file too."""

    def __post_init__(self) -> None:
        counts = {"episodes": self.episodes, "max_new_tokens": self.max_new_tokens, "repeats": self.repeats}
        counts |= {f"concurrency {number}": number for number in self.concurrency}
        counts |= {"logprobs": self.logprobs, "threads": 1 if self.threads is None else self.threads}
        for name, value in counts.items():
            if value < 1:
                raise InputError(f"{name} = {value} is below 1")
        if not self.concurrency:
            raise InputError("concurrency names no number; give some, as in --concurrency 1 16")
        check_top_p(self.top_p, self.logprobs)
        if self.top_p == 1.0:
            raise InputError("top_p = 1 wants whole vocabularies, which a server does not return; lower top_p")


def run(config: BenchServedConfig) -> list[Figure]:
    """Figures of every arm: episodes and requests per second, and tokens of a request."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    local = load_teacher("embedded")
    texts = [local.encode(prompt.text) for prompt in embedded_prompts("train", config.episodes)]
    requests: dict[str, list[int]] = {}
    with ExitStack() as held:
        folder = Path(held.enter_context(TemporaryDirectory()))
        arms: dict[str, Callable[[int], int]] = {}
        for rows in config.concurrency:
            server = held.enter_context(Loopback(local, rows=rows))
            teacher = ServedTeacher(server.url, EMBEDDED, Serving(concurrency=rows, logprobs=config.logprobs))
            name = f"served, {rows} at a time"
            requests[name] = []
            arms[f"{LOCAL}, {rows} at a time"] = _local(config, texts, rows)
            arms[name] = _served(config, teacher, texts, folder, requests[name])
        with tqdm(total=len(arms) * (config.repeats + 1), desc="bench served", unit="run") as bar:
            found = race(arms, config.repeats, bar)
    figures: list[Figure] = []
    for name in arms:
        figures.append({"name": "episodes_per_second", "arm": name, **found.rate(name)})
        asked = requests.get(name)
        if asked:
            each = sum(asked) / len(asked) / config.episodes
            figures.append({"name": "requests_per_episode", "arm": name, "value": each})
    for rows in config.concurrency:
        pair = (f"served, {rows} at a time", f"{LOCAL}, {rows} at a time")
        figures.append({"name": "served_over_local", "arm": pair[0], **found.ratio(*pair)})
    return figures


def _local(config: BenchServedConfig, texts: list[list[int]], rows: int) -> Callable[[int], int]:
    own: dict[str, Any] = {"teacher": "embedded", "prompts": texts, "top_p": config.top_p}

    def arm(turn: int) -> int:
        env = TopPTokenVectorEnv(min(rows, len(texts)), max_new_tokens=config.max_new_tokens, **own)
        return len(collect(env, len(texts), seed=turn))

    return arm


def _served(
    config: BenchServedConfig, teacher: ServedTeacher, texts: list[list[int]], folder: Path, requests: list[int]
) -> Callable[[int], int]:
    def arm(turn: int) -> int:
        path = folder / f"{teacher.serving.concurrency}-{turn}"
        teacher.client.record(lambda spent: None)  # the handshake's, and what a round before left
        with journal(teacher, path) as own:
            replies = ask(teacher, texts, config.max_new_tokens, turn, own)
            found = episodes_of(teacher, texts, replies, config.top_p, 64, "logprob", 1.0)
            requests.append(own.spent["requests"])
        return len(found)

    return arm
