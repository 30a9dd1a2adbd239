"""Searches on the validation prompts, and warm-ups: what is tried, what is chosen, what is left alone."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.errors import InputError as AgentInputError
from envs.errors import InputError
from experiments import evaluate, train, warm_up
from experiments.arms import split_arm
from experiments.compare import compare
from experiments.jobs import FailedCells
from experiments.samplers import arm_of, trials_of
from experiments.tuning import SEED, TRIALS
from experiments.workspace import Workspace
from tests.experiments.runs import small


def test_trials_begin_with_the_arm_and_are_the_same_for_twins() -> None:
    whole, twin = trials_of("soft_q", 4), trials_of("soft_q@gamma=0", 4)
    assert whole[0] == "soft_q" and twin[0] == "soft_q@gamma=0" and len(set(whole)) == 4
    drawn = [split_arm(arm)[1] for arm in whole[1:]]
    assert [split_arm(arm)[1] for arm in twin[1:]] == [{"gamma": 0, **point} for point in drawn]
    assert all("lr" not in split_arm(arm)[1] or split_arm(arm)[1]["lr"] == 0.5 for arm in trials_of("kd@lr=0.5", 1))
    assert split_arm(arm_of("a", {"x": 1e-05, "on": "set", "flag": False}))[1] == {
        "x": 1e-05,
        "on": "set",
        "flag": False,
    }
    with pytest.raises(InputError, match="points to try beside itself"):
        trials_of("bc", 50)


def result_of(out: Path, cell: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "cells" / cell / "result.json").read_text())
    return found


def test_a_search_chooses_by_validation_and_leaves_the_test_prompts_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(tmp_path, agents=("bc", "kd@on=set"), trials=3)
    tested: list[int] = []
    exam = Workspace.exam

    def watched(space: Workspace, split: str) -> Any:

        if split == "test":
            tested.append(len(list((space.out / "cells").glob("trial-*/result.json"))))
        return exam(space, split)

    monkeypatch.setattr(Workspace, "exam", watched)
    rows = compare(config)
    assert tested and min(tested) == 6  # every trial had ended before the test prompts were looked at
    chosen = json.loads((config.out / "shared" / "tuned.json").read_text())
    assert set(chosen) == {"bc 0.9", "kd@on=set 0.9"}
    for arm in config.agents:
        scores = {}
        for trial in trials_of(arm, 3):
            curve = result_of(config.out, f"trial-{trial}-p0.9-seed{SEED}")["curve"]
            scores[trial] = curve[-1]["forward_kl"]
        best = min(scores, key=lambda trial: scores[trial])
        assert result_of(config.out, f"{arm}-p0.9-seed0")["settings"] == {**split_arm(arm)[1], **split_arm(best)[1]}
    assert [row.agent for row in rows] == ["teacher", "start", *config.agents]
    assert "chosen |" in (config.out / "results.md").read_text()
    before = {path: path.stat().st_mtime_ns for path in (config.out / "cells").rglob("result.json")}
    compare(config)
    assert before == {path: path.stat().st_mtime_ns for path in (config.out / "cells").rglob("result.json")}


def test_no_seeds_search_and_compare_nothing(tmp_path: Path) -> None:
    config = small(tmp_path, seeds=0, trials=2)
    assert compare(config) == []
    assert set(json.loads((config.out / "shared" / "tuned.json").read_text())) == {"bc 0.9", "soft_q 0.9"}
    assert "soft_q" in (config.out / "shared" / "tuned.md").read_text()
    assert not (config.out / "shared" / "exam-test.json").exists() and not (config.out / "results.csv").exists()
    found = [(config.out / name).read_text() for name in ("shared/tuned.json", TRIALS)]
    rows = compare(replace(config, agents=("soft_q",), seeds=1))  # with the settings found before
    assert json.loads((config.out / "shared" / "tuned.json").read_text()) == json.loads(found[0])  # bc's stay
    assert sorted((config.out / TRIALS).read_text().splitlines()) == sorted(found[1].splitlines())
    assert [row.agent for row in rows] == ["teacher", "start", "soft_q"]
    with pytest.raises(InputError, match="seeds = 0 compares nothing and trials = 0 searches nothing"):
        compare(small(tmp_path, seeds=0))
    with pytest.raises(InputError, match="seeds = -1 is below 0; 0 compares nothing"):
        compare(small(tmp_path, seeds=-1))


def test_a_search_by_a_measure_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--select task_score is no validation measure here; there are .*forward_kl"):
        compare(small(tmp_path, agents=("bc",), trials=2, select="task_score"))
    with pytest.raises(InputError, match="--select seconds is no validation measure here"):  # the slowest would win
        compare(small(tmp_path, agents=("bc",), trials=2, select="seconds"))
    assert not (tmp_path / "run").exists()  # before anything runs


def test_a_search_whose_every_trial_fails_says_so(tmp_path: Path) -> None:
    config = small(tmp_path, agents=("bc@lr=1e30",), trials=1)
    with pytest.raises(FailedCells, match="every trial of bc@lr=1e30 failed"):
        compare(config)


def test_arms_begin_with_the_student_that_a_warm_up_kept(tmp_path: Path) -> None:
    config = small(tmp_path, agents=("bc",), seeds=2, warm_start="kd", warm_start_rounds=2, jobs=1)
    rows = compare(config)
    starts = [row.measures["forward_kl"] for row in rows if row.agent == "start"]
    assert len(starts) == 2 and starts[0] != starts[1]
    space = Workspace(config)
    for seed in range(2):
        record = json.loads(space.warm_start_record(seed).read_text())
        assert record["updates"] == 2 * config.updates
        values = record["forward_kl"]  # at the start, and after each round that was kept
        assert record["kept"] == f"round-{len(values) - 2}" and values == sorted(values, reverse=True)
        cold, warm = (dict(own.model.named_parameters()) for own in (space.seedling(seed), space.student(seed)))
        assert any(not torch.equal(value, cold[name]) for name, value in warm.items())
        first = [row.curve[0]["forward_kl"] for row in rows if row.agent == "bc" and row.seed == seed]
        assert first == pytest.approx([record["forward_kl"][-1]])


def test_a_warm_up_that_brings_nothing_keeps_the_student_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_up, "GAIN", 1.0)
    config = small(tmp_path, agents=("bc",), warm_start="kd")
    compare(config)
    space = Workspace(config)
    record = json.loads(space.warm_start_record(0).read_text())
    assert record["kept"] == "" and record["updates"] == config.updates
    cold, warm = space.seedling(0).state_dict(), space.student(0).state_dict()
    assert all(torch.equal(value, cold[name]) for name, value in warm.items())


def test_a_stopped_warm_up_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = small(tmp_path, agents=("bc",), warm_start="kd", warm_start_rounds=3)
    compare(whole)
    stopped = replace(whole, out=tmp_path / "again")
    calls, measure = [0], evaluate.measure

    def stops(*given: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 5:  # in the second round
            raise KeyboardInterrupt
        return measure(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(train, "measure", stops)
        with pytest.raises(KeyboardInterrupt):
            compare(stopped)
    compare(stopped)
    one, other = (Workspace(config).student(0).state_dict() for config in (whole, stopped))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_seed_is_not_warmed_up_with_other_settings_than_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    """Whether the warm-up of seed 0 is over, or one of its rounds is."""
    config = small(tmp_path, agents=("bc",), warm_start="kd", warm_start_rounds=2, agent_config=("kd.lr=1e-3",))
    round_of = warm_up._round

    def stops(space: Workspace, seed: int, number: int, *rest: Any) -> Any:
        if number == rounds:
            raise KeyboardInterrupt
        return round_of(space, seed, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(warm_up, "_round", stops)
        with suppress(KeyboardInterrupt):
            compare(config)
    record = Workspace(config).warm_start_record(0)
    assert record.is_file() == (rounds == 2)
    said = r"warmed up with agent settings \{'lr': 0\.001\}, now they are \{'lr': 0\.0001\}"
    before = sorted(config.out.rglob("*"))
    with pytest.raises(InputError, match=said):
        compare(replace(config, seeds=2, agent_config=("kd.lr=1e-4",)))
    assert sorted(config.out.rglob("*")) == before
    rows = compare(replace(config, seeds=2))
    assert json.loads(record.read_text())["settings"] == {"lr": 1e-3}
    assert [row.seed for row in rows if row.agent == "bc"] == [0, 1]


def test_a_warm_up_from_another_machine_has_the_same_settings(tmp_path: Path) -> None:
    config = small(tmp_path, agents=("bc",), warm_start="kd", warm_start_rounds=1)
    space = Workspace(config)
    record = space.warm_start_record(0)
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"kept": "", "settings": {"lr": 0.5}}))
    with pytest.raises(InputError, match="seed0 was warmed up with agent settings"):
        warm_up.warm_up(space, 0, lambda text, done: None)
    record.write_text(json.dumps({"kept": ""}))  # older than the settings
    warm_up.warm_up(space, 0, lambda text, done: None)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"warm_start": "kdd"}, "did you mean kd"),
        ({"warm_start": "sb3:ppo"}, "walks by itself"),
        ({"warm_start_rounds": 0}, "warm_start_rounds = 0 is below 1"),
        ({"trials": -1}, "trials = -1"),
        ({"trials": 99}, "lower it"),
        ({"micro_batch": -1}, "micro_batch = -1 is below 0; 0 takes whole batches"),
        ({"reference": "kd"}, "none of the agents"),
    ],
    ids=str,
)
def test_bad_settings_are_named(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    config = small(tmp_path, **changes)
    with pytest.raises((InputError, AgentInputError), match=says):
        compare(config)
    assert not config.out.exists()
