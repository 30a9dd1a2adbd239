"""The embedded corpus: deterministic, split without overlap, scored word for word, and branching."""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice

import pytest

from envs.errors import InputError
from envs.service_desk import RARE_RANK, Checks, Score, messages, score_reply, split_of, stream
from envs.service_desk_grammar import MODELS, PROMPTS, RETURN_DAYS

CORPUS = messages("train", 3000)


def test_a_message_follows_from_seed_and_index() -> None:
    assert messages("test", 40, seed=3) == messages("test", 60, seed=3)[:40]
    assert messages("test", 40, seed=3) != messages("test", 40, seed=4)
    first = list(islice(stream("train", 0), 30))
    assert list(islice(stream("train", 0, start=first[9][0]), 21)) == first[9:]


def test_splits_never_share_a_prompt_whatever_the_seed() -> None:
    prompts = {split: {m.prompt for m in messages(split, 400, seed)} for split in ("train", "test") for seed in (0, 1)}
    held_out = {m.prompt for seed in range(3) for m in messages("validation", 200, seed)}
    assert not prompts["train"] & prompts["test"] and not held_out & (prompts["train"] | prompts["test"])
    assert {split_of(prompt) for prompt in held_out} == {"validation"}
    shares = Counter(split_of(f"prompt {i}") for i in range(4000))
    assert 0.88 < shares["train"] / 4000 < 0.92
    with pytest.raises(InputError, match="'dev' is none of"):
        messages("dev", 1)


def test_every_reference_satisfies_its_own_checks() -> None:
    for message in CORPUS:
        score = score_reply(message.reply, message.checks)
        assert {score.copied, score.computed, score.required, score.rare, score.task} <= {None, 1.0}, message
        assert score.task == 1.0
        assert not re.search(r"[\[\]|{}]|  | [.,!?]", message.prompt + message.reply), message


def test_there_are_enough_kinds_and_critical_cases() -> None:
    kinds = Counter(message.kind for message in CORPUS)
    assert set(kinds) == set(PROMPTS) and len(kinds) >= 8
    assert min(kinds.values()) > 200
    critical = [message for message in CORPUS if message.critical]
    assert 0.05 < len(critical) / len(CORPUS) < 0.2
    assert {m.checks.required for m in critical} == {
        ("recall notice", "stop using it at once"),
        ("we cannot refund",),
    }
    assert all(m.checks.required == () for m in CORPUS if not m.critical)
    for message in CORPUS:
        if message.kind == "return":
            days = int(re.search(r"(\d+) days", message.prompt)[1])
            assert message.critical == (days > RETURN_DAYS)


def test_numbers_have_at_most_three_digits_and_totals_are_right() -> None:
    for message in CORPUS:
        assert max(map(len, re.findall(r"\d+", message.prompt + message.reply)), default=0) <= 3
        if message.kind == "quote":
            quantity, price = map(int, re.findall(r"\d+", message.prompt))
            assert message.checks.computed == (f"{quantity * price} euros",)


def test_names_have_a_long_tail() -> None:
    """Zipf: the head of the catalogue is common, its tail is many and rare."""
    named = Counter(word for m in CORPUS for word in re.findall(r"\w+", m.prompt) if word in MODELS)
    counts = sorted(named.values(), reverse=True)
    assert counts[0] > 20 * counts[len(MODELS) // 2]
    assert sum(named[model] for model in MODELS[RARE_RANK:]) / named.total() > 0.3


def test_replies_are_worded_in_many_ways() -> None:
    assert len({message.reply for message in CORPUS}) > 0.99 * len(CORPUS)
    assert all(15 <= len(message.reply.split()) <= 60 for message in CORPUS)


def test_scores_by_hand() -> None:
    checks = Checks(
        copied=("482", "3 May"), computed=("96 euros",), required=("we cannot refund",), rare=("Zephyr bell",)
    )
    full = score_reply("On 3 May, order 482: WE CANNOT REFUND the zephyr bell for 96 euros.", checks)
    assert full == Score(1.0, 1.0, 1.0, 1.0, 1.0)
    part = score_reply("Order 4821 of 13 May: we cannot refund 96 euros.", checks)
    assert part == Score(copied=0.0, computed=1.0, required=1.0, rare=0.0, task=pytest.approx(1 / 3))
    assert score_reply("anything", Checks()) == Score(None, None, None, None, None)
