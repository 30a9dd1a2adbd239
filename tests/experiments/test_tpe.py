"""Searches by the tree-structured Parzen estimator: what is drawn, kept, gone on with, and said."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envs.errors import InputError
from experiments import tuning
from experiments.arms import split_arm
from experiments.compare import compare
from experiments.config import CompareConfig
from experiments.tpe import FILE, TreeParzen, at_random, check
from tests.experiments.runs import small

optuna = pytest.importorskip("optuna")

MANY = f"{__package__}.searching_agents:Many"
FRAGILE = f"{__package__}.searching_agents:Fragile"
SETTLED = f"{__package__}.searching_agents:Settled"


def search(out: Path, arm: str, count: int, begin: dict[str, Any], score: Any = None) -> list[dict[str, Any]]:
    """The settings of all trials; `score` says what each gives."""
    sampler = TreeParzen(out, {arm: begin}, count, lower=True)
    found = []
    for numbers in sampler.rounds():
        for number in numbers:
            trial = sampler.trial((arm, 0.9), number)
            assert trial is not None
            found.append(split_arm(trial)[1] if number else begin)
        for number in numbers:
            sampler.tell((arm, 0.9), number, score(found[number]) if score else 0.0)
    return found


def test_draws_lie_in_their_ranges_and_repeat_themselves(tmp_path: Path) -> None:
    begin = {"lr": 1e-3, "depth": 2, "kind": "plain"}
    one, other = (search(tmp_path / name, MANY, 12, begin) for name in ("a", "b"))
    assert one == other and len({json.dumps(point) for point in one}) > 8
    for point in one:
        assert 1e-4 <= point["lr"] <= 1e-2 and float(f"{point['lr']:.3g}") == point["lr"]
        assert type(point["depth"]) is int and 1 <= point["depth"] <= 8
        assert point["kind"] in ("plain", "fancy", "odd")
    assert {point["kind"] for point in one} > {"plain"} and len({point["depth"] for point in one}) > 2


def test_arms_with_the_same_space_get_the_same_first_draws(tmp_path: Path) -> None:
    usual = {"lr": 1e-3, "leak_weight": 1.0, "target_rate": 0.05}
    whole, twin = (search(tmp_path / arm, arm, 3, usual) for arm in ("soft_q", "soft_q@gamma=0"))
    assert twin[1:] == [{"gamma": 0, **point} for point in whole[1:]] and at_random(3) == 3


@pytest.mark.parametrize(("count", "first"), [(1, 1), (2, 2), (6, 3), (12, 4), (100, 10)])
def test_a_third_is_drawn_at_random(count: int, first: int, tmp_path: Path) -> None:
    rounds = TreeParzen(tmp_path, {}, count, lower=True).rounds()
    assert [list(numbers) for numbers in rounds] == [list(range(first)), *([k] for k in range(first, count))]


def test_it_draws_where_earlier_trials_did_well(tmp_path: Path) -> None:
    """A parabola over the logarithm of lr with its bottom at 2e-4, a quarter of the range from an end."""

    def distance(point: dict[str, Any]) -> float:
        return abs(math.log10(point["lr"] / 2e-4))

    found = search(tmp_path, "bc", 24, {"lr": 1e-3}, lambda point: distance(point) ** 2)
    first, later = found[1 : at_random(24)], found[-8:]
    assert sum(map(distance, later)) / 8 < 0.5 * sum(map(distance, first)) / len(first)
    assert min(map(distance, later)) < 0.1


def test_a_search_that_was_stopped_goes_on_to_the_same_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = ("bc", "kd@lr=0.001", SETTLED)
    config = small(tmp_path, agents=arms, trials=5, sampler="tpe", seeds=0, updates=2, eval_every=2)
    compare(config)
    stopped = replace(config, out=tmp_path / "stopped")
    calls, run_cells = [0], tuning.run_cells

    def stops(*given: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:  # when the second sampled trial is written down, and has not begun
            raise KeyboardInterrupt
        return run_cells(*given)

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "run_cells", stops)
        with pytest.raises(KeyboardInterrupt):
            compare(stopped)
    results = sorted(stopped.out.glob("cells/*/result.json"))
    before = [path.stat().st_mtime_ns for path in results]
    assert len(results) == 4 + 1 + 1
    compare(stopped)
    assert before == [path.stat().st_mtime_ns for path in results]
    names = [sorted(path.name for path in (out / "cells").glob("trial-*")) for out in (config.out, stopped.out)]
    assert names[0] == names[1] and len(names[0]) == 5 + 1 + 1
    assert (config.out / tuning.TRIALS).read_text().count("\n") == 1 + 5 + 1 + 1
    said = (config.out / "shared" / "tuned.md").read_text()
    assert said.count("untuned: nothing to try") == 2 and "of 5 trials an arm" in said
    kept = optuna.load_study(study_name="bc 0.9", storage=f"sqlite:///{stopped.out / FILE}").trials
    rows = [row for row in table(stopped) if row["arm"] == "bc"]
    assert [trial.params["lr"] for trial in kept] == [float(row["lr"]) for row in rows]
    assert [trial.value for trial in kept] == [float(row["validation_forward_kl"]) for row in rows]
    best = min(kept, key=lambda trial: float(trial.value or 0))
    assert [row["trial"] for row in rows if row["chosen"] == "1"] == [str(best.number)]


def table(config: CompareConfig) -> list[dict[str, str]]:
    with (config.out / tuning.TRIALS).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_trial_that_diverges_is_kept_as_the_worst(tmp_path: Path) -> None:
    config = small(tmp_path, agents=(FRAGILE,), trials=4, sampler="tpe", seeds=0, updates=3)
    compare(config)
    rows = table(config)
    assert rows[0]["failed"] == "0" and "1" in [row["failed"] for row in rows]
    kept = optuna.load_study(study_name=f"{FRAGILE} 0.9", storage=f"sqlite:///{config.out / FILE}").trials
    states = [trial.state.name for trial in kept]
    assert states == ["PRUNED" if row["failed"] == "1" else "COMPLETE" for row in rows]


def test_what_cannot_be_searched_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(tmp_path, agents=("bc",), trials=2, sampler="tpe")
    for changes, says in (
        ({"sampler": "tpf"}, "sampler = 'tpf' must be one of grid, tpe"),
        ({"trials": 0}, "sampler = 'tpe' samples nothing of 0 trials"),
        ({"agent_config": ("bc.lr=0.5",)}, r"bc begins with lr = 0.5, outside what a search tries \(3e-05 to 0.01\)"),
        (
            {"agent_config": (f"{MANY}.kind=strange",), "agents": (MANY,)},
            "kind = strange.*plain, fancy, odd.*Many@kind",
        ),
    ):
        with pytest.raises(InputError, match=says):
            compare(replace(config, **changes))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--sampler tpe needs Optuna: pip install 'tdistill\[search\]', or take"):
        check("bc", {})
    assert not config.out.exists()


def test_a_broken_file_is_one_error(tmp_path: Path) -> None:
    (tmp_path / FILE).parent.mkdir()
    (tmp_path / FILE).write_text("no database " * 100)
    with pytest.raises(InputError, match=r"search\.db cannot be read or written \(.*not a database"):
        TreeParzen(tmp_path, {"bc": {"lr": 1e-3}}, 2, lower=True).trial(("bc", 0.9), 0)
