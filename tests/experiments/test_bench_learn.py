"""`bench learn` compares equals: single transitions give the loss and the gradient of the sequences they come from."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agents import make_agent
from agents.episodes import Episodes
from agents.student import Student, build_student
from experiments.__main__ import main
from experiments.bench import store
from experiments.bench.allocator import allocator, keep_memory
from experiments.bench.learn import BenchLearnConfig, episodes_of, learnable_teacher, learner
from experiments.bench.rows import LastPosition, step_in_parts, transitions

SMALL = ["--vocabularies", "300", "--student", "tiny", "--steps", "5", "--prompt-tokens", "3", "--episodes", "3"]
CONFIG = BenchLearnConfig(vocabularies=(300,), student="tiny", steps=5, prompt_tokens=3, episodes=3)


def batch() -> Episodes:
    return episodes_of(CONFIG, learnable_teacher(300), 3, seed=0)


def test_bench_learn_prints_a_table_and_writes_every_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.bench.learn.keep_memory", lambda: True)  # the other tests are to go on as before
    more = [
        "--walk-rows",
        "2",
        "--store-episodes",
        "2",
        "--store-steps",
        "4",
        "--transitions",
        "4",
        "--kl-transitions",
        "4",
        "--kl-updates",
        "2",
        "--repeats",
        "2",
    ]
    assert main(["bench", "learn", *SMALL, *more, "--json", str(tmp_path / "learn.json")]) == 0
    printed = capsys.readouterr().out
    assert "| 300 | tiny" in printed
    assert re.search(r"\| store over live GKD on the whole vocabulary +\| 300 \| tuned ", printed)
    figures = json.loads((tmp_path / "learn.json").read_text())["figures"]
    stored = figures[10:]
    assert [(figure["name"], figure.get("arm")) for figure in figures[:10]] == [
        ("transitions_per_second", "sequence"),
        ("transitions_per_second", "transition"),
        ("sequence_over_transition", None),
        ("seconds_to_equal_kl", "sequence"),
        ("seconds_to_equal_kl", "transition"),
        ("transition_seconds_over_sequence", None),
        ("tokens_per_second", "lockstep"),
        ("tokens_per_second", "raw teacher"),
        ("tokens_per_second", "raw student"),
        ("lockstep_over_raw", None),
    ]
    names = [
        *(("tokens_per_second", arm) for arm in ("trunk", "memory", "store", "live", "adamw", "gkd", "sampled")),
        *((name, None) for name in ("gkd_over_store", "gkd_over_sampled", "step_over_trunk", "live_over_store")),
        *((name, None) for name in ("loading_over_memory", "adamw_over_resting")),
    ]
    peaks = [("peak_memory_mb", "store"), ("peak_memory_mb", "gkd"), ("memory_ratio", None)]
    assert [(figure["name"], figure.get("arm"), figure["allocator"]) for figure in stored] == [
        *((*name, "default") for name in [*names, *peaks]),
        *((*name, "tuned") for name in names),
    ]
    ours, theirs, ratio = (figure["value"] for figure in stored[len(names) : len(names) + 3])
    assert ours > 0 and theirs > 0 and ratio == theirs / ours
    assert figures[9]["V"] == 300 and figures[9]["N"] == 2 and 0 < figures[9]["low"] <= figures[9]["high"]
    for figure in figures[:6]:
        assert figure["V"] == 300 and figure["student"] == "tiny" and figure["value"] > 0
    ratio, first, then = figures[2], figures[3], figures[4]
    assert 0 < ratio["low"] <= ratio["value"] <= ratio["high"] and ratio["repeats"] == 2
    assert first["kl"] == then["kl"] < first["kl_start"]  # both measured from one start to one goal
    assert then["capped"] == (then["kl_reached"] > then["kl"])


def test_what_is_left_out_is_no_figure(capsys: pytest.CaptureFixture[str]) -> None:
    left_out = ["--kl-updates", "0", "--walk-rows", "0", "--store-episodes", "0"]
    assert main(["bench", "learn", *SMALL, *left_out, "--transitions", "4", "--repeats", "1"]) == 0
    assert "| 300 | tiny" in capsys.readouterr().out


def test_single_transitions_give_the_gradient_of_their_sequences() -> None:
    """`hinge` is left out: it weighs the states after a step, which transitions hold twice."""
    whole, models = batch(), [build_student("tiny", tokenizer=None, vocab_size=300).model for _ in range(2)]
    agents = [
        make_agent("soft_q", kind(model), total_updates=9, hinge=0.0)
        for kind, model in zip((Student, LastPosition), models, strict=True)
    ]
    for agent in agents:  # values that are not 0 everywhere
        for side in (agent.student, agent.target):
            torch.nn.init.normal_(side.value_head.weight, generator=torch.Generator().manual_seed(1))
    losses = [agent.loss(data)[0] for agent, data in zip(agents, (whole, transitions(whole)), strict=True)]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(loss, agent.trainables()) for loss, agent in zip(losses, agents, strict=True)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_a_step_in_parts_is_one_gradient_step() -> None:
    rows = transitions(batch())
    inside = rows.select(rows.in_set[:, 0].nonzero()[:4, 0])  # losses that count these alone are means over parts
    agents = [learner(CONFIG, 300, LastPosition) for _ in range(2)]
    parts = [inside.select([0, 1]), inside.select([2, 3])]
    assert step_in_parts(agents[0], [inside]) == step_in_parts(agents[1], parts) == 4
    gradients = [[value.grad for value in agent.trainables()] for agent in agents]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_transitions_end_where_their_texts_do() -> None:
    whole = batch()
    rows = transitions(whole)
    assert len(rows) == int(whole.length.sum())
    assert int(rows.terminated.sum()) == int(whole.terminated.sum())
    for index in range(len(rows)):
        assert not rows.tokens[index, int(rows.prompt_length[index]) + 1 :].any()
    torch.testing.assert_close(rows.rewards.sum(), whole.rewards.sum())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--kl-transitions", "0"], "kl_transitions has 0; it must be at least 1"),
        (["--kl-cap", "0"], "kl_cap = 0.0 above 0"),
        (["--vocabularies", "0"], "vocabularies has 0"),
    ],
)
def test_bad_input_is_named(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "learn", *words])
    assert stopped.value.code == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_the_arms_around_the_store_learn_the_same() -> None:
    """The sets asked for now are those that were stored, but for rounding; every few rounds read the same batch."""
    with store.setting_of(replace(CONFIG, store_episodes=2, store_steps=5), 300) as setting:
        batch = setting.read(1)
        live = store.asked(batch, setting)
        assert torch.equal(live.mask, batch.mask) and torch.equal(live.ids, batch.ids)
        torch.testing.assert_close(live.logp, batch.logp, atol=5e-3, rtol=0)
        assert torch.equal(live.slots, batch.slots)
        assert torch.equal(setting.read(1 + store.BATCHES).tokens, batch.tokens)
        runs = [store.arm(setting, setting.read), store.arm(setting, lambda turn: batch)]
        assert [run(1) for run in runs] == [int(batch.length.sum())] * 2


def test_the_divergence_of_the_other_side_by_hand() -> None:
    """(.5, .5) and (.9, .1): M = (.7, .3), ½(.5 ln(.5/.7) + .5 ln(.5/.3)) + ½(.9 ln(.9/.7) + .1 ln(.1/.3)) = .1017."""
    ours, theirs = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.9, 0.1]]]).log()
    assert float(store.jensen_shannon(ours, theirs, torch.ones(1, 1))) == pytest.approx(0.10175, abs=1e-4)


def test_the_allocator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    assert allocator() == "default"
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000")
    monkeypatch.setenv("LD_PRELOAD", "")
    assert allocator() == "MALLOC_TRIM_THRESHOLD_=1000"


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="freed memory is kept by glibc alone; elsewhere keep_memory says no"
)
def test_memory_is_kept() -> None:
    """Of 200 MB that were freed, most are still there; by default none would be."""
    code = """
import torch
from experiments.bench.allocator import keep_memory
from experiments.bench.timing import resident
if {keep}:
    assert keep_memory()
before = resident()
torch.ones(50_000_000).sum()
print(resident() - before > 150)
"""
    for keep in (True, False):
        found = subprocess.run(
            [sys.executable, "-c", code.format(keep=keep)], capture_output=True, text=True, check=True
        )
        assert found.stdout.strip() == str(keep)


def test_another_c_library_keeps_its_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_memory()
