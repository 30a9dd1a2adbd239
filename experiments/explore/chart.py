"""The figures of the page as SVG: the reward so far, the tree of visited branches, and the gaps of a lesson."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from experiments.explore.returns import Outlook
from experiments.explore.walk import ROOT, Walk

WIDE, HIGH, LEFT, BOTTOM, TOP = 400, 190, 44, 26, 10
ACROSS, DOWN, EDGE = 26, 26, 16  # of the tree


def number(value: float, digits: int = 2) -> str:
    """A figure with a real minus sign; no sign before a zero.

    >>> number(-1.234), number(-0.001), number(float("-inf"))
    ('−1.23', '0.00', '−∞')
    """
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text.replace("-", "−")


def rewards(own: Sequence[float], start: Outlook | None) -> str:
    """Σ γ^k r_k of the reply so far, on the band in which soft-optimal walks from the prompt stay."""
    steps = max(len(own), len(start.mean) if start else 0, 2) - 1
    least = min([0.0, *own, *(start.low if start else ())])
    scale = _Scale(steps, least, 0.0)
    parts = [scale.grid()]
    if start is not None:
        edge = [*enumerate(start.high), *reversed(list(enumerate(start.low)))]
        parts.append(f'<polygon class="band" points="{scale.points(edge)}"/>')
        parts.append(f'<polyline class="mean" points="{scale.points(list(enumerate(start.mean)))}"/>')
    parts.append(f'<polyline class="own" points="{scale.points(list(enumerate(own)))}"/>')
    x, y = scale.at(len(own) - 1, own[-1])
    parts.append(f'<circle class="now" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
    told = f"Reward so far {number(own[-1])} nats after {len(own) - 1} tokens"
    if start is not None:
        place = min(len(own) - 1, len(start.mean) - 1)
        told += f"; soft-optimal walks have {number(start.mean[place])} there in the mean"
    return _svg(told, "".join(parts), WIDE, HIGH)


def gaps(found: Sequence[tuple[int, float, float]], total: int) -> str:
    """Distance to the fixed point, by updates, on a logarithmic axis: of the policy, and of Q where it is declared."""
    floor = 1e-4
    logs = [
        (updates, math.log10(max(policy, floor)), math.log10(max(q, floor)) if q > 0 else None)
        for updates, policy, q in found
    ]
    most = max([0.0, *(value for _, a, b in logs for value in (a, b) if value is not None)])
    scale = _Scale(total, -4.0, math.ceil(most))
    parts = [scale.grid(power=True)]
    for kind, column in (("own", 1), ("mean", 2)):
        line = [(row[0], row[column]) for row in logs if row[column] is not None]
        if len(line) > 1:
            parts.append(f'<polyline class="{kind}" points="{scale.points([(x, float(y or 0)) for x, y in line])}"/>')
    return _svg(f"Gap to the fixed point after {found[-1][0]} updates", "".join(parts), WIDE, HIGH)


class _Scale:
    """Data to places in a figure."""

    def __init__(self, steps: int, low: float, high: float) -> None:
        self.steps, self.high = steps, high
        self.low = low if low < high - 1e-9 else high - 1.0

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDE - LEFT - 10) * x / self.steps
        y = min(max(y, self.low), self.high)
        return across, TOP + (HIGH - TOP - BOTTOM) * (self.high - y) / (self.high - self.low)

    def points(self, line: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*place) for place in line))

    def grid(self, power: bool = False) -> str:
        parts = []
        step = 1.0 if power else nice((self.high - self.low) / 4)
        y = math.floor(self.high / step) * step
        while y >= self.low - 1e-9:
            _, place = self.at(0, y)
            name = f"10{''.join('⁻⁰¹²³⁴⁵⁶⁷⁸⁹'['-0123456789'.index(c)] for c in f'{y:.0f}')}" if power else f"{y:g}"
            parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDE - 10}" y1="{place:.1f}" y2="{place:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{name.replace("-", "−")}</text>')
            y -= step
        every = max(1, int(nice(self.steps / 5)))
        for x in range(0, self.steps + 1, every):
            place, _ = self.at(x, self.low)
            parts.append(f'<text x="{place:.1f}" y="{HIGH - 8}" text-anchor="middle">{x}</text>')
        return "".join(parts)


def nice(step: float) -> float:
    """The step of 1, 2 or 5 times a power of ten that is just not smaller.

    >>> nice(0.13), nice(7), nice(50)
    (0.2, 10.0, 50.0)
    """
    power = 10.0 ** math.floor(math.log10(max(step, 1e-9)))
    return float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9)))


def tree(walk: Walk, names: Sequence[str]) -> str:
    """The visited states as dots to click, a column a token; the way to where one stands is drawn stronger.

    Args:
        names: the text of every node's token.
    """
    places = _places(walk)
    on_way = {ROOT, *walk.way()}
    wide = EDGE * 2 + ACROSS * max(x for x, _ in places.values())
    high = EDGE * 2 + DOWN * max(y for _, y in places.values())

    def at(node: int) -> tuple[int, int]:
        x, y = places[node]
        return EDGE + ACROSS * x, EDGE + DOWN * y

    lines, dots = [], []
    for number_, node in enumerate(walk.nodes):
        (x0, y0), (x1, y1) = at(node.parent), at(number_)
        kind = "way" if number_ in on_way else "edge"
        bend = f"C{x0 + 13} {y0} {x1 - 13} {y1} {x1} {y1}"
        lines.append(f'<path class="{kind}" d="M{x0} {y0}{bend}"/>')
    for number_ in (ROOT, *range(len(walk.nodes))):
        x, y = at(number_)
        kind = "here" if number_ == walk.here else "way" if number_ in on_way else "other"
        name = escape("the prompt" if number_ == ROOT else names[number_].strip() or "␣")
        dots.append(
            f'<g class="dot {kind}" role="button" tabindex="0" data-do="go" data-node="{number_}" '
            f'data-focus="node{number_}" aria-label="Go to: {name}"><title>{name}</title>'
            f'<circle class="reach" cx="{x}" cy="{y}" r="13"/><circle cx="{x}" cy="{y}" r="5.5"/></g>'
        )
    count = len(walk.nodes)
    told = f"Tree of {count} visited state{'' if count == 1 else 's'} behind the prompt"
    inner = "".join(lines) + "".join(dots)
    return (
        f'<svg class="tree" role="group" aria-label="{told}" width="{wide}" height="{high}" '
        f'viewBox="0 0 {wide} {high}">{inner}</svg>'
    )


def _places(walk: Walk) -> dict[int, tuple[int, int]]:
    """Column and row of every node: a first child stays in its parent's row, every other begins a row."""
    below: dict[int, list[int]] = {}
    for number_, visited in enumerate(walk.nodes):
        below.setdefault(visited.parent, []).append(number_)
    places, rows, waiting = dict[int, tuple[int, int]](), 0, [(ROOT, 0, False)]
    while waiting:
        node, column, branch = waiting.pop()
        if branch:
            rows += 1
        places[node] = (column, rows)
        children = below.get(node, [])
        waiting += [(child, column + 1, place > 0) for place, child in reversed(list(enumerate(children)))]
    return places


def _svg(told: str, inner: str, wide: int, high: int) -> str:
    return f'<svg class="chart" role="img" aria-label="{escape(told)}" viewBox="0 0 {wide} {high}">{inner}</svg>'
