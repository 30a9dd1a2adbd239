"""Asking a server over HTTP: patience, pace, and what it cost."""

from __future__ import annotations

import json
import math
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from envs.errors import InputError, UnavailableError
from envs.serving import Serving

AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
"""Answers after which the same request may succeed; those from 520 on are of gateways before a server."""
T = TypeVar("T")


class Spent(NamedTuple):
    """What one request took: every attempt is one, whatever came of it."""

    failed: bool
    prompt_tokens: int
    completion_tokens: int


class RefusedError(InputError):
    """The server will not do what it was asked, however often."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ExhaustedError(UnavailableError):
    """Every attempt of a request failed; the last with this status: 200 if it was answered and could not be read, 0 if
    it had none."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class MalformedError(ValueError):
    """An answer that cannot be used; the next one may be better."""


class Client:
    """One server, asked by any number of threads.

    Args:
        url: of the API, as in http://localhost:8000/v1.
    Raises: InputError: a URL that cannot be used, or an environment variable that is not set.
    """

    def __init__(self, url: str, serving: Serving) -> None:
        import httpx2

        self.url, self.serving = checked(url), serving
        self._key = _key(serving.api_key_env)
        self.stopping = threading.Event()
        self._requests = Pace(serving.requests_per_minute, self.stopping)
        self._tokens = Pace(serving.tokens_per_minute, self.stopping)
        self._lock = threading.Lock()
        self._sink: Callable[[Spent], None] | None = None
        self._unsaved: list[Spent] = []
        self._http = httpx2.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(serving.timeout, connect=min(10.0, serving.timeout)),
            limits=httpx2.Limits(max_connections=serving.concurrency),
            mounts=_direct(self.url),
            follow_redirects=False,  # a key goes where the user sent it, nowhere else
        )

    def record(self, sink: Callable[[Spent], None] | None) -> None:
        """Tell what is spent from now on, and what was not told yet, to `sink`; None: remember it."""
        with self._lock:
            self._sink, told = sink, self._unsaved
            if sink is not None:
                self._unsaved = []
                for spent in told:
                    sink(spent)

    def get(self, path: str) -> Any:
        """What the server has under a path.  Raises: as `ask`."""
        return self._patiently("GET", path, None, lambda answer: answer, lambda answer: (0, 0), 0)

    def ask(
        self,
        path: str,
        body: Mapping[str, Any],
        read: Callable[[Any], T],
        used: Callable[[Any], tuple[int, int]],
        tokens: int,
    ) -> T:
        """What `read` makes of the answer; asked again where the answer is late, cut, an error of the server, or where
        `read` raises `MalformedError`.

        Args:
            used: tokens of the prompts and of the completions of an answer.
            tokens: what the request may take, for `tokens_per_minute`.
        Raises:
            RefusedError: the server refuses the request.
            ExhaustedError: every attempt failed.
            UnavailableError: the server asks to wait too long.
        """
        return self._patiently("POST", path, body, read, used, tokens)

    def _patiently(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        read: Callable[[Any], T],
        used: Callable[[Any], tuple[int, int]],
        tokens: int,
    ) -> T:
        for attempt in range(1, self.serving.attempts + 1):
            self._requests.take(1)
            self._tokens.take(tokens)
            answer: Any = None
            wait, status, failed = 0.0, 0, True
            try:
                answer = self._send(method, path, body)
                found = read(answer)
                failed = False
                return found
            except _Again as error:
                problem, wait, status = str(error), error.wait, error.status
            except MalformedError as error:
                problem, status = f"its answer is of no use: {error}", 200
            finally:
                self._spend(Spent(failed, *(used(answer) if answer is not None else (0, 0))))
            if wait > self.serving.longest_wait:
                raise UnavailableError(
                    f"{self.url} asks to wait {wait:.0f} s ({self._safe(problem)}), more than served.longest_wait = "
                    f"{self.serving.longest_wait:g}; give the same command again later: what was drawn is kept"
                )
            if attempt < self.serving.attempts:
                pause = wait or self.serving.backoff * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
                if wait:
                    self._requests.hold(wait)  # the others would be told the same
                if self.stopping.wait(pause):
                    raise UnavailableError("stopped")
        raise ExhaustedError(
            f"{self.url}/{path} failed {attempt} times, last: {self._safe(problem)}; give the same command again once "
            "it works: what was drawn is kept",
            status,
        )

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        import httpx2

        content = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        begun = time.monotonic()
        try:
            with self._http.stream(method, f"{self.url}/{path}", content=content, headers=headers) as response:
                status, wait = response.status_code, retry_after(response.headers.get("Retry-After"))
                where = response.headers.get("Location", "")
                received = bytearray()
                for part in response.iter_bytes():
                    received += part
                    if len(received) > self.serving.max_megabytes * 2**20:
                        raise InputError(
                            f"{self.url} answers with more than {self.serving.max_megabytes} MiB; raise "
                            "served.max_megabytes, or lower served.logprobs or served.batch"
                        )
                    if time.monotonic() - begun > self.serving.timeout:
                        raise _Again(f"no whole answer within {self.serving.timeout:g} s")
        except httpx2.HTTPError as error:
            raise _Again(f"{type(error).__name__}: {error}") from error
        text = received.decode("utf-8-sig", "replace")
        if status in AGAIN:
            raise _Again(f"status {status}: {message_of(text)}", wait, status)
        if 300 <= status < 400:
            raise RefusedError(
                self._safe(
                    f"{self.url}/{path} sends on to {where!r} (status {status}); nobody is followed, a key could go "
                    "astray: give the URL that answers itself"
                ),
                status,
            )
        if status != 200:
            raise RefusedError(self._safe(f"{self.url}/{path} answers {status}: {message_of(text)}"), status)
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _Again(f"an answer that is not JSON: {error}") from error

    def _spend(self, spent: Spent) -> None:
        with self._lock:
            if self._sink is None:
                self._unsaved.append(spent)
            else:
                self._sink(spent)

    def _safe(self, text: str) -> str:
        """A text without the key, whoever wrote it there."""
        return text.replace(self._key, "***") if self._key else text


class _Again(Exception):
    """A request that may be sent again, after `wait` seconds if that is not 0."""

    def __init__(self, message: str, wait: float = 0.0, status: int = 0) -> None:
        super().__init__(message)
        self.wait, self.status = wait, status


class Pace:
    """No more than so much a minute, evenly.

    Args:
        per_minute: of whatever is taken; 0: no limit.
        stopping: ends every wait.
    """

    def __init__(self, per_minute: float, stopping: threading.Event) -> None:
        self._second = 60 / per_minute if per_minute else 0.0  # seconds that one of it takes
        self._stopping, self._lock, self._free = stopping, threading.Lock(), 0.0

    def take(self, amount: float) -> None:
        """Wait for one's turn.  Raises: UnavailableError: everything is being stopped."""
        with self._lock:
            turn = max(self._free, time.monotonic())
            self._free = turn + amount * self._second
        if self._stopping.wait(max(0.0, turn - time.monotonic())):
            raise UnavailableError("stopped")

    def hold(self, seconds: float) -> None:
        """Give nobody a turn for so long."""
        with self._lock:
            self._free = max(self._free, time.monotonic() + seconds)


def retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for, given as a number or as a date; 0: none, or it cannot be read.

    >>> retry_after("2.5")
    2.5
    """
    if value is None:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def checked(url: str) -> str:
    """The URL of an API without a slash behind it.

    Raises: InputError: it is none, or holds what would be written into run files with it.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        (parts.hostname or "").encode("idna")
    except ValueError:  # brackets, a port or a name that are none
        usable = False
    if not usable or any(letter.isspace() for letter in url):
        raise InputError(f"{url!r} is no URL of a server; write it as in served:http://localhost:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            "the URL of a server may hold no password, query or fragment, it is written into run files; give a key by "
            "an environment variable, --served.api-key-env NAME"
        )
    return url.rstrip("/")


def _direct(url: str) -> dict[str, None]:
    """Mounts that lead to this machine itself past any proxy that the environment names: none could reach it."""
    host = urlsplit(url).hostname or ""
    try:
        here = ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost" or host.endswith(".localhost")
    return {f"all://[{host}]" if ":" in host else f"all://{host}": None} if here else {}


def _key(variable: str) -> str:
    if not variable:
        return ""
    if not (key := os.environ.get(variable, "").strip()):
        raise InputError(f"the environment variable {variable!r} (served.api_key_env) holds no key; set it")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InputError(
            f"the environment variable {variable!r} (served.api_key_env) holds what no HTTP header can carry: a blank, "
            "a line break or a letter beyond ASCII; set it to the key alone"
        )
    return key


def message_of(answer: Any) -> str:
    """What an error answer says, given as text or as read, in one short line."""
    found = answer
    try:
        found = json.loads(answer) if isinstance(answer, str) else answer
        while isinstance(found, dict):
            found = next((found[name] for name in ("error", "message", "detail") if found.get(name)), str(found))
    except (ValueError, RecursionError):
        found = answer
    return " ".join(str(found).split())[:300] or "nothing"
