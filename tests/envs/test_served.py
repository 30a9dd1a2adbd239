"""A served teacher says what the same teacher says here, whatever the server's manners; its faults are told apart."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.errors import InputError, UnavailableError
from envs.served_http import MalformedError, Pace, checked, retry_after
from envs.served_protocol import Row, Words, choices_of, reply_of, row_of
from envs.served_teacher import ServedTeacher
from envs.serving import Serving
from envs.table_teacher import TABLES
from envs.teachers import EMBEDDED, load_teacher
from envs.vector_env import TopPTokenVectorEnv
from experiments.bench.loopback import Answer, Habits, Loopback
from experiments.collect import attach, collect
from tests.envs.models import tiny_model, tiny_tokenizer
from tests.envs.served import is_greeting, loopback, numbers, served

MANNERS = {
    "vllm": Habits("ids"),
    "llama.cpp": Habits("objects", echoes=False),
    "openai": Habits("strings", strict=True, texts_only=True, echoes=False),
    "llama-cpp-python": Habits("strings", tells_endings=False),
}


@pytest.fixture(params=MANNERS)
def manner(request: pytest.FixtureRequest) -> Habits:
    return MANNERS[request.param]


def envs_of(teachers: list[Any], **own: Any) -> list[TopPTokenVectorEnv]:
    own = {"top_p": 0.8, "max_new_tokens": 5, "prompts": [[1], [2, 3], [5, 1, 4]], **own}
    return [TopPTokenVectorEnv(3, teacher=teacher, **own) for teacher in teachers]


def walk_together(ours: TopPTokenVectorEnv, theirs: TopPTokenVectorEnv, steps: int = 12) -> None:
    """Both take the same slots; all that they show must be equal."""
    rng = np.random.default_rng(0)
    (mine, _), (other, _) = ours.reset(seed=3), theirs.reset(seed=3)
    for _ in range(steps):
        for key, value in other.items():
            np.testing.assert_allclose(mine[key], value, atol=1e-7 if key == "logp" else 0, err_msg=key)
        slots = np.array([int(rng.integers(max(1, count))) for count in other["mask"].sum(1)])
        mine, rewards, *_ = ours.step(slots)
        other, wanted, *_ = theirs.step(slots)
        np.testing.assert_allclose(rewards, wanted, atol=1e-7)


def test_the_env_is_that_of_the_local_teacher(tmp_path: Path, manner: Habits) -> None:
    with loopback(habits=manner) as server:
        walk_together(*envs_of([served(server, tmp_path), TABLES["toy"]()]))


def test_two_tokens_that_come_back_cut_the_sets_as_max_candidates_does(tmp_path: Path) -> None:
    """Equation (1) with max_candidates = 2; the lost mass is reported, nothing is renormalised."""
    with loopback() as server:
        teacher = served(server, tmp_path, logprobs=2)
        ours = envs_of([teacher], max_candidates=None)[0]
        local = envs_of([TABLES["toy"]()], max_candidates=2)[0]
        (mine, told), (other, wanted) = ours.reset(seed=3), local.reset(seed=3)
        np.testing.assert_array_equal(mine["ids"][:, :2], other["ids"])
        np.testing.assert_array_equal(mine["logp"][:, :2], other["logp"])
        np.testing.assert_allclose(told["lost_mass"], wanted["lost_mass"], atol=1e-6)
        assert wanted["lost_mass"].max() > 0.2


def test_a_language_model_says_the_same_over_the_wire(tmp_path: Path) -> None:
    from envs.hf_teacher import HFTeacher

    tiny_tokenizer().save_pretrained(tmp_path)
    local = HFTeacher(tiny_model("llama"), tiny_tokenizer(), name="tiny")
    with Loopback(local, rows=3) as server:
        teacher = ServedTeacher(f"served:{server.url}", tmp_path, Serving(logprobs=97))
        assert (teacher.vocab_size, teacher.eos_ids, teacher.context_limit) == (97, {2}, 127)
        texts = [[5, 9, 30], [44], [7, 7, 8, 60]]
        for row, text in zip(teacher.next_rows(texts), texts, strict=True):
            wanted = local.score([text])[0, -1]
            assert row.ids == wanted.argsort(descending=True, stable=True)[: len(row.ids)].tolist()
            torch.testing.assert_close(torch.tensor(row.logp), wanted[row.ids], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("entries", "asked", "kept"), [
    ([(4, 0.5), (2, 0.3), (9, 0.1), (7, 0.05)], 3, [4, 2, 9]),  # one more than asked: the token taken
    ([(4, 0.5), (9, 0.2), (2, 0.2)], 3, [4, 2, 9]),  # ties: lower id first
    ([(4, 0.5), (2, 0.3), (9, 0.1)], 20, [4, 2, 9]),  # .1 are missing: even one token of them is no more than .1
    ([(4, 0.5), (2, 0.3), (9, 0.05)], 20, [4, 2]),  # .15 are missing, which may be one token above .05
    ([(4, 0.5), (None, 0.3), (9, 0.15)], 3, [4]),  # a string that does not tell its token: .35 are not known
    ([(4, 0.9), (2, 0.1), (9, 0.0)], 3, [4, 2]),  # all there is
])  # fmt: skip
def test_what_is_certain_of_a_state_by_hand(
    entries: list[tuple[int | None, float]], asked: int, kept: list[int]
) -> None:
    given = [(token, math.log(mass) if mass else -9999.0) for token, mass in entries]
    row = row_of(given, asked)
    assert row.ids == kept
    assert row.logp == [dict(given)[token] for token in kept]


@pytest.mark.parametrize(("entries", "problem"), [
    ([(4, 0.2), (2, 0.2)], "not known"),
    ([(4, 0.7), (2, 0.6)], "sum to 1.300"),
    ([(4, 0.5), (4, 0.3)], "twice"),
])  # fmt: skip
def test_a_state_that_tells_nothing_is_malformed(entries: list[tuple[int | None, float]], problem: str) -> None:
    with pytest.raises(MalformedError, match=problem):
        row_of([(token, math.log(mass)) for token, mass in entries], 5)


def choice(**changes: Any) -> dict[str, Any]:
    told = {"tokens": ["3"], "token_logprobs": [-0.1], "top_logprobs": [{"3": -0.1, "2": -3.0}]}
    return {"index": 0, "logprobs": told | changes, "finish_reason": "length"}


def test_answers_are_read_as_they_are_told(tmp_path: Path) -> None:
    from agents.loading import load_tokenizer

    words = Words(load_tokenizer(str(numbers(tmp_path))), "here")
    plain = reply_of(choice(), words, 2)
    assert plain.tokens == [3] and plain.rows[0].ids == [3, 2] and plain.logp == [-0.1]
    by_id = {"tokens": ["token_id:3"], "top_logprobs": [{"token_id:3": -0.1, "token_id:2": -3.0}]}
    assert reply_of(choice(**by_id), words, 2) == plain
    entry = {"id": 3, "token": "3", "logprob": -0.1}
    content = [{**entry, "top_logprobs": [entry, {"id": 2, "token": "2", "logprob": -3.0}]}]
    assert reply_of({"logprobs": {"content": content}, "finish_reason": "length"}, words, 2) == plain
    for wrong in (
        {"token_logprobs": [math.nan]},
        {"token_logprobs": [0.5]},
        {"token_logprobs": []},
        {"token_logprobs": ["-1"]},
        {"top_logprobs": [None]},
    ):
        with pytest.raises(MalformedError):
            reply_of(choice(**wrong), words, 2)
    for told in (None, {}, {"tokens": ["3"]}):
        with pytest.raises(MalformedError):
            reply_of({"logprobs": told}, words, 2)
    for answer in ([], {"choices": [{"index": 1}]}, {"choices": [{}, {}]}, {"choices": "x"}):
        with pytest.raises(MalformedError):
            choices_of(answer, 1)
    with pytest.raises(InputError, match="'nine' is none of the tokenizer's 6"):
        reply_of(choice(tokens=["nine"]), words, 2)
    with pytest.raises(InputError, match="6 tokens, the server names token 7"):
        reply_of(choice(tokens=["token_id:7"]), words, 2)


def test_tokens_are_counted_where_the_server_does_not(tmp_path: Path) -> None:
    def uncounted(number: int, body: dict[str, Any], answer: Callable[[], Answer]) -> Answer:
        found = answer()
        found.body.pop("usage")
        return found

    spent = []
    with loopback(fault=uncounted) as server:
        teacher = served(server, tmp_path)
        teacher.client.record(spent.append)
        teacher.replies([[1], [2, 3]], 4, None)
        assert [sum(one[1] for one in spent), sum(one[2] for one in spent)] == server.spent


def test_a_reply_that_was_broken_off_is_asked_for_again(tmp_path: Path) -> None:
    def abort(answer: Answer) -> Answer:
        answer.body["choices"][0]["finish_reason"] = "abort"
        return answer

    with loopback(fault=once(abort)) as server:
        teacher = served(server, tmp_path)
        assert teacher.replies([[1]], 4, 5) and len([1 for body in server.seen if not is_greeting(body)]) == 2


def test_an_end_that_the_tokenizer_does_not_name(tmp_path: Path) -> None:
    """The server stops at 0 too, which is special here and no end; with a generation configuration beside it, it is."""
    import json

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(numbers(tmp_path / "tokenizer"))
    tokenizer.eos_token, tokenizer.pad_token = "5", "0"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with loopback() as server:
        teacher = served(server, tmp_path)
        with pytest.raises(InputError, match=r"token 0 \('0'\), the tokenizer's ends are \[5\]"):
            for seed in range(20):
                teacher.replies([[1]], 5, seed)
        (tmp_path / "tokenizer" / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 0]}))
        teacher = served(server, tmp_path)
        found = [teacher.replies([[1]], 5, seed)[0] for seed in range(20)]
        assert any(reply.tokens[-1] == 0 and reply.finish == "stop" for reply in found)


def test_an_end_among_the_added_tokens(tmp_path: Path) -> None:
    """0 is special and the server ends there, as at <end_of_turn> and <|eot_id|>: the tokenizer has no name for it."""
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(numbers(tmp_path / "tokenizer"))
    tokenizer.eos_token = "5"
    tokenizer.add_tokens([AddedToken("0", special=True)])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with loopback() as server:
        teacher = served(server, tmp_path)
        assert 0 not in teacher.tokenizer.all_special_ids
        with pytest.raises(InputError, match=r"token 0 \('0'\), the tokenizer's ends are \[5\]"):
            for seed in range(20):
                teacher.replies([[1]], 5, seed)


def test_another_process_asks_by_itself(tmp_path: Path) -> None:
    import copy
    import pickle

    with loopback() as server:
        teacher = served(server, tmp_path)
        other = pickle.loads(pickle.dumps(teacher))
        assert other is not teacher and other.identity == teacher.identity and copy.deepcopy(teacher) is teacher
        assert other.next_rows([[1]]) == teacher.next_rows([[1]])


def test_strings_that_several_tokens_share_tell_none() -> None:
    """Parts of characters are "�" in a byte-level vocabulary, and each of them could be meant."""
    words = Words(load_teacher("embedded").tokenizer, "embedded")
    shown = words.shown["decoded"]
    assert shown.count("\ufffd") > 1 and words.id_of("\ufffd") is None
    some = next(token for token, text in enumerate(shown) if text == " the")
    assert words.id_of(" the") == some and words.id_of("bytes:\\xe2") is None
    told = {"tokens": ["\ufffd"], "token_logprobs": [-0.1], "top_logprobs": [{" the": -0.1}]}
    with pytest.raises(InputError, match="several tokens"):
        reply_of({"logprobs": told}, words, 1)


@pytest.mark.parametrize(("names", "kept"), [("strings", 1), ("objects", 6)])
def test_an_empty_string_is_no_token(tmp_path: Path, names: str, kept: int) -> None:
    """llama-cpp-python shows ends and parts of characters so; here 0, the end, and 5. By id they are known, by string
    no token below .31 of [.30, .22, .01, .44, .02, .01] is certain."""

    def shown(token: int) -> str:
        return "" if token in (0, 5) else str(token)

    with loopback(habits=Habits(names, echoes=False), shown=shown) as server, loopback() as plain:
        row, wanted = served(server, tmp_path).next_rows([[1]])[0], served(plain, tmp_path).next_rows([[1]])[0]
        assert row == Row(wanted.ids[:kept], wanted.logp[:kept])


def test_an_empty_string_is_not_the_name_of_a_token(tmp_path: Path) -> None:
    from agents.loading import load_tokenizer

    words = Words(load_tokenizer(str(numbers(tmp_path, renamed={2: ""}))), "here")
    words.settle([(0, ""), (3, "3")])
    assert words.shown["raw"][2] == "" and words.id_of("") is None and words.id_of("3") == 3


@pytest.mark.parametrize("habits", [Habits("ids"), Habits("objects", echoes=False), Habits("strings", echoes=False)])
def test_another_tokenizer_is_refused_by_its_first_token(tmp_path: Path, habits: Habits) -> None:
    numbers(tmp_path / "tokenizer", renamed={2: "two", 3: "three"})
    with (
        loopback(habits=habits) as server,
        pytest.raises(
            InputError,
            match=r"not the server's: (token [23] is '(two|three)' to it and '[23]'|its token '[23]' is none)",
        ),
    ):
        served(server, tmp_path)


def test_what_needs_the_whole_distribution_is_refused(tmp_path: Path) -> None:
    with loopback() as server:
        teacher = served(server, tmp_path, logprobs=2)
        env = envs_of([teacher])[0]
        with pytest.raises(InputError, match="tdistill collect"):
            collect(env, 3, seed=0)
        walked = collect(env, 3, seed=0, teacher_walk="set")
        assert bool(walked.in_set[walked.steps].all())
        with pytest.raises(InputError, match="whole distributions"):
            attach(walked, teacher, {"teacher_logits"})
        env.reset(seed=0)
        least = [int(env.log_probs[row].argmin()) for row in range(3)]
        with pytest.raises(InputError, match="log-probability is not known"):
            env.step_tokens(np.array(least))
    with pytest.raises(InputError, match="tdistill collect"):
        load_teacher("served:http://127.0.0.1:1/v1")


def once(fault: Callable[[Answer], Answer]) -> Callable[..., Answer]:
    """A fault of the first answer after the handshake."""
    left = [1]

    def hook(number: int, body: dict[str, Any], answer: Callable[[], Answer]) -> Answer:
        if is_greeting(body) or not left[0]:
            return answer()
        left[0] -= 1
        return fault(answer())

    return hook


def test_a_server_that_asks_for_patience_gets_it(tmp_path: Path) -> None:
    busy = Answer(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.6"})
    with loopback(fault=once(lambda answer: busy)) as server:
        teacher = served(server, tmp_path)
        begun = time.monotonic()
        assert len(teacher.replies([[1]], 3, 1)) == 1
        assert time.monotonic() - begun >= 0.6
    busy.headers["Retry-After"] = "4000"
    with loopback(fault=once(lambda answer: busy)) as server:
        teacher = served(server, tmp_path)
        with pytest.raises(UnavailableError, match=r"asks to wait 4000 s \(status 429: slow down\)"):
            teacher.replies([[1]], 3, 1)


def test_retry_after_by_hand() -> None:
    from datetime import datetime, timedelta

    assert retry_after("2.5") == 2.5 and retry_after(None) == retry_after("soon") == retry_after("-3") == 0.0
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 80 < retry_after(later) <= 90


def test_a_pace_spreads_what_is_taken_evenly() -> None:
    """600 a minute are one every .1 s: three take .2 s, and two more at once wait for as long."""
    import threading

    pace, begun = Pace(600, threading.Event()), time.monotonic()
    for _ in range(3):
        pace.take(1)
    assert time.monotonic() - begun >= 0.2
    pace.take(2)
    pace.take(1)
    assert time.monotonic() - begun >= 0.5


def test_the_key_goes_to_the_server_and_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with loopback(key="sk-1234") as server:
        monkeypatch.setenv("A_KEY", "sk-1234")
        teacher = served(server, tmp_path, api_key_env="A_KEY")
        assert teacher.replies([[1]], 3, 1) and "sk-1234" not in repr(teacher.serving)
        monkeypatch.setenv("A_KEY", "sk-wrong")
        with pytest.raises(InputError, match=r"401: Incorrect API key: Bearer \*\*\*") as error:
            served(server, tmp_path, api_key_env="A_KEY").replies([[1]], 3, 1)
        assert "sk-wrong" not in str(error.value)
        with pytest.raises(InputError, match="'NO_KEY'"):
            served(server, tmp_path, api_key_env="NO_KEY")


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://here/v1", "http://user:word@here/v1", "http://here/v1?key=1"])
def test_urls_that_cannot_be_used_or_would_tell_a_secret(url: str) -> None:
    with pytest.raises(InputError):
        checked(url)


@pytest.mark.parametrize("wrong", [
    {"logprobs": 0}, {"timeout": 0.0}, {"price_prompt": -1.0}, {"prompts": "words"}, {"extra": "{"}, {"extra": "[1]"},
    {"context": 2}, {"longest_wait": math.nan},
])  # fmt: skip
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Serving(**wrong)


def test_refusals_of_the_handshake_say_what_to_do(tmp_path: Path) -> None:
    with loopback(habits=Habits(cap=1)) as server, pytest.raises(InputError, match="logprobs must be at most 1"):
        served(server, tmp_path)
    with loopback() as server, pytest.raises(InputError, match="one of: toy"):
        served(server, tmp_path, model="other")

    def silent(number: int, body: dict[str, Any], answer: Callable[[], Answer]) -> Answer:
        found = answer()
        found.body["choices"][0]["logprobs"] = None
        return found

    with loopback(fault=silent) as server, pytest.raises(InputError, match="returns no log-probabilities"):
        served(server, tmp_path)
    with pytest.raises(UnavailableError, match="failed 3 times, last: ConnectError"):
        ServedTeacher("http://127.0.0.1:9/v1", tmp_path / "tokenizer", Serving(attempts=3, backoff=0.01))


def test_an_answer_without_end_is_refused(tmp_path: Path) -> None:
    huge = Answer(200, b" " * (2**20 + 2**17))
    with loopback(fault=once(lambda answer: huge)) as server:
        teacher = served(server, tmp_path, max_megabytes=1)
        with pytest.raises(InputError, match="more than 1 MiB"):
            teacher.replies([[1]], 3, 1)


def test_an_embedded_tokenizer_is_checked_over_all_of_its_vocabulary() -> None:
    """One request of the handshake holds tokens from all over the vocabulary, no others than its own."""
    with Loopback(load_teacher("embedded"), rows=1) as server:
        ServedTeacher(server.url, EMBEDDED)
        sample = server.seen[-1]["prompt"]
        assert server.seen[-1]["echo"] and len(sample) == len(set(sample)) > 200 and max(sample) > 2000
