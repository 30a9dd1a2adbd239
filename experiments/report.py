"""Tables and figures of a comparison."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from experiments.cost import TIMED
from experiments.folder import write
from experiments.metrics import mean_and_interval

if TYPE_CHECKING:
    from experiments.page.figures import Profiles
    from experiments.workspace import Workspace

TABLES = (
    {
        "forward_kl": "KL(T‖S)",
        "reverse_kl": "KL(S‖T)",
        "agreement": "top-1",
        "leak": "leak",
        "entropy": "entropy",
        "length": "length",
        "parameters": "parameters",
        "speed_up": "speed",
    },
    {
        "task_score": "task",
        "critical_pass": "critical",
        "computed_score": "totals",
        "rare_recall": "rare",
        "rouge_l": "Rouge-L",
        "rouge_l_teacher": "Rouge-L(T)",
    },
    {
        "flops_per_token": "Mflop/token",
        "first_token_ms_1": "ms to 1st",
        "token_ms_1": "ms/token",
        "first_token_ms_16": "16: ms to 1st",
        "token_ms_16": "16: ms/token",
        "peak_memory_mb": "MB",
        "price_of_million": "price of 10⁶",
    },
    {
        "updates": "updates",
        "seconds": "seconds",
        "walk_seconds": "of them walking",
        "tokens": "tokens learnt from",
        "teacher_tokens": "teacher's tokens",
        "student_tokens": "student's tokens",
        "flops": "Gflop",
    },
    {
        "length": "length",
        "length_sd": "length sd",
        "distinct_2": "distinct-2",
        "self_bleu": "self-BLEU",
        "repetition": "repeats",
        "ece": "ECE",
        "excess_error": "excess error",
        "reverse_kl_matched": "KL(S‖T) matched",
    },
)
"""Measure or cost -> heading of the tables: closeness to the teacher, what the greedy replies are worth, what running
the model costs (`16`: of 16 texts together), what learning took (`teacher's tokens` it wrote or read, `student's
tokens` it wrote to learn from), and how the text is."""
UNITS = {"flops": 1e9, "flops_per_token": 1e6}
WHOLE = {"parameters", "updates", "seconds", "walk_seconds", "tokens", "teacher_tokens", "student_tokens", "flops"}
RUNNING = TIMED - {"tokens_per_second", "speed_up"} | {"flops_per_token"}
DRAWN = {"forward_kl": "forward KL to the teacher, nats/token", "task_score": "task score, greedy", "leak": "leak"}
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31"),
    *("#8250C4", "#66A61E", "#E7298A", "#2FA8A0", "#7A869A", "#C2A800", "#F28E8E"),
)
FIXED_COLOURS = {"teacher": "#000000", "start": "#888888"}
MARKERS = "osD^v"
COST = {"price_of_million": "price of a million tokens", "token_ms_1": "milliseconds a token, one text"}


@dataclass(frozen=True)
class Row:
    """What one cell gave, or the teacher itself."""

    agent: str
    seed: int
    top_p: float
    updates: int
    costs: dict[str, float]  # seconds of training, tokens seen, teacher_tokens drawn or scored
    measures: dict[str, float]  # on the test prompts
    curve: list[dict[str, float]]  # on the validation prompts, by updates
    more: dict[str, Any] = field(default_factory=dict)  # slices, positions and calibration, on the test prompts

    @property
    def figures(self) -> dict[str, float]:
        """Costs and measures; who has learnt says how often."""
        learnt = {"updates": self.updates} if self.updates else {}
        return {**learnt, **self.costs, **self.measures}


def write_report(
    space: Workspace, rows: Sequence[Row], notes: Sequence[str] = (), profiles: Profiles | None = None
) -> None:
    """`results.csv`, `results.md` (the tables, then the notes), figures, TensorBoard's summaries and the page."""
    from experiments.boards import write_boards
    from experiments.page.figures import all_sections
    from experiments.page.page import page
    from experiments.page.paint import draw_sections
    from experiments.page.rebuild import origin_of, replies_of

    write(space.out / "results.csv", results_csv(rows))
    write(space.out / "results.md", "\n\n".join([tables(rows, markdown=True), *notes]) + "\n")
    place = space.out / "figures"
    place.mkdir(exist_ok=True)
    draw_masses(rows, place / "quality_by_top_p.png")
    draw_frontier(rows, place / "frontier.png")
    sections = all_sections(rows, colours_of(rows), space.config.gamma, profiles)
    draw_sections(sections, place, drawn=["quality_by_top_p"])
    write_boards(space, rows)
    found = {"replies": replies_of(space.out, rows), "origin": origin_of(space.out)}
    write(space.out / "report.html", page(rows, space.config, notes=notes, profiles=profiles, **found))


def results_csv(rows: Sequence[Row]) -> str:
    """One line per agent, seed and top_p; an empty field where a measure does not apply."""
    flat = [{"agent": r.agent, "seed": r.seed, "top_p": r.top_p, "updates": r.updates, **r.figures} for r in rows]
    return csv_of(flat, list(dict.fromkeys(name for record in flat for name in record)))


def csv_of(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Records as lines under these names; an empty field where one has none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def groups(rows: Sequence[Row]) -> dict[tuple[str, float], list[Row]]:
    """Rows of one agent and top_p, over its seeds, in the order they came."""
    found: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        found.setdefault((row.agent, row.top_p), []).append(row)
    return found


def tables(rows: Sequence[Row], *, markdown: bool = False) -> str:
    """Means over seeds with the half-width of their 95 % interval (Student's t), a line per agent and top_p.

    A measure that no row has is left out, and a table without any.
    """
    found = []
    for columns in TABLES:
        present = {name: head for name, head in columns.items() if any(name in row.figures for row in rows)}
        if present:
            own = [row for row in rows if any(name in row.figures for name in present)]
            found.append(_table(own, present, markdown))
    return "\n\n".join(found)


def _table(rows: Sequence[Row], columns: dict[str, str], markdown: bool) -> str:
    lines = [["agent", "top_p", "seeds", *columns.values()]]
    for (agent, top_p), own in groups(rows).items():
        values = [(name, [row.figures[name] for row in own if name in row.figures]) for name in columns]
        lines.append([agent, f"{top_p:g}", str(len(own)), *(_cell(name, found) for name, found in values)])
    return aligned(lines, markdown)


def aligned(lines: Sequence[Sequence[str]], markdown: bool) -> str:
    """Lines of cells as a table, the first column left-aligned, the others right-aligned; the first line heads it."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    if markdown:
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        return "\n".join(f"| {' | '.join(line)} |" for line in [padded[0], rule, *padded[1:]])
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _cell(name: str, values: Sequence[float]) -> str:
    if not values:
        return ""
    mean, half = mean_and_interval(values)
    if name in WHOLE:
        return f"{mean / UNITS.get(name, 1):,.0f}"
    if name in RUNNING:
        return f"{mean / UNITS.get(name, 1):,.3g}"
    if name == "speed_up":
        return f"{mean:.1f}x"
    digits = 1 if name in ("length", "length_sd") else 3
    return f"{mean:.{digits}f}" if math.isnan(half) or half == 0 else f"{mean:.{digits}f}±{half:.{digits}f}"


def figures_json(rows: Sequence[Row]) -> dict[str, Any]:
    """Every measure of every row, as commands with `--json` write it."""
    return {
        "figures": [
            {"name": name, "value": value, "agent": row.agent, "seed": row.seed, "top_p": row.top_p}
            for row in rows
            for name, value in row.figures.items()
        ]
    }


def draw_masses(rows: Sequence[Row], path: Path) -> None:
    """Test measures against top_p: the mean over seeds with its 95 % interval, the teacher and the start too."""
    names = [name for name in DRAWN if any(name in row.measures for row in rows)]
    by_agent: dict[str, dict[float, list[Row]]] = {}
    for (agent, top_p), found in groups(rows).items():
        by_agent.setdefault(agent, {})[top_p] = found
    colours = colours_of(rows)
    figure, axes = _panels(len(names))
    for place, name in zip(axes, names, strict=False):
        for number, (agent, at) in enumerate(by_agent.items()):
            points = [(p, *mean_and_interval([row.measures[name] for row in own])) for p, own in sorted(at.items())]
            masses, means, halves = zip(*points, strict=True)
            # Arms at one and the same top_p would hide each other.
            shifted = [p + 0.004 * (number - len(by_agent) / 2) for p in masses]
            errors = [0.0 if math.isnan(half) else half for half in halves]
            style = {"color": colours[agent], "marker": "o", "markersize": 4, "capsize": 2, "linewidth": 1.4}
            place.errorbar(shifted, means, errors, label=agent, **style)
        place.set(xlabel="top_p", title=DRAWN[name], xticks=sorted({row.top_p for row in rows}))
    finish(figure, axes, path)


def draw_frontier(rows: Sequence[Row], path: Path) -> None:
    """Quality against what a token costs: its price, or milliseconds of one text where no price was given.

    A point is the mean over the seeds of an arm with its 95 % interval; the start and the teacher are there too.
    """
    cost = next((name for name in COST if any(name in row.measures for row in rows)), "")
    names = [name for name in DRAWN if cost and any(name in row.measures for row in rows)]
    colours, masses = colours_of(rows), sorted({row.top_p for row in rows}, reverse=True)
    figure, axes = _panels(len(names))
    for place, name in zip(axes, names, strict=False):
        for (agent, top_p), own in groups(rows).items():
            known = [row.measures for row in own if cost in row.measures and name in row.measures]
            if not known:
                continue
            mean, half = mean_and_interval([measures[name] for measures in known])
            label = agent if len(masses) == 1 else f"{agent}, p = {top_p:g}"
            style = {"color": colours[agent], "marker": MARKERS[masses.index(top_p) % len(MARKERS)], "capsize": 2}
            error = 0.0 if math.isnan(half) else half
            place.errorbar(fmean(measures[cost] for measures in known), mean, error, label=label, linestyle="", **style)
        place.set(xlabel=COST[cost], title=DRAWN[name], xscale="log")
    finish(figure, axes, path)


def colours_of(rows: Sequence[Row]) -> dict[str, str]:
    """One colour an agent, the same in every figure; the teacher is black, the start grey."""
    agents = [agent for agent in dict.fromkeys(row.agent for row in rows) if agent not in FIXED_COLOURS]
    return FIXED_COLOURS | {agent: COLOURS[number % len(COLOURS)] for number, agent in enumerate(agents)}


def _panels(count: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * max(1, count), 3.6), layout="constrained")
    return figure, figure.subplots(1, max(1, count), squeeze=False)[0][: max(1, count)]


def finish(figure: Any, axes: Any, path: Path) -> None:
    """Grid, legend, and the file, whole or not at all."""
    for place in axes:
        place.grid(alpha=0.25)
        place.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), fontsize=8, frameon=False)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=150, format="png")
    partial.replace(path)
