"""The first words with a server: which model it has, what it takes, and whether its tokens are the tokenizer's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from envs.errors import InputError
from envs.served_http import Client, ExhaustedError, MalformedError, RefusedError
from envs.served_protocol import ROOM, Words, choices_of, masses_of, used
from envs.serving import NEUTRAL
from envs.token_bytes import special_tokens

WHOLE = {name: NEUTRAL[name] for name in ("temperature", "top_p")}
"""The full softmax: servers sample otherwise unless told."""
IDS = {"return_tokens_as_token_ids": True}
MANNERS: tuple[dict[str, Any], ...] = (
    {**NEUTRAL, "top_k": 0, **IDS},
    {**NEUTRAL, "top_k": -1, **IDS},
    {**NEUTRAL, "top_k": 0},
    {**NEUTRAL, "top_k": -1},
    WHOLE,
)
"""Fields that turn off what a server does to the softmax; the first that it takes are sent with every request. A server
that knows none of them (OpenAI's) does none of it."""
REFUSALS = (400, 404, 405, 422, 500, 501)
"""Answers after which it is asked otherwise; after 500, which gateways say to fields that they do not know, once all
attempts have failed."""
OF_WEIGHTS = ("n_vocab", "n_embd", "n_params", "n_ctx_train", "size")
"""What llama.cpp's server says of a model that is the same wherever it lies and however it is started."""
CHECKED = 256  # tokens whose strings are compared


@dataclass(frozen=True)
class Manner:
    """What a server wants, and what it says of its model."""

    model: str
    weights: dict[str, Any]
    """What it says of the model's weights."""
    context: int
    fields: dict[str, Any]
    text: Any = None
    """Makes a text of a prompt's tokens, for a server that takes no ids."""
    top: int = 0
    """How many of a state's most probable tokens it tells."""
    echoes: bool = False

    def body(self, prompts: list[list[int]], tokens: int, logprobs: int) -> dict[str, Any]:
        """A request for these prompts."""
        sent: list[Any] = prompts if self.text is None else [self.text(prompt) for prompt in prompts]
        asked = {"model": self.model, "max_tokens": tokens, "logprobs": logprobs, "n": 1, "stream": False}
        return {**self.fields, **asked, "prompt": sent[0] if len(sent) == 1 else sent}


def greet(client: Client, tokenizer: Any, words: Words) -> Manner:
    """Find out how this server is asked, and check the tokenizer on it.

    Raises: InputError: see `envs.served_teacher.ServedTeacher`. UnavailableError: no answer.
    """
    model, told = _model(client)
    meta = told["meta"] if isinstance(told.get("meta"), dict) else {}
    weights = {name: meta[name] for name in OF_WEIGHTS if name in meta}
    seen = next((meta[name] for name in ("n_ctx", "n_ctx_train") if name in meta), None)
    usual = getattr(tokenizer, "model_max_length", None)
    limits = (client.serving.context, told.get("max_model_len"), seen, usual)
    context = next((int(limit) for limit in limits if isinstance(limit, int) and 2 < limit < 1e9), 1_000_000)
    sample = _sample(tokenizer, words, min(CHECKED, context - 2))
    manner = _manner(client, Manner(model, weights, context, {}), tokenizer, words, sample)
    return _checked(client, manner, words, sample)


def _model(client: Client) -> tuple[str, dict[str, Any]]:
    """The model's name, and what the server lists of it."""
    wanted = client.serving.model
    try:
        listed = client.get("models")
    except (RefusedError, ExhaustedError) as error:
        if not wanted or error.status not in REFUSALS:
            raise
        return wanted, {}
    data = listed.get("data") if isinstance(listed, dict) else None
    listing = data if isinstance(data, list) else []
    models = {str(one["id"]): one for one in listing if isinstance(one, dict) and "id" in one}
    if not wanted and len(models) == 1:
        wanted = next(iter(models))
    if wanted not in models:
        problem = f"has no model {wanted!r}" if wanted else f"lists {len(models) or 'no'} models"
        names = f", one of: {', '.join(models)}" if models else ""
        raise InputError(f"{client.url} {problem}; give --served.model{names}")
    return wanted, models[wanted]


def _sample(tokenizer: Any, words: Words, count: int) -> list[int]:
    """Tokens all over the vocabulary, special ones aside."""
    special = set(special_tokens(tokenizer).values())
    plain = [token for token in range(words.size) if token not in special]
    count = min(count, len(plain))
    return [plain[place * len(plain) // count] for place in range(count)]


def _manner(client: Client, manner: Manner, tokenizer: Any, words: Words, sample: list[int]) -> Manner:
    """The first manner in which the server answers."""
    ways = [way for way in ("ids", "text") if client.serving.prompts in ("auto", way)]
    tried = [(way, fields) for way in ways for fields in MANNERS]
    for way, fields in tried:
        text = None if way == "ids" else _Text(tokenizer)
        own = Manner(manner.model, manner.weights, manner.context, {**fields, **client.serving.more}, text)
        body = own.body([sample[:4] if text is None else text.ids(sample[:4])], 2, client.serving.logprobs) | {
            "temperature": 0.0,
            "seed": 0,
        }
        prompt = body["prompt"] if text is None else text.ids(sample[:4])

        def read(answer: Any, prompt: list[int] = prompt) -> int:
            words.recognise(_strings(answer))
            return _told(client, answer, words, prompt)

        count = partial(used, prompt_tokens=len(prompt))
        try:
            return replace(own, top=client.ask("completions", body, read, count, len(prompt) + 2))
        except (RefusedError, ExhaustedError) as error:
            if error.status not in REFUSALS or (way, fields) == tried[-1]:
                raise
            if error.status == 500:
                warnings.warn(
                    f"{client.url} fails at {', '.join(fields)} with prompts as {way}, and is asked otherwise; if it "
                    "was only busy, begin again",
                    stacklevel=2,
                )
    raise AssertionError("a manner was tried")


def _strings(answer: Any) -> list[str]:
    """All strings of tokens that an answer holds.  Raises: InputError: it holds no log-probabilities."""
    told = choices_of(answer, 1)[0].get("logprobs")
    if not isinstance(told, dict):
        raise InputError(
            "the server returns no log-probabilities, which are all that is learnt from; start it so that it does, or "
            "take another server (vLLM, llama.cpp)"
        )
    tops: list[Any] = told.get("top_logprobs") or told.get("content") or []
    return [shown for top in tops if isinstance(top, dict) and "token" not in top for shown in top]


def _told(client: Client, answer: Any, words: Words, prompt: Sequence[int]) -> int:
    """How many of the most probable tokens the server tells of a state; the token taken is the first of them here.

    Raises: InputError: other tokens; MalformedError: an answer that cannot be read.
    """
    asked = client.serving.logprobs
    counted = used(answer)[0]
    if counted and counted != len(prompt):
        raise InputError(
            f"the server counts {counted} tokens in a prompt of {len(prompt)} of {words.name}; it has another "
            "tokenizer, or adds tokens of its own"
        )
    rows = masses_of(choices_of(answer, 1)[0], words)
    fewer = [len(row) for row in rows if len(row) < asked and math.fsum(row) < 1 - ROOM]
    if not fewer:
        return asked
    warnings.warn(
        f"{client.url} tells the {min(fewer)} most probable tokens where {asked} were asked for; sets that need more "
        "are cut, and their lost mass is reported",
        stacklevel=2,
    )
    return min(fewer)


def _checked(client: Client, manner: Manner, words: Words, sample: list[int]) -> Manner:
    """The manner with what the server says of its tokens' strings when it echoes a prompt of them."""
    if manner.text is not None:
        return manner
    body = manner.body([sample], 1, 1) | {"temperature": 0.0, "echo": True}
    body.pop("return_tokens_as_token_ids", None)

    def read(answer: Any) -> list[str] | None:
        told = choices_of(answer, 1)[0].get("logprobs")
        tokens = told.get("tokens") if isinstance(told, dict) else None
        if not isinstance(tokens, list) or len(tokens) < len(sample):
            return None  # it does not echo
        if not all(isinstance(token, str) for token in tokens):
            raise MalformedError("the echo's tokens are no strings")
        return tokens[: len(sample)]

    count = partial(used, prompt_tokens=len(sample), echo=True)
    try:
        shown = client.ask("completions", body, read, count, len(sample) + 1)
    except (RefusedError, ExhaustedError) as error:
        if error.status not in REFUSALS:
            raise
        shown = None
    if shown is None:
        return manner
    words.settle(list(zip(sample, shown, strict=True)))
    return replace(manner, echoes=True)


class _Text:
    """Prompts as texts, for a server that takes no token ids."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def ids(self, sample: list[int]) -> list[int]:
        """A prompt whose text gives the same tokens again, of about these."""
        found: list[int] = self._tokenizer(self._tokenizer.decode(sample))["input_ids"]
        return found

    def __call__(self, prompt: Sequence[int]) -> str:
        """Raises: InputError: the text of these tokens has others."""
        for skip in (True, False):
            text: str = self._tokenizer.decode(list(prompt), skip_special_tokens=skip)
            if self._tokenizer(text)["input_ids"] == list(prompt):
                return text
        raise InputError(
            f"the server takes texts only, and {text[:60]!r} is read as other tokens than the prompt's "
            f"{list(prompt)[:8]}…; give prompts as texts without a chat template, or a server that takes token ids"
        )
