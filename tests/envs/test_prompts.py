"""Prompts are read exactly, refused clearly, and split without overlap."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.errors import InputError
from envs.prompts import Prompt, embedded_prompts, embedded_splits, fitting, load_prompts, prompt_hash, split_prompts
from envs.service_desk import Checks
from envs.teachers import load_teacher


def write(path: Path, *records: object) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records), encoding="utf-8")
    return path


def test_a_jsonl_line_carries_references_tags_and_checks(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl",
        {"prompt": "one", "reference": "answer", "tags": ["a"], "checks": {"copied": ["12"], "required": ["sorry"]}},
        "",
        {"prompt": "two", "reference": ["x", "y"]},
        {"prompt": "three", "tags": None},
    )
    assert load_prompts(path) == [
        Prompt("one", ("answer",), ("a",), Checks(copied=("12",), required=("sorry",))),
        Prompt("two", ("x", "y")),
        Prompt("three"),
    ]


def test_plain_text_is_one_prompt_a_line(tmp_path: Path) -> None:
    assert load_prompts(write(tmp_path / "p.txt", "first", "", "second")) == [Prompt("first"), Prompt("second")]


def test_marks_and_separators_of_unicode_are_no_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes('\ufeff{"prompt": "a\u2028b"}\r\n{"prompt": "c\x85d"}\n'.encode())
    assert [prompt.text for prompt in load_prompts(path)] == ["a\u2028b", "c\x85d"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{broken", "not JSON"),
        ({"text": "no prompt"}, 'string under "prompt"'),
        ({"prompt": "   "}, "empty"),
        ({"prompt": "half \ud800"}, "surrogate"),
        ({"prompt": "p", "tags": "a"}, "list of strings"),
        ({"prompt": "p", "reference": [1]}, "list of strings"),
        ({"prompt": "p", "checks": {"wrong": []}}, "keys among"),
    ],
)
def test_a_broken_line_is_named_or_skipped(tmp_path: Path, line: object, says: str) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "good"}, line)
    with pytest.raises(InputError, match=says) as caught:
        load_prompts(path)
    assert "line 2" in str(caught.value)
    assert load_prompts(path, skip_bad=True) == [Prompt("good")]


def test_sources_without_a_prompt_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_prompts(tmp_path / "absent.jsonl")
    with pytest.raises(InputError, match="0 prompts"):
        load_prompts(write(tmp_path / "empty.txt", ""))
    with pytest.raises(InputError, match="0 prompts"):
        load_prompts([])
    (tmp_path / "latin.txt").write_bytes("na\xefve".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        load_prompts(tmp_path / "latin.txt")


@given(st.lists(st.text(alphabet="abcd", min_size=1, max_size=4), min_size=3, max_size=60), st.integers(0, 3))
def test_splits_are_disjoint_complete_and_blind_to_order(texts: list[str], seed: int) -> None:
    distinct = {prompt_hash(text) for text in texts}
    prompts = [Prompt(text) for text in texts]
    if len(distinct) < 3:
        with pytest.raises(InputError, match="at least 3"):
            split_prompts(prompts, seed)
        return
    splits = split_prompts(prompts, seed)
    hashes = [{prompt_hash(p.text) for p in part} for part in splits]
    assert all(hashes)
    assert set.union(*hashes) == distinct
    assert sum(map(len, hashes)) == len(distinct)
    again = split_prompts(reversed(prompts), seed)
    assert [[prompt_hash(p.text) for p in part] for part in again] == [
        [prompt_hash(p.text) for p in part] for part in splits
    ]


def test_prompts_that_fit_are_kept_in_order_and_longer_ones_refused_or_left_out() -> None:
    teacher = load_teacher("table:toy")
    room = teacher.context_limit - 1
    prompts = [Prompt("1 2"), Prompt("1 2 4"), Prompt("4"), Prompt("5")]
    found = fitting(prompts, teacher, longest=2, skip_bad=True, most=2)
    assert found == [(prompts[0], [1, 2]), (prompts[2], [4])]
    with pytest.raises(InputError, match=r"the test prompt '1 2 4' has 3 tokens, the limit is 2 \(max_prompt_tokens\)"):
        fitting(prompts, teacher, longest=2, what="test prompt")
    with pytest.raises(InputError, match=r"no prompt has at most 2 tokens"):
        fitting(prompts[1:2], teacher, longest=2, skip_bad=True)
    assert len(fitting(prompts, teacher)) == 4 and fitting([Prompt("1 " * room)], teacher)
    with pytest.raises(InputError, match=f"the limit is {room} .one less than the teacher's context of {room + 1}"):
        fitting([Prompt("1 " * (room + 1))], teacher)


def test_embedded_prompts_are_tagged_checked_and_disjoint() -> None:
    splits = embedded_splits({"train": 200, "validation": 50, "test": 50})
    hashes = [{prompt_hash(p.text) for p in part} for part in splits]
    assert [len(h) for h in hashes] == [200, 50, 50]
    assert not hashes[0] & hashes[1] and not hashes[0] & hashes[2] and not hashes[1] & hashes[2]
    assert len({p.tags[0] for p in splits.train}) >= 8
    assert any("critical" in p.tags and p.checks.required for p in splits.train)
    with pytest.raises(InputError, match="none of"):
        embedded_prompts("dev")
