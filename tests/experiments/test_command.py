"""The command: what it prints, its exit codes, its settings from YAML and from the line, and what shadows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments import __main__ as command
from experiments import generate
from experiments.__main__ import main
from experiments.config import CompareConfig, dump
from tests.envs.models import save_tiny
from tests.experiments.runs import small

ROOT = Path(__file__).parents[2]


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in command.COMMANDS) and "exit codes" in printed
    assert main([]) == 2
    for name in command.COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0
    known = "champion, demo, family, paired, paper-gpt2, paper-opt, paper-qwen, reference, reference-sb3"
    assert f"--preset NAME ({known})" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["compar"], "did you mean compare?"),
        (["compare", "--preset", "demmo"], "does not exist (presets: champion, demo"),
        (["compare", "--preset"], "--preset needs a value"),
        (["compare", "--teacher", "embeded"], "did you mean 'embedded'"),
        (["evaluate", "--student", "nowhere"], "no model can be loaded from 'nowhere'"),
        (["evaluate", "--student", "./nowhere"], "directory './nowhere' does not exist"),
        (["evaluate", "--student", "x", "--prompt-split", "train"], "neither 'validation' nor 'test'"),
        (["evaluate", "--student", "x", "--top-p", "2"], "outside (0, 1]"),
        (["evaluate", "--student", "x", "--price", "0"], "price = 0 must be above 0"),
        (["generate", "--student", "nowhere", "--temperature", "-1"], "temperature = -1.0 is below 0"),
        (["generate", "--student", "nowhere", "--max-new-tokens", "0"], "max_new_tokens = 0 is below 1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert says in printed and printed.count("\n") == 1 and printed.startswith("tdistill: ")


def test_a_settings_file_sets_the_defaults_and_the_line_wins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small(tmp_path, agents=("bc",))
    (tmp_path / "s.yaml").write_text(dump(config))
    out, figures = tmp_path / "other", tmp_path / "deep" / "figures.json"
    words = [f"--config={tmp_path / 's.yaml'}", "--updates", "2", "--out", str(out), "--json", str(figures)]
    assert main(["compare", *words]) == 0
    printed = capsys.readouterr().out
    assert "bc" in printed and f"tensorboard --logdir {out / 'tensorboard'}" in printed
    found = json.loads(figures.read_text())["figures"]
    updates = {(f["agent"], f["seed"], f["top_p"]): f for f in found if f["name"] == "forward_kl"}
    assert set(updates) == {("teacher", 0, 0.9), ("start", 0, 0.9), ("bc", 0, 0.9)}
    assert "updates: 2" in (out / "config.yaml").read_text()
    words = [*words[:-4], "--out", str(out), "--agent", "kd", "--seed", "1"]
    (tmp_path / "s.yaml").write_text("teacher: table:toy\nagents: [bc]\n")
    assert main(["distill", *words]) == 2
    assert "DistillConfig has no setting 'agents'; did you mean 'agent'" in capsys.readouterr().err


def test_places_that_cannot_be_written_are_named_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    config = tmp_path / "run.yaml"
    config.write_text(dump(small(tmp_path, agents=("bc",))))
    for flag, place in (("--json", "file/found.json"), ("--json", "."), ("--out", "file/run")):
        assert main(["compare", "--config", str(config), flag, str(tmp_path / place)]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"{flag} {tmp_path / place} cannot be written" in said and "give another" in said
    assert not (tmp_path / "run").exists() and not (tmp_path / "file").stat().st_size


def test_failures_and_stops_are_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def raising(error: BaseException) -> Any:
        def run(config: CompareConfig) -> None:
            raise error

        return run

    from experiments import compare, jobs

    cases = [(KeyboardInterrupt(), "goes on where it stopped"), (jobs.FailedCells("bc: no"), "bc: no")]
    for error, says in cases:
        monkeypatch.setattr(compare, "compare", raising(error))
        assert main(["compare", "--out", str(tmp_path / "run")]) == 1
        assert says in capsys.readouterr().err


def test_a_stopped_measurement_says_that_it_begins_anew(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from experiments import evaluate

    def stopped(config: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "run", stopped)
    assert main(["evaluate", "--student", "anything"]) == 1
    assert "stopped; the same command begins anew" in capsys.readouterr().err


def test_a_student_and_a_teacher_of_any_architecture_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, student = save_tiny("opt", tmp_path / "teacher"), save_tiny("gpt2", tmp_path / "student", seed=1)
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"w{i} w9", "reference": "w4"}) for i in range(3, 9)))
    figures = tmp_path / "f.json"
    words = ["--teacher", str(teacher), "--prompts", str(prompts), "--max-new-tokens", "8", "--json", str(figures)]

    def measured(who: Path, *more: str) -> dict[str, float]:
        assert main(["evaluate", "--student", str(who), *words, *more]) == 0
        capsys.readouterr()
        return {figure["name"]: figure["value"] for figure in json.loads(figures.read_text())["figures"]}

    itself = measured(teacher)
    assert itself["forward_kl"] == pytest.approx(0, abs=1e-6) and itself["agreement"] == 1
    other = measured(student, "--prompt-split", "test", "--price", "3.6")
    assert other["price_of_million"] == pytest.approx(1000 / other["tokens_per_second"])
    assert "price_of_million" not in itself and itself["flops_per_token"] == itself["teacher_flops_per_token"]
    assert other["forward_kl"] > 0 and other["speed_up"] > 0 and other["parameters"] > 0


def test_foreign_tokens_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--student", str(save_tiny("llama", tmp_path / "s"))]) == 2
    assert "have different tokenizers: token 0 is '<pad>' to the teacher and '<unk>'" in capsys.readouterr().err


def test_generate_answers_prompts_and_what_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(save_tiny("llama", tmp_path / "m"))
    words = ["generate", "--student", model, "--teacher", model, "--max-new-tokens", "4"]
    assert main([*words, "--prompt", "w3 w4", "w5"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1] == "> w3 w4" and printed[5] == "> w5"
    student, teacher = (line.partition("): ")[2] for line in printed[2:4])
    assert student == teacher and student.startswith("w")
    lines = iter(["", "w7", EOFError()])

    def typed(ask: str) -> str:
        line = next(lines)
        if isinstance(line, EOFError):
            raise line
        return line

    monkeypatch.setattr("builtins.input", typed)
    assert main(words) == 0
    assert capsys.readouterr().out.count("> w") == 1
    assert generate.reply.__doc__


def test_packages_of_another_project_are_named(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").write_text("")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = "import sys; from experiments.__main__ import main; sys.path.insert(0, sys.argv[1]); sys.exit(main(['x']))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and "package 'agents' is taken by" in done.stderr


def test_an_agent_in_the_working_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "my_agent.py").write_text(
        "from agents.behavior_cloning import BehaviorCloning\nclass Mine(BehaviorCloning):\n    name = 'mine'\n"
    )
    config = small(tmp_path, agents=("my_agent:Mine",), out=Path("run"), jobs=2)
    (tmp_path / "s.yaml").write_text(dump(config))
    words = ["-m", "experiments", "compare", "--config", "s.yaml"]
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1100
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "students" / "my_agent.Mine-seed0" / "config.json").is_file()


def test_a_search_that_failed_is_one_line_and_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.yaml").write_text(dump(small(tmp_path, agents=("bc@lr=1e30",), trials=1)))
    assert main(["compare", "--config", str(tmp_path / "s.yaml")]) == 1
    assert "tdistill: every trial of bc@lr=1e30 failed" in capsys.readouterr().err


def test_a_search_alone_prints_what_was_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.yaml").write_text(dump(small(tmp_path, agents=("bc",), trials=1, seeds=0)))
    assert main(["compare", "--config", str(tmp_path / "s.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "| bc " in printed and "as given" in printed and "KL(T‖S)" not in printed
