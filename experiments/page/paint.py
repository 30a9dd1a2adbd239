"""The page's figures as files: `figures/NAME.png`, and the numbers that are drawn in `figures/NAME.csv`.

Both are made of the very dicts that the page draws, so that neither can say anything else. Of plotly's JSON this reads
what `experiments.page.figures` writes.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.folder import write
from experiments.page.figures import Figure, Section

DASHES = {"solid": "-", "dash": "--", "dashdot": "-.", "dot": ":"}
COLUMNS = {1: 1, 2: 2, 4: 2}  # of so many panels; three otherwise
WIDTH, ALONE, DPI = 4.2, 6.0, 150  # inches of a panel, of one that is alone, and dots an inch
LETTER, EDGE, GAP = 0.065, 0.15, 0.75  # inches of a letter, at the edge, and between two lines of panels
PIXELS = 80  # the page's, an inch
NAMES = ("figure", "against", "arm", "x", "y", "low", "high", "half_width")


def draw_sections(sections: Sequence[Section], folder: Path, drawn: Sequence[str] = ()) -> None:
    """Write every section's CSV and PNG; of those in `drawn` the PNG is another's affair."""
    for section in sections:
        write(folder / f"{section.name}.csv", numbers(section.figures))
        if section.name not in drawn:
            paint(section.figures, folder / f"{section.name}.png")


def numbers(figures: Sequence[Figure]) -> str:
    """The points of some figures as CSV, a line each.

    `low` and `high` are the ends of a band around y; `half_width` is that of the interval around the mean, which is y,
    or x where the arms lie along y.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, NAMES, restval="", lineterminator="\n")
    writer.writeheader()
    for figure in figures:
        band: list[tuple[float, float]] = []
        for trace in figure["data"]:
            if "fill" in trace:
                half = len(trace["y"]) // 2  # out along the upper edge, and back along the lower one
                band = list(zip(trace["y"][half:][::-1], trace["y"][:half], strict=True))
                continue
            error = trace.get("error_y") or trace.get("error_x")
            for place, (x, y) in enumerate(zip(trace["x"], trace["y"], strict=True)):
                line = {"figure": _title(figure), "against": _across(figure), "arm": trace["name"], "x": x, "y": y}
                line |= dict(zip(("low", "high"), band[place], strict=True)) if band else {}
                writer.writerow(line | ({"half_width": error["array"][place]} if error else {}))
            band = []
    return text.getvalue()


def paint(figures: Sequence[Figure], path: Path) -> None:
    """Draw some figures as the panels of one PNG, whole or not at all."""
    from matplotlib.figure import Figure as Canvas

    columns = COLUMNS.get(len(figures), 3)
    lines = [figures[start : start + columns] for start in range(0, len(figures), columns)]
    heights = [max(figure["layout"]["height"] for figure in line) / PIXELS for line in lines]
    width, height = WIDTH * columns if columns > 1 else ALONE, sum(heights) + 0.4
    canvas = Canvas(figsize=(width, height))
    panels = canvas.subplots(len(lines), columns, squeeze=False, height_ratios=heights)
    for place, figure in zip(panels.flat, figures, strict=False):
        _panel(place, figure)
    for place in panels.flat[len(figures) :]:
        place.remove()
    shown = {label: handle for place in canvas.axes for handle, label in zip(*_legend(place), strict=True)}
    abreast = min(len(shown), int(width / 2))
    canvas.legend(shown.values(), shown.keys(), loc="lower center", ncols=abreast, fontsize=8, frameon=False)
    # Laid out by hand: matplotlib's own layouts draw everything twice.
    left = 0.6 + LETTER * max((len(name) for figure in figures for name in _categories(figure)), default=0)
    bottom = 0.6 + 0.2 * math.ceil(len(shown) / abreast)
    wide = (width - left - EDGE - (columns - 1) * (left + EDGE)) / columns
    high = (height - EDGE - bottom - GAP * len(lines)) / len(lines)
    edges = {"left": left / width, "right": 1 - EDGE / width, "bottom": bottom / height}
    canvas.subplots_adjust(**edges, top=1 - (EDGE + 0.25) / height, wspace=(left + EDGE) / wide, hspace=GAP / high)
    partial = path.with_name(path.name + ".partial")
    canvas.savefig(partial, dpi=DPI, format="png")
    partial.replace(path)


def _categories(figure: Figure) -> list[str]:
    return list(figure["layout"]["yaxis"].get("categoryarray", []))


def _legend(place: Any) -> tuple[list[Any], list[str]]:
    handles, labels = place.get_legend_handles_labels()
    return list(handles), list(labels)


def _panel(place: Any, figure: Figure) -> None:
    layout = figure["layout"]
    across, order = layout["xaxis"], _categories(figure)
    flat = [trace for trace in figure["data"] if order]
    for trace in figure["data"]:
        line = trace["line"]
        if "fill" in trace:
            place.fill(trace["x"], trace["y"], color=trace["fillcolor"], alpha=trace["opacity"], linewidth=0)
            continue
        if order:  # arms side by side within a category
            shift = (flat.index(trace) - (len(flat) - 1) / 2) * 0.7 / len(flat)
            y = [order.index(name) - shift for name in trace["y"]]
        else:
            y = [math.nan if value is None else value for value in trace["y"]]
        style: dict[str, Any] = {"color": line["color"], "label": trace["name"]}
        style |= {"linewidth": max(1.0, 0.7 * line.get("width", 2)), "linestyle": DASHES[line.get("dash", "solid")]}
        if line.get("shape") == "hv":
            style["drawstyle"] = "steps-post"
        if "markers" in trace["mode"]:
            style |= {"marker": "o", "markersize": 0.6 * trace["marker"]["size"]}
        if "lines" not in trace["mode"]:
            style |= {"linestyle": "none"}
        bars = {f"{axis}err": trace[f"error_{axis}"]["array"] for axis in "xy" if f"error_{axis}" in trace}
        if bars:
            place.errorbar(trace["x"], y, **bars, capsize=2, elinewidth=1, **style)
        else:
            place.plot(trace["x"], y, **style)
    if order:
        place.set_yticks(range(len(order)), order)
    place.set_title(_title(figure), fontsize=10, loc="left")
    place.set_xlabel(across["title"]["text"], fontsize=9)
    place.tick_params(labelsize=8)
    if across.get("type") == "log":
        place.set_xscale("log")
    elif across.get("rangemode") == "tozero":
        place.set_xlim(left=0)
    place.grid(alpha=0.25)
    place.spines[["top", "right"]].set_visible(False)


def _title(figure: Figure) -> str:
    return str(figure["layout"]["title"]["text"])


def _across(figure: Figure) -> str:
    return str(figure["layout"]["xaxis"]["title"]["text"]) or _title(figure)
