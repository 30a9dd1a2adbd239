"""The benchmark runs, says what it promised, and its arms do what their names say; no speed is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tqdm import tqdm

from envs.candidates import normalise, top_p
from experiments.__main__ import main
from experiments.bench.env import BenchEnvConfig, bench_teacher, make, prompts_of, walk
from experiments.bench.parts import parts_of
from experiments.bench.peers import NaiveEnv, generate, raw_decode
from experiments.bench.timing import Race, Resident, Sample, race

pytestmark = pytest.mark.usefixtures("painted")

SMALL = ["--rows", "1", "3", "--vocabularies", "300", "--steps", "4", "--prompt-tokens", "3", "--repeats", "2"]


def test_bench_env_prints_a_table_and_writes_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "env", *SMALL, "--json", str(tmp_path / "bench.json")]) == 0
    printed = capsys.readouterr().out
    assert "| 300 | 3 |" in printed and "refilling over lock-step" in printed
    figures = json.loads((tmp_path / "bench.json").read_text())["figures"]
    ratios = {(figure["name"], figure["N"]) for figure in figures if "low" in figure and "arm" not in figure}
    everywhere = {(name, rows) for name in ("over_raw_hf", "over_generate", "over_naive") for rows in (1, 3)}
    assert ratios == everywhere | {("single_over_naive", 1), ("refill_over_fixed", 3), ("sb3_over_env", 3)}
    for figure in figures:
        assert figure["V"] == 300
        if "low" in figure:
            assert 0 < figure["low"] <= figure["value"] <= figure["high"] and figure["repeats"] == 2
    shares = [figure["value"] for figure in figures if figure["name"] == "share_of_time" and figure["N"] == 3]
    assert sum(shares) == pytest.approx(1.0) and min(shares) > 0


def test_bench_memory_leaves_a_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--steps", "200", "--rows", "2", "--figure", str(tmp_path / "a" / "m.png")]
    assert main(["bench", "memory", *options, "--json", str(tmp_path / "m.json")]) == 0
    assert "200 steps of 2 rows" in capsys.readouterr().out
    assert (tmp_path / "a" / "m.png").stat().st_size > 1000
    figures = json.loads((tmp_path / "m.json").read_text())["figures"]
    assert len(figures) == 201 and figures[0]["name"] == "rise_mb" and figures[-1]["step"] == 200


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["env", "--steps", "0"], "steps has 0; it must be at least 1"),
        (["env", "--rows", "0"], "rows has 0"),
        (["memory", "--steps", "3"], "steps = 3 is below 200"),
        (["learning"], "bench measures env, learn, memory, served, not 'learning'"),
        ([], "bench measures env, learn, memory, served, not nothing"),
    ],
)
def test_bad_input_is_named(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        raise SystemExit(main(["bench", *words]))
    assert stopped.value.code == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_the_arms_take_as_many_steps_as_they_say() -> None:
    config = BenchEnvConfig(steps=5, prompt_tokens=3)
    teacher = bench_teacher(300)
    begin = prompts_of(config, teacher, 2, 0)
    assert begin != prompts_of(config, teacher, 2, 1)  # no round meets a prompt again
    prompts = torch.tensor(begin)
    assert raw_decode(teacher.model, prompts, 5) == generate(teacher.model, prompts, 5, 0.9) == 10
    assert walk(make(config, teacher, 2, max_new_tokens=9), begin, 5, np.random.default_rng(0)) == 10
    shares = parts_of(teacher, 2, begin, prompts=begin, max_new_tokens=5)
    assert list(shares) == ["forward", "candidates", "bookkeeping"] and shares["forward"] > shares["bookkeeping"]


def test_the_naive_environment_has_the_same_sets() -> None:
    teacher = bench_teacher(300)
    naive = NaiveEnv(teacher.model, 0.9, 16)
    seen = naive.reset([3, 4, 5])
    text = [3, 4, 5, int(seen["ids"][1])]
    reward = naive.step(1)[1]
    with torch.no_grad():
        logits = teacher.model(torch.tensor([text])).logits[0]
    expected = top_p(normalise(logits[-1]), 0.9, 16)
    assert naive.ids[: expected.sizes].tolist() == expected.ids[expected.mask].tolist()
    assert reward == pytest.approx(float(normalise(logits[-2])[text[-1]]), abs=1e-5)


def test_ratios_are_of_the_same_round() -> None:
    """100 and 400 steps a second against 50 and 100: twice, four times; the median of two lies between."""
    found = Race({"fast": [Sample(100, 1.0), Sample(400, 1.0)], "slow": [Sample(100, 2.0), Sample(50, 0.5)]})
    assert found.ratio("fast", "slow") == {"value": 3.0, "low": 2.0, "high": 4.0, "repeats": 2}
    assert found.rate("fast")["value"] == 250.0


def test_the_first_round_warms_up_and_arms_take_turns() -> None:
    turns: list[tuple[str, int]] = []
    arms = {name: lambda turn, name=name: turns.append((name, turn)) or 1 for name in "ab"}
    with tqdm(disable=True) as bar:
        found = race(arms, 2, bar)
    assert turns == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert [len(samples) for samples in found.samples.values()] == [2, 2] and list(found.peaks) == ["a", "b"]


def test_memory_that_is_given_back_is_seen() -> None:
    with Resident() as memory:
        block = np.ones(8_000_000)
        del block
    assert memory.rise >= 40
