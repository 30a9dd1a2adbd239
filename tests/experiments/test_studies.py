"""The studies: what they estimate against numbers by hand and exact ones, and that they go on where they stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.errors import InputError
from envs.exact import solve_finite, stay_probability
from envs.table_teacher import TABLES
from envs.teachers import load_teacher
from experiments.compare import compare
from experiments.evaluate import Rule
from experiments.studies import no_worse
from experiments.studies.no_worse import NoWorseConfig
from experiments.studies.oracle_tilt import Lesson, OracleTiltConfig, study, table
from experiments.studies.rollouts import Successors, mean_by, successors, walks_from
from experiments.studies.stay_inside import StayInsideConfig, gap
from experiments.studies.stay_inside import study as stay_inside
from tests.experiments.runs import small


def test_every_text_is_walked_on_from_equally_often() -> None:
    texts = [[number % 5 + 1, number // 5 + 1] for number in range(25)]
    walks, number = walks_from(texts, 40, load_teacher("table:toy"), Rule(0.8, 6, 5), seed=3)
    assert torch.bincount(number).tolist() == [40] * 25 and int(walks.length.max()) <= 5
    begun = [row[:2] for row in walks.tokens.tolist()]
    assert begun == [texts[index] for index in number.tolist()]


@pytest.mark.parametrize("name", ["detour", "second_order"])
def test_walks_inside_measure_what_lookahead_finds(name: str) -> None:
    """The exact KL by dynamic programming over the steps left: D_h(s) = Σ_a π^A (log π^A − log π*_h + D_{h−1}(s·a))."""
    teacher, top_p, horizon, each = TABLES[name](), 0.7, 4, 1000
    solution = solve_finite(teacher, horizon=horizon, top_p=top_p)
    share = np.where(solution.candidates, teacher.probabilities, 0)
    share /= share.sum(1, keepdims=True)
    after = teacher.successors()
    known = np.zeros((horizon + 1, teacher.states))
    ends = np.isin(np.arange(teacher.vocab_size), sorted(teacher.eos_ids))
    for left in range(1, horizon + 1):
        with np.errstate(divide="ignore", invalid="ignore"):
            apart = np.log(share) - np.log(solution.policy[left])
        onward = np.where(ends, 0, known[left - 1][after])
        known[left] = np.where(share > 0, share * (apart + onward), 0).sum(1)
    texts = [[1], [2]]
    states = [teacher.state_of(text) for text in texts]
    found = gap(load_teacher(f"table:{name}"), texts, each, Rule(top_p, teacher.vocab_size, horizon), 7)
    assert max(known[horizon][states]) > 0.03
    assert found.kl.numpy() == pytest.approx(known[horizon][states], abs=0.005)
    stay = stay_probability(teacher, top_p, horizon)[horizon][states]
    assert found.log_stay.exp().numpy() == pytest.approx(stay, rel=0.05)


def test_the_study_of_staying_inside_prints_a_line_for_each_mass() -> None:
    lines = stay_inside(StayInsideConfig(teacher="embedded", top_p=(0.7, 0.95), count=2, walks=4)).splitlines()
    assert len(lines) == 4 and [line.split()[1] for line in lines[2:]] == ["0.7", "0.95"]
    with pytest.raises(InputError, match=r"top_p = 1\.5 is outside"):
        stay_inside(StayInsideConfig(top_p=(1.5,)))


def test_successors_are_the_branching_states_likeliest_tokens() -> None:
    teacher = load_teacher("table:toy")
    walks, _ = walks_from([[1], [3]], 2, teacher, Rule(0.8, 6, 3), seed=1)
    found = successors(walks, 2, sorted(teacher.eos_ids))
    assert found.looked_at.shape == (*walks.mask.shape[:2], 2) and not found.looked_at[:, -1].any()
    leaves = found.leaves.nonzero().tolist()
    assert len(leaves) == len(found.number) > 2 and len({tuple(text) for text in found.texts}) == len(found.texts)
    for (episode, row, column), index in zip(leaves, found.number.tolist(), strict=True):
        prefix = int(walks.prompt_length[episode]) + row
        token = int(walks.ids[episode, row, column])
        assert found.texts[index] == [*walks.tokens[episode, :prefix].tolist(), token]
        assert int(walks.mask[episode, row].sum()) >= 2 and token not in teacher.eos_ids
    assert (found.ends <= found.looked_at).all()
    assert found.spread(torch.arange(float(len(found.texts))))[found.leaves].tolist() == found.number.tolist()


def lesson() -> Lesson:
    """One state with two successors, 1 and 2 equally likely: two rollouts behind the first, one behind the second."""
    walks, _ = walks_from([[5]], 1, load_teacher("table:toy"), Rule(0.5, 6, 1), seed=0)
    looked_at = torch.zeros(1, 2, 2, dtype=torch.bool)
    looked_at[0, 0] = True
    found = Successors(looked_at, torch.zeros_like(looked_at), [[5, 1], [5, 2]], torch.tensor([0, 1]))
    costs = torch.tensor([[1.0, 3.0], [2.0, 9.0], [0.5, 0.5]])
    return Lesson(walks, found, costs, torch.tensor([2, 1, 2]), torch.tensor([0, 0, 1]), average=2.0)


def test_the_value_of_a_successor_is_what_walking_on_costs_less_than_the_average() -> None:
    """γ = .5, ρ = 2: the rollouts give (2−1) + .5(2−3) = .5, (2−2) = 0 and 1.5 + .75 = 2.25: V = .25 and 2.25.

    The toy teacher after 5 has 3 and 4 in its set of p = .5, at .27 and .26: the usual value is
    .25 · .27/.53 + 2.25 · .26/.53 = 1.2311, so that Δ = −.9811 and 1.0189. With ρ = 0 it is −1 −1.5 and −2: V = −2.25
    and −.75.
    """
    own = lesson()
    assert own.episodes.logp[0, 0, :2].exp().tolist() == pytest.approx([0.27, 0.26], abs=1e-6)
    assert own.advantage(0.5, 2.0)[0, 0].tolist() == pytest.approx([-0.9811, 1.0189], abs=1e-4)
    uncentred = own.advantage(0.5, 0.0)[0, 0].tolist()
    assert uncentred == pytest.approx([-1.5 * 0.26 / 0.53, 1.5 * 0.27 / 0.53], abs=1e-4)
    drawn = {tuple(own.advantage(0.5, 2.0, torch.Generator().manual_seed(seed))[0, 0].tolist()) for seed in range(9)}
    assert len(drawn) == 2 and all(sorted(one) == pytest.approx([-0.9811, 1.0189], abs=1e-4) for one in drawn)
    assert mean_by(torch.tensor([1, 0, 1]), torch.tensor([2.0, 5.0, 4.0]), 2).tolist() == [5.0, 3.0]


def test_the_study_of_the_tilt_goes_on_where_it_stopped(tmp_path: Path) -> None:
    run = small(tmp_path, agents=("bc",), warm_start="kd", warm_start_rounds=1)
    compare(run)
    settings = {"run": run.out, "seeds": 1, "episodes": 4, "rollouts": 2, "rollout_tokens": 3, "updates": 3}
    config = OracleTiltConfig(**settings, batch_size=2, replies=8)
    record = study(config)
    assert [(entry["arm"], entry["gamma"]) for entry in record] == [
        ("untilted", 0.0),
        *((arm, 0.8) for arm in ("tilted", "uncentred", "permuted")),
    ]
    place = run.out / "oracle_tilt.json"
    kept = json.loads(place.read_text())
    place.write_text(json.dumps({**kept, "arms": record[:2]}))
    assert study(config) == record
    with pytest.raises(InputError, match=r"holds a study with .*'updates': 3.*this one has .*'updates': 4"):
        study(replace(config, updates=4))
    text = table(config, record)
    assert "| tilted" in text and "cost" in text.splitlines()[0]
    with pytest.raises(InputError, match="has no warm student of seed 1"):
        study(OracleTiltConfig(**{**settings, "seeds": 2}))
    with pytest.raises(InputError, match="is no run folder"):
        study(OracleTiltConfig(tmp_path))


def test_bad_input_of_a_study_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.studies.oracle_tilt", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=1100)
    assert done.returncode == 2 and "is no run folder" in done.stderr and "Traceback" not in done.stderr


def test_a_cheaper_run_is_as_good_where_the_whole_interval_lies_within_the_margin(tmp_path: Path) -> None:
    """Differences by hand: task .02, .02, .02 (no spread); KL .01 ± .01 over three seeds, half = 4.303 · .01 / √3."""
    for name, task, kl in (("one", 0.50, (0.1, 0.2, 0.3)), ("two", 0.52, (0.10, 0.21, 0.32))):
        for seed in range(3):
            place = tmp_path / name / "cells" / f"bc-p0.9-seed{seed}"
            place.mkdir(parents=True)
            measures = {"task_score": task + 0.1 * seed, "forward_kl": kl[seed]}
            cell = {"agent": "bc", "seed": seed, "top_p": 0.9, "updates": 1, "measures": measures}
            (place / "result.json").write_text(json.dumps(cell))
        (tmp_path / name / "shared").mkdir()
        (tmp_path / name / "shared" / "inputs.json").write_text(
            json.dumps({"train": name, "test": "1", "teacher": "2"})
        )
    config = NoWorseConfig(tmp_path / "one", tmp_path / "two", {"task_score": 0.021, "forward_kl": 0.03})
    (_, task, _), (_, kl, _) = no_worse.study(config)
    assert (task.mean, task.half, task.seeds) == (pytest.approx(0.02), pytest.approx(0, abs=1e-9), 3)
    assert (kl.mean, kl.half) == (pytest.approx(0.01), pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-4))
    first, second = no_worse.table(no_worse.study(config)).splitlines()[2:]
    assert " task |" in first and "yes" in first and "KL(T‖S)" in second and "not shown" in second
    with pytest.raises(InputError, match="bc has no leak in both runs"):
        no_worse.study(replace(config, margins={"task_score": 0.1, "leak": 0.1}))
    with pytest.raises(InputError, match="margin length = 0"):
        no_worse.study(replace(config, margins={"length": 0.0}))
    with pytest.raises(InputError, match="no run folder"):
        no_worse.study(replace(config, cheaper=tmp_path))
    (tmp_path / "three" / "shared").mkdir(parents=True)
    for inputs, said in (({"test": "1", "teacher": "2"}, "no arm in common"), ({"test": "3"}, "do not compare")):
        (tmp_path / "three" / "shared" / "inputs.json").write_text(json.dumps(inputs))
        with pytest.raises(InputError, match=said):
            no_worse.study(replace(config, cheaper=tmp_path / "three"))
