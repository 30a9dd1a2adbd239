"""The command: `tdistill COMMAND …`, or `python -m experiments COMMAND …`."""

from __future__ import annotations

import difflib
import gc
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

COMMANDS = {
    "compare": "distil the teacher with several agents and seeds, and compare what they reach (the main job)",
    "distill": "distil the teacher with one agent and one seed",
    "report": "write the tables, figures and page of a finished run again, without a model",
    "reproduce": "repeat a run from its folder, and say whether its figures and weights come out the same",
    "coverage": "look before training: what each top-p and max_candidates would keep, lose and cost",
    "collect": "let the teacher walk once and store its episodes, to learn from without it",
    "update": "follow a teacher that has changed: compare, draw anew where it differs, go on with the student",
    "online": "answer a stream of prompts, learn on from it, and watch for drift: hold, gate, roll back",
    "evaluate": "measure a student or teacher directory on held-out prompts",
    "expert": "lay an expert of low-frequency words beside a student, for evaluate and generate --expert",
    "generate": "talk to a student side by side with the teacher",
    "explore": "walk the token MDP in a page on this machine, candidate by candidate",
    "teacher": "train the embedded teacher and its warm-start student",
    "lesson": "run a lesson of the course, or list them: tdistill lesson 05",
    "bench": "measure speed and memory against what people use: bench env, bench learn, bench memory, bench served",
}
USAGE = "\n".join(
    [
        "usage: tdistill COMMAND [--help] [settings]",
        "",
        "Distil a language model as reinforcement learning on the teacher's top-p token MDP.",
        "",
        *(f"  {name:10} {about}" for name, about in COMMANDS.items()),
        "",
        "exit codes: 0 done, 1 failed or stopped, 2 bad input",
    ]
)
GO_ON = {"compare", "distill", "reproduce", "collect", "update", "online", "teacher"}
"""Commands that go on behind what was done before they were stopped."""
ROOMS = ("envs", "agents", "experiments")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # loading a small model is no long work
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if words else 2
    if shadow := shadowed():
        return _say(shadow, 2)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that my_agent:Class is found and nothing of ours is replaced
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return _say(f"unknown command {words[0]!r}{hint} (known: {', '.join(COMMANDS)})", 2)
    return _guarded(words[0], words[1:])


def shadowed() -> str:
    """What stands in the way of this project's packages; empty if nothing does."""
    root = Path(__file__).resolve().parents[1]
    for room in ROOMS:
        spec = importlib.util.find_spec(room)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found is None or found.parents[1] != root:
            where = found or (list(spec.submodule_search_locations or []) if spec else "nowhere")
            return f"package {room!r} is taken by {where}; run from another folder, or rename or uninstall that one"
    return ""


def _guarded(command: str, words: list[str]) -> int:
    from agents.errors import DivergedError
    from agents.errors import InputError as AgentInputError
    from envs.errors import InputError, UnavailableError

    try:
        if command not in ("compare", "distill") and "WORLD_SIZE" in os.environ:
            from experiments import launch

            launch.refuse(command)
        if command != "lesson" and not {"-h", "--help"} & set(words):
            _import_models()
        COMMAND_OF[command](words)
    except (InputError, AgentInputError) as error:
        return _say(str(error), 2)
    except (DivergedError, UnavailableError) as error:
        return _say(str(error), 1)
    except KeyboardInterrupt:
        after = "goes on where it stopped" if command in GO_ON else "begins anew"
        return _say(f"stopped; {'what was printed stands, ' * (command == 'coverage')}the same command {after}", 1)
    except SystemExit:  # of --help
        raise
    except _failures() as error:
        return _say(str(error), 1)
    return 0


def _import_models() -> None:
    """Import what reads models, four fifths of the time until a command begins, without the garbage collector.

    It would walk their million objects again and again, a sixth of that time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        importlib.import_module("envs.decode")
    finally:
        if collects:
            gc.enable()


def _failures() -> tuple[type[Exception], ...]:
    """What ends a command with 1 and a line. Their modules take seconds to import: only what raised is looked at."""
    from experiments.gate.judge import Failed
    from experiments.jobs import FailedCells
    from experiments.reproduce import Differs

    return Failed, FailedCells, Differs


def _say(message: str, code: int) -> int:
    print(f"tdistill: {message}", file=sys.stderr)
    return code


def _parse(kind: type[Any], command: str, words: list[str]) -> Any:
    """The settings of a command: its defaults, then a preset or a YAML file, then the command line."""
    import tyro

    from experiments.config import PRESETS, from_mapping, read_yaml
    from experiments.folder import check_writable

    words, values = list(words), dict[str, Any]()
    note = ""
    if command in ("compare", "distill"):
        known = ", ".join(sorted(path.stem for path in PRESETS.glob("*.yaml")))
        note = f" --preset NAME ({known}) or --config FILE.yaml sets the defaults; settings given here win. --dry-run "
        note += "says what the run will take, by the models' configurations alone, and ends."
        if command == "distill":
            note += " Presets are comparisons: their agents and seeds are left out, the rest is taken."
        for flag, place in (("--preset", PRESETS), ("--config", None)):
            if (name := _take(flag, words)) is not None:
                found = read_yaml(Path(name) if place is None else place / f"{name}.yaml")
                values |= found if place is None else of_preset(kind, found)
    default = {"default": from_mapping(kind, values, "the settings file")} if values else {}
    about = (kind.__doc__ or "").strip() + note
    settings = tyro.cli(kind, prog=f"tdistill {command}", description=about, args=words, **default)
    if getattr(settings, "json", None) is not None:
        check_writable(settings.json, "--json")
    return settings


def of_preset(kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """What a run of this kind takes of a preset: all, but for what only a comparison has."""
    from dataclasses import fields

    from experiments.config import CompareConfig

    apart = {field.name for field in fields(CompareConfig)} - {field.name for field in fields(kind)}
    return {key: value for key, value in values.items() if key not in apart}


def _take(flag: str, words: list[str]) -> str | None:
    """Remove `flag VALUE` or `flag=VALUE` from the words."""
    from envs.errors import InputError

    for place, word in enumerate(words):
        if word.startswith(f"{flag}="):
            return words.pop(place).partition("=")[2]
        if word == flag:
            if place + 1 == len(words):
                raise InputError(f"{flag} needs a value")
            words.pop(place)
            return words.pop(place)
    return None


def _write_json(path: Path | None, figures: dict[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _named(figures: dict[str, float]) -> dict[str, Any]:
    return {"figures": [{"name": name, "value": value} for name, value in figures.items()]}


def _print_figures(figures: dict[str, float]) -> None:
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:{width}}  {f'{value:,.0f}' if value >= 1000 else f'{value:.4g}'}")


def _figures_of(module: str, kind: str, call: str, command: str) -> Callable[[list[str]], None]:
    """A command that prints the figures that a function makes of its settings."""

    def run(words: list[str]) -> None:
        found = importlib.import_module(module)
        settings = _parse(getattr(found, kind), command, words)
        figures = getattr(found, call)(settings)
        _print_figures(figures)
        _write_json(settings.json, _named(figures))

    return run


def _runs(kind_name: str, command: str) -> Callable[[list[str]], None]:
    def run(words: list[str]) -> None:
        from experiments import config

        dry = "--dry-run" in words
        settings = _parse(getattr(config, kind_name), command, [word for word in words if word != "--dry-run"])
        from experiments import sweep  # seconds, after --help

        settings = sweep.swept(settings) if command == "compare" else settings
        if dry:
            from experiments.plan import plan

            print(plan(settings))
        else:
            _run(settings, command)

    return run


def _run(settings: Any, command: str) -> None:
    """Train, and say what came of it."""
    from experiments import compare, jobs, launch, paired, report, statistics

    failed = None
    try:
        with launch.joined():
            rows = getattr(compare, command)(settings)
    except jobs.FailedCells as error:
        rows, failed = error.rows, error
    if getattr(settings, "trials", 0) and (rows or not failed):
        print((settings.out / "shared" / "tuned.md").read_text(encoding="utf-8"))
    if rows:
        print(report.tables(rows))
        reference = getattr(settings, "reference", "") or settings.agents[0] if command == "compare" else ""
        if differences := paired.table(rows, reference):
            print(f"\npaired by seed, against {reference}; {paired.LEGEND}\n{differences}")
        found = report.figures_json(rows)
        found["figures"] += paired.figures(rows, reference)
        if statistics.several_seeds(rows) and (over := statistics.summaries(rows, reference)):
            print(f"\n{statistics.heading(rows)}\n{statistics.table(over, reference)}")
            found["figures"] += statistics.figures(over, reference)
        print(f"\n{statistics.selection_rule(getattr(settings, 'trials', 0))}")
        print(f"means over seeds ± half of a 95 % interval; students, figures and results.csv: {settings.out}")
        print(compare.tensorboard_line(settings.out))
        _write_json(settings.json, found)
    if failed:
        raise failed


def _reproduce(words: list[str]) -> None:
    from experiments import reproduce

    settings = _parse(reproduce.ReproduceConfig, "reproduce", words)
    outcome = reproduce.reproduce(settings)
    print(reproduce.said(outcome))
    _write_json(settings.json, _named(outcome.figures))
    if not outcome.agrees:
        raise reproduce.Differs(f"{settings.run} did not come out the same")


def _evaluate(words: list[str]) -> None:
    from experiments import evaluate
    from experiments.config import EvaluateConfig
    from experiments.gate import judge, run, show

    settings = _parse(EvaluateConfig, "evaluate", words)
    run.check_junit(settings)
    if settings.gate is None:
        figures = evaluate.run(settings).figures
        _print_figures(figures)
        _write_json(settings.json, _named(figures))
        return
    gated = run.run(settings)
    _print_figures(gated.figures)
    _write_json(settings.json, {**_named(gated.figures), "gate": show.data_of(gated.judgement)})
    print(f"\n{show.text_of(gated.judgement, gated.gate.confidence)}")
    if not gated.judgement.passed:
        failed = [own.name for own in gated.judgement.verdicts if not own.passed]
        raise judge.Failed(f"{settings.student} does not pass {settings.gate}: {'; '.join(failed)}")


def _report(words: list[str]) -> None:
    from experiments.page import rebuild

    if words and not words[0].startswith("-"):
        words = ["--run", *words]
    for path in rebuild.rebuild(_parse(rebuild.ReportConfig, "report", words).run):
        print(path)


def _update(words: list[str]) -> None:
    from experiments.update import command

    settings = _parse(command.UpdateConfig, "update", words)
    figures = command.renew(settings)
    _print_figures(figures)
    _write_json(settings.out / "update.json", _named(figures))
    print()
    _run(command.run_of(settings), "distill")


def _coverage(words: list[str]) -> None:
    from experiments.coverage import command

    for part in command.coverage(_parse(command.CoverageConfig, "coverage", words)):
        print(part, end="\n\n", flush=True)  # what is known is said, also if it is stopped then


def _generate(words: list[str]) -> None:
    from experiments import generate
    from experiments.config import GenerateConfig

    generate.run(_parse(GenerateConfig, "generate", words))


def _explore(words: list[str]) -> None:
    from experiments.explore import app, desk

    app.serve(_parse(desk.ExploreConfig, "explore", words))


def _lesson(words: list[str]) -> None:
    from experiments.lessons import command

    if words and not words[0].startswith("-"):
        words = ["--number", *words]
    command.run(_parse(command.LessonConfig, "lesson", words))


def _bench(words: list[str]) -> None:
    from envs.errors import InputError
    from experiments.bench import env, learn, memory, served, table

    kinds: dict[str, tuple[type[Any], Callable[[Any], list[Any]], Callable[[list[Any]], str]]] = {
        "env": (env.BenchEnvConfig, env.run, table.of_env),
        "learn": (learn.BenchLearnConfig, learn.run, table.of_learn),
        "memory": (memory.BenchMemoryConfig, memory.run, table.of_memory),
        "served": (served.BenchServedConfig, served.run, table.of_served),
    }
    if words and words[0] in ("-h", "--help"):
        print("usage: tdistill bench env|learn|memory|served [--help] [settings]\n")
        print("\n".join(f"  {name:8}{(kind.__doc__ or '').splitlines()[0]}" for name, (kind, _, _) in kinds.items()))
        raise SystemExit(0)
    if not words or words[0] not in kinds:
        given = repr(words[0]) if words else "nothing"
        raise InputError(f"bench measures {', '.join(kinds)}, not {given}: tdistill bench env [--help]")
    kind, run, show = kinds[words[0]]
    settings = _parse(kind, f"bench {words[0]}", words[1:])
    figures = run(settings)
    _write_json(settings.json, {"figures": figures})
    print(show(figures))


COMMAND_OF: dict[str, Callable[[list[str]], None]] = {
    "compare": _runs("CompareConfig", "compare"),
    "distill": _runs("DistillConfig", "distill"),
    "report": _report,
    "reproduce": _reproduce,
    "coverage": _coverage,
    "collect": _figures_of("experiments.store.draw", "CollectConfig", "draw", "collect"),
    "update": _update,
    "online": _figures_of("experiments.online.command", "OnlineConfig", "run", "online"),
    "evaluate": _evaluate,
    "expert": _figures_of("experiments.expert.command", "ExpertConfig", "run", "expert"),
    "generate": _generate,
    "explore": _explore,
    "teacher": _figures_of("experiments.embedded", "EmbeddedConfig", "run", "teacher"),
    "lesson": _lesson,
    "bench": _bench,
}

if __name__ == "__main__":
    raise SystemExit(main())
