"""The completions API: what is asked, and what an answer says of tokens and their log-probabilities.

Three ways in which servers name tokens are read: OpenAI's strings, vLLM's "token_id:7", and llama.cpp's objects with id
and string. Source: OpenAI API reference, `POST /v1/completions`; the servers' own documentation.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from envs.errors import InputError
from envs.served_http import MalformedError, message_of
from envs.token_bytes import vocabulary_size

ABSENT = -1000.0  # nats; what servers that cannot write −∞ put in its place lies below (vLLM: −9999)
ROOM = 1e-3  # by which the probabilities of half-precision servers may sum to more than 1
NEAR = 0.05  # nats by which what is said of one token twice may differ
BY_ID = "token_id:"
Entry = tuple[int | None, float]  # a token, None if its string does not tell which, and its log-probability


class Row(NamedTuple):
    """What a server says of one state: its most probable tokens, most probable first (ties: lower id first)."""

    ids: list[int]
    logp: list[float]  # nats, of the full softmax


class Reply(NamedTuple):
    """n tokens, their log-probabilities, and what was said of the state before each."""

    tokens: list[int]
    logp: list[float]
    rows: list[Row]
    finish: str | None


class Words:
    """The strings of a tokenizer's tokens, in the three ways in which servers show them.

    Which way it is follows from `settle`; a string that several tokens share tells none, nor does an empty one.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self.name = name
        self.size = vocabulary_size(tokenizer)
        raw = [token or "" for token in tokenizer.convert_ids_to_tokens(list(range(self.size)))]
        decoded = [tokenizer.decode([token]) for token in range(self.size)]
        self.shown = {"decoded": decoded, "raw": raw, "pieces": [token.replace("▁", " ") for token in raw]}
        self._kinds = list(self.shown)
        self._ids: dict[str, int | None] = {}
        self._index()

    def _index(self) -> None:
        """By string in the first way that is left."""
        self._ids.clear()
        for token, shown in enumerate(self.shown[self._kinds[0]]):
            self._ids[shown] = None if shown in self._ids or not shown else token

    def settle(self, pairs: Sequence[tuple[int, str]]) -> None:
        """Keep the ways in which these tokens have these strings.

        Raises: InputError: the server's token is another, naming the first that differs.
        """
        for token, shown in pairs:
            self.check(token, shown)
            if not vague(shown):
                kinds = [kind for kind in self._kinds if self.shown[kind][token] == shown]
                self._kinds = kinds or self._kinds
        self._index()

    def check(self, token: int, shown: str) -> None:
        """Raises: InputError: the server's token of this id is none of the tokenizer's, or another."""
        self._check_id(token)
        ours = [own[token] for own in self.shown.values()]
        if shown not in ours and not vague(shown) and "\ufffd" not in ours[0]:
            raise InputError(
                f"the tokenizer {self.name} is not the server's: token {token} is {ours[0]!r} to it and {shown!r} to "
                "the server; give the tokenizer of the model that is served"
            )

    def recognise(self, strings: Sequence[str]) -> None:
        """Keep the first way in which all of these strings are tokens.

        Raises: InputError: as `id_of`, of the way in which most are.
        """
        known = {kind: [text for text in strings if vague(text) or text in self.shown[kind]] for kind in self._kinds}
        self._kinds.sort(key=lambda kind: -len(known[kind]))
        self._index()
        for text in strings:
            self.id_of(text)

    def id_of(self, shown: str) -> int | None:
        """The token that a string stands for; None where it could be several.

        Raises: InputError: it is no token of the tokenizer.
        """
        if shown.startswith(BY_ID) and shown.removeprefix(BY_ID).isdecimal():
            token = int(shown.removeprefix(BY_ID))
            self._check_id(token)
            return token
        if shown in self._ids:
            return self._ids[shown]
        if vague(shown):
            return None
        raise InputError(
            f"the tokenizer {self.name} is not the server's: its token {shown!r} is none of the tokenizer's "
            f"{self.size}; give the tokenizer of the model that is served"
        )

    def _check_id(self, token: int) -> None:
        if not 0 <= token < self.size:
            raise InputError(
                f"the tokenizer {self.name} is not the server's: it has {self.size} tokens, the server names token "
                f"{token}; give the tokenizer of the model that is served"
            )


def vague(shown: str) -> bool:
    """Whether a string shows no text, or bytes that are none by themselves, and so no token: llama-cpp-python shows
    ends and parts of characters as empty strings."""
    return not shown or "\ufffd" in shown or shown.startswith("bytes:")


def choices_of(answer: Any, count: int) -> list[dict[str, Any]]:
    """The choices of an answer, in the order of the prompts.  Raises: MalformedError: not `count` of them."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise MalformedError(f"it holds no choices, but says: {message_of(answer)}")
    named = [choice.get("index", place) for place, choice in enumerate(choices)]
    found = {place: choice for place, choice in zip(named, choices, strict=True) if type(place) is int}
    if len(named) != count or found.keys() != set(range(count)):
        raise MalformedError(f"it holds the choices {', '.join(map(str, named)) or 'none'} for {count} prompts")
    return [found[place] for place in range(count)]


def used(answer: Any, prompt_tokens: int = 0, echo: bool = False) -> tuple[int, int]:
    """Tokens of the prompts and of the completions, as the answer's `usage` counts them; without one the
    `prompt_tokens` that were sent, and the steps that came back, or the one token behind an echo."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    found = usage if isinstance(usage, dict) else {}
    counts = (found.get("prompt_tokens"), found.get("completion_tokens"))
    if all(isinstance(count, int) and count >= 0 for count in counts):
        return counts[0] or 0, counts[1] or 0
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if echo and choices:
        return prompt_tokens, 1
    steps = 0
    for choice in choices if isinstance(choices, list) else []:
        try:
            steps += len(_steps_of(choice))
        except (MalformedError, AttributeError):
            continue  # of no use; how much of it is on the bill nobody tells
    return (prompt_tokens, steps) if choices else (0, 0)


def reply_of(choice: dict[str, Any], words: Words, asked: int) -> Reply:
    """One choice.

    Args:
        asked: how many of the most probable tokens were asked for.
    Raises:
        MalformedError: something is missing, no number, or not as long as the rest.
        InputError: tokens of another tokenizer, or a taken token that its string does not tell.
    """
    tokens, logp, rows = [], [], []
    for step in _steps_of(choice):
        token, own = _entry(step, words)
        if token is None:
            raise InputError(
                f"the server's string {step.get('token')!r} stands for several tokens of {words.name}, and one of them "
                "was taken; a server that names tokens by id is needed (vLLM and llama.cpp do)"
            )
        row = row_of([_entry(top, words) for top in step["top_logprobs"]], asked)
        _check_taken(token, own, row)
        tokens.append(token)
        logp.append(min(own, 0.0))
        rows.append(row)
    named = choice.get("token_ids")
    if isinstance(named, list) and len(named) >= len(tokens) and named[: len(tokens)] != tokens:
        raise MalformedError("its token ids are not those of its log-probabilities")
    finish = choice.get("finish_reason")
    return Reply(tokens, logp, rows, finish if isinstance(finish, str) else None)


def check_all_told(answer: Any, replies: Sequence[Reply], ends: Collection[int]) -> None:
    """Of each reply that stopped, one end may be left out; the rest is told as it is counted.

    llama.cpp's server says nothing of a token that leaves a character unfinished; the next one is told as if it
    followed the one before, with the log-probability of another context.

    Raises: InputError: the answer counts more tokens than it tells.
    """
    counted, told = used(answer)[1], sum(len(reply.tokens) for reply in replies)
    stopped = [reply.tokens for reply in replies if reply.finish != "length"]
    if counted > told + sum(not tokens or tokens[-1] not in ends for tokens in stopped):
        raise InputError(
            f"the server counts {counted} tokens in its replies and tells {told}: without the others (llama.cpp's "
            "leaves out those that end within a character) texts and log-probabilities would be wrong; take a server "
            "that tells all (vLLM does)"
        )


def rows_of(choice: dict[str, Any], words: Words, asked: int) -> list[Row]:
    """What is said of each state, whichever token was taken there.  Raises: as `reply_of`."""
    return [row_of([_entry(top, words) for top in step["top_logprobs"]], asked) for step in _steps_of(choice)]


def _check_taken(token: int, logp: float, row: Row) -> None:
    """Raises: MalformedError: the log-probability of a taken token is not one that its state can have given it."""
    said = dict(zip(row.ids, row.logp, strict=True)).get(token)
    if logp <= ABSENT:
        raise MalformedError(f"token {token} was taken, and its log-probability is {logp}")
    if said is not None and abs(said - logp) > NEAR:
        raise MalformedError(f"the log-probability of token {token} is {logp:.3f}, and in its state {said:.3f}")
    if said is None and logp > row.logp[-1] + NEAR:
        raise MalformedError(
            f"token {token} was taken at {logp:.3f} and is not among the most probable, which end at {row.logp[-1]:.3f}"
        )


def masses_of(choice: dict[str, Any], words: Words) -> list[list[float]]:
    """Probabilities of all tokens that came back for each state, whatever they are.  Raises: as `reply_of`."""
    tops = [[_entry(top, words) for top in step["top_logprobs"]] for step in _steps_of(choice)]
    return [[math.exp(logp) for _, logp in top] for top in tops]


def _steps_of(choice: dict[str, Any]) -> list[dict[str, Any]]:
    """What is told of each step, as llama.cpp tells it."""
    told = choice.get("logprobs")
    if not isinstance(told, dict):
        raise MalformedError("it holds no log-probabilities")
    steps: list[dict[str, Any]] = told["content"] if isinstance(told.get("content"), list) else _steps(told)
    for step in steps:
        if not isinstance(step, dict) or not isinstance(step.get("top_logprobs"), list):
            raise MalformedError("a step has no most probable tokens")
    return steps


def _steps(told: dict[str, Any]) -> list[dict[str, Any]]:
    """OpenAI's parallel lists as a list of steps."""
    columns = [told.get(name) for name in ("tokens", "token_logprobs", "top_logprobs")]
    if not all(isinstance(column, list) for column in columns) or len({len(column or []) for column in columns}) != 1:
        raise MalformedError("tokens, token_logprobs and top_logprobs are not lists of one length")
    tokens, own, tops = columns
    steps = []
    for token, logp, top in zip(tokens or [], own or [], tops or [], strict=True):
        if not isinstance(top, dict):
            raise MalformedError(f"the most probable tokens beside {token!r} are missing")
        listed = [{"token": shown, "logprob": value} for shown, value in top.items()]
        steps.append({"token": token, "logprob": logp, "top_logprobs": listed})
    return steps


def _entry(told: Any, words: Words) -> Entry:
    """A token and its log-probability."""
    shown, logp = (told.get("token"), told.get("logprob")) if isinstance(told, dict) else (None, None)
    if not isinstance(shown, str) or not isinstance(logp, (int, float)) or isinstance(logp, bool):
        raise MalformedError(f"{str(told)[:60]} is no token with its log-probability")
    if math.isnan(logp) or logp > ROOM:
        raise MalformedError(f"the log-probability of {shown!r} is {logp}")
    number = told.get("id")
    if isinstance(number, int) and not isinstance(number, bool):
        words.check(number, shown)
        return number, float(logp)
    return words.id_of(shown), float(logp)


def row_of(entries: Sequence[Entry], asked: int) -> Row:
    """The most probable tokens of a state, of what a server returned; never one of which that is not certain.

    A server that returns as many as were asked, or one more, the token it took, means the most probable: the least
    probable one beyond `asked` is dropped. Of fewer, or where some string does not tell its token, what is missing may
    have any probability up to what the others leave, and those are kept that have at least that:

        kept = {a : π(a) ≥ 1 − Σ_returned π}

    Source: own derivation; so the row is a prefix of the teacher's tokens by probability, as equation (1) wants.
    Raises: MalformedError: nothing is certain, a token is there twice, or the probabilities sum to more than 1.
    >>> row_of([(4, math.log(0.5)), (2, math.log(0.3)), (9, math.log(0.01))], 5).ids
    [4, 2]
    """
    known = [(token, min(logp, 0.0)) for token, logp in entries if token is not None and logp > ABSENT]
    ranked = sorted(known, key=lambda entry: (-entry[1], entry[0]))
    if len({token for token, _ in ranked}) != len(ranked):
        raise MalformedError("a token stands twice among the most probable")
    mass = math.fsum(math.exp(logp) for _, logp in ranked)
    if mass > 1 + ROOM:
        raise MalformedError(f"the probabilities of a state sum to {mass:.3f}")
    if len(entries) >= asked and len(known) == len(entries):
        kept = ranked[:asked]
    else:
        kept = [(token, logp) for token, logp in ranked if math.exp(logp) >= 1 - mass - 1e-6]
    if not kept:
        raise MalformedError(
            f"{len(entries)} of {asked} log-probabilities came back, of mass {mass:.3f}: which tokens are the most "
            f"probable is not known (if there are never more, ask for {max(1, len(entries) - 1)}: --served.logprobs)"
        )
    return Row([token for token, _ in kept], [logp for _, logp in kept])
