"""Is what is cheaper as good? Two runs of the same arms and seeds, paired, against margins that are fixed beforehand.

    python -m experiments.studies.no_worse RUN CHEAPER

RUN and CHEAPER are the folders of two comparisons that differ in what is asked about, such as `--head all` and
`--head candidates`. CHEAPER is as good in a measure if the whole 95 % interval of its difference lies within the
margin (equivalence by two one-sided tests at 2.5 %: Schuirmann 1987); an interval that reaches beyond proves neither.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from envs.errors import InputError
from experiments.folder import INPUTS
from experiments.paired import COLUMNS, Difference, differences
from experiments.report import Row, aligned
from experiments.studies.command import run
from experiments.train import RESULT, START

Arm = tuple[str, float]  # agent and top_p


@dataclass(frozen=True)
class NoWorseConfig:
    """Settings of the study."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the comparison that is the measure."""
    cheaper: Annotated[Path, tyro.conf.Positional]
    """Folder of the other."""
    margins: dict[str, float] = field(default_factory=lambda: {"task_score": 0.03, "forward_kl": 0.01, "leak": 0.01})
    """Measure -> the largest difference, either way, that would not matter."""


def study(config: NoWorseConfig) -> list[tuple[Arm, Difference, float]]:
    """Every arm that both runs have, in every measure of the margins: the difference, and how far it may be.

    Raises: InputError: no such runs, runs that do not compare, no arm in common on two seeds, or a margin without its
        measure.
    """
    for name, margin in config.margins.items():
        if name not in COLUMNS or margin <= 0:
            raise InputError(f"margin {name} = {margin:g}; it must be above 0, of {', '.join(COLUMNS)}")
    _check_alike(config.run, config.cheaper)
    one, other = (_rows(place) for place in (config.run, config.cheaper))
    found = []
    for arm in sorted(one.keys() & other.keys()):
        pairs = [Row(name, row.seed, *row_of(row)) for name, rows in (("", one), (arm[0], other)) for row in rows[arm]]
        known = {entry.measure: entry for entry in differences(pairs, "") if entry.seeds > 1}
        if known and (missing := config.margins.keys() - known.keys()):
            raise InputError(f"{arm[0]} has no {', '.join(sorted(missing))} in both runs; leave these margins out")
        found += [(arm, known[name], margin) for name, margin in config.margins.items() if name in known]
    if not found:
        raise InputError(f"{config.run} and {config.cheaper} have no arm in common with two seeds or more")
    return found


def _check_alike(*folders: Path) -> None:
    """Raises: InputError: other held-out prompts, or another teacher, so that the runs do not compare."""
    inputs = []
    for folder in folders:
        if not (folder / INPUTS).is_file():
            raise InputError(f"{folder} is no run folder; give one of `tdistill compare`")
        known = json.loads((folder / INPUTS).read_text(encoding="utf-8"))
        inputs.append({name: digest for name, digest in known.items() if name.split()[0] in ("test", "teacher")})
    if inputs[0] != inputs[1]:
        raise InputError(f"{folders[0]} and {folders[1]} have other test prompts or teachers; they do not compare")


def row_of(row: Row) -> tuple[float, int, dict[str, float], dict[str, float], list[dict[str, float]]]:
    """All of a row but its name and seed."""
    return row.top_p, row.updates, row.costs, row.measures, row.curve


def _rows(folder: Path) -> dict[Arm, list[Row]]:
    found: dict[Arm, list[Row]] = {}
    for path in sorted(folder.glob(f"cells/*/{RESULT}")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        if cell["agent"] != START and cell["measures"]:
            row = Row(cell["agent"], cell["seed"], cell["top_p"], cell["updates"], {}, cell["measures"], [])
            found.setdefault((row.agent, row.top_p), []).append(row)
    return found


def table(found: list[tuple[Arm, Difference, float]]) -> str:
    """Differences with half of their 95 % intervals (Student's t), and whether these lie within the margins."""
    lines = [["arm", "p", "seeds", "measure", "difference", "margin", "as good"]]
    for (agent, top_p), entry, margin in found:
        within = abs(entry.mean) + entry.half <= margin
        figures = (f"{entry.mean:+.4f}±{entry.half:.4f}", f"{margin:g}", "yes" if within else "not shown")
        lines.append([agent, f"{top_p:g}", str(entry.seeds), COLUMNS[entry.measure], *figures])
    return aligned(lines, markdown=True)


if __name__ == "__main__":
    raise SystemExit(run(NoWorseConfig, __doc__, lambda config: table(study(config))))
