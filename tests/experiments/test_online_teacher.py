"""A teacher that is not what it was: noticed on a text of which it is known what it says, and not learnt from."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from experiments.online.config import OnlineConfig
from experiments.online.desk import CONTROLS, MOVED, Asked
from experiments.online.journal import lines
from experiments.studies.poisoned_stream import Misled
from experiments.update.drift import read
from tests.experiments.streams import opened, prompts, settings, through


def misled(config: OnlineConfig, begin: int, end: int) -> tuple[dict[str, float], set[str]]:
    """The figures of a run whose teacher is misled for a stretch of blocks, and what was learnt from."""
    online = opened(config)
    online.space.teacher = Misled(online.space.teacher, lambda: begin <= online.counts["prompts"] < end)
    figures = through(online)
    learnt = set(online._learnt())
    online.close()
    return figures, learnt


def wrong(out: Path, begin: int, end: int) -> tuple[set[str], int]:
    """Hashes of the prompts that were labelled within a stretch of 16-prompt blocks, and how many labels these are."""
    readings = [Asked(**json.loads((out / f"labels/{number:08d}.json").read_text())) for number in range(begin, end)]
    assert all(one.misled for one in readings)
    return {digest for one in readings for digest in one.hashes}, sum(len(one.rows) for one in readings)


def test_wrong_labels_are_noticed_at_once_put_away_and_the_right_ones_learnt(tmp_path: Path) -> None:
    """Blocks of 16, eight labels each: wrong from the 7th to the 10th; a hold is three blocks."""
    config = settings(tmp_path, prompts(320))
    figures, learnt = misled(config, 96, 160)
    told = [event for _, event in lines(config.out / "events.jsonl")]
    alarms = [event for event in told if event["event"] == "alarm"]
    assert [(one["prompts"], one["signal"], one["by"]) for one in alarms[:1]] == [(112, "teacher_drift", "control")]
    assert alarms[0]["mean"] > MOVED and {one["prompts"] for one in alarms} == {112, 128, 144, 160}
    digests, count = wrong(config.out, 6, 10)
    assert figures["quarantined"] == count == 32 and not digests & learnt
    assert figures["waiting"] == figures["failed"] == 0 and figures["labels"] == 160 == figures["updates"] + 32
    assert told[-1]["event"] == "passed" and told[-1]["prompts"] == 320, "it learns on"


def test_without_the_watch_wrong_labels_are_noted_and_learnt(tmp_path: Path) -> None:
    config = settings(tmp_path, prompts(192), watch=False)
    figures, learnt = misled(config, 96, 160)
    assert figures["alarms"] == 4 and figures["quarantined"] == figures["rolled_back"] == 0
    assert wrong(config.out, 6, 10)[0] <= learnt and figures["updates"] == 96


def test_the_drift_of_a_block_is_that_of_a_text_of_the_anchor(tmp_path: Path) -> None:
    online = opened(settings(tmp_path, []))
    honest = online.space.teacher
    online.space.teacher = Misled(honest, lambda: True)
    drift, tokens = online.desk._drift(5)
    (row,) = np.random.default_rng([online.config.seed, 5, CONTROLS]).choice(32, CONTROLS, replace=False)
    text = online.desk._known.select([int(row)])
    assert drift == pytest.approx(read(text, online.space.teacher, 0.8, 64, "logprob").drift[0]) and drift > MOVED
    assert tokens == int(text.prompt_length[0] + text.length[0])
    online.space.teacher = honest
    assert abs(online.desk._drift(5)[0]) < 1e-5
    online.close()


def test_labels_of_runs_that_are_older_than_the_control_are_read() -> None:
    reading = Asked([0], 1, [{"forward_kl": 0.1, "leak": 0.0}], 9, ["a"], 0.2)
    old = {name: value for name, value in asdict(reading).items() if name != "teacher_drift"}
    assert reading.misled and not Asked(**old).misled
