"""Answers, addresses and surroundings that real servers have: each is one clear error, an attempt more, or nothing."""

from __future__ import annotations

import json
import math
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from envs.errors import InputError, UnavailableError
from envs.served_http import Client, MalformedError, RefusedError, checked
from envs.served_protocol import Reply, Row, check_all_told, choices_of
from envs.served_teacher import ServedTeacher
from envs.serving import Serving
from experiments.bench.loopback import Answer, Habits
from experiments.store.served import Journal
from tests.envs.models import tiny_tokenizer
from tests.envs.served import QUICK, is_greeting, loopback, numbers, served

Change = Callable[[dict[str, Any]], Any]


def changed(change: Change) -> Callable[..., Answer]:
    """A fault of every answer behind the handshake: what is told of the first choice is changed."""

    def hook(number: int, body: dict[str, Any], answer: Callable[[], Answer]) -> Answer:
        found = answer()
        if not is_greeting(body):
            change(found.body["choices"][0]["logprobs"])
        return found

    return hook


def certain(told: dict[str, Any]) -> None:
    told["token_logprobs"] = [0.0] * len(told["tokens"])


def never(told: dict[str, Any]) -> None:
    told["token_logprobs"][0] = -math.inf


def floored(told: dict[str, Any]) -> None:
    told["token_logprobs"][0] = -9999.0


def unlisted(told: dict[str, Any]) -> None:
    told["top_logprobs"][0] = {f"token_id:{token}": math.log(0.2) for token in (1, 2, 4)}
    told["token_logprobs"][0] = -0.1


@pytest.mark.parametrize(("change", "said"), [
    (certain, r"token 3 is 0\.000, and in its state -0\.821"),
    (never, "token 3 was taken, and its log-probability is -inf"),
    (floored, r"token 3 was taken, and its log-probability is -9999\.0"),
    (unlisted, r"token 3 was taken at -0\.100 and is not among the most probable, which end at -1\.609"),
])  # fmt: skip
def test_a_taken_token_is_paid_what_its_state_gives_it(tmp_path: Path, change: Change, said: str) -> None:
    """Greedy servers say 0 of what they took, others −∞ or a floor: rewards would be wrong, and nothing else."""
    with loopback(fault=changed(change)) as server:
        teacher = served(server, tmp_path, logprobs=3)
        with pytest.raises(UnavailableError, match=said):
            teacher.replies([[1]], 4, 5)


def test_tokens_that_are_counted_and_not_told_are_noticed(tmp_path: Path) -> None:
    """llama.cpp's server leaves out what ends within a character: a reply without it would be another text."""
    habits = Habits("objects", echoes=False)
    with loopback(habits=habits) as server, loopback(habits=replace(habits, untold=frozenset({3}))) as other:
        whole, gappy = served(server, tmp_path), served(other, tmp_path)
        finishes = set[str | None]()
        for seed in range(30):
            reply = whole.replies([[1]], 4, seed)[0]
            if 3 not in reply.tokens:
                assert gappy.replies([[1]], 4, seed) == [reply]
                continue
            finishes.add(reply.finish)
            with pytest.raises(InputError, match=rf"counts {len(reply.tokens)} tokens in its replies and tells"):
                gappy.replies([[1]], 4, seed)
        assert finishes == {"stop", "length"}
        patient = served(other, tmp_path, attempts=30)
        assert patient.next_rows([[1]] * 20) == whole.next_rows([[1]] * 20), "another draw tells the same state"


@pytest.mark.parametrize(("finish", "tokens", "counted", "fits"), [
    ("stop", [3, 4], 3, True),  # an end that is counted and not told
    ("stop", [3, 0], 2, True),
    ("stop", [3, 0], 3, False),  # its end is told, so that another is missing
    ("stop", [3, 4], 4, False),
    ("stop", [], 1, True),
    ("length", [3, 4], 2, True),
    ("length", [3, 4], 3, False),
    ("stop", [3, 4], 2, True),  # an end that is not even counted
])  # fmt: skip
def test_what_may_be_left_out_by_hand(finish: str, tokens: list[int], counted: int, fits: bool) -> None:
    reply = Reply(tokens, [-0.5] * len(tokens), [Row([3], [-0.5])] * len(tokens), finish)
    answer = {"usage": {"prompt_tokens": 1, "completion_tokens": counted}}
    with nullcontext() if fits else pytest.raises(InputError, match=f"{counted} tokens in its replies"):
        check_all_told(answer, [reply], {0})


@pytest.mark.parametrize("index", ["0", 0.0, True, None, [0], {"a": 1}])
def test_choices_with_an_odd_index_are_malformed(index: Any) -> None:
    with pytest.raises(MalformedError, match="it holds the choices"):
        choices_of({"choices": [{"index": index}]}, 1)
    assert choices_of({"choices": [{"index": 1, "a": 1}, {"index": 0}]}, 2) == [{"index": 0}, {"index": 1, "a": 1}]


def test_an_error_in_an_answer_of_status_200_is_told() -> None:
    with pytest.raises(MalformedError, match="no choices, but says: model overloaded"):
        choices_of({"error": {"message": "model overloaded", "code": 502}}, 1)


def first(status: int, body: Any, headers: dict[str, str] | None = None) -> Callable[..., Answer]:
    """This answer to the first request behind the handshake."""
    left = [Answer(status, body, headers or {})]

    def hook(number: int, body: dict[str, Any], answer: Callable[[], Answer]) -> Answer:
        return answer() if is_greeting(body) or not left else left.pop()

    return hook


@pytest.mark.parametrize(("status", "body"), [(200, b"[" * 100_000), (500, b"[" * 100_000), (522, b"x"), (529, {})])
def test_answers_that_are_worth_another_attempt(tmp_path: Path, status: int, body: Any) -> None:
    with loopback(fault=first(status, body)) as server:
        assert len(served(server, tmp_path).replies([[1]], 4, 5)) == 1
        assert len([1 for one in server.seen if not is_greeting(one)]) == 2


@pytest.mark.parametrize("field", ["min_p", "return_tokens_as_token_ids", "echo"])
def test_a_gateway_that_fails_at_what_it_does_not_know(tmp_path: Path, field: str) -> None:
    """It answers 500 where others refuse: after all attempts it is asked without the field."""

    def gateway(number: int, body: dict[str, Any], answer: Callable[[], Answer]) -> Answer:
        return Answer(500, {"error": "unexpected keyword"}) if field in body else answer()

    noticed = nullcontext() if field == "echo" else pytest.warns(UserWarning, match=f"fails at .*{field}")
    with loopback(fault=gateway) as server, loopback() as plain:
        with noticed:
            teacher = served(server, tmp_path)
        assert teacher.manner.echoes == (field != "echo") and field not in teacher.manner.fields
        assert teacher.replies([[1]], 4, 5) == served(plain, tmp_path).replies([[1]], 4, 5)


def test_a_server_that_always_fails_is_unavailable(tmp_path: Path) -> None:
    with (
        loopback(fault=lambda number, body, answer: Answer(500, b"oh")) as server,
        pytest.warns(UserWarning, match="is asked otherwise"),
        pytest.raises(UnavailableError, match="failed 3 times, last: status 500"),
    ):
        served(server, tmp_path)


def test_nobody_is_followed_and_where_to_is_said(tmp_path: Path) -> None:
    with loopback(fault=first(301, b"", {"Location": "https://elsewhere/v1"})) as server:
        teacher = served(server, tmp_path)
        with pytest.raises(RefusedError, match=r"sends on to 'https://elsewhere/v1' \(status 301\)"):
            teacher.replies([[1]], 4, 5)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_this_machine_is_reached_past_proxies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with loopback() as server:
        assert served(server, tmp_path).replies([[1]], 4, 5)
    with pytest.raises(UnavailableError, match="ConnectError"):  # any other goes through it, refused here at once
        Client("http://192.0.2.1/v1", Serving(attempts=1)).get("models")


@pytest.mark.parametrize("key", ["sk-12\nxyz", "schlüssel", "twofold words"])
def test_a_key_that_no_header_carries_is_not_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("A_KEY", key)
    with pytest.raises(InputError, match=r"'A_KEY'.* no HTTP header can carry") as error:
        Client("http://127.0.0.1:9/v1", Serving(api_key_env="A_KEY"))
    assert not any(part in str(error.value) for part in key.split())


@pytest.mark.parametrize("url", [
    "http://h:99999/v1", "http://h:abc/v1", "http://[::1", "http://h h/v1", "http://a..b/v1", f"http://{'a' * 70}.x/v1"
])  # fmt: skip
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(InputError, match="is no URL of a server"):
        checked(url)


def binds(family: socket.AddressFamily, host: str) -> bool:
    """Whether a server can listen there; of what it then does no error is forgiven."""
    try:
        with socket.socket(family) as server:
            server.bind((host, 0))
    except OSError:
        return False
    return True


@contextmanager
def plain(family: socket.AddressFamily, host: str, answer: bytes) -> Iterator[int]:
    """A server that writes these bytes to whoever comes, and hangs up."""
    with socket.socket(family) as server:
        server.bind((host, 0))
        server.listen()

        def serve() -> None:
            while True:
                try:
                    other, _ = server.accept()
                except OSError:
                    return
                with other:
                    other.recv(65536)
                    other.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_http_1_0_that_ends_by_hanging_up(
    family: socket.AddressFamily, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    url = f"http://[{host}]:{{}}/v1" if ":" in host else f"http://{host}:{{}}/v1"
    body = b'HTTP/1.0 200 OK\r\n\r\n\xef\xbb\xbf{"data": [{"id": "a"}]}'  # with a byte order mark
    if not binds(family, host):
        pytest.skip(f"this machine has no {host}")
    with plain(family, host, body) as port:
        assert Client(url.format(port), Serving(attempts=1)).get("models") == {"data": [{"id": "a"}]}
    with plain(family, host, body[:-4]) as port, pytest.raises(UnavailableError, match="not JSON"):
        Client(url.format(port), Serving(attempts=1)).get("models")


@pytest.mark.parametrize("extra", [
    {"temperature": 0.7}, {"top_k": 40}, {"top_p": 0.9}, {"n": 3}, {"stream": True}, {"stop": ["x"]},
    {"repetition_penalty": 1.1}, {"logit_bias": {"3": 5}}, {"ignore_eos": True}, {"min_tokens": 2},
    {"stop_token_ids": [3]}, {"mirostat": 2}, {"xtc_probability": 0.5}, {"dry_multiplier": 0.8}, {"grammar": "root"},
    {"allowed_token_ids": [3]}, {"truncate_prompt_tokens": 8}, {"top_n_sigma": 1.0}, {"do_sample": False},
    {"guided_regex": "a"}, {"min_new_tokens": 1}, {"lora": [{"id": 0}]},
])  # fmt: skip
def test_extra_fields_do_not_change_what_is_drawn(extra: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"served.extra sets {next(iter(extra))} = "):
        Serving(extra=json.dumps(extra))
    off = {"top_k": -1, "temperature": 1, "ignore_eos": False, "mirostat": 0, "top_n_sigma": -1, "do_sample": True}
    assert Serving(extra=json.dumps({**off, "user": "me"})).more["user"] == "me"


def test_sets_are_not_read_at_another_temperature(tmp_path: Path) -> None:
    """A server that tells the softmax at the temperature asked for: at 0 the argmax would have all the mass."""

    def processed(number: int, body: dict[str, Any], answer: Callable[[], Answer]) -> Answer:
        found = answer()
        if body["temperature"] == 0.0 and not body.get("echo"):
            for told in [found.body["choices"][0]["logprobs"]]:
                for top in told["top_logprobs"]:
                    best = max(top, key=top.__getitem__)
                    top.update({token: 0.0 if token == best else -9999.0 for token in top})
                told["token_logprobs"] = [0.0] * len(told["tokens"])
        return found

    with loopback(fault=processed) as server, loopback() as honest:
        assert served(server, tmp_path).next_rows([[1], [3]]) == served(honest, tmp_path).next_rows([[1], [3]])


def test_a_teacher_answers_again_after_something_failed(tmp_path: Path) -> None:
    def fail(item: int) -> None:
        raise ZeroDivisionError

    with loopback() as server:
        teacher = served(server, tmp_path)
        with pytest.raises(ZeroDivisionError):
            teacher.each([1], fail)
        assert teacher.replies([[1]], 3, 1)


def test_a_listing_that_is_none_and_one_of_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with loopback() as server:
        for body, said in (
            ({"data": 5}, "lists no models; give --served.model$"),
            ({"data": [{"id": "a"}, {"id": "b"}]}, "lists 2 models; give --served.model, one of: a, b"),
        ):
            monkeypatch.setattr(server, "models", partial(Answer, body=body))
            with pytest.raises(InputError, match=said):
                served(server, tmp_path)


def test_texts_are_paced_by_their_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tokens and four that may come are seven, whether they go as ids or as five letters."""
    for habits in (Habits(), Habits("strings", strict=True, texts_only=True, echoes=False)):
        with loopback(habits=habits) as server:
            teacher, taken = served(server, tmp_path), list[float]()
            monkeypatch.setattr(teacher.client._tokens, "take", taken.append)
            teacher.replies([[1, 2, 3]], 3, 1)
            assert taken == [7]


def test_tokenizers_that_are_none(tmp_path: Path) -> None:
    for source in (str(tmp_path / "nowhere"), str(tmp_path)):
        with pytest.raises(InputError, match="no tokenizer in"):
            ServedTeacher("http://127.0.0.1:9/v1", source, Serving(**QUICK))
    folder = numbers(tmp_path / "tokenizer")
    (folder / "generation_config.json").write_text('{"eos_token_id": ["x"]}')
    with pytest.raises(InputError, match=r"generation_config\.json names no EOS tokens"):
        ServedTeacher("http://127.0.0.1:9/v1", folder, Serving(**QUICK))


def test_teachers_with_a_tokenizer_read_texts_alike(tmp_path: Path) -> None:
    from envs.hf_teacher import HFTeacher, Worded
    from experiments.store.absent import AbsentTeacher

    assert all(issubclass(kind, Worded) for kind in (HFTeacher, ServedTeacher, AbsentTeacher))
    own = Worded(tiny_tokenizer(), "tiny", False)
    assert own.decode(own.encode("5 9")) == own.decode(own.tokenizer("5 9")["input_ids"])
    with pytest.raises(InputError, match="no chat template"):
        Worded(tiny_tokenizer(), "tiny", True)
    with pytest.raises(InputError, match="has no token"):
        own.encode("")


def test_a_journal_line_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "asked"
    path.write_text('{"spent": [false, 1, 1]}\n{"repl\n')
    with pytest.raises(InputError, match="line 2 of"):
        Journal(path)
