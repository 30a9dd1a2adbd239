"""The embedded corpus: the mail of a small bicycle workshop, generated from a seed, every reply scored.

Nine kinds of customer message; replies of several weighted phrasings a sentence, with slots that must be copied
(order numbers, dates, streets) or computed (totals of at most three digits), a Zipf tail of part names and codes, and
*critical* messages whose reply must contain a phrase: a recall notice for the recalled models, a refund refusal after
30 days.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import TypeAlias

from envs import service_desk_grammar as grammar
from envs.errors import InputError

SPLITS = {"train": range(90), "validation": range(90, 95), "test": range(95, 100)}
RARE_RANK = 12
REQUIRED_RECALL = ("recall notice", "stop using it at once")
REQUIRED_REFUSAL = ("we cannot refund",)

# A template is a sequence of texts, slot names and alternations; an alternation is a tuple of templates.
Template: TypeAlias = "tuple[str | tuple[Template, ...], ...]"


@dataclass(frozen=True)
class Checks:
    """What a good reply contains, word for word.

    copied: stands in the prompt too. computed: follows from numbers in the prompt. required: the phrases of a critical
    case. rare: names from the tail of the catalogue.
    """

    copied: tuple[str, ...] = ()
    computed: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    rare: tuple[str, ...] = ()


@dataclass(frozen=True)
class Message:
    """A customer's message and one reply the business might send."""

    prompt: str
    reply: str
    kind: str
    critical: bool
    checks: Checks


@dataclass(frozen=True)
class Score:
    """Shares of the checked strings that a reply contains, each in [0, 1]; None where there is nothing to check."""

    copied: float | None
    computed: float | None
    required: float | None
    rare: float | None
    task: float | None = field(default=None)  # copied and required together: the task score


def score_reply(reply: str, checks: Checks) -> Score:
    """How much of what a reply must contain it contains; whole words and numbers only, in any case.

    >>> score_reply("Order 482 is packed.", Checks(copied=("482", "3 May"), required=()))
    Score(copied=0.5, computed=None, required=None, rare=None, task=0.5)
    """

    def share(wanted: Sequence[str]) -> float | None:
        return sum(map(present, wanted)) / len(wanted) if wanted else None

    def present(phrase: str) -> bool:
        return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", reply, re.IGNORECASE) is not None

    parts = {part.name: share(getattr(checks, part.name)) for part in fields(Checks)}
    return Score(**parts, task=share(checks.copied + checks.required))


def messages(split: str, count: int, seed: int = 0) -> list[Message]:
    """The first `count` messages of a split; no prompt occurs twice, none in two splits, whatever the seed.

    Raises: InputError: an unknown split.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r} is none of {', '.join(SPLITS)}")
    distinct: dict[str, Message] = {}
    for _, message in stream(split, seed):
        if len(distinct) >= count:
            break
        distinct.setdefault(message.prompt, message)
    return list(distinct.values())[:count]


def stream(split: str, seed: int, start: int = 0) -> Iterator[tuple[int, Message]]:
    """The endless messages of a split with their index, from `start` on; a message follows from (seed, index) alone."""
    index = start
    while True:
        message = _message(random.Random(f"{seed}/{index}"))
        if split_of(message.prompt) == split:
            yield index, message
        index += 1


def split_of(prompt: str) -> str:
    """The split a prompt belongs to, by the hash of its text: 90 % train, 5 % validation, 5 % test."""
    place = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest()) % 100
    return next(name for name, places in SPLITS.items() if place in places)


def _message(rng: random.Random) -> Message:
    kind = rng.choice(list(grammar.PROMPTS))
    slots = _draw_slots(rng)
    reply_name, critical, checks = _obligations(kind, slots)
    prompt = " ".join((grammar.GREETING, grammar.PROMPTS[kind], grammar.PLEA))
    reply = " ".join((grammar.OPENING, grammar.REPLIES[reply_name], grammar.OFFER, grammar.CLOSING))
    return Message(_expand(prompt, slots, rng), _expand(reply, slots, rng), kind, critical, checks)


def _draw_slots(rng: random.Random) -> dict[str, str]:
    model, part = _zipf(grammar.MODELS, rng), _zipf(grammar.PARTS, rng)
    quantity, price = rng.randint(2, 9), rng.randint(2, 20)
    return {
        "order": str(rng.randint(100, 999)),
        "invoice": str(rng.randint(100, 999)),
        "amount": str(rng.randint(10, 999)),
        "date": f"{rng.randint(1, 28)} {rng.choice(grammar.MONTHS)}",
        "weekday": rng.choice(grammar.WEEKDAYS),
        "house": str(rng.randint(1, 99)),
        "street": _zipf(grammar.STREETS, rng),
        "age": str(rng.randint(3, 90)),
        "code": f"{rng.choice('BFKNRTWX')}{rng.randint(10, 99)}",
        "quantity": str(quantity),
        "price": str(price),
        "total": str(quantity * price),
        "model": model,
        "part": part,
        "item": f"{model} {part}",
        "few": "",
        "anyday": "",
        "staff": "",
        "extra": "",
    }


def _obligations(kind: str, slots: Mapping[str, str]) -> tuple[str, bool, Checks]:
    """Which reply a message asks for, whether the case is critical, and what the reply must contain."""
    tail = grammar.MODELS.index(slots["model"]) >= RARE_RANK or grammar.PARTS.index(slots["part"]) >= RARE_RANK
    rare = (slots["item"],) if tail else ()
    if kind in {"product", "complaint"} and slots["model"] in grammar.RECALLED_MODELS:
        return "recall", True, Checks(copied=(slots["model"],), required=REQUIRED_RECALL)
    if kind == "return":
        if int(slots["age"]) > grammar.RETURN_DAYS:
            copied = (slots["order"], f"{slots['age']} days")
            return "return_refused", True, Checks(copied, required=REQUIRED_REFUSAL, rare=rare)
        return "return_accepted", False, Checks((slots["order"],), rare=rare)
    checks = {
        "order_status": Checks((slots["order"], slots["date"])),
        "quote": Checks((slots["quantity"],), computed=(f"{slots['total']} euros",), rare=rare),
        "appointment": Checks((f"{slots['weekday']} {slots['date']}",), rare=rare),
        "address": Checks((slots["order"], f"{slots['house']} {slots['street']}")),
        "product": Checks((slots["code"],), rare=rare),
        "complaint": Checks((slots["order"],), rare=rare),
        "invoice": Checks((slots["invoice"], slots["date"], f"{slots['amount']} euros")),
        "cancel": Checks((slots["order"],), rare=rare),
    }
    return kind, False, checks[kind]


def _zipf(items: Sequence[str], rng: random.Random) -> str:
    """One item, the k-th with probability proportional to 1 / (k + 2)."""
    return rng.choices(items, [1 / (rank + 2) for rank in range(len(items))])[0]


def _expand(template: str, slots: Mapping[str, str], rng: random.Random) -> str:
    free = {"anyday": grammar.WEEKDAYS, "staff": grammar.STAFF, "extra": grammar.PARTS}

    def draw(pieces: Template) -> Iterator[str]:
        for piece in pieces:
            if isinstance(piece, str):
                yield piece
            else:
                weights = [grammar.FADE**rank for rank in range(len(piece))]
                yield from draw(rng.choices(piece, weights)[0])

    def fill(found: re.Match[str]) -> str:
        name = found[1]
        if name == "few":
            return str(rng.randint(2, 9))
        return _zipf(free[name], rng) if name in free else slots[name]

    text = re.sub(r"\{(\w+)\}", fill, "".join(draw(_parse(template))))
    text = re.sub(r"\s+(?=[.,!?:])|^\s+|\s+$", "", re.sub(r"\s+", " ", text))
    return re.sub(r"(^|[.!?] )([a-z])", lambda found: found[1] + found[2].upper(), text)


@lru_cache(maxsize=256)
def _parse(template: str) -> Template:
    """A template as nested tuples; see `service_desk_grammar` for the notation."""
    tokens = iter(re.findall(r"[\[\]|]|[^\[\]|]+", template))

    def branches() -> tuple[Template, ...]:
        found: list[list[str | tuple[Template, ...]]] = [[]]
        for token in tokens:
            if token == "[":
                found[-1].append(branches())
            elif token == "|":
                found.append([])
            elif token == "]":
                break
            else:
                found[-1].append(token)
        return tuple(map(tuple, found))

    return branches()[0]
