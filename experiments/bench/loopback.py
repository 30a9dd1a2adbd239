"""A teacher behind the completions API on this machine's loopback: for tests and measurements, and to try one out.

    python -m experiments.bench.loopback -- tdistill collect --teacher served:{url} --teacher-tokenizer {tokenizer} …

serves the embedded teacher while the command runs. Rows of one walk are refilled as requests come and go, as servers
do it. Written from the public protocol: it shares nothing with the client in `envs`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from envs.teachers import EMBEDDED, Teacher, load_teacher

BY_ID = "token_id:"
USAGE = "usage: python -m experiments.bench.loopback -- COMMAND … {url} … {tokenizer} …"


@dataclass
class Answer:
    """What goes back over the wire."""

    status: int = 200
    body: Any = None
    """JSON, or bytes as they are."""
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    """Close the connection in the middle of the body."""


@dataclass(frozen=True)
class Habits:
    """What servers differ in."""

    names: str = "ids"
    """How tokens are named: "ids" (vLLM, when asked), "strings" (OpenAI) or "objects" (llama.cpp)."""
    strict: bool = False
    """Refuse fields that OpenAI's API does not have."""
    texts_only: bool = False
    echoes: bool = True
    tells_endings: bool = True
    """Say what was said of the token that ended a text."""
    untold: frozenset[int] = frozenset()
    """Tokens of which nothing is said though they are counted (llama.cpp: those that leave a character unfinished)."""
    cap: int = 10_000
    """Most log-probabilities of a step."""


@dataclass(eq=False)
class Job:
    """One text that is being continued."""

    prompt: list[int]
    budget: int
    temperature: float
    rng: np.random.Generator
    top: int
    tokens: list[int] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)


class Engine(threading.Thread):
    """One walk of a teacher whose rows serve whatever is asked."""

    def __init__(self, teacher: Teacher, rows: int) -> None:
        super().__init__(daemon=True)
        self.teacher, self.rows = teacher, rows
        self.waiting: deque[Job] = deque()
        self.some = threading.Condition()
        self.closed = False

    def take(self, jobs: list[Job]) -> None:
        """Answer these."""
        with self.some:
            self.waiting.extend(jobs)
            self.some.notify()
        for job in jobs:
            job.done.wait()

    def close(self) -> None:
        """Stop after the step at hand, and wait for it: an interpreter must not end while another thread computes."""
        with self.some:
            self.closed = True
            self.some.notify()
        self.join()

    def run(self) -> None:
        walk, serving = self.teacher.walk(self.rows), dict[int, Job]()
        while True:
            with self.some:
                while not (self.closed or self.waiting or serving):
                    self.some.wait()
                if self.closed:
                    return
                free = [row for row in range(self.rows) if row not in serving]
                new = {row: self.waiting.popleft() for row in free[: len(self.waiting)]}
            if new:
                walk.start(list(new), [job.prompt for job in new.values()])
                serving |= new
            tokens, active = torch.zeros(self.rows, dtype=torch.int64), torch.zeros(self.rows, dtype=torch.bool)
            logp = walk.log_probs
            for row, job in list(serving.items()):
                tokens[row] = token = extend(job, logp[row])
                active[row] = goes_on = len(job.tokens) < job.budget and token not in self.teacher.eos_ids
                if not goes_on:
                    serving.pop(row).done.set()
            if active.any():
                walk.step(tokens, active)


def extend(job: Job, logp: torch.Tensor) -> int:
    """Draw the next token, and keep what there is to say of it."""
    if job.temperature == 0:
        token = int(logp.argmax())
    else:
        heights = (logp.double() / job.temperature).exp().cumsum(0)
        token = int(torch.searchsorted(heights, job.rng.random() * float(heights[-1]), right=True))
    job.tokens.append(token)
    job.steps.append(said(logp, token, job.top))
    return token


def said(logp: torch.Tensor, token: int, top: int) -> dict[str, Any]:
    """The taken token, and the most probable ones of a state."""
    values, ids = torch.sort(logp, descending=True, stable=True)
    best = {int(one): float(value) for one, value in zip(ids[:top], values[:top], strict=True) if value > -torch.inf}
    return {"token": token, "logprob": float(logp[token]), "top": best}


class Loopback:
    """A server of one teacher, while the context lasts.

    Args:
        shown: string of a token; None: what the teacher's tokenizer makes of it alone.
        fault: (number of the request, its body, how it would be answered) -> what is answered instead.
        key: what the Authorization header must hold, if anything.
    """

    def __init__(
        self,
        teacher: Teacher,
        *,
        rows: int = 16,
        habits: Habits | None = None,
        shown: Callable[[int], str] | None = None,
        fault: Callable[[int, dict[str, Any], Callable[[], Answer]], Answer] | None = None,
        key: str = "",
    ) -> None:
        self.teacher, self.habits, self.fault, self.key = teacher, habits or Habits(), fault, key
        tokenizer: Any = getattr(teacher, "tokenizer", None)
        self.shown = shown or (lambda token: str(tokenizer.decode([token])))
        self.seen: list[dict[str, Any]] = []
        """Bodies of the requests for completions, in order."""
        self.spent = [0, 0]
        """Tokens of the prompts and of the completions that were answered."""
        self.lock = threading.Lock()
        self.engine = Engine(teacher, rows)
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self))
        self.http.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def __enter__(self) -> Self:
        self.engine.start()
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.engine.close()

    def models(self) -> Answer:
        limit = min(self.teacher.context_limit, 10**6)
        told = {"id": self.teacher.name, "object": "model", "owned_by": "loopback", "max_model_len": limit}
        return Answer(body={"object": "list", "data": [told]})

    def completions(self, body: dict[str, Any]) -> Answer:
        """One request, faults included."""
        with self.lock:
            number = len(self.seen)
            self.seen.append(body)
        if self.fault is None:
            return self.complete(body)
        return self.fault(number, body, lambda: self.complete(body))

    def complete(self, body: dict[str, Any]) -> Answer:
        if problem := refusal(body, self.habits):
            return Answer(400, {"error": {"message": problem}})
        prompts = [self.read(prompt) for prompt in listed(body["prompt"])]
        longest = max(map(len, prompts)) + int(body["max_tokens"])
        if longest > self.teacher.context_limit:
            return Answer(400, {"error": {"message": f"{longest} tokens are more than the model's context"}})
        jobs = [
            Job(
                prompt,
                int(body["max_tokens"]),
                float(body.get("temperature", 1.0)),
                np.random.default_rng(body.get("seed")),
                int(body["logprobs"]),
            )
            for prompt in prompts
        ]
        self.engine.take(jobs)
        choices = [self.choice(place, job, body) for place, job in enumerate(jobs)]
        usage = [sum(len(job.prompt) for job in jobs), sum(len(job.tokens) for job in jobs)]
        with self.lock:
            self.spent = [total + own for total, own in zip(self.spent, usage, strict=True)]
        counted = dict(zip(("prompt_tokens", "completion_tokens"), usage, strict=True))
        return Answer(body={"object": "text_completion", "choices": choices, "usage": counted})

    def read(self, prompt: Any) -> list[int]:
        return self.teacher.encode(prompt) if isinstance(prompt, str) else list(prompt)

    def choice(self, place: int, job: Job, body: dict[str, Any]) -> dict[str, Any]:
        ended, steps = job.tokens[-1] in self.teacher.eos_ids, job.steps
        if ended and not self.habits.tells_endings:
            steps = steps[:-1]
        steps = [step for step in steps if step["token"] not in self.habits.untold]
        if body.get("echo"):
            steps = [*self.echo(job), *steps]
        text = self.teacher.decode(job.tokens)
        finish = "stop" if ended else "length"
        by_id = self.habits.names == "ids" and bool(body.get("return_tokens_as_token_ids"))
        return {"index": place, "text": text, "finish_reason": finish, "logprobs": self.told(steps, by_id)}

    def echo(self, job: Job) -> list[dict[str, Any]]:
        logp = self.teacher.score([job.prompt])[0]  # (L, V)
        first = {"token": job.prompt[0], "logprob": None, "top": None}
        return [first, *(said(logp[at], token, job.top) for at, token in enumerate(job.prompt[1:]))]

    def told(self, steps: list[dict[str, Any]], by_id: bool) -> dict[str, Any]:
        """The log-probabilities of these steps, the way this server tells them."""

        def shown(token: int) -> str:
            return f"{BY_ID}{token}" if by_id else self.shown(token)

        def entry(token: int, logp: float) -> dict[str, Any]:
            return {"id": token, "token": shown(token), "logprob": logp}

        if self.habits.names == "objects":
            return {
                "content": [
                    entry(step["token"], step["logprob"])
                    | {"top_logprobs": [entry(*top) for top in step["top"].items()]}
                    for step in steps
                ]
            }
        return {
            "tokens": [shown(step["token"]) for step in steps],
            "token_logprobs": [step["logprob"] for step in steps],
            "top_logprobs": [
                # The taken token is among them, be it probable or not.
                None if step["top"] is None else {shown(token): logp for token, logp in {**step["top"], **own}.items()}
                for step in steps
                for own in [{step["token"]: step["logprob"]}]
            ],
        }


def listed(prompt: Any) -> list[Any]:
    """The prompts of a request: a text, tokens, or a list of either."""
    return prompt if isinstance(prompt, list) and prompt and isinstance(prompt[0], (list, str)) else [prompt]


def refusal(body: dict[str, Any], habits: Habits) -> str:
    """Why a request is not answered; empty if it is."""
    usual = set("model prompt max_tokens temperature top_p n logprobs echo seed stream".split())
    usual |= {"presence_penalty", "frequency_penalty"}
    if habits.strict and (unknown := sorted(body.keys() - usual)):
        return f"Unrecognized request argument supplied: {unknown[0]}"
    if habits.texts_only and not all(isinstance(prompt, str) for prompt in listed(body["prompt"])):
        return "prompt must be a string"
    if body.get("echo") and not habits.echoes:
        return "Only no echo is supported"
    return f"logprobs must be at most {habits.cap}" if body["logprobs"] > habits.cap else ""


def handler_of(server: Loopback) -> type[BaseHTTPRequestHandler]:
    """Reads requests, writes answers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 2**16
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            known = self.path == "/v1/models"
            self.reply(server.models() if known else Answer(404, {"error": {"message": "nothing here"}}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
                given = self.headers.get("Authorization")
                return self.reply(Answer(401, {"error": {"message": f"Incorrect API key: {given}"}}))
            return self.reply(server.completions(body))

        def reply(self, answer: Answer) -> None:
            content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(content)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if answer.cut else content)
            self.close_connection = self.close_connection or answer.cut

        def log_message(self, *args: Any) -> None:
            """Nothing is logged."""

    return Handler


def main(words: list[str]) -> int:
    """Serve the embedded teacher while a command runs; returns its exit code."""
    if "--" not in words or not words[words.index("--") + 1 :]:
        print(USAGE, file=sys.stderr)
        return 2
    with Loopback(load_teacher("embedded")) as server:
        places = {"{url}": server.url, "{tokenizer}": str(EMBEDDED)}
        command = words[words.index("--") + 1 :]
        for mark, value in places.items():
            command = [word.replace(mark, value) for word in command]
        return subprocess.call(command)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
