"""A store of a served teacher goes on behind what was kept, with the same teacher and settings only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from envs.errors import InputError, UnavailableError
from experiments.bench.loopback import Answer, Habits
from experiments.store.draw import draw
from tests.envs.served import is_greeting, loopback
from tests.experiments.served_stores import asked, config, mute, nan, same, stored

ENDLESS = Habits("strings", tells_endings=False)
"""llama-cpp-python's."""


def test_an_end_behind_the_budget_is_no_step(tmp_path: Path) -> None:
    """Drawn as token budget + 1 and left out by the server, it belongs to the state that was cut."""
    with loopback(habits=ENDLESS) as server, loopback() as plain:
        own = config(tmp_path, server, max_new_tokens=2, responses=4)
        other = config(tmp_path, plain, out=tmp_path / "other", max_new_tokens=2, responses=4)
        draw(own)
        draw(other)
    same(stored(own), stored(other), near=1e-6)
    assert int(stored(own).length.max()) == 2


def test_a_reply_is_kept_before_its_end_is_asked_for(tmp_path: Path) -> None:
    down = [True]

    def hook(number: int, body: dict[str, Any], answer: Callable[[], Answer]) -> Answer:
        return Answer(500, b"oh") if down[0] and body.get("echo") and not is_greeting(body) else answer()

    with loopback(habits=ENDLESS, fault=hook) as server, loopback() as plain:
        own = config(tmp_path, server)
        with pytest.raises(UnavailableError, match="what was drawn is kept"):
            draw(own)
        down[0] = False
        draw(own)
        drawn = [body["seed"] for body in server.seen if "seed" in body and not is_greeting(body)]
        assert len(drawn) == len(set(drawn)) == 14, "no reply is paid for twice"
        other = config(tmp_path, plain, out=tmp_path / "other")
        draw(other)
    same(stored(own), stored(other), near=1e-6)


def test_a_server_that_was_started_again_is_the_same_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another path, with another context: what it says of the weights tells teachers apart."""
    told: dict[str, Any] = {"id": "toy", "root": "/mnt/a", "max_model_len": 64, "meta": {"n_params": 36, "n_ctx": 64}}
    with loopback() as server:
        monkeypatch.setattr(server, "models", partial(Answer, body={"data": [told]}))
        own = config(tmp_path, server)
        draw(own)
    told |= {"root": "/mnt/b", "max_model_len": 32, "owned_by": "others", "meta": {"n_params": 36, "n_ctx": 32}}
    with loopback() as server:
        monkeypatch.setattr(server, "models", partial(Answer, body={"data": [told]}))
        again = replace(own, teacher=f"served:{server.url}")
        draw(again)
        assert not asked(server)
        told["meta"]["n_params"] = 37
        with pytest.raises(InputError, match="another teacher: its weights is"):
            draw(again)


def test_a_store_goes_on_with_the_same_fields_only(tmp_path: Path) -> None:
    with loopback() as server:
        own = config(tmp_path, server, {"extra": '{"user": "me", "priority": 1}'})
        draw(own)
        draw(replace(own, served=replace(own.served, extra='{"priority":1,"user":"me"}')))
        with pytest.raises(InputError, match=r"served\.extra = {'user': 'me', 'priority': 1}, this one has {}"):
            draw(replace(own, served=replace(own.served, extra="")))


def test_a_reply_that_cannot_be_read_is_given_up_for_one_of_another_seed(tmp_path: Path) -> None:
    """Unreadable in every attempt, from the first seed of one prompt only, and then from all of its seeds."""
    first, always = list[int](), [False]

    def hook(number: int, body: dict[str, Any], answer: Callable[[], Answer]) -> Answer:
        if is_greeting(body) or body["prompt"] != [3]:
            return answer()
        first.append(body["seed"])
        return nan(answer()) if always[0] or body["seed"] == first[0] else answer()

    with loopback(fault=hook) as server:
        own = config(tmp_path, server)
        assert draw(own)["unread_replies"] == 1 and len(first) == 3 + 1 and len(set(first)) == 2
        always[0], other = True, config(tmp_path, server, out=tmp_path / "other")
        first.clear()
        with pytest.raises(UnavailableError, match="its answer is of no use"):
            draw(other)
        assert len(first) == 3 * 3 and len(set(first)) == 3
        always[0] = False
        assert draw(other)["unread_replies"] == 3 and len(first) == 9 + 1 and len(set(first)) == 4
    ours, theirs = stored(own), stored(other)
    rest = [row for row in range(14) if row != 2]
    same(ours.select(rest), theirs.select(rest))


def test_a_reply_whose_end_cannot_be_read_is_given_up_too(tmp_path: Path) -> None:
    """It is kept by then, and would be what every later command asks for the end of."""
    unread = list[list[int]]()

    def hook(number: int, body: dict[str, Any], answer: Callable[[], Answer]) -> Answer:
        if is_greeting(body) or not body.get("echo") or (unread and body["prompt"] != unread[0]):
            return answer()
        unread.append(body["prompt"])
        return mute(answer())

    with loopback(habits=ENDLESS, fault=hook) as server:
        own = config(tmp_path, server, {"concurrency": 1})
        assert draw(own)["unread_replies"] >= 1 and len(unread) >= 3
    assert stored(own).length.shape == (14,)
