"""The figures of a page: rows -> one figure each, as plain dicts in plotly's JSON.

They have no legend of their own: an agent has one colour on the whole page, which each section names once, and a mass
of the candidate sets one dash.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from experiments.arms import split_arm
from experiments.metrics import mean_and_interval
from experiments.report import DRAWN, Row, groups

Figure = dict[str, Any]
Profiles = tuple[Sequence[float], Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]]]
"""Thresholds, and of each arm the profile with the ends of its interval."""

DASHES = ("solid", "dash", "dashdot", "dot")
CURVES_AGAINST = {"updates": "updates", "tokens": "tokens learnt from", "seconds": "seconds of training"}
AXES = {"speed_up": "decoding speed, × the teacher's", "parameters": "parameters"}
COSTS = {"flops": "operations to learn", "seconds": "seconds to learn"}
LINE = 2
IDEAL = "ideal"
MEANS = "Means over seeds with their 95 % intervals."
LARGEST = MEANS[:-1] + ", at the largest top_p."


@dataclass(frozen=True)
class Section:
    """Figures that belong together: one section of the page, one PNG and one CSV."""

    heading: str
    name: str  # of the files
    figures: list[Figure]  # at least one
    about: str


def all_sections(
    rows: Sequence[Row], colours: Mapping[str, str], usual: float, profiles: Profiles | None = None
) -> list[Section]:
    """Everything that these rows let draw, in the page's order.

    Args:
        usual: γ of the arms that set none.
    """
    bins = "Ten bins of confidence, seeds pooled; dotted: calibrated."
    profile = [profiles_figure(profiles, colours)] if profiles else []
    curved = "Means over seeds, and the range between the seeds."
    found = [
        Section("Learning curves", "learning_curves", curves(rows, colours), curved),
        Section("Mass of the candidate sets", "quality_by_top_p", mass_sweep(rows, colours), MEANS),
        Section("Discount", "quality_by_gamma", gamma_sweep(rows, colours, usual), LARGEST),
        Section("Performance profiles", "profiles", profile, "With 95 % bands."),
        Section("Quality and what it takes", "quality_and_cost", frontier(rows, colours), LARGEST),
        Section("Parts of the prompts", "slices", slices(rows, colours), LARGEST),
        Section("Along the reply", "positions", positions(rows, colours), "Means over prompts and seeds."),
        Section("Calibration", "calibration", calibration(rows, colours), bins),
    ]
    return [section for section in found if section.figures]


def masses_of(rows: Sequence[Row]) -> list[float]:
    """The masses of the candidate sets, the largest first, which is drawn solid."""
    return sorted({row.top_p for row in rows}, reverse=True)


def dash_of(rows: Sequence[Row], top_p: float) -> str:
    """How lines of this mass are drawn."""
    return DASHES[masses_of(rows).index(top_p) % len(DASHES)]


def curves(rows: Sequence[Row], colours: Mapping[str, str]) -> list[Figure]:
    """Validation measures against updates, tokens and seconds: means over seeds, and the range between the seeds."""
    own = {key: found for key, found in groups(rows).items() if all(row.curve for row in found)}
    names = [name for name in DRAWN if any(name in found[0].curve[0] for found in own.values())]
    figures = []
    for name in names:
        for against, label in CURVES_AGAINST.items():
            traces = []
            for (agent, top_p), found in own.items():
                places = [_places(row, against) for row in found]
                if name in found[0].curve[0] and all(places):
                    traces += _band(found, places, name, colours[agent], dash_of(rows, top_p))
            if traces:
                figures.append(_figure(traces, DRAWN[name], label))
    return figures


def _places(row: Row, against: str) -> list[float]:
    """Where the points of a curve stand; nowhere if that was not counted. Every update sees as many tokens."""
    if against == "tokens":
        if not row.updates or "tokens" not in row.costs:
            return []
        return [point["updates"] * row.costs["tokens"] / row.updates for point in row.curve]
    return [point[against] for point in row.curve] if all(against in point for point in row.curve) else []


def _band(found: Sequence[Row], places: Sequence[Sequence[float]], name: str, colour: str, dash: str) -> list[Figure]:
    count = min(map(len, places))
    values = [[row.curve[index][name] for row in found] for index in range(count)]
    x = [fmean(place[index] for place in places) for index in range(count)]
    label = f"{found[0].agent}, p = {found[0].top_p:g}"
    edge = {"x": [*x, *reversed(x)], "y": [*map(max, values), *reversed([*map(min, values)])]}
    area = {"fill": "toself", "fillcolor": colour, "opacity": 0.15, "line": {"width": 0}, "hoverinfo": "skip"}
    line = {"color": colour, "dash": dash, "width": LINE}
    middle = {"x": x, "y": [*map(fmean, values)], "mode": "lines+markers", "name": label, "line": line}
    middle["marker"] = {"color": colour, "size": 5}
    return [{"type": "scatter", "mode": "lines", **edge, **area}, {"type": "scatter", **middle}]


def mass_sweep(rows: Sequence[Row], colours: Mapping[str, str]) -> list[Figure]:
    """Test measures against top_p, where there are several: means over seeds with their 95 % intervals."""
    if len(masses_of(rows)) < 2:
        return []
    arms = {
        agent: {row.top_p: groups(rows)[agent, row.top_p] for row in rows if row.agent == agent} for agent in colours
    }
    return _sweeps(arms, colours, "top_p")


def gamma_sweep(rows: Sequence[Row], colours: Mapping[str, str], usual: float) -> list[Figure]:
    """Test measures against γ, of agents with arms that set it; at the largest top_p.

    Args:
        usual: γ of the arms that set none.
    """
    chosen = [row for row in rows if row.top_p == masses_of(rows)[0]]
    arms: dict[str, dict[float, list[Row]]] = {}
    for (arm, _), found in groups(chosen).items():
        agent, settings = split_arm(arm)
        gamma = float(settings.pop("gamma", usual))
        rest = ",".join(f"{key}={value}" for key, value in settings.items())
        arms.setdefault(agent + ("@" + rest if rest else ""), {})[gamma] = found
    several = {arm: at for arm, at in arms.items() if len(at) > 1}
    first = {arm: colours.get(arm, colours[next(iter(at.values()))[0].agent]) for arm, at in several.items()}
    return _sweeps(several, first, "γ")


def _sweeps(arms: Mapping[str, Mapping[float, list[Row]]], colours: Mapping[str, str], label: str) -> list[Figure]:
    figures = []
    for name, title in DRAWN.items():
        traces = []
        for arm, at in arms.items():
            points = [(x, [row.measures[name] for row in own if name in row.measures]) for x, own in sorted(at.items())]
            points = [(x, values) for x, values in points if values]
            if points:
                traces.append(_errors([x for x, _ in points], [v for _, v in points], arm, colours[arm]))
        if traces:
            figures.append(_figure(traces, title, label))
    return figures


def _errors(x: Sequence[Any], values: Sequence[Sequence[float]], name: str, colour: str, flat: bool = False) -> Figure:
    """Means with intervals; `flat` lays the values along x and the places along y."""
    means, halves = zip(*map(mean_and_interval, values), strict=True)
    bars = {"type": "data", "array": [0.0 if math.isnan(half) else half for half in halves], "thickness": 1.2}
    style: Figure = {"orientation": "h", "offsetgroup": name} if flat else {}
    style |= {"mode": "markers" if flat else "lines+markers", "line": {"color": colour, "width": LINE}}
    style |= {"marker": {"color": colour, "size": 7}, "error_x" if flat else "error_y": {**bars, "color": colour}}
    first, second = (list(means), list(x)) if flat else (list(x), list(means))
    return {"type": "scatter", "x": first, "y": second, "name": name, **style}


def profiles_figure(profiles: Profiles, colours: Mapping[str, str]) -> Figure:
    """Performance profiles: the share of runs that score more than τ, with 95 % bands."""
    thresholds, found = profiles
    x, traces = [float(value) for value in thresholds], []
    masses = sorted({arm.partition(", p = ")[2] or "1" for arm in found}, key=float, reverse=True)
    for arm, (middle, low, high) in found.items():
        agent, _, mass = arm.partition(", p = ")
        colour, dash = colours.get(agent, "#888888"), DASHES[masses.index(mass or "1") % len(DASHES)]
        y = [*map(float, high), *reversed([*map(float, low)])]
        area = {"fill": "toself", "fillcolor": colour, "opacity": 0.15, "line": {"width": 0}, "hoverinfo": "skip"}
        traces.append({"type": "scatter", "mode": "lines", "x": [*x, *reversed(x)], "y": y, **area})
        line = {"color": colour, "width": LINE, "shape": "hv", "dash": dash}
        own = {"x": x, "y": [*map(float, middle)], "mode": "lines", "name": arm, "line": line}
        traces.append({"type": "scatter", **own})
    return _figure(traces, "share of runs above τ", "score τ")


def frontier(rows: Sequence[Row], colours: Mapping[str, str]) -> list[Figure]:
    """Quality against what using and what learning a student takes, at the largest top_p."""
    chosen, figures = [row for row in rows if row.top_p == masses_of(rows)[0]], []
    for name in [name for name in ("task_score", "forward_kl") if any(name in row.measures for row in chosen)]:
        for options in (AXES, COSTS):
            axis = next((key for key in options if any(key in row.figures for row in chosen)), "")
            traces = []
            for (agent, _), found in groups(chosen).items():
                own = [row for row in found if name in row.measures and row.figures.get(axis, 0) > 0]
                if own:
                    place = [fmean(row.figures[axis] for row in own)]
                    traces.append(_errors(place, [[row.measures[name] for row in own]], agent, colours[agent]))
            if traces:
                figure = _figure(traces, DRAWN[name], options[axis])
                figure["layout"]["xaxis"] |= {"type": "log"} if _far_apart(traces) else {"rangemode": "tozero"}
                figures.append(figure)
    return figures


def _far_apart(traces: Sequence[Figure]) -> bool:
    places: list[float] = [place for trace in traces for place in trace["x"]]
    return max(places) > 30 * min(places)


def slices(rows: Sequence[Row], colours: Mapping[str, str]) -> list[Figure]:
    """Test measures on parts of the prompts, at the largest top_p: means over seeds with their 95 % intervals."""
    chosen = [row for row in rows if row.top_p == masses_of(rows)[0] and _more(row, "slices")]
    names = list(dict.fromkeys(name for row in chosen for name in _more(row, "slices")))
    figures = []
    for measure, title in DRAWN.items():
        traces = []
        for (agent, _), found in groups(chosen).items():
            known = [
                [s[name][measure] for row in found if measure in (s := _more(row, "slices")).get(name, {})]
                for name in names
            ]
            kept = [(name, values) for name, values in zip(names, known, strict=True) if values]
            if kept:
                places, own = [name for name, _ in kept], [values for _, values in kept]
                traces.append(_errors(places, own, agent, colours[agent], flat=True))
        if traces:
            figure = _figure(traces, title, title)
            shown = [name for name in names if any(name in trace["y"] for trace in traces)]
            order = {"categoryorder": "array", "categoryarray": shown[::-1], "type": "category"}
            figure["layout"]["yaxis"] |= order
            figure["layout"]["scattermode"] = "group"  # arms side by side
            figure["layout"]["height"] = 120 + (8 + 9 * len(traces)) * max(4, len(shown))
            figures.append(figure)
    return figures


def positions(rows: Sequence[Row], colours: Mapping[str, str]) -> list[Figure]:
    """Closeness to the teacher by place in the reply, seeds pooled by their counts; at the largest top_p."""
    parts = {"forward_kl": "count", "leak": "count", "reverse_kl": "own_count", "excess_error": "own_count"}
    titles = DRAWN | {"reverse_kl": "reverse KL, nats/token", "excess_error": "excess error, share of the error"}
    chosen = [row for row in rows if row.top_p == masses_of(rows)[0] and _more(row, "positions")]
    figures = []
    for name, count in parts.items():
        traces = []
        for (agent, _), found in groups(chosen).items():
            own = [(at[name], at[count]) for row in found if name in (at := _more(row, "positions")) and count in at]
            if own:
                y = pooled(*zip(*own, strict=True))
                line = {"color": colours[agent], "width": LINE}
                traces.append(
                    {
                        "type": "scatter",
                        "mode": "lines",
                        "y": y,
                        "x": list(range(1, len(y) + 1)),
                        "name": agent,
                        "line": line,
                    }
                )
        if traces:
            figures.append(_figure(traces, titles[name], "token of the reply"))
    return figures


def pooled(values: Sequence[Sequence[float]], counts: Sequence[Sequence[float]]) -> list[float | None]:
    """Means of several series by place, weighted by their counts; None where nothing was counted.

        x̄_t = Σ_i n_it x_it / Σ_i n_it

    Source: weighted mean. Series may differ in length.
    >>> pooled([[1.0, 4.0], [3.0]], [[1, 2], [3]])
    [2.5, 4.0]
    """
    means: list[float | None] = []
    for place in range(max(map(len, values), default=0)):
        seen = [(v[place], n[place]) for v, n in zip(values, counts, strict=True) if place < len(v) and n[place] > 0]
        whole = sum(n for _, n in seen)
        means.append(sum(v * n for v, n in seen) / whole if whole else None)
    return means


def calibration(rows: Sequence[Row], colours: Mapping[str, str]) -> list[Figure]:
    """How often a student's most probable token is right, against how sure it is; seeds pooled, at the largest mass."""
    chosen = [row for row in rows if row.top_p == masses_of(rows)[0] and _more(row, "calibration")]
    ideal = {"color": "#888888", "dash": "dot", "width": 1}
    traces: list[Figure] = [
        {"type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "name": IDEAL, "line": ideal}
    ]
    for (agent, _), found in groups(chosen).items():
        bins = [_more(row, "calibration") for row in found]
        counts = [part["count"] for part in bins]
        x, y = (pooled([part[name] for part in bins], counts) for name in ("confidence", "accuracy"))
        points = [(a, b) for a, b in zip(x, y, strict=True) if a is not None]
        style = {"line": {"color": colours[agent], "width": LINE}, "marker": {"color": colours[agent], "size": 6}}
        place = {"x": [a for a, _ in points], "y": [b for _, b in points]}
        traces.append({"type": "scatter", "mode": "lines+markers", "name": agent, **place, **style})
    return [_figure(traces, "accuracy", "confidence")] if len(traces) > 1 else []


def _more(row: Row, name: str) -> dict[str, Any]:
    return dict(getattr(row, "more", {}).get(name) or {})


def _figure(traces: list[Figure], title: str, across: str) -> Figure:
    layout = {
        "title": {"text": title, "x": 0.02, "xref": "container", "font": {"size": 14}},
        "xaxis": {"title": {"text": "" if across == title else across}, "automargin": True},
        "yaxis": {"automargin": True},
        "margin": {"l": 44, "r": 12, "t": 36, "b": 44},
        "showlegend": False,
        "height": 290,
    }
    return {"data": traces, "layout": layout}
