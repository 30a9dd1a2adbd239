"""`tdistill reproduce RUN`: the run once more from its folder, and whether the figures and the weights agree."""

from __future__ import annotations

import csv
import filecmp
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import tyro

from envs.errors import InputError
from experiments import compare, provenance
from experiments.config import CompareConfig, DistillConfig, from_mapping, read_yaml
from experiments.cost import TIMED
from experiments.folder import CONFIG, INPUTS
from experiments.jobs import FailedCells
from experiments.page.rebuild import config_of
from experiments.report import aligned
from experiments.statistics import TEACHER
from experiments.workspace import Cell, Workspace

RESULTS = "results.csv"
KEYS = ("agent", "seed", "top_p")
ELSEWHERE = {"out", "json", "jobs", "threads", "retries", "resume", "ray", "cell_cpus", "cell_gpus", "share"}
"""Settings that say where and how a run is computed, not what."""


class Differs(RuntimeError):
    """The repeated run gave something else."""


@dataclass(frozen=True)
class ReproduceConfig:
    """Repeat a run from its folder, with its settings, seeds and threads, and say whether its figures and the students'
    weights come out the same; exit code 1 if not. On one kind of CPU, with the same versions, both are identical. Of
    several commands that ran in one folder the last is repeated, and its rows alone are compared; what the others had
    set otherwise is said."""

    run: tyro.conf.Positional[Path]
    """The folder of a run that has ended."""
    out: Path | None = None
    """Where to repeat it; none: beside it, with -reproduced. The same command goes on where it stopped."""
    jobs: int | None = None
    """Worker processes; none: as many as the run had."""
    json: Path | None = None
    """Write the largest differences to this file too."""


@dataclass(frozen=True)
class Outcome:
    """How two run folders differ."""

    rows: int  # of the first run
    compared: int  # figures of a row
    largest: dict[str, float]  # measure -> largest difference, of those that differ; inf where one has no number
    missing: list[str]  # rows that one of them lacks
    students: int  # weight files of the first run
    changed: list[str]  # weight files that differ, or that one of them lacks
    notes: list[str] = field(default_factory=list)  # why they might

    @property
    def agrees(self) -> bool:
        """Whether every figure and every byte of the weights is the same."""
        return not (self.largest or self.missing or self.changed)

    @property
    def figures(self) -> dict[str, float]:
        """Counts of what differs, and the largest difference of each measure that does."""
        counts = {"differing_figures": len(self.largest), "differing_weights": len(self.changed)}
        return {**counts, "missing_rows": len(self.missing), **self.largest}


def reproduce(config: ReproduceConfig) -> Outcome:
    """Run it again and compare.

    Raises: InputError: no finished run, other inputs than it had, or a folder that holds something else.
    """
    out = config.out or config.run.with_name(f"{config.run.resolve().name}-reproduced")
    settings = settings_of(config.run)
    threads, notes = _threads(config.run)
    notes += earlier(config.run)
    again = replace(settings, out=out, json=None, threads=threads or settings.threads)
    if isinstance(again, CompareConfig):
        again = replace(again, resume=False, share="", jobs=config.jobs or again.jobs)
    _check_out(config.run, settings, out)
    _check_inputs(config.run, again)
    try:
        compare.compare(again) if isinstance(again, CompareConfig) else compare.distill(again)
    except FailedCells as error:
        notes.append(f"failed in this run: {error}")
    return replace(differences(config.run, out), notes=[*notes, *changes(config.run, out)])


def settings_of(run: Path) -> CompareConfig | DistillConfig:
    """The settings of the last command that ran in a folder.

    Raises: InputError: it is no run folder, or its run has not ended.
    """
    if not (run / CONFIG).is_file():
        raise InputError(f"{run} holds no {CONFIG}, so it is no run folder")
    if not (run / RESULTS).is_file():
        raise InputError(f"{run} holds no {RESULTS}: its run has not ended; give its command again to go on with it")
    return config_of(run)


def earlier(run: Path) -> list[str]:
    """What earlier commands in a folder had set otherwise than the last, which alone is repeated; a note or none."""
    *before, last = [entry["settings"] for entry in provenance.runs(run)] or [{}]
    names = [name for name in last if name not in ELSEWHERE and any(other.get(name) != last[name] for other in before)]
    if not names:
        return []
    told = "; ".join(f"{name} = {' then '.join(_values(before, last, name))}" for name in names)
    return [f"{len(before) + 1} commands ran in {run}, with different settings; the last is repeated alone ({told})"]


def _values(before: Sequence[dict[str, Any]], last: dict[str, Any], name: str) -> list[str]:
    """What a setting has been, the last value last."""
    found = dict.fromkeys(str(entry.get(name)) for entry in before if entry.get(name) != last[name])
    return [*found, str(last[name])]


def _threads(run: Path) -> tuple[int | None, list[str]]:
    """The threads of the processes that trained its cells, if these were as many in all."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(run.glob("cells/*/result.json"))]
    found = sorted({result["threads"] for result in results})
    if len(found) <= 1:
        return (found[0] if found else None), []
    return None, [f"its cells were trained with {', '.join(map(str, found))} threads; weights may differ in bits"]


def _check_out(run: Path, settings: CompareConfig | DistillConfig, out: Path) -> None:
    """Raises: InputError: not a folder of this very run, begun before."""
    if out.resolve() == run.resolve():
        raise InputError(f"{out} is the run itself; give another --out")
    if not (out / CONFIG).is_file():
        return  # what else lies there the run itself refuses
    before = from_mapping(type(settings), read_yaml(out / CONFIG), str(out / CONFIG))
    for name in (name.name for name in fields(settings) if name.name not in ELSEWHERE):
        if getattr(before, name) != (wanted := getattr(settings, name)):
            raise InputError(
                f"{out} holds another run: {name} is {getattr(before, name)!r} there and {wanted!r} in {run}; give "
                "another --out"
            )


def _check_inputs(run: Path, again: CompareConfig | DistillConfig) -> None:
    """Raises: InputError: prompts, teacher, student or store are not what they were."""
    before = json.loads((run / INPUTS).read_text(encoding="utf-8"))
    now = Workspace(again).inputs()
    if names := sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name)):
        raise InputError(
            f"what {run} read has changed since ({', '.join(names)}; splits are prompts), so its figures cannot come "
            "out again; put it back as it was"
        )


def differences(run: Path, again: Path) -> Outcome:
    """Compare the rows that the first folder's last command asked for: every field of results.csv but times, and the
    students' weights byte by byte."""
    asked = {(cell.agent, cell.seed, cell.top_p) for cell in compare.cells_asked(settings_of(run))}

    def table(folder: Path) -> dict[tuple[str, ...], dict[str, str]]:
        def of_last(agent: str, seed: str, top_p: str) -> bool:
            return agent == TEACHER or (agent, int(seed), float(top_p)) in asked

        return {key: row for key, row in _table(folder).items() if of_last(*key)}

    ours, theirs = table(run), table(again)
    names = list(dict.fromkeys(name for row in [*ours.values(), *theirs.values()] for name in row if _lasts(name)))
    largest: dict[str, float] = {}
    for key in (key for key in ours if key in theirs):
        for name in names:
            one, other = ours[key].get(name, ""), theirs[key].get(name, "")
            if one != other:
                largest[name] = max(largest.get(name, 0.0), _difference(one, other))
    files, others = _weights(run, ours), _weights(again, theirs)
    changed = files ^ others | {
        name for name in files & others if not filecmp.cmp(run / name, again / name, shallow=False)
    }
    missing = [" ".join(key) for key in [*ours, *theirs] if key not in ours or key not in theirs]
    compared = len([name for name in names if name not in KEYS])
    return Outcome(len(ours), compared, largest, missing, len(files), sorted(changed))


def _table(run: Path) -> dict[tuple[str, ...], dict[str, str]]:
    with (run / RESULTS).open(encoding="utf-8", newline="") as file:
        return {tuple(row[key] for key in KEYS): row for row in csv.DictReader(file)}


def _lasts(name: str) -> bool:
    """Whether a field is anything but a time, which no two runs share."""
    return not ("seconds" in name or name in TIMED)


def _difference(one: str, other: str) -> float:
    """Of two fields that are not the same text; infinite where one of them is no finite number."""
    try:
        found = abs(float(one) - float(other))
    except ValueError:
        return math.inf
    return math.inf if math.isnan(found) else found


def _weights(run: Path, rows: Iterable[tuple[str, ...]]) -> set[str]:
    """Weight files of the students of these rows; earlier commands in the folder may have left others."""
    space = Workspace(replace(settings_of(run), out=run))
    cells = [Cell(agent, int(seed), float(top_p)) for agent, seed, top_p in rows]
    paths = (path for cell in cells for path in space.student_directory(cell).rglob("*"))
    return {str(path.relative_to(run)) for path in paths if path.suffix in (".safetensors", ".pt")}


def changes(run: Path, again: Path) -> list[str]:
    """What else was not the same: versions, threads, CPU and commit; nothing is promised where one of them changed."""
    before, now = provenance.runs(run), provenance.runs(again)
    if not before:
        return [f"{run} is older than {provenance.RUN}: versions and hardware of its run are not known"]
    notes = []
    for part in ("versions", "hardware"):
        one, other = before[-1][part], now[-1][part]
        notes += [
            f"{name} was {one.get(name)}, now it is {other.get(name)}"
            for name in dict.fromkeys([*one, *other])
            if one.get(name) != other.get(name) and name != "cores"
        ]
    if notes:
        notes.append("so the weights are not promised to be the same bytes, nor the figures to the last digit")
    one, other = before[-1]["commit"], now[-1]["commit"]
    if one != other:
        notes.append(f"the code's commit was {_commit(one)}, now it is {_commit(other)}")
    return notes


def _commit(found: dict[str, Any] | None) -> str:
    return f"{found['id'][:12]}{' with changes' if found['changed'] else ''}" if found else "not known"


def said(outcome: Outcome) -> str:
    """The outcome as text: a line if all agrees, else a table of what differs."""
    lines = [f"note: {note}" for note in outcome.notes]
    if outcome.agrees:
        every = f"{outcome.rows} rows × {outcome.compared} figures (times left out)"
        return "\n".join([*lines, f"agrees: {every}, and {outcome.students} weight files byte by byte"])
    lines += [f"row in one of them alone: {name}" for name in outcome.missing]
    if outcome.largest:
        table: Sequence[Sequence[str]] = [[name, f"{value:.3g}"] for name, value in outcome.largest.items()]
        lines.append(aligned([["measure", "largest difference"], *table], markdown=False))
    same = outcome.compared - len(outcome.largest)
    lines.append(f"{same} of {outcome.compared} figures are the same in all rows that both have")
    lines += [f"other bytes: {name}" for name in outcome.changed]
    return "\n".join(lines)
