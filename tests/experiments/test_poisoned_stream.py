"""The study of shifts and poison on a stream: its streams, its misled teacher, its tables by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from envs.errors import InputError
from envs.prompts import embedded_prompts
from envs.teachers import load_teacher
from envs.vector_env import TopPTokenVectorEnv
from experiments.collect import collect
from experiments.studies.poisoned_stream import (
    KINDS,
    Misled,
    PoisonedStreamConfig,
    garbled,
    noticed,
    one_run,
    said,
    study,
    texts,
    typed,
)

CONFIG = PoisonedStreamConfig(Path("unused"), seeds=2, calm=8, stretch=4)


def test_streams_differ_in_their_stretch_alone_and_hold_no_prompt_of_the_splits() -> None:
    streams = {kind: texts(CONFIG, kind, 0) for kind in KINDS}
    usual = streams["nothing"]
    assert len(usual) == 20 == len(set(usual)) and streams["misled"] == usual != texts(CONFIG, "nothing", 1)
    for kind, change in (("phone", typed), ("garbled", garbled)):
        assert streams[kind] == [*usual[:8], *map(change, usual[8:12]), *usual[12:]]
    known = {prompt.text for split in ("train", "validation", "test") for prompt in embedded_prompts(split)}
    assert not known & set(usual)


def test_messages_by_phone_and_garbled() -> None:
    assert typed("Hi, where is order 12? Thanks.") == "hi where is order 12 thanks"
    found = garbled("Hi, where is order 12?")
    assert sorted(found.replace(" ", "")) == sorted("Hi,whereisorder12?") and found == garbled("Hi, where is order 12?")


def test_a_misled_teacher_says_other_words_as_probable_and_ends_as_often() -> None:
    honest, wrong = load_teacher("table:toy"), [True]
    teacher = Misled(honest, lambda: wrong[0])
    own, theirs = teacher.score([[1, 2, 4]]), honest.score([[1, 2, 4]])
    assert not torch.equal(own, theirs) and torch.equal(own[..., 0], theirs[..., 0])
    assert torch.equal(own.sort(-1).values, theirs.sort(-1).values)
    env = TopPTokenVectorEnv(2, teacher=teacher, prompts=[[1], [2]], top_p=0.9, max_new_tokens=4)
    walked = collect(env, 8, seed=0)
    ends = (walked.prompt_length + walked.length).tolist()
    for row, (text, end) in enumerate(zip(walked.tokens.tolist(), ends, strict=True)):
        start = int(walked.prompt_length[row])
        logp = teacher.score([text[:end]])[0, torch.arange(start - 1, end - 1), text[start:end]]
        torch.testing.assert_close(walked.teacher_logp_taken[row, : end - start], logp.clamp(min=-1e4))
    wrong[0] = False
    assert torch.equal(teacher.score([[1]]), honest.score([[1]]))


def test_what_was_noticed_by_hand(tmp_path: Path) -> None:
    told = [
        {"prompts": 32, "event": "alarm", "signal": "leak", "state": "learning"},
        {"prompts": 32, "event": "alarm", "signal": "entropy", "state": "learning"},
        {"prompts": 48, "event": "alarm", "signal": "leak", "state": "held"},
        {"prompts": 64, "event": "passed"},
        {"prompts": 144, "event": "alarm", "signal": "leak", "state": "learning"},
        {"prompts": 160, "event": "failed"},
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in told), encoding="utf-8")
    assert noticed(tmp_path, 96, 200) == {"alarmed": 2, "found": 1, "delay": 48}
    assert noticed(tmp_path, 200, 300) == {"alarmed": 2, "found": 0}


def test_tables_by_hand() -> None:
    own = {"found": 1.0, "delay": 30.0, "alarmed": 0.0, "rolled_back": 2.0, "failed": 1.0, "quarantined": 40.0}
    one, other = own | {"forward_kl": 0.2, "task_score": 0.6}, own | {"forward_kl": 0.3, "task_score": 0.5}
    found = {(kind, watch): [one, other] if watch else [other, other] for kind in KINDS for watch in (True, False)}
    lines = said(CONFIG, found).splitlines()
    row = next(line for line in lines if line.startswith("| garbled"))
    assert [cell.strip() for cell in row.strip("|").split("|")][1:] == ["2 of 2", "30, 30", "0", "4", "2", "40"]
    assert any("alarms of `nothing`, in 40 usual prompts, are false" in line for line in lines)
    row = next(line for line in lines if line.startswith("| phone") and "±" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:4] == ["0.250±0.635", "0.300±0.000", "-0.050±0.635"]
    assert cells[4:] == ["0.550±0.635", "0.500±0.000", "+0.050±0.635"]


def test_one_seed_is_no_study() -> None:
    with pytest.raises(InputError, match="seeds = 1 gives no interval"):
        study(replace(CONFIG, seeds=1))


@pytest.mark.long
def test_a_small_stream_goes_through_and_is_not_gone_through_twice(tmp_path: Path) -> None:
    config = PoisonedStreamConfig(tmp_path, seeds=2, calm=32, stretch=32, agent="bc", eval_prompts=32)
    found = one_run(config, "misled", True, 0)
    assert found["prompts"] == 96 and found["labels"] == 24 and 0 < found["forward_kl"] < 2
    assert one_run(config, "misled", True, 0) == found
