"""What a run will take, by configurations alone; and the paper's presets on small models of the same architectures."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.adapters import adapted
from agents.student import Student
from envs.errors import InputError
from envs.hf_teacher import load_causal_lm
from envs.memory import check_fits, free_memory
from experiments.__main__ import main
from experiments.compare import compare
from experiments.config import PRESETS, CompareConfig, from_mapping, read_yaml
from experiments.plan import plan
from tests.envs.models import save_tiny, tiny_model, tiny_tokenizer

REAL = {"paper-gpt2": ("gpt2", 50_257), "paper-opt": ("opt", 50_272), "paper-qwen": ("qwen2", 151_936)}


def cells(text: str, name: str) -> list[str]:
    """The cells of the table row that begins with this."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in row.strip("|").split("|")]


@pytest.fixture
def config(tmp_path: Path) -> CompareConfig:
    models = [str(save_tiny("gpt2", tmp_path / name)) for name in ("teacher", "student")]
    given: dict[str, Any] = {"teacher": models[0], "student": models[1], "agents": ("bc", "soft_q", "sac"), "seeds": 2}
    return CompareConfig(**given, episodes=10, updates=7, batch_size=3, max_prompt_tokens=5, out=tmp_path / "run")


def test_sizes_are_those_of_the_models(config: CompareConfig, tmp_path: Path) -> None:
    text = plan(config)
    model = tiny_model("gpt2")
    count = sum(value.numel() for value in model.parameters())
    assert cells(text, "teacher")[2:] == [f"{count:,}", "2", "32", "97"]
    own = sum(value.numel() for value in Student(model).parameters())
    gib = [float(cell) for cell in cells(text, "bc")[1:6]]
    assert gib[:3] == pytest.approx([4 * own / 2**30, 4 * own / 2**30, 8 * own / 2**30], rel=0.01)
    assert gib[3] == 0
    assert float(cells(text, "soft_q")[4]) == pytest.approx(4 * own / 2**30, rel=0.01)  # a target network
    assert float(cells(text, "sac")[4]) == pytest.approx(16 * own / 2**30, rel=0.01)  # two critics with theirs
    assert float(cells(text, "sac")[2]) == pytest.approx(12 * own / 2**30, rel=0.01)  # gradients of both and its own
    floats = 16 * 3 * 69 * 2 * 32 + 3 * 3 * 64 * 97
    assert gib[4] == pytest.approx(4 * floats / 2**30, rel=0.01)
    assert "2 runs of 7 optimiser steps on 3 episodes each" in text
    assert f"the teacher walks at most {2 * 10 * 69:,} tokens" in text
    assert not config.out.exists()


def test_an_arm_that_is_trained_once_is_counted_once(config: CompareConfig) -> None:
    several = plan(replace(config, agents=("bc", "soft_q"), top_p=(0.5, 0.8, 0.9), updates=70_000))
    bc, soft_q = (float(cells(several, name)[-2].replace(",", "")) for name in ("bc", "soft_q"))
    assert soft_q == pytest.approx(3 * bc, rel=0.02) and bc > 1
    assert "6 runs of 70,000 optimiser steps on 3 episodes each, for every arm; 2 of bc, whose student" in several
    assert f"the teacher walks at most {6 * 10 * 69:,} tokens" in several
    alone = plan(replace(config, agents=("bc",), top_p=(0.5, 0.8, 0.9)))
    assert f"the teacher walks at most {2 * 10 * 69:,} tokens" in alone


def test_adapters_alone_have_gradients_and_moments(config: CompareConfig) -> None:
    own = Student(adapted(tiny_model("gpt2"), 2))
    learnt = sum(value.numel() for value in own.parameters() if value.requires_grad)
    gib = [float(cell) for cell in cells(plan(replace(config, lora=2)), "bc")[1:5]]
    assert gib[1:] == pytest.approx([4 * learnt / 2**30, 8 * learnt / 2**30, 0], rel=0.01)
    assert gib[0] > 3 * gib[1]


def test_the_command_says_it_and_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["compare", "--preset", "family", "--dry-run", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert cells(printed, "student")[2:] == ["178,368", "1", "64", "2,048"] and not out.exists()
    assert main(["distill", "--dry-run", "--student", "large", "--agent", "sb3:ppo", "--out", str(out)]) == 0
    assert cells(capsys.readouterr().out, "student")[3:] == ["8", "512", "2,048"] and not out.exists()


def test_one_run_takes_of_a_preset_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The paper's settings for one agent, local directories in the place of the hub's."""
    models = [str(save_tiny("gpt2", tmp_path / name)) for name in ("teacher", "student")]
    words = ["distill", "--preset", "paper-gpt2", "--teacher", models[0], "--student", models[1], "--dry-run"]
    assert main([*words, "--agent", "bellman_distill", "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert cells(printed, "bellman_distill") and "1 runs of 5,000 optimiser steps on 64 episodes each" in printed


def test_without_a_teacher_none_is_counted(config: CompareConfig, tmp_path: Path) -> None:
    text = plan(replace(config, teacher="none", store=tmp_path))
    assert cells(text, "teacher")[2:] == [""] * 4 and "no teacher walks" in text
    with pytest.raises(InputError, match="a student of size 'tiny' has the teacher's vocabulary"):
        plan(replace(config, teacher="none", store=tmp_path, student="tiny"))


def test_what_has_no_size_is_named(config: CompareConfig) -> None:
    with pytest.raises(InputError, match="'table:toy' is a table of probabilities"):
        plan(replace(config, teacher="table:toy"))
    with pytest.raises(InputError, match="no model can be loaded from 'no-one/nothing'"):
        plan(replace(config, student="no-one/nothing"))


def test_a_model_too_large_is_refused_before_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = save_tiny("llama", tmp_path / "model")
    weights = sum(value.numel() for value in tiny_model("llama").parameters())
    monkeypatch.setattr("envs.memory.free_memory", lambda: 4 * weights - 1)
    with pytest.raises(
        InputError, match=rf"^'{place}' has {weights:,} parameters, 0\.0 GiB in float32; 0\.0 GiB of memory are free"
    ):
        load_causal_lm(place)
    monkeypatch.setattr("envs.memory.free_memory", lambda: 4 * weights)
    check_fits("it", tiny_model("llama"))
    monkeypatch.setattr("envs.memory.free_memory", lambda: None)
    check_fits("it", tiny_model("llama"))


def test_free_memory_is_a_number_of_bytes() -> None:
    found = free_memory()
    assert found is None or 2**20 < found < 2**50


@pytest.mark.parametrize(
    "name", ["paper-gpt2", *(pytest.param(name, marks=pytest.mark.long) for name in ("paper-opt", "paper-qwen"))]
)
def test_a_preset_of_the_paper_runs_on_small_models_with_its_vocabulary(name: str, tmp_path: Path) -> None:
    """The same architecture and rows, random weights, for two steps; the tokenizer has fewer tokens than rows."""
    arch, rows = REAL[name]
    for seed, role in enumerate(("teacher", "student")):
        with torch.random.fork_rng(devices=[]):
            tiny_model(arch, rows, seed).save_pretrained(tmp_path / role)
        tiny_tokenizer().save_pretrained(tmp_path / role)
    lines = [{"instruction": f"w{number} w7", "context": "", "response": "w5"} for number in range(10, 40)]
    (tmp_path / "dolly.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    paper = from_mapping(CompareConfig, read_yaml(PRESETS / f"{name}.yaml"), name)
    assert (paper.gamma, paper.top_p, paper.batch_size, paper.max_prompt_tokens) == (0.99, (0.8,), 64, 256)
    places = {"teacher": str(tmp_path / "teacher"), "student": str(tmp_path / "student"), "out": tmp_path / "run"}
    small: dict[str, Any] = {
        "seeds": 1,
        "episodes": 8,
        "updates": 2,
        "batch_size": 4,
        "micro_batch": 2,
        "eval_every": 2,
    }
    small |= {"eval_prompts": 2, "max_new_tokens": 3, "max_prompt_tokens": 64, "prompts": tmp_path / "dolly.jsonl"}
    config = replace(paper, **places, **small)
    assert re.search(rf"\| teacher .*{rows:,} \|", plan(config))
    ran = {row.agent for row in compare(config)}
    assert ran == {"teacher", "start", *paper.agents}
