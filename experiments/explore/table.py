"""The lesson of a table teacher as HTML: what an agent has learned beside what is exactly right."""

from __future__ import annotations

import math
from html import escape

from experiments.explore import chart
from experiments.explore.chart import number
from experiments.explore.lesson import Lesson, teachable
from experiments.table_data import digits

FAR = 1.0  # nats of difference that are tinted fully


def table_section(lesson: Lesson | None, learning: bool, state: int | None) -> str:
    """An agent to choose, how far it is, and Q of every state and token; the row of `state` is marked."""
    chosen = lesson.name if lesson else "soft_q"
    options = "".join(f"<option{' selected' if name == chosen else ''}>{escape(name)}</option>" for name in teachable())
    if learning:
        go = '<button type="button" class="go" data-do="pause" data-focus="learn">❚❚ Pause</button>'
    else:
        go = '<button type="button" class="go" data-do="learn" data-focus="learn">▶ Learn</button>'
    forget = '<button type="button" data-do="forget" data-focus="forget">Forget</button>' if lesson else ""
    head = (
        "<section><h2>Learn this table <small>exact Q beside what an agent learns</small></h2>"
        f'<div class="row"><label>Agent <select id="x-agent" data-focus="agent">{options}</select></label>'
        f"{go}{forget}</div>"
    )
    if lesson is None:
        return (
            head + '<p class="about">It begins uniform and learns from every path of the table, weighted.</p></section>'
        )
    point = lesson.agent.fixed_point
    assert point is not None
    updates, gap = lesson.gaps[-1]
    about = (
        f"{updates} of {lesson.agent.total_updates} updates; largest distance to its fixed point ({point.kind}, "
        f"γ = {point.gamma:g}, α = {point.alpha:g}): policy {gap.policy:.4f}, Q {gap.q:.4f} nats"
    )
    drawn = chart.gaps([(n, one.policy, one.q) for n, one in lesson.gaps], lesson.agent.total_updates)
    legend = (
        '<ul class="legend"><li style="--c:var(--accent)">policy, probability</li>'
        '<li style="--c:var(--soft)">Q, nats</li></ul>'
    )
    return (
        f'{head}<p class="about" aria-live="polite">{about}</p><div class="halves even"><div>{legend}{drawn}</div>'
        f"<div>{_matrix(lesson, state)}</div></div></section>"
    )


def _matrix(lesson: Lesson, state: int | None) -> str:
    teacher, learned, exact = lesson.case.teacher, lesson.learned(), lesson.solution.q
    heads = "".join(f"<th>{token if token else 'end'}</th>" for token in range(teacher.vocab_size))
    rows = []
    for number_ in range(teacher.states):
        cells = "".join(
            _cell(float(exact[number_, token]), float(learned[number_, token])) for token in range(teacher.vocab_size)
        )
        name = " ".join(str(token) if token else "·" for token in digits(teacher, number_))
        mark = ' class="now"' if number_ == state else ""
        rows.append(f"<tr{mark}><th>{name}</th>{cells}</tr>")
    return (
        '<p class="about">Q of state (row) and token (column): exact above, learned below</p>'
        f'<div class="wide"><table class="matrix"><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(exact: float, learned: float) -> str:
    if math.isnan(exact):
        return "<td></td>"
    off = min(1.0, abs(exact - learned) / FAR) if math.isfinite(learned) else 1.0
    return f'<td style="--t:{100 * off:.0f}%">{number(exact)}<br>{number(learned)}</td>'
