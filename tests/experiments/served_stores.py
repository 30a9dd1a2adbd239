"""Stores of the table teacher behind the loopback server, and what happens to it meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from agents.episodes import Episodes
from envs.serving import Serving
from experiments.bench.loopback import Answer, Loopback
from experiments.store.draw import CollectConfig
from experiments.store.shards import Store
from tests.envs.served import QUICK, is_greeting, numbers
from tests.experiments.runs import prompts_file


def config(folder: Path, server: Loopback, serving: dict[str, Any] | None = None, **changes: Any) -> CollectConfig:
    if not (folder / "tokenizer").is_dir():
        numbers(folder / "tokenizer")
    own = CollectConfig(
        folder / "store",
        teacher=f"served:{server.url}",
        teacher_tokenizer=str(folder / "tokenizer"),
        served=Serving(**QUICK | (serving or {})),
        prompts=prompts_file(folder),
        prompt_split="all",
        top_p=0.8,
        max_new_tokens=6,
        shard=5,
        logp="float32",
    )
    return replace(own, **changes)


def stored(own: CollectConfig) -> Episodes:
    store = Store(own.out)
    return store.select(range(len(store)))


def same(ours: Episodes, theirs: Episodes, near: float = 0.0) -> None:
    for name, value in theirs.fields().items():
        torch.testing.assert_close(
            ours.fields()[name], value, atol=near, rtol=0, msg=lambda text, name=name: name + text
        )


def faulty(fault: Callable[[Answer], Answer], when: Callable[[int], bool]) -> Callable[..., Answer]:
    """A hook of the loopback server: the fault, at these of the requests that draw replies."""
    drawn: list[int] = []

    def hook(number: int, body: dict[str, Any], answer: Callable[[], Answer]) -> Answer:
        if is_greeting(body):
            return answer()
        drawn.append(number)
        return fault(answer()) if when(len(drawn) - 1) else answer()

    return hook


def asked(server: Loopback) -> list[tuple[Any, Any]]:
    return [(tuple(body["prompt"]), body["seed"]) for body in server.seen if not is_greeting(body)]


def nan(answer: Answer) -> Answer:
    answer.body["choices"][0]["logprobs"]["token_logprobs"][0] = float("nan")
    return answer


def mute(answer: Answer) -> Answer:
    answer.body["choices"][0].pop("logprobs")
    return answer
