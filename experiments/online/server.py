"""The HTTP endpoint: `POST /v1/completions` with `{"prompt": …}`, as clients of the completions API send it.

It listens on this machine alone unless told otherwise; requests are bounded in size, number and time, and it reads
nothing but their text. `GET /status` says how the stream stands.
"""

from __future__ import annotations

import json
import socket
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from envs.errors import InputError
from experiments.explore.guard import is_loopback, name_of
from experiments.online.journal import Journal
from experiments.online.sources import Problem

MOST_BYTES = 2**18
"""Of a request's body."""
MOST_DISCARDED = 2**24
"""Of a longer body, which is read to its end, so that the client reads the answer."""
MOST_WAITING = 64
"""Prompts that may wait to be answered."""
MOST_CONNECTIONS = 128
SECONDS = 30.0
"""That a client may take to send its request."""
COMPLETIONS, STATUS = "/v1/completions", "/status"
BUSY = {"Retry-After": "1"}
Reply = tuple[str, bool]


class Refused(Exception):
    """A request that is answered with an error: its status, and why."""

    def __init__(self, status: int, why: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(why)
        self.status, self.headers = status, dict(headers or {})


class Endpoint:
    """A source of prompts, each of which is answered over its connection.

    Args:
        status: what `GET /status` returns.
        name: of the model, in the replies.
    Raises: InputError: the port is taken, or the host is none of this machine's.
    """

    def __init__(
        self,
        address: tuple[str, int],
        journal: Journal,
        problem: Problem,
        status: Callable[[], Mapping[str, Any]],
        name: str,
    ) -> None:
        self.host, self.journal, self.problem, self.status, self.name = address[0], journal, problem, status, name
        self._asked: dict[int, tuple[threading.Event, list[Reply]]] = {}
        self._lock, self._closed = threading.Lock(), False
        kind = type("Server", (_Server,), {"address_family": socket.AF_INET6 if ":" in address[0] else socket.AF_INET})
        try:
            self._server: _Server = kind(address, _Handler)
        except (OSError, OverflowError) as error:
            raise InputError(
                f"port {address[1]} of host {address[0]!r} cannot be taken ({error}); give another --port, 0 for any "
                "that is free, or --host 127.0.0.1"
            ) from error
        self._server.endpoint = self
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    @property
    def url(self) -> str:
        """Where prompts are posted to."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}{COMPLETIONS}"

    @property
    def over(self) -> bool:
        """It ends when it is stopped."""
        return False

    def pump(self, most: int, wait: float) -> None:
        """Wait for prompts; those that come together are answered together."""
        with self.journal.some:
            self.journal.some.wait_for(lambda: self.journal.waiting >= most, wait)

    def deliver(self, number: int, reply: str, ended: bool) -> None:
        """Answer a request, if its client is one of this process."""
        with self._lock:
            event, place = self._asked.pop(number, (None, []))
        place.append((reply, ended))
        if event is not None:
            event.set()

    def close(self) -> None:
        """Answer what waits with 503, and take nothing any more."""
        with self._lock:
            self._closed = True
            waiting = list(self._asked.values())
        for event, _ in waiting:
            event.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, text: str) -> Reply:
        """The reply to a prompt, when it is there, and whether it ended by itself.

        Raises: Refused: it cannot be answered, too many wait, or the endpoint is being stopped.
        """
        if why := self.problem(text):
            raise Refused(400, why)
        event, place = threading.Event(), list[Reply]()
        with self._lock:
            if self._closed:
                raise Refused(503, "the server is being stopped", BUSY)
            if self.journal.waiting >= MOST_WAITING:
                raise Refused(503, f"{MOST_WAITING} prompts wait already; ask again later", BUSY)
            self._asked[self.journal.accept(text, "http")] = event, place
        event.wait()
        if not place:
            raise Refused(503, "the server was stopped; the prompt is kept and answered when it goes on", BUSY)
        return place[0]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    endpoint: Endpoint

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._places = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except BaseException:  # no thread was begun that would give the place back
                self._places.release()
                raise
            return
        request.settimeout(1.0)
        with suppress(OSError):  # a client that is gone needs no answer
            request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is its client's affair."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout: ClassVar[float] = SECONDS

    def setup(self) -> None:
        """Give the client a time for its whole request: what comes later is not read."""
        super().setup()
        self._timer = threading.Timer(self.timeout, self._too_late)
        self._timer.daemon = True
        self._timer.start()

    def finish(self) -> None:
        self._timer.cancel()
        super().finish()

    def _too_late(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)

    def do_POST(self) -> None:
        self._guarded(self._complete)

    def do_GET(self) -> None:
        self._guarded(self._tell)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are in the journal."""

    def _guarded(self, respond: Callable[[], Mapping[str, Any]]) -> None:
        try:
            self._check_host()
            status, headers, body = 200, dict[str, str](), respond()
        except Refused as error:
            status, headers = error.status, error.headers
            body = {"error": {"message": str(error), "type": "invalid_request_error", "code": status}}
        except Exception as error:  # whatever is wrong here, the client is told, and the others are answered
            traceback.print_exc()
            status, headers = 500, {}
            body = {"error": {"message": f"{type(error).__name__}: {error}", "type": "server_error", "code": status}}
        content = json.dumps(body, ensure_ascii=False).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _check_host(self) -> None:
        """Another site's name that is made to lead here (DNS rebinding) must not let its scripts use this machine."""
        named = name_of(self.headers.get("Host", ""))
        if is_loopback(self.server.endpoint.host) and not is_loopback(named):
            raise Refused(403, f"this server is {self.server.endpoint.host}'s, not {named!r}'s")

    def _tell(self) -> Mapping[str, Any]:
        if self.path != STATUS:
            raise Refused(404, f"there is no {self.path}; POST {COMPLETIONS} or GET {STATUS}")
        return self.server.endpoint.status()

    def _complete(self) -> Mapping[str, Any]:
        endpoint = self.server.endpoint
        if self.path != COMPLETIONS:
            raise Refused(404, f"there is no {self.path}; POST {COMPLETIONS} or GET {STATUS}")
        reply, ended = endpoint.answer(self._prompt())
        choice = {"index": 0, "text": reply, "finish_reason": "stop" if ended else "length", "logprobs": None}
        return {"object": "text_completion", "model": endpoint.name, "choices": [choice]}

    def _prompt(self) -> str:
        """The prompt of a request.

        Raises: Refused: it is no JSON object with one, or too long.
        """
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # which a page of another site cannot send unasked
            raise Refused(415, f"the content type is {kind!r}; send application/json")
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            raise Refused(411, "the request does not say how long it is (Content-Length)")
        if len(length) > 9 or int(length) > MOST_BYTES:
            self._discard(MOST_DISCARDED if len(length) > 9 else min(int(length), MOST_DISCARDED))
            raise Refused(413, f"the request has {length[:20]} bytes, the limit is {MOST_BYTES}")
        content = self._read(int(length))
        self._timer.cancel()
        if len(content) < int(length):
            raise Refused(408, f"the request did not arrive within {self.timeout:g} seconds")
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            raise Refused(400, "the request is no JSON") from None
        if isinstance(body, dict) and body.get("stream"):
            raise Refused(400, "replies are not streamed; leave stream out")
        prompt = body.get("prompt") if isinstance(body, dict) else None
        if not isinstance(prompt, str):
            raise Refused(400, 'the request must be an object with a string "prompt"')
        return prompt

    def _read(self, count: int) -> bytes:
        """So much of the body, or what has come of it in time."""
        with suppress(TimeoutError):
            return self.rfile.read(count)
        return b""

    def _discard(self, count: int) -> None:
        while count > 0 and (part := self._read(min(count, 2**16))):
            count -= len(part)
