"""The figure of a look before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.coverage.survey import ALL, CHECKED, LEXICON
from experiments.coverage.tables import Findings
from experiments.report import COLOURS

INK, SOFT, RULE = "#16191d", "#5b6470", "#d9dde3"
LEAST = 2e-4  # of a share on a logarithmic axis; what is below stands there
TAIL = (0.5, 1e-4)  # 1 − p, from left to right
REACHED = 0.1  # share of replies that must still go on where sizes are drawn


def draw(found: Findings, path: Path) -> None:
    """Words lost against p, sizes along the reply, words lost at each p and K, kinds of words."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(13.5, 9.6), layout=ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.12), facecolor="white")
    # Each row is laid out by itself, for the names below are long.
    parts: Any = figure.subfigures(3, 1, height_ratios=[0.09, 1, 1])
    head, upper, lower = parts
    (first, second), (third, fourth) = upper.subplots(1, 2), lower.subplots(1, 2)
    _curves(first, found)
    _sizes(second, found)
    _grid(third, found)
    _groups(fourth, found)
    for place in (first, second, third, fourth):
        place.tick_params(colors=SOFT, labelsize=9, length=3, color=RULE)
        place.xaxis.label.set_color(SOFT)
        place.yaxis.label.set_color(SOFT)
        place.title.set_color(INK)
        for side in place.spines.values():
            side.set_color(RULE)
    for place in (first, second, fourth):
        place.grid(color=RULE, linewidth=0.6)
        place.set_axisbelow(True)
        place.spines[["top", "right"]].set_visible(False)
    at = found.advice
    assert at is not None
    width = "" if at.top_p == 1.0 else f", K = {at.max_candidates:,}"
    title = f"{found.teacher}: p = {at.top_p:g}{width} recommended"
    head.text(0.012, 0.5, title, ha="left", va="center", color=INK, size=16, weight="bold")
    handles, labels = fourth.get_legend_handles_labels()
    if handles:
        style = {"ncols": len(labels), "frameon": False, "labelcolor": SOFT, "fontsize": 10.5, "handletextpad": 0.1}
        head.legend(handles, labels, loc="center right", **style)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=130, format="png")
    partial.replace(path)


def _curves(place: Any, found: Findings) -> None:
    """Share of the words that fall out at every p: exact, for a word is lost exactly from its own p down."""
    rest = np.geomspace(*TAIL, 240)  # 1 − p
    classes = [name for name in found.shares if name.startswith("said ")]
    shades = dict(zip(classes, _shades(len(classes)), strict=True))
    marked = {CHECKED + "required": COLOURS[3], LEXICON: COLOURS[1], ALL: INK}
    for name in [*classes, *(name for name in marked if name in found.shares)]:
        before = np.sort(found.groups[name].before)
        lost = 1 - np.searchsorted(before, 1 - rest) / len(before)
        style: dict[str, Any] = {
            "linewidth": 2.4 if name in marked else 1.5,
            "linestyle": "-" if name in (ALL, *classes) else "--",
        }
        style |= {"color": marked.get(name) or shades[name], "label": name if lost[0] > 0 else f"{name}: none"}
        place.plot(rest, np.where(lost > 0, lost, np.nan), **style)
    assert found.advice is not None
    if found.advice.top_p < 1.0:
        place.axvline(1 - found.advice.top_p, color=COLOURS[0], linewidth=1.2, alpha=0.8)
        place.annotate(
            f"p = {found.advice.top_p:g}",
            (1 - found.advice.top_p, 0),
            (5, 6),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=COLOURS[0],
            size=9,
        )
    place.set(xscale="log", yscale="log", xlim=TAIL, ylim=(LEAST, 1.0))
    _masses_below(place.xaxis, (0.5, 0.8, 0.9, 0.95, 0.99, 0.999))
    _percent(place.yaxis)
    place.set(xlabel="p", ylabel=f"share of the words of {found.source}")
    place.set_title("Words that fall out", loc="left", weight="bold")
    place.legend(fontsize=8.5, loc="upper right", labelcolor=SOFT, edgecolor="white", framealpha=0.9)


def _sizes(place: Any, found: Findings) -> None:
    """Mean number of candidates by position in the reply, and of the recommended p where eight in ten lie."""
    at = found.own.positions
    last = int((np.bincount(at) >= REACHED * len(found.own.replies)).sum())
    masses = [(column, p) for column, p in enumerate(found.grid.masses) if p < 1.0]
    for (column, _), colour in zip(masses, _shades(len(masses)), strict=True):
        sizes = [found.own.sizes[at == position, column] for position in range(last)]
        if column == found.column:
            low, high = (np.array([np.quantile(own, share) for own in sizes]) for share in (0.1, 0.9))
            place.fill_between(range(last), low, high, color=colour, alpha=0.1, linewidth=0)
        style = {"linewidth": 2.4 if column == found.column else 1.5, "color": colour}
        place.plot(range(last), [own.mean() for own in sizes], **style)
    place.set(yscale="log", xlabel="position in the reply", ylabel="candidates", xlim=(0, max(last - 1, 1)))
    top = place.get_ylim()[1]
    ticks = [number * 10**power for power in range(6) for number in (1, 2, 5) if number * 10**power < top]
    place.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    place.set_yticks([], minor=True)
    place.set_title("Size of the sets along the teacher's replies", loc="left", weight="bold")


def _grid(place: Any, found: Findings) -> None:
    """Words lost at each p and K, the recommended cell framed."""
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    lost = found.shares[ALL].value
    place.imshow(np.maximum(lost, LEAST), cmap="YlOrRd", norm=LogNorm(LEAST, 1.0), aspect="auto", alpha=0.9)
    for (row, column), value in np.ndenumerate(lost):
        text = "0" if value == 0 else f"{100 * value:.1f}" if value >= 0.0095 else f"{100 * value:.2f}"
        place.text(column, row, text, ha="center", va="center", size=9, color="white" if value > 0.15 else INK)
    assert found.advice is not None
    row, column = found.column, found.grid.widths.index(found.advice.max_candidates)
    frame = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=COLOURS[0], linewidth=2.6, clip_on=False)
    place.add_patch(frame)
    place.set_xticks(range(len(found.grid.widths)), [found.width(k) for k in range(len(found.grid.widths))])
    place.set_yticks(range(len(found.grid.masses)), [f"{p:g}" for p in found.grid.masses])
    place.set(xlabel="K (max_candidates)", ylabel="p")
    place.set_title("Words lost at each p and K, per cent", loc="left", weight="bold")


def _groups(place: Any, found: Findings) -> None:
    """Words lost by kind at every p below 1, that of the recommended p with its interval."""
    names = list(found.shares)[::-1]
    masses = [(column, p) for column, p in enumerate(found.grid.masses) if p < 1.0]
    for (column, p), colour in zip(masses, _shades(len(masses)), strict=True):
        value = np.array([float(found.shares[name].value[column, -1]) for name in names])
        own = column == found.column
        size = 58 if own else 26
        place.scatter(np.maximum(value, LEAST), range(len(names)), color=colour, s=size, zorder=3, label=f"p = {p:g}")
        if own:
            ends = [found.shares[name].at(column) for name in names]
            low, high = [max(e.low, LEAST) for e in ends], [max(e.high, LEAST) for e in ends]
            place.hlines(range(len(names)), low, high, color=colour, linewidth=2.2, alpha=0.6, zorder=2)
    place.set_yticks(range(len(names)), names)
    place.set(xscale="log", xlim=(LEAST * 0.8, 1.0))
    _percent(place.xaxis, least=True)
    place.set_title("Words lost by kind", loc="left", weight="bold")


def _shades(count: int) -> list[Any]:
    """Colours from warm to cold, so many."""
    from matplotlib import colormaps

    return [colormaps["viridis"](1 - share) for share in np.linspace(0.12, 0.95, count)]


def _masses_below(axis: Any, masses: tuple[float, ...]) -> None:
    """Name places on an axis of 1 − p by their p."""
    axis.set_ticks([1 - p for p in masses], [f"{p:g}" for p in masses])
    axis.set_ticks([], minor=True)


def _percent(axis: Any, least: bool = False) -> None:
    """Name places on an axis of shares by their per cent."""
    ticks = {LEAST: f"≤ {100 * LEAST:g} %"} if least else {}
    ticks |= {share: f"{100 * share:g} %" for share in (1e-3, 1e-2, 1e-1, 1.0)}
    axis.set_ticks(list(ticks), list(ticks.values()))
    axis.set_ticks([], minor=True)
