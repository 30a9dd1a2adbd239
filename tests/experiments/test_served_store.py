"""A store of a served teacher: the local teacher's episodes, every token paid for once, through every fault."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.episodes import Episodes
from envs.errors import InputError, UnavailableError
from envs.served_http import Spent
from envs.served_protocol import Reply, Row
from envs.table_teacher import TABLES
from envs.vector_env import TopPTokenVectorEnv
from experiments.__main__ import main
from experiments.bench.loopback import Answer, Habits
from experiments.bench.served import BenchServedConfig
from experiments.collect import collect, numbers_of
from experiments.store import served as asking
from experiments.store.columns import Format
from experiments.store.draw import draw
from experiments.store.served import Journal, portions
from experiments.store.shards import Manifest, write_shard
from tests.envs.served import broken, is_greeting, loopback, numbers, served
from tests.experiments.runs import prompts_file
from tests.experiments.served_stores import asked, config, faulty, mute, nan, same, stored

TEXTS = [[1], [2, 3], [5, 1, 4], [3], [2, 3], [4, 4]]
ORDER = np.argsort([TEXTS.index(text) for text in TEXTS], kind="stable").tolist()
"""Replies to equal prompts together."""
BUDGET = 3


def recited(replies: list[Reply], reward: str = "logprob", gamma: float = 1.0) -> Episodes:
    """What the environment over the local teacher makes of the same replies."""
    said: dict[tuple[int, ...], list[list[int]]] = {}
    for text, reply in zip(TEXTS, replies, strict=True):
        said.setdefault(tuple(text), []).append(reply.tokens)
    env = TopPTokenVectorEnv(
        3, teacher="table:toy", prompts=TEXTS, top_p=0.8, max_new_tokens=BUDGET, reward=reward, gamma=gamma
    )
    found = collect(env, len(TEXTS), seed=0, recited=said)
    order = np.argsort(numbers_of(found, TEXTS), kind="stable").tolist()
    return found.select(order)


@pytest.mark.parametrize(
    ("reward", "gamma"), [("logprob", 1.0), ("topp_logprob", 1.0), ("induced_soft", 0.5), ("sqil", 1.0)]
)
def test_replies_become_the_local_teachers_episodes(tmp_path: Path, reward: str, gamma: float) -> None:
    """All six tokens come back: sets, log-probabilities, rewards, ends and cuts are those of the local teacher."""
    with loopback() as server, asking.journal(served(server, tmp_path), tmp_path / "journal") as own:
        teacher = served(server, tmp_path)
        replies = asking.ask(teacher, TEXTS, BUDGET, 4, own)
        ours = asking.episodes_of(teacher, TEXTS, replies, 0.8, 64, reward, gamma)
    assert ours.terminated.any() and (~ours.terminated).any() and (~ours.in_set & ours.steps).any()
    same(ours.select(ORDER), recited(replies, reward, gamma), near=1e-6)


def test_two_log_probabilities_make_shorter_sets_and_a_token_beside_them_is_outside(tmp_path: Path) -> None:
    """The token taken comes back too, third: it is paid, and no candidate."""
    with loopback() as server, asking.journal(served(server, tmp_path), tmp_path / "journal") as own:
        teacher = served(server, tmp_path, logprobs=2)
        replies = asking.ask(teacher, TEXTS, BUDGET, 4, own)
        ours = asking.episodes_of(teacher, TEXTS, replies, 0.8, 64, "logprob", 1.0)
    local = recited(replies)
    ours = ours.select(ORDER)
    assert ours.ids.shape[-1] == 2
    torch.testing.assert_close(ours.ids, torch.where(local.mask, local.ids, 0)[..., :2])
    torch.testing.assert_close(ours.teacher_logp_taken, local.teacher_logp_taken, atol=1e-6, rtol=0)
    beyond = local.slots >= 2
    assert bool(beyond.any()) and bool((ours.slots[beyond] == -1).all())
    line = asking.line_of(ours, 0.8, {})
    mass = ours.log_mass[ours.states].exp()
    assert line["short_states"] == int((mass < 0.8).sum()) > 0
    assert line["lost_mass"] == pytest.approx(float((1 - mass).sum()), abs=1e-5)


MANNERS = {
    "vllm": (Habits("ids"), 0),
    "llama.cpp": (Habits("objects", echoes=False), 1),  # the echo
    "openai": (Habits("strings", strict=True, texts_only=True), 9),  # ids, and fields that it does not have
    "llama-cpp-python": (Habits("strings", tells_endings=False), 0),
}


@pytest.mark.parametrize("name", MANNERS)
def test_the_store_and_its_cost_whatever_the_servers_manners(tmp_path: Path, name: str) -> None:
    """The same episodes, and every request and token counted as the server counts it."""
    habits, refused = MANNERS[name]
    with loopback(habits=habits) as server:
        own = config(tmp_path, server, {"price_prompt": 2.0, "price_completion": 6.0})
        found = draw(own)
        assert [found["prompt_tokens"], found["completion_tokens"]] == server.spent
        assert found["requests"] == len(server.seen) + 1 and found["failed_requests"] == refused  # and /models
        assert found["cost"] == pytest.approx((2 * server.spent[0] + 6 * server.spent[1]) / 1e6)
        assert found["episodes"] == 14 and not list(own.out.glob("asked-*"))
    with loopback() as plain:
        other = config(tmp_path, plain, out=tmp_path / "other")
        draw(other)
    same(stored(own), stored(other), near=1e-6)
    teachers = [Manifest.read(each.out).teacher for each in (own, other)]
    assert teachers[0] == teachers[1] and teachers[0]["weights"].startswith("served-")


def test_a_store_of_the_local_teacher_is_the_same_file(tmp_path: Path) -> None:
    """Same replies, six tokens of six: what is learnt from it cannot differ."""
    with loopback() as server:
        own = config(tmp_path, server, shard=50)
        draw(own)
    ours = stored(own)
    env = TopPTokenVectorEnv(4, teacher=TABLES["toy"](), prompts=texts_of(ours), top_p=0.8, max_new_tokens=6)
    said = {tuple(text): [reply] for text, reply in zip(texts_of(ours), replies_of(ours), strict=True)}
    local = collect(env, len(ours), seed=0, recited=said)
    local = local.select(np.argsort(numbers_of(local, texts_of(ours)), kind="stable").tolist())
    line = write_shard(tmp_path / "local.arrow", local, Format(6, "float32"))
    mine = next(iter(Manifest.read(own.out).shards.values()))
    assert line["tokens"] == mine["tokens"] and line["bytes"] == mine["bytes"]
    same(ours, local, near=1e-6)


def texts_of(episodes: Episodes) -> list[list[int]]:
    return [row[:size].tolist() for row, size in zip(episodes.tokens, episodes.prompt_length.tolist(), strict=True)]


def replies_of(episodes: Episodes) -> list[list[int]]:
    ends = zip(episodes.prompt_length.tolist(), episodes.length.tolist(), strict=True)
    return [row[start : start + size].tolist() for row, (start, size) in zip(episodes.tokens, ends, strict=True)]


def late(answer: Answer) -> Answer:
    time.sleep(1.5)
    return answer


FAULTS: dict[str, Callable[[Answer], Answer]] = {
    "429": lambda answer: Answer(429, {"error": "busy"}, {"Retry-After": "0.05"}),
    "500": lambda answer: Answer(500, b"oh"),
    "503": lambda answer: Answer(503, {"error": {"message": "loading"}}),
    "cut": lambda answer: Answer(200, answer.body, cut=True),
    "malformed": broken,
    "nan": nan,
    "no log-probabilities": mute,
    "slow": late,
}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[Episodes, dict[str, float]]:
    with loopback() as server:
        own = config(tmp_path_factory.mktemp("clean"), server)
        found = draw(own)
    return stored(own), found


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_costs_a_request_and_nothing_else(
    tmp_path: Path, name: str, clean: tuple[Episodes, dict[str, float]]
) -> None:
    with loopback(fault=faulty(FAULTS[name], lambda number: number in (2, 7))) as server:
        own = config(tmp_path, server, {"timeout": 1.0} if name == "slow" else None)
        found = draw(own)
    episodes, wanted = clean
    same(stored(own), episodes)
    assert found["failed_requests"] == 2 and found["requests"] == wanted["requests"] + 2
    read = name in ("nan", "no log-probabilities")  # their usage could be read, and will be on the bill
    assert (found["completion_tokens"] > wanted["completion_tokens"]) == read


@pytest.mark.parametrize("name", ["500", "malformed"])
def test_a_server_that_fails_for_good_ends_the_command_and_loses_nothing(
    tmp_path: Path, name: str, clean: tuple[Episodes, dict[str, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    down = [True]
    with loopback(fault=faulty(FAULTS[name], lambda number: down[0] and number >= 7)) as server:
        own = config(tmp_path, server)
        with pytest.raises(UnavailableError, match=r"failed 3 times.*what was drawn is kept"):
            draw(own)
        failed = len(asked(server)) - 7
        before = asked(server)[:7]
        down[0] = False
        found = draw(own)
        again = asked(server)[7 + failed :]
    assert not set(before) & set(again) and len(again) == 7
    same(stored(own), clean[0])
    assert found["requests"] == len(server.seen) + 2 and found["failed_requests"] == failed


def test_a_wrong_token_ends_it_at_once(tmp_path: Path) -> None:
    def wrong(answer: Answer) -> Answer:
        answer.body["choices"][0]["logprobs"]["tokens"][0] = "thé"
        return answer

    with loopback(fault=faulty(wrong, lambda number: number == 3)) as server:
        own = config(tmp_path, server)
        with pytest.raises(InputError, match="its token 'thé' is none of the tokenizer's 6"):
            draw(own)
        draw(own)


def fewer(answer: Answer) -> Answer:
    tops = answer.body["choices"][0]["logprobs"]["top_logprobs"]
    for place, top in enumerate(tops):
        tops[place] = top and dict(sorted(top.items(), key=lambda item: -item[1])[:2])
    return answer


def test_a_server_that_gives_fewer_than_asked_is_seen_at_once(tmp_path: Path) -> None:
    """It gives two: the sets are those of a server that was asked for two."""
    numbers(tmp_path / "tokenizer", 4)
    prompts = tmp_path / "few.txt"
    prompts.write_text("1\n2\n3\n1 2")
    with loopback("detour", fault=lambda number, body, answer: fewer(answer())) as server:
        own = replace(config(tmp_path, server), prompts=prompts)
        with pytest.warns(UserWarning, match="the 2 most probable tokens where 20 were asked for"):
            found = draw(own)
    with loopback("detour") as server:
        other = replace(config(tmp_path, server, {"logprobs": 2}), prompts=prompts, out=tmp_path / "other")
        assert found["states_short_of_top_p"] == draw(other)["states_short_of_top_p"] > 0.1
    same(stored(own), stored(other))


def test_a_server_that_gives_fewer_now_and_then_is_asked_again(tmp_path: Path) -> None:
    numbers(tmp_path / "tokenizer", 4)
    prompts = tmp_path / "few.txt"
    prompts.write_text("1\n2\n3\n1 2")
    with loopback("detour", fault=faulty(fewer, lambda number: number == 1)) as server:
        found = draw(replace(config(tmp_path, server, {"concurrency": 1}), prompts=prompts))
    assert found["failed_requests"] == 1 and found["episodes"] == 4


def test_prompt_lists_and_equal_prompts(tmp_path: Path) -> None:
    """Prompts with equal room go together; no seed is sent with several, it could be given to all of them alike."""
    assert list(portions([0, 1, 2, 3, 4], [6, 6, 5, 6, 5], 2)) == [[0, 1], [2, 4], [3]]
    with loopback() as server:
        own = config(tmp_path, server, {"batch": 3}, responses=2)
        found = draw(own)
        lists = [body for body in server.seen if not is_greeting(body)]
        assert found["episodes"] == 28 and [found["prompt_tokens"], found["completion_tokens"]] == server.spent
    assert max(len(body["prompt"]) for body in lists) == 3 and not any("seed" in body for body in lists)
    with loopback() as server:
        single = config(tmp_path, server, out=tmp_path / "single", responses=2)
        draw(single)
        seeds = [body["seed"] for body in server.seen if not is_greeting(body)]
    assert len(set(seeds)) == 28


def test_a_journal_cut_in_the_middle_of_a_line(tmp_path: Path) -> None:
    path, reply = (
        tmp_path / "journal",
        Reply([3, 0], [-0.5, -0.25], [Row([3], [-0.5]), Row([0, 1], [-0.25, -2.0])], "stop"),
    )
    journal = Journal(path)
    journal.spend(Spent(False, 3, 2))
    journal.keep(4, reply)
    journal.spend(Spent(True, 0, 0))
    journal.give_up(6)
    journal.give_up(6)
    journal.close()
    path.write_bytes(path.read_bytes() + b'{"reply": 5, "tok')
    again = Journal(path)
    assert again.replies == {4: reply} and again.unread == {6: 2}
    unread = {"unread_replies": 2}
    assert again.spent == {"requests": 2, "failed_requests": 1, "prompt_tokens": 3, "completion_tokens": 2} | unread
    again.keep(5, reply)
    again.close()
    assert Journal(path).replies == {4: reply, 5: reply}


def test_settings_that_do_not_go_together(tmp_path: Path) -> None:
    with loopback() as server:
        own = config(tmp_path, server)
        for changes, said in (
            ({"teacher_tokenizer": None}, "--teacher-tokenizer DIR"),
            ({"top_p": 1.0}, "whole vocabularies"),
            ({"teacher": "table:toy"}, "has its own"),
            ({"copy_prompt": True}, "leave out --protect"),
            ({"rare_within": 4}, "leave out --protect"),
            ({"reward": "nonsense"}, "'nonsense' does not exist"),
            ({"reward": "terminal"}, "needs the score itself"),
            ({"gamma": 2.0}, r"gamma = 2\.0"),
        ):
            with pytest.raises(InputError, match=said):
                draw(replace(own, **changes))
        assert not own.out.exists() and not asked(server), "nothing is paid for, and the folder stays free"
        draw(own)
        spent = draw(own)["requests"]
    with loopback() as elsewhere:  # the same model at another address is the same teacher
        found = draw(replace(own, teacher=f"served:{elsewhere.url}"))
        assert not asked(elsewhere) and found["requests"] == spent + 1 + len(elsewhere.seen)  # the first words
        with pytest.raises(InputError, match="logprobs = 20, this one has 3"):
            draw(replace(own, teacher=f"served:{elsewhere.url}", served=replace(own.served, logprobs=3)))


def test_walking_the_sets_asks_step_by_step(tmp_path: Path) -> None:
    """`teacher_walk = "set"` goes through the environment, one request a token."""
    with loopback() as server:
        own = config(tmp_path, server, teacher_walk="set")
        found = draw(own)
        assert [found["prompt_tokens"], found["completion_tokens"]] == server.spent
    episodes = stored(own)
    assert bool(episodes.in_set[episodes.steps].all()) and found["requests"] > found["tokens"]
    local = replace(own, out=tmp_path / "local", teacher="table:toy", teacher_tokenizer=None)
    draw(local)
    same(episodes, stored(local), near=1e-6)


def test_the_command_and_a_key_that_is_in_none_of_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_MINE", "sk-98765")
    prompts = str(prompts_file(tmp_path))
    with loopback(key="sk-98765") as server:
        words = f"collect --teacher served:{server.url} --teacher-tokenizer {numbers(tmp_path / 'tokenizer')} --out"
        more = f"--prompts {prompts} --top-p 0.8 --max-new-tokens 6 --served.api-key-env SECRET_OF_MINE"
        store = str(tmp_path / "store")
        assert main([*words.split(), store, *more.split(), "--served.price-prompt", "5"]) == 0
        assert "mean_lost_mass" in capsys.readouterr().out
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"sk-98765" not in path.read_bytes()
    capsys.readouterr()
    assert main(f"distill --teacher served:{server.url} --prompts {prompts} --out {tmp_path / 'live'}".split()) == 2
    assert "tdistill collect" in capsys.readouterr().err
    gone = [*words.split(), str(tmp_path / "gone"), *more.split(), "--served.attempts", "1"]
    assert main(gone) == 1
    assert "ConnectError" in capsys.readouterr().err


def slowly(answer: Answer) -> Answer:
    time.sleep(0.05)
    return answer


@pytest.mark.long
def test_kill_9_loses_no_more_than_the_answers_on_their_way(
    tmp_path: Path, clean: tuple[Episodes, dict[str, float]]
) -> None:
    """Killed in the middle; every reply is drawn once, but for those in flight."""
    with loopback(fault=faulty(slowly, lambda number: True)) as server:
        own = config(tmp_path, server, {"concurrency": 2})
        words = (
            f"collect --teacher {own.teacher} --teacher-tokenizer {own.teacher_tokenizer} --out {own.out} --prompts "
        )
        words += f"{own.prompts} --prompt-split all --top-p 0.8 --max-new-tokens 6 --shard 5 --logp float32 "
        words += "--served.concurrency 2"
        process = subprocess.Popen([sys.executable, "-m", "experiments", *words.split()], stderr=subprocess.DEVNULL)
        while len(asked(server)) < 8:
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        found = draw(own)
        requests = asked(server)
    assert len(set(requests)) == 14 and 8 <= len(requests) <= 14 + 2
    same(stored(own), clean[0])
    assert found["requests"] >= clean[1]["requests"] and json.loads((own.out / "store.json").read_text())["shards"]


@pytest.mark.long
def test_a_student_learns_from_the_store(tmp_path: Path) -> None:
    """From the server to a student, without the server."""
    with loopback() as server:
        own = config(tmp_path, server, prompt_split="train")
        draw(own)
    words = (
        f"distill --agent soft_q --store {own.out} --teacher none --student tiny --prompts {own.prompts} --top-p 0.8 "
    )
    words += f"--max-new-tokens 6 --updates 2 --batch-size 4 --eval-prompts 2 --threads 1 --out {tmp_path / 'run'}"
    assert main(words.split()) == 0
    assert (tmp_path / "run" / "students" / "soft_q-seed0" / "model.safetensors").is_file()


def test_the_benchmark_and_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    words = "bench served --concurrency 1 2 --episodes 2 --max-new-tokens 3 --repeats 1"
    assert main(words.split()) == 0
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| served")]
    assert [line[1].strip() for line in lines] == ["served, 1 at a time", "served, 2 at a time"]
    assert all(float(line[2]) > 0 and float(line[6]) == 1.0 for line in lines)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"concurrency": ()}, "concurrency names no number"),
        ({"logprobs": 0}, "logprobs = 0"),
        ({"threads": 0}, "threads = 0"),
        ({"top_p": 1.0}, "whole vocabularies"),
        ({"top_p": 1.5}, r"top_p = 1\.5"),
    ],
)
def test_the_benchmark_is_refused_before_it_begins(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        BenchServedConfig(**wrong)
