"""`tdistill report`: the tables, figures and page of a finished run, from what its folder holds; no model is loaded."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from envs.errors import InputError
from experiments.config import CompareConfig, DistillConfig, from_mapping, read_yaml
from experiments.folder import CONFIG, teacher_file
from experiments.report import Row

RESULTS = "results.csv"
PLACE = ("agent", "seed", "top_p", "updates")


@dataclass(frozen=True)
class ReportConfig:
    """Write results.md, the figures and report.html of a finished run again, from what its folder holds."""

    run: Path
    """The run's folder."""


def config_of(out: Path) -> CompareConfig | DistillConfig:
    """The settings of the run in a folder, which may have been moved. Raises: InputError: it is no run folder."""
    if not (out / CONFIG).is_file():
        raise InputError(f"{out} holds no {CONFIG}, so it is no run folder; give the --out of a comparison")
    values = read_yaml(out / CONFIG)
    if "agents" in values:
        return replace(from_mapping(CompareConfig, values, str(out / CONFIG)), out=out)
    return replace(from_mapping(DistillConfig, values, str(out / CONFIG)), out=out)


def rows_of(out: Path) -> list[Row]:
    """Rows as the run had them: costs and measures of results.csv, the rest of its cells.

    Raises: InputError: nothing has finished in this folder.
    """
    from experiments.compare import COSTS

    if not (out / RESULTS).is_file():
        raise InputError(f"{out} holds no {RESULTS}: nothing has finished there; give the run's own command again")
    with (out / RESULTS).open(encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file))
    rows = []
    for record in records:
        agent, seed, top_p, updates = (record.pop(name) for name in PLACE)
        figures = {name: float(value) for name, value in record.items() if value}
        result = _result(out, agent, int(seed), float(top_p))
        costs = {name: figures.pop(name) for name in COSTS if name in figures}
        more: dict[str, Any] = {name: result[name] for name in ("slices", "positions", "calibration") if name in result}
        rows.append(Row(agent, int(seed), float(top_p), int(updates), costs, figures, result.get("curve", []), more))
    return rows


def _result(out: Path, agent: str, seed: int, top_p: float) -> dict[str, Any]:
    teachers = agent == "teacher"
    found = _read(out / teacher_file(top_p) if teachers else folder_of(out, agent, seed, top_p) / "result.json")
    return dict(found) if found else {}


def folder_of(out: Path, agent: str, seed: int, top_p: float) -> Path:
    """Where a cell's results lie."""
    from experiments.workspace import Cell

    return out / "cells" / Cell(agent, seed, top_p).name


def replies_of(out: Path, rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Each arm's replies to the test prompts: of its first seed, at the largest top_p; of arms that kept them."""
    largest = max((row.top_p for row in rows), default=0.0)
    found: dict[str, list[Any]] = {}
    for row in rows:
        if row.top_p == largest and row.agent not in found:
            replies = _read(folder_of(out, row.agent, row.seed, row.top_p) / "replies.json")
            if replies:
                found[row.agent] = replies
    return found


def origin_of(out: Path) -> dict[str, Any] | None:
    """What the run noted about itself when it last ran; None if it noted nothing."""
    noted = _read(out / "run.json")
    return dict(noted["runs"][-1]) if noted and noted["runs"] else None


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def rebuild(out: Path) -> list[Path]:
    """Write everything that a comparison reports again; returns what was written. Raises: InputError: see above."""
    from experiments import statistics
    from experiments.report import write_report
    from experiments.workspace import Workspace

    config, rows = config_of(out), rows_of(out)
    reference = getattr(config, "reference", "") or (config.agents[0] if isinstance(config, CompareConfig) else "")
    tuned, notes = out / "shared" / "tuned.md", statistics.notes(rows, reference, getattr(config, "trials", 0))
    if tuned.is_file():
        notes.append(tuned.read_text(encoding="utf-8").strip())
    write_report(Workspace(config), rows, notes, statistics.profiles(rows))
    return [out / name for name in ("results.md", "figures", "report.html")]
