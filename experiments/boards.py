"""What TensorBoard shows of a whole comparison, beside the curves that its cells log themselves.

tensorboard/summary/all            the layout of the page Custom Scalars, and which columns HPARAMS has
tensorboard/summary/arms/ARM       validation measures over the seeds of an arm: mean, smallest, largest
tensorboard/summary/cells/CELL     one entry of HPARAMS: settings, the last validation and the test measures

All of it follows from the rows, and is written anew with every report. `tensorboard --logdir RUN` finds it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.report import Row, groups
from experiments.train import START, read_result
from experiments.workspace import Cell, Workspace

TEACHER = "teacher"
BAND = "over seeds"
PLACES = ("updates", "seconds")  # of a point of a curve: where it stands, not what was measured
SHARED = ("gamma", "reward", "episodes", "batch_size")  # of all arms, unless one sets its own γ
TRAINING = {"loss": "train/loss", "tokens per second": "train/tokens_per_second"}


def write_boards(space: Workspace, rows: Sequence[Row]) -> None:
    """Write the summaries of these rows in place of those of an earlier report."""
    place = space.out / "tensorboard" / "summary"
    shutil.rmtree(place, ignore_errors=True)
    cells = [row for row in rows if row.agent != TEACHER]
    settings = [settings_of(space, row) for row in cells]
    measures = [measures_of(row) for row in cells]
    with _writer(place / "all") as writer:
        writer.add_custom_scalars(layout(rows))
        writer.file_writer.add_summary(_columns(settings, measures))
    for (agent, top_p), found in groups(cells).items():
        if all(row.curve for row in found):
            with _writer(place / "arms" / f"{agent.replace(':', '.')}-p{top_p:g}") as writer:
                _log_band(writer, found)
    for row, own, reached in zip(cells, settings, measures, strict=True):
        with _writer(place / "cells" / Cell(row.agent, row.seed, row.top_p).name) as writer:
            _log_entry(writer, row, own, reached)


def layout(rows: Sequence[Row]) -> dict[str, dict[str, list[Any]]]:
    """Charts by category: each measure of all arms with the range over seeds, of all cells, and how they learnt."""
    names = list(dict.fromkeys(name for row in rows for point in row.curve[:1] for name in point))
    names = [name for name in names if name not in PLACES]
    return {
        "validation, over seeds": {name: ["Margin", _band_tags(name)] for name in names},
        "validation, every cell": {name: ["Multiline", [f"^validation/{name}$"]] for name in names},
        "training, every cell": {name: ["Multiline", [f"^{tag}$"]] for name, tag in TRAINING.items()},
    }


def settings_of(space: Workspace, row: Row) -> dict[str, Any]:
    """What a cell ran with: what the run, the arm and a search say; options that none of them names are the usual ones
    of its agent."""
    place = {"agent": row.agent, "seed": row.seed, "top_p": row.top_p}
    if row.agent == START:
        return place
    shared = {name: getattr(space.config, name) for name in SHARED}
    kept = read_result(space, Cell(row.agent, row.seed, row.top_p))  # of an earlier command perhaps, with others
    own = space.settings(row.agent, row.top_p) if kept is None else kept["settings"]
    return place | {"updates": row.updates} | shared | own


def measures_of(row: Row) -> dict[str, float]:
    """The last validation measures and the test measures, by tag."""
    last = row.curve[-1] if row.curve else {}
    found = {f"validation/{name}": value for name, value in last.items() if name not in PLACES}
    return found | {f"test/{name}": value for name, value in row.measures.items()}


def _band_tags(name: str) -> list[str]:
    return [f"{BAND}/{name}", f"{BAND}/{name} smallest", f"{BAND}/{name} largest"]


def _log_band(writer: Any, found: Sequence[Row]) -> None:
    for points in zip(*(row.curve for row in found), strict=False):  # as far as all seeds have come
        for name in points[0]:
            if name not in PLACES:
                values = [point[name] for point in points]
                for tag, value in zip(_band_tags(name), (fmean(values), min(values), max(values)), strict=True):
                    writer.add_scalar(tag, value, points[0]["updates"])


def _log_entry(writer: Any, row: Row, settings: dict[str, Any], measures: dict[str, float]) -> None:
    from torch.utils.tensorboard.summary import hparams

    plain = {name: value if isinstance(value, bool | int | float) else str(value) for name, value in settings.items()}
    _, begin, end = hparams(plain, {})
    writer.file_writer.add_summary(begin)
    for tag, value in measures.items():
        writer.add_scalar(tag, value, row.updates)
    writer.file_writer.add_summary(end)


def _columns(settings: Sequence[dict[str, Any]], measures: Sequence[dict[str, float]]) -> Any:
    from tensorboard.plugins.hparams import summary_v2

    names = dict.fromkeys(name for own in settings for name in own)
    tags = dict.fromkeys(tag for own in measures for tag in own)
    return summary_v2.hparams_config_pb(
        hparams=[summary_v2.HParam(name) for name in names], metrics=[summary_v2.Metric(tag) for tag in tags]
    )


@contextmanager
def _writer(place: Path) -> Iterator[Any]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(place)) as writer:
        yield writer
