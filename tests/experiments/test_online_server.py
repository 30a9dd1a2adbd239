"""The endpoint of `tdistill online`: answers, bounds, and whom it does not listen to."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envs.errors import InputError
from experiments.online import command, server
from experiments.online.config import HTTP
from experiments.online.journal import Journal, lines
from experiments.online.server import COMPLETIONS, MOST_BYTES, MOST_WAITING, STATUS, Endpoint
from tests.experiments.streams import opened, prompts, settings

JSON = {"Content-Type": "application/json"}


def loud(text: str) -> str:
    return "the prompt is too long; shorten it" if len(text) > 20 else ""


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    found = Endpoint(("127.0.0.1", 0), Journal(tmp_path / "prompts.jsonl"), loud, lambda: {"state": "learning"}, "m")
    yield found
    found.close()


def ask(endpoint: Endpoint, body: Any, path: str = COMPLETIONS, **headers: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=200)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, content, {**JSON, **{name.replace("_", "-"): headers[name] for name in headers}})
    response = connection.getresponse()
    found = response.status, json.loads(response.read())
    connection.close()
    return found


def answering(endpoint: Endpoint, reply: Callable[[str], str], count: int) -> threading.Thread:
    """Answers so many prompts."""

    def run() -> None:
        done = 0
        while done < count:
            endpoint.pump(4, 0.05)
            if block := endpoint.journal.next(4):
                for place, text in enumerate(block.texts):
                    endpoint.deliver(block.first + place, reply(text), text != "prompt 3")
                done += len(block.texts)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_each_client_gets_its_own_reply(endpoint: Endpoint) -> None:
    thread = answering(endpoint, str.upper, 20)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: ask(endpoint, {"prompt": f"prompt {n}", "max_tokens": 9}), range(20)))
    thread.join()
    for number, (status, body) in enumerate(found):
        assert status == 200 and body["object"] == "text_completion" and body["model"] == "m"
        assert body["choices"] == [
            {
                "index": 0,
                "text": f"PROMPT {number}",
                "finish_reason": "length" if number == 3 else "stop",
                "logprobs": None,
            }
        ]


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"{", {}, 400, "no JSON"),
        (b"[" * 100_000, {}, 400, "no JSON"),
        ([1], {}, 400, 'string "prompt"'),
        ({"prompt": ["a"]}, {}, 400, 'string "prompt"'),
        ({"prompt": "x" * 21}, {}, 400, "too long; shorten it"),
        ({"prompt": "x"}, {"Content_Type": "text/plain"}, 415, "application/json"),
        ({"prompt": "x"}, {"Host": "evil.example"}, 403, "not 'evil.example'"),
        (b" " * (MOST_BYTES + 1), {}, 413, f"the limit is {MOST_BYTES}"),
        (b" " * 2**22, {}, 413, f"the limit is {MOST_BYTES}"),
        ({"prompt": "x"}, {"Content_Length": "-1"}, 411, "Content-Length"),
        ({"prompt": "x", "stream": True}, {}, 400, "not streamed"),
    ],
)
def test_what_it_refuses(endpoint: Endpoint, body: Any, headers: dict[str, str], status: int, said: str) -> None:
    found = ask(endpoint, body, **headers)
    assert found[0] == status and said in found[1]["error"]["message"]
    assert endpoint.journal.count == 0


def test_other_paths_and_the_status(endpoint: Endpoint) -> None:
    assert ask(endpoint, {"prompt": "x"}, "/v1/other")[0] == 404
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=20)
    for path, status in ((STATUS, 200), ("/etc/passwd", 404)):
        connection.request("GET", path)
        response = connection.getresponse()
        body = json.loads(response.read())
        assert response.status == status and (status != 200 or body == {"state": "learning"})
        connection.close()


def test_it_says_when_too_many_wait(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_WAITING", 3)
    for number in range(3):
        endpoint.journal.accept(str(number), "http")
    status, body = ask(endpoint, {"prompt": "x"})
    assert status == 503 and "3 prompts wait already" in body["error"]["message"] and MOST_WAITING == 64


def test_it_takes_so_many_connections_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 2)
    found = Endpoint(("127.0.0.1", 0), Journal(tmp_path / "prompts.jsonl"), loud, dict, "m")
    held = [socket.create_connection(("127.0.0.1", found.port)) for _ in range(2)]
    third = socket.create_connection(("127.0.0.1", found.port))
    assert third.recv(99).startswith(b"HTTP/1.1 503")
    for connection in (*held, third):
        connection.close()
    found.close()


def test_a_client_that_dawdles_is_let_go(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server._Handler, "timeout", 0.2)
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=20) as connection:
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 10\r\n\r\n{{".encode())
        assert b" 408 " in connection.recv(99)


def test_a_client_that_dawdles_byte_by_byte_is_let_go_too(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server._Handler, "timeout", 0.3)
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=20) as connection:
        begun = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - begun < 20:
                connection.sendall(b"P")
                time.sleep(0.05)
        assert time.monotonic() - begun < 15


def test_a_fault_of_the_server_is_told(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(text: str, origin: str) -> int:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(endpoint.journal, "accept", full)
        status, body = ask(endpoint, {"prompt": "x"})
    assert status == 500 and "No space left" in body["error"]["message"]
    thread = answering(endpoint, str.upper, 1)
    assert ask(endpoint, {"prompt": "x"})[0] == 200
    thread.join()


def test_clients_that_wait_are_told_when_it_stops(tmp_path: Path) -> None:
    found = Endpoint(("127.0.0.1", 0), Journal(tmp_path / "prompts.jsonl"), loud, dict, "m")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, found, {"prompt": "x"})
        found.pump(1, 20.0)
        found.close()
        status, body = waiting.result()
    assert status == 503 and "the prompt is kept" in body["error"]["message"]
    assert [line["prompt"] for _, line in lines(tmp_path / "prompts.jsonl")] == ["x"]


def test_a_port_that_is_taken_is_said(endpoint: Endpoint, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"port {endpoint.port} of host '127.0.0.1' cannot be taken"):
        Endpoint(("127.0.0.1", endpoint.port), endpoint.journal, loud, dict, "m")


def test_the_student_answers_over_http_and_learns(tmp_path: Path) -> None:
    config = replace(settings(tmp_path, []), stream=HTTP, port=0, most_prompts=24, block=8, max_prompt_tokens=9)
    online = opened(config)
    source = command.source_of(config, online)
    assert isinstance(source, Endpoint)
    found: dict[str, float] = {}
    thread = threading.Thread(target=lambda: found.update(online.run(source)))
    thread.start()
    texts = prompts(24)
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda text: ask(source, {"prompt": text}), texts))
    thread.join()
    assert "limit" in ask(source, {"prompt": "1 " * 1000})[1]["error"]["message"]
    assert "no text of" in ask(source, {"prompt": "hello"})[1]["error"]["message"]
    source.close()
    online.close()
    assert found["prompts"] == 24 and found["labels"] == 12 and all(status == 200 for status, _ in replies)
    kept = {record["prompt"]: record["reply"] for _, record in lines(config.out / "replies.jsonl")}
    assert kept == {text: body["choices"][0]["text"] for text, (_, body) in zip(texts, replies, strict=True)}
