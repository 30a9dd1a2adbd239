"""Learning on line, whole: each prompt answered once, held and rolled back, killed at any moment and gone on."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from agents.errors import DivergedError
from agents.errors import InputError as AgentInputError
from envs.errors import InputError
from envs.prompts import load_prompts, prompt_hash, split_prompts
from experiments.__main__ import main
from experiments.folder import alone
from experiments.online import loop
from experiments.online.config import OnlineConfig
from experiments.online.journal import Log, lines
from experiments.online.learner import Learner
from experiments.online.sources import Folder
from experiments.seen import TRAINED_ON
from tests.experiments.streams import STRANGE, opened, prompts, ran, settings, through

Figures = dict[str, float]


def events(out: Path) -> list[dict[str, Any]]:
    return [record for _, record in lines(out / "events.jsonl")]


def replies(out: Path) -> list[dict[str, Any]]:
    return [record for _, record in lines(out / "replies.jsonl")]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "student" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_stream_is_answered_once_each_and_learnt_from(tmp_path: Path) -> None:
    stream = prompts(192)
    config = settings(tmp_path, stream)
    figures, out = ran(config), config.out
    assert [reply["prompt"] for reply in replies(out)] == stream
    assert [reply["n"] for reply in replies(out)] == list(range(192))
    assert figures["prompts"] == 192 and figures["labels"] == figures["updates"] == 96
    assert figures["alarms"] == figures["rolled_back"] == figures["failed"] == figures["waiting"] == 0
    assert figures["passed"] == len(events(out)) == 6
    AutoModelForCausalLM.from_pretrained(out / "student")
    splits = split_prompts(load_prompts(config.prompts))
    held_out = {prompt_hash(prompt.text) for part in splits[1:] for prompt in part[: config.eval_prompts]}
    labelled = [digest for path in (out / "labels").glob("*.json") for digest in json.loads(path.read_text())["hashes"]]
    assert len(labelled) == 96 and not held_out & set(labelled) and held_out & {prompt_hash(text) for text in stream}
    assert set(labelled) <= set(json.loads((out / "student" / TRAINED_ON).read_text()))
    assert (out / "online.png").is_file()


def test_what_a_reply_gets_and_what_the_teacher_is_asked_does_not_depend_on_the_watch(tmp_path: Path) -> None:
    """Without a watch alarms are noted, and nothing is held."""
    config = settings(tmp_path, prompts(96) + prompts(64, 1, STRANGE), watch=False)
    figures = ran(config)
    assert figures["alarms"] > 0 and figures["rolled_back"] == 0 and figures["labels"] == figures["updates"] == 80


def test_a_shift_is_noticed_held_and_taken_up(tmp_path: Path) -> None:
    config = settings(tmp_path, prompts(96) + prompts(160, 1, STRANGE))
    figures, told = ran(config), events(config.out)
    alarm = next(event for event in told if event["event"] == "alarm")
    assert 96 < alarm["prompts"] <= 96 + 48, "noticed within three blocks"
    resumed = next(event for event in told if event["event"] == "resumed")
    assert resumed["prompts"] == alarm["prompts"] + config.hold
    assert resumed["labels"] > 0 and figures["waiting"] == figures["quarantined"] == figures["failed"] == 0
    assert figures["labels"] == 128 and figures["rolled_back"] == 1


def test_a_student_that_fails_is_not_kept(tmp_path: Path) -> None:
    """Updates that ruin it: the weights stay those that passed, its labels are put away, and it is tried again."""
    config = settings(tmp_path, prompts(320), agent_config=("bc.lr=1.0",))
    figures, told = ran(config), [event for event in events(config.out) if event["event"] not in ("alarm", "held")]
    assert [event["event"] for event in told] == ["failed"] * len(told) and len(told) >= 3
    gaps = [after["prompts"] - before["prompts"] for before, after in pairwise(told)]
    assert gaps == [48] * len(gaps)
    assert figures["quarantined"] + figures["waiting"] == figures["labels"] and figures["updates"] == 0
    begun = opened(settings(tmp_path, [], out=tmp_path / "other", agent_config=("bc.lr=1.0",)))
    begun.close()
    assert same(weights(config.out), weights(begun.out))


def test_a_student_that_diverges_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(self: Learner, updates: int) -> NoReturn:
        raise DivergedError("loss nan")

    monkeypatch.setattr(Learner, "learn", diverge)
    config = settings(tmp_path, prompts(32))
    figures = ran(config)
    assert events(config.out)[0] == {"prompts": 16, "event": "diverged", "why": "loss nan"}
    assert figures["rolled_back"] == 1 and figures["quarantined"] == 8


def test_what_ruins_a_student_after_an_alarm_is_put_away_and_the_rest_learnt(tmp_path: Path) -> None:
    """A gate that no student passes that has learnt from the strange: as poison is met."""
    config = settings(tmp_path, prompts(96) + prompts(96, 1, STRANGE) + prompts(200, 7))
    online = opened(config)
    strange = {prompt_hash(text) for text in STRANGE}
    trial = online.trial

    def wary(model: Any) -> Any:
        judgement, measures = trial(model)
        digests = {digest for number, _ in online.learner.fresh for digest in online.desk.reading(number).hashes}
        if not digests & strange:
            return judgement, measures
        first = judgement.verdicts[0]
        return type(judgement)((type(first)(first.name, 9.0, 1.0, None, False),), (), False), measures

    wary.path = trial.path
    online.trial = wary
    figures = through(online)
    online.close()
    told = [event["event"] for event in events(config.out) if event["event"] not in ("alarm", "held")]
    assert "failed" in told and told.index("failed") < told.index("resumed") < len(told) - 1
    assert 1 <= figures["failed"] <= 2 and figures["quarantined"] > 0
    learnt = set(online._learnt())
    assert not strange & learnt and len(learnt) > 48
    everything = [online.learner.adopted, online.learner.fresh, online.learner.waiting, online.learner.quarantined]
    assert sum(count for portions in everything for _, count in portions) == figures["labels"], "nothing is lost"


class Killed(BaseException):
    """In place of a signal."""


def killing(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """End the process, in effect, at the so manieth write to a file or look at a reply."""
    left = [after]

    def counted(act: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return act(*arguments, **named)

        return wrapper

    for where, name in ((os, "rename"), (os, "replace"), (torch, "save"), (Log, "add"), (loop, "decode")):
        monkeypatch.setattr(where, name, counted(getattr(where, name)))


def trace(out: Path) -> tuple[Any, ...]:
    return replies(out), events(out), weights(out)


def test_killed_anywhere_it_goes_on_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(tmp_path, prompts(96) + prompts(96, 1, STRANGE), checkpoint_seconds=0.2)
    figures = ran(config)
    expected, rng, kills = trace(config.out), random.Random(0), 0
    for _ in range(2):
        shutil.rmtree(config.out)
        while True:
            with monkeypatch.context() as patch:
                killing(patch, rng.randint(1, 250))
                try:
                    found = ran(config)
                except Killed:
                    kills += 1
                    continue
                break
        assert found == figures
        for one, other in zip(trace(config.out)[:2], expected[:2], strict=True):
            assert one == other
        assert same(weights(config.out), expected[2])
    assert kills >= 2


def test_stopped_by_hand_it_goes_on_to_the_same_end(tmp_path: Path) -> None:
    config = settings(tmp_path, prompts(96), eval_every=20)
    figures = ran(config)
    expected = trace(config.out)
    shutil.rmtree(config.out)
    for blocks in (1, 2, 99):
        online = opened(config)
        left = [blocks]

        def stopped(left: list[int] = left) -> bool:
            left[0] -= 1
            return left[0] < 0

        found = online.run(Folder(Path(config.stream), online.journal, online.problem), stopped)
        online.close()
    assert found == figures
    assert trace(config.out)[:2] == expected[:2] and same(weights(config.out), expected[2])


def test_the_student_that_passed_is_there_whatever_a_kill_left(tmp_path: Path) -> None:
    config = settings(tmp_path, prompts(80))
    ran(replace(config, most_prompts=48))
    before, place = weights(config.out), config.out / "student"
    online = opened(replace(config, most_prompts=56))
    online.run(Folder(Path(config.stream), online.journal, online.problem), lambda: online.counts["prompts"] > 48)
    online.close()
    os.rename(place, place.with_name("student.old"))
    opened(config).close()
    assert same(weights(config.out), before) and not place.with_name("student.old").is_dir()
    shutil.rmtree(place)
    online = opened(config)
    assert same(weights(config.out), before)
    assert online.learner.updates > online.learner.tried, "it goes on as it was"
    online.close()


def test_a_prompt_must_leave_room_for_the_reply_in_both_contexts(tmp_path: Path) -> None:
    online = opened(settings(tmp_path, ["1"]))
    model, teacher = online.model.config.max_position_embeddings, online.space.teacher
    assert not online.problem(" ".join("1" * (model - 6)))
    assert f"the limit is {model - 6}" in online.problem(" ".join("1" * (model - 5)))
    teacher.context_limit, before = 20, teacher.context_limit
    try:
        assert "the limit is 14" in online.problem(" ".join("1" * 15)) and not online.problem(" ".join("1" * 14))
    finally:
        teacher.context_limit = before
    assert "no text of" in online.problem("hello") and "empty" in online.problem("  ")
    online.close()


def test_a_gate_that_was_changed_is_another_run(tmp_path: Path) -> None:
    config = settings(tmp_path, prompts(16))
    ran(config)
    (config.out / "gate.yaml").write_text("conditions: [{measure: leak, at_most: 1}]", encoding="utf-8")
    with pytest.raises(InputError, match="was run with agent settings"):
        ran(config)


def test_a_run_that_is_over_goes_on_when_more_comes(tmp_path: Path) -> None:
    config = settings(tmp_path, prompts(64), most_prompts=40)
    assert ran(config)["prompts"] == 40
    assert ran(settings(tmp_path, prompts(64)))["prompts"] == 64
    (tmp_path / "stream" / "c.txt").write_text("\n".join(prompts(8, 3)), encoding="utf-8")
    assert ran(settings(tmp_path, prompts(64)))["prompts"] == 72
    assert [reply["prompt"] for reply in replies(config.out)] == prompts(64) + prompts(8, 3)


def test_labels_cost_what_is_said(tmp_path: Path) -> None:
    """Tokens of prompts, of the student's replies and of a control, which are read, and of the teacher's, walked."""
    config = settings(tmp_path, prompts(32), label=1.0, agent="kd")
    figures = ran(config)
    online = opened(config)
    read = walked = 0
    for number in (0, 1):
        rows, episodes = online.desk.reading(number).rows, online.desk.episodes(number)
        walked += int(episodes.length.sum())
        read += online.desk._drift(number)[1]
        for row in rows:
            reply = replies(config.out)[16 * number + row]
            read += int(reply["prompt_length"] + reply["reply_length"])
    assert figures["teacher_tokens"] == read + walked + online.learner.asked and online.learner.asked > 0
    online.close()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"agent": "soft_q"}, "was run with agent settings"),
        ({"top_p": 0.5}, "holds a run with top_p"),
        ({"label": 0.25}, "holds a run with label"),
    ],
)
def test_other_settings_do_not_go_on(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    ran(settings(tmp_path, prompts(16)))
    with pytest.raises(InputError, match=said):
        ran(settings(tmp_path, prompts(16), **changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"agent": "gkd"}, "learns from walks of its own"),
        ({"eval_prompts": 16}, "do not say what is usual"),
        ({"agent_config": ("bc.lr=-1",)}, "lr is -1"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises((InputError, AgentInputError), match=said):
        ran(settings(tmp_path, prompts(16), **changes))


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ("conditions: [{measure: forward_kl, at_most: 0.001}]", "does not pass .* forward_kl ≤ 0.001, it has"),
        ("conditions: [{measure: token_ms_1, at_most: 5}]", "token_ms_1 is no measure of what is learnt on line"),
        ("conditions: []", "at least one condition"),
    ],
)
def test_a_gate_that_cannot_be_kept_is_refused(tmp_path: Path, gate: str, said: str) -> None:
    (tmp_path / "gate.yaml").write_text(gate, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        ran(settings(tmp_path, prompts(16), gate=tmp_path / "gate.yaml"))


def test_a_gate_with_confidence_takes_the_whole_measurement(tmp_path: Path) -> None:
    text = "confidence: 0.9\nconditions: [{measure: length, at_most: 6}, {measure: leak, at_most: 1}]"
    (tmp_path / "gate.yaml").write_text(text, encoding="utf-8")
    config = settings(tmp_path, prompts(32), gate=tmp_path / "gate.yaml")
    assert ran(config)["passed"] == 1
    assert "self_bleu" in events(config.out)[0]["measures"]


def test_two_commands_do_not_share_a_folder(tmp_path: Path) -> None:
    config = settings(tmp_path, prompts(16))
    ran(config)
    with alone(config.out, "running in"), pytest.raises(InputError, match="another command is running in"):
        ran(config)


def words(config: OnlineConfig) -> list[str]:
    """The same settings on the command line."""
    usual, found = OnlineConfig(), list[str]()
    for field in fields(config):
        value = getattr(config, field.name)
        if value != getattr(usual, field.name):
            found += [f"--{field.name.replace('_', '-')}", str(value)]
    return found


def test_the_command_says_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = settings(tmp_path, prompts(32), json=tmp_path / "figures.json")
    assert main(["online", *words(config)]) == 0
    assert "prompts         32" in capsys.readouterr().out
    figures = {own["name"]: own["value"] for own in json.loads((tmp_path / "figures.json").read_text())["figures"]}
    assert figures["prompts"] == 32 and figures["passed"] == 1
    assert main(["online", *words(config), "--label", "2"]) == 2
    assert "label = 2.0 is outside [0, 1]" in capsys.readouterr().err


@pytest.mark.long
def test_it_is_killed_again_and_again(tmp_path: Path) -> None:
    """SIGKILL of the process itself, at random, until the stream is through; all as in an undisturbed run."""
    config = settings(tmp_path, prompts(256) + prompts(256, 1, STRANGE), checkpoint_seconds=0.5)
    ran(config)
    expected, rng, kills = trace(config.out), random.Random(1), Counter[str]()
    shutil.rmtree(config.out)
    command = [sys.executable, "-m", "experiments", "online", *words(config)]
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begun = config.out / "prompts.jsonl"
        size = begun.stat().st_size if begun.is_file() else 0
        while process.poll() is None and (not begun.is_file() or begun.stat().st_size == size):
            time.sleep(0.02)
        try:
            process.wait(rng.uniform(0.0, 1.5))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills["killed"] += 1
            continue
        assert process.returncode == 0
        break
    assert kills["killed"] >= 3
    found = trace(config.out)
    assert found[:2] == expected[:2] and same(found[2], expected[2])
