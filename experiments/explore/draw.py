"""The page as HTML: pure functions of a session and what is known of its state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import urlencode

from experiments.explore import chart
from experiments.explore.chart import number
from experiments.explore.returns import Outlook
from experiments.explore.session import TEACHER, Reply, Session
from experiments.explore.views import END, Candidate, Taken, View
from experiments.explore.walk import LEAST_ALPHA, MOST_ALPHA, Settings
from experiments.page.replies import STRONG

HEADS = (
    ("", ""),
    ("π", "probability of the token, full softmax"),
    ("Q", "a student's v(s) + α log π on the set; with a star: exact Q*"),
    ("A", "advantage, Q − V"),
    ("δ", "TD error of the step, r + γ V(after it) − Q"),
)
FIGURES = {
    "reward so far": "Σ γ^k log π_T of the tokens taken",
    "V* of the prompt": "what soft-optimal walking from there is worth, entropy included: on a table the fixed point "
    "of equation (3), else from walks of the teacher",
    "V* here": "the same from this state on",
    "log π*(this reply)": "that a soft-optimal walk takes these tokens: (reward + V* here − V* of the prompt) / α; "
    "−∞ as soon as one of them is outside its set",
}
COLOURS = 6  # of students, in explore.css
PLAY_EVERY, LOOK_AFTER, LEARN_EVERY = 350, 500, 60  # milliseconds


@dataclass(frozen=True)
class Scene:
    """A session with what is known of where it stands."""

    session: Session
    view: View | None
    names: tuple[str, ...]  # of the students
    valued: tuple[bool, ...]  # whose value head has learned
    pieces: tuple[str, ...]  # the text of every visited node's token
    start: Outlook | None  # of the prompt
    here: Outlook | None  # of where it stands
    table: str = ""  # HTML of the lesson, on a table teacher


def panel(teacher: str, samples: Sequence[str], settings: Settings) -> str:
    """The controls, which no click draws anew."""
    options = "".join(f'<option value="{escape(text)}">{escape(_short(text, 90))}</option>' for text in samples)
    sliders = "".join(
        f'<label class="slider"><span>{name}</span><input type="range" id="x-{key}" name="{key}" min="{low}" '
        f'max="{high}" step="{step}" value="{getattr(settings, key):g}"><output>{getattr(settings, key):.2f}</output>'
        "</label>"
        for key, name, low, high, step in (
            ("top_p", "nucleus p", 0.05, 1, 0.01),
            ("alpha", "temperature α", LEAST_ALPHA, MOST_ALPHA, 0.05),
            ("gamma", "discount γ", 0, 1, 0.01),
        )
    )
    return f"""<header class="top"><div><h1>Walk the token MDP</h1>
<p class="about">Teacher {escape(teacher)}. A state is a text, its actions are the teacher’s nucleus.</p></div>
<button type="button" id="x-theme">Light / dark</button></header>
<form class="ask"><label for="x-prompt">Prompt</label><textarea id="x-prompt" rows="2" spellcheck="false"></textarea>
<div class="row"><select id="x-sample" aria-label="Pick a prompt">
<option value="">Pick a prompt …</option>{options}</select>
<button type="submit" class="go">Begin</button></div></form>
<div class="sliders">{sliders}</div>"""


def board(scene: Scene) -> str:
    """Everything that a click may change."""
    session, view = scene.session, scene.view
    message = f'<p class="message" role="alert">{escape(session.message)}</p>' if session.message else ""
    if view is None:
        return f'<div class="board" {_memory(scene)}>{message}<p class="about">Write a prompt, or pick one.</p></div>'
    left = _players(scene) + _text(scene, view) + _nucleus(scene, view)
    right = _figures(scene, view) + _chart(scene, view) + _tree(scene)
    return (
        f'<div class="board" {_memory(scene)}>{message}<div class="halves"><div>{left}</div><div>{right}</div></div>'
        f"{_replies(scene)}{scene.table}{_students(scene)}{KEYS}</div>"
    )


KEYS = (
    '<p class="keys"><kbd>1</kbd>–<kbd>9</kbd> take a candidate · <kbd>u</kbd> or <kbd>⌫</kbd> back · <kbd>n</kbd> '
    "one token of the player · <kbd>space</kbd> play or pause · <kbd>c</kbd> compare · <kbd>/</kbd> prompt</p>"
)


def address(session: Session) -> str:
    """The part of an address that leads to this very place, from "?" on."""
    if session.walk is None:
        return ""
    place = {"prompt": session.prompt}
    if reply := session.walk.reply():
        place["tokens"] = ",".join(map(str, reply))
    place |= {name: f"{getattr(session.settings, name):g}" for name in ("top_p", "alpha", "gamma")}
    return "?" + urlencode(place)


def _memory(scene: Scene) -> str:
    """What the page's script needs to know."""
    session, view = scene.session, scene.view
    known = {"url": address(session), "prompt": session.prompt, "turn": str(session.turn)}
    known |= {name: f"{getattr(session.settings, name):g}" for name in ("top_p", "alpha", "gamma")}
    if session.playing or session.learning:
        known |= {"then": "tick", "after": str(PLAY_EVERY if session.playing else LEARN_EVERY)}
    elif view is not None and (
        scene.start is None or (scene.here is None and not view.ended and view.exact_start is None)
    ):
        known |= {"then": "outlook", "after": str(LOOK_AFTER)}
    busy = "true" if session.playing or session.learning else "false"
    return " ".join(f'data-{key.replace("_", "-")}="{escape(value)}"' for key, value in known.items()) + (
        f' data-busy="{busy}"'
    )


def _button(label: str, do: str, kind: str = "", **values: object) -> str:
    extra = "".join(f' data-{key}="{escape(str(value))}"' for key, value in values.items())
    cls = f' class="{kind}"' if kind else ""
    return f'<button type="button" data-do="{do}" data-focus="{do}"{cls}{extra}>{label}</button>'


def _players(scene: Scene) -> str:
    session = scene.session
    options = "".join(
        f'<option value="{number_}"{" selected" if number_ == session.player else ""}>{escape(name)}</option>'
        for number_, name in ((TEACHER, "teacher"), *enumerate(scene.names))
    )
    play = _button("❚❚ Pause", "pause", "go") if session.playing else _button("▶ Play", "play", "go")
    return (
        f'<div class="row players"><label>Player <select id="x-player" data-focus="player">{options}</select></label>'
        f"{_button('Step', 'step')}{play}{_button('To the end', 'end')}{_button('↶ Undo', 'undo')}"
        f"{_button('Compare', 'compare')}</div>"
    )


def _text(scene: Scene, view: View) -> str:
    session = scene.session
    said = "".join(
        _token(step, f'data-do="go" data-node="{step.node}" data-focus="t{step.node}"') for step in view.steps
    )
    end = {"terminated": "the text has ended", "truncated": "cut: the budget or the context is spent"}.get(
        view.ended, ""
    )
    mark = f'<span class="end">{end}</span>' if end else '<span class="caret" aria-hidden="true"></span>'
    root = (
        '<button type="button" class="home" data-do="go" data-node="-1" data-focus="root" title="Back to the prompt">'
    )
    return (
        f'<div class="text"><div class="said">{root}{escape(session.prompt)}</button></div>'
        f'<div class="reply" aria-live="polite">{said}{mark}</div></div>'
    )


def _token(step: Taken, action: str) -> str:
    tint = min(1.0, max(0.0, -step.logp / STRONG))
    about = f"{number(step.logp)} nats" + ("" if step.inside else ", outside the nucleus")
    shown = '<span class="end">end</span>' if step.text == END else escape(step.text).replace("\n", "↵\n")
    kind, style = "tok" if step.inside else "tok out", f"--t:{100 * tint:.0f}%"
    return f'<span role="button" tabindex="0" class="{kind}" style="{style}" title="{about}" {action}>{shown}</span>'


def _nucleus(scene: Scene, view: View) -> str:
    if view.ended:
        nothing = "Nothing can be taken here. Undo, or go to another state."
        return f'<section><h2>Nucleus</h2><p class="about">{nothing}</p></section>'
    p = scene.session.settings.top_p
    legend = '<li style="--c:var(--ink)">teacher</li>' + "".join(
        f'<li style="--c:var(--s{place % COLOURS})">{escape(name)}</li>' for place, name in enumerate(scene.names)
    )
    inside = [candidate for candidate in view.candidates if candidate.inside]
    rows = "".join(_candidate(candidate, place, scene, view) for place, candidate in enumerate(inside))
    if (more := view.size - len(inside)) > 0:
        mass = view.retained - sum(math.exp(candidate.logp) for candidate in inside)
        rows += f'<p class="about">and {more:,} more candidates with {_share(max(mass, 0.0))} together</p>'
    outside = "".join(
        f'<div class="cand lost"><span class="key"></span>{_name(candidate)}'
        f'<span class="lines">{_lines(candidate)}</span></div>'
        for candidate in view.candidates
        if not candidate.inside
    )
    edge = f'<p class="edge"><span>outside p = {p:g}</span></p>' if outside else ""
    heads = "".join(f'<span title="{about}">{head}</span>' for head, about in HEADS)
    cut = ", cut by max_candidates" if view.cut else ""
    return (
        f"<section><h2>Nucleus <small>{view.size:,} token{'' if view.size == 1 else 's'}, {_share(view.retained)} "
        f'retained, {_share(view.lost)} lost{cut}</small></h2><ul class="legend">{legend}</ul>'
        f'<div class="heads"><span class="line">{heads}</span></div>'
        f'<div class="cands">{rows}</div>{edge}{outside}</section>'
    )


def _name(candidate: Candidate) -> str:
    shown = escape(candidate.text).replace(" ", '<i class="sp">␣</i>').replace("\n", '<i class="sp">↵</i>')
    shown = '<span class="end">end</span>' if candidate.text == END else shown
    return f'<span class="name"><b>{shown}</b><small>r {number(candidate.reward)}</small></span>'


def _candidate(candidate: Candidate, place: int, scene: Scene, view: View) -> str:
    own: tuple[float | None, ...] = (None, None, None)
    if candidate.exact_q is not None and view.exact_value is not None:
        own = (candidate.exact_q, candidate.exact_q - view.exact_value, 0.0)
    named = "the end of the text" if candidate.text == END else candidate.text.strip() or "a space"
    told = f"Take {named}, teacher {_share(math.exp(candidate.logp))}"
    key = str(place + 1) if place < 9 else ""
    return (
        f'<button type="button" class="cand" data-do="take" data-token="{candidate.token}" data-focus="cand{place}" '
        f'aria-label="{escape(told)}"><span class="key">{key}</span>{_name(candidate)}'
        f'<span class="lines">{_lines(candidate, own)}</span></button>'
    )


def _lines(candidate: Candidate, exact: Sequence[float | None] = (None, None, None)) -> str:
    """A line of the teacher, and one of every student."""
    lines = [_line(candidate.logp, "var(--ink)", exact, "*" if exact[0] is not None else "")]
    for student, opinion in enumerate(candidate.opinions):
        values = (opinion.q, opinion.advantage, opinion.td_error)
        lines.append(_line(opinion.logp, f"var(--s{student % COLOURS})", values))
    return "".join(lines)


def _line(logp: float, colour: str, values: Sequence[float | None], star: str = "") -> str:
    share = math.exp(logp)
    cells = "".join(
        f"<span>{'' if value is None else number(value) + star * (place == 0)}</span>"
        for place, value in enumerate(values)
    )
    return (
        f'<span class="line" style="--c:{colour};--w:{100 * share:.1f}%"><span class="bar"></span>'
        f"<span>{_share(share)}</span>{cells}</span>"
    )


def _share(share: float) -> str:
    """A probability in per cent, with as many digits as it needs."""
    return f"{100 * share:.1f} %" if share >= 0.0005 or share == 0 else "< 0.1 %"


def _figures(scene: Scene, view: View) -> str:
    session, start, here = scene.session, scene.start, scene.here
    gamma, settings = session.settings.gamma, session.settings
    gained, count = view.gained(gamma), len(view.steps)
    found = [("step", f"{count} of {settings.max_new_tokens}"), ("reward so far", number(gained))]
    if view.exact_start is not None:
        found.append(("V* of the prompt", number(view.exact_start, 3)))
        found.append(("V* here", "–" if view.exact_value is None else number(view.exact_value, 3)))
    else:
        found.append(("V* of the prompt", _value(start)))
        found.append(("V* here", "0" if view.ended == "terminated" else _value(here)))
        ahead = 0.0 if view.ended else here.value if here else None
        if start is not None and start.exact and ahead is not None and count:  # path consistency, at γ = 1
            chance = min(0.0, (gained + ahead - start.value) / settings.alpha)
            told = f"≈ {number(chance)}" if all(step.inside for step in view.steps) else "−∞"
            found.append(("log π*(this reply)", told))
    cells = "".join(
        f'<div title="{FIGURES.get(name, "")}"><dt>{name}</dt><dd>{value}</dd></div>' for name, value in found
    )
    students = "".join(
        f'<tr><th style="--c:var(--s{place % COLOURS})">{escape(name)}</th><td>{_level(scene, view, place)}</td>'
        f"<td>{_share(view.leaks[place]) if not view.ended else ''}</td></tr>"
        for place, name in enumerate(scene.names)
    )
    table = f"<table><tr><th></th><th>V(s)</th><th>leak</th></tr>{students}</table>" if students else ""
    return f'<section class="figures"><h2>Here <small>nats</small></h2><dl>{cells}</dl>{table}</section>'


def _level(scene: Scene, view: View, place: int) -> str:
    if view.ended:
        return "0" if view.ended == "terminated" else ""
    return number(view.values[place], 3) if scene.valued[place] else "0, not learned"


def _value(outlook: Outlook | None) -> str:
    if outlook is None:
        return '<span class="wait">…</span>'
    sign = "≈" if outlook.exact else "≥"
    return f"{sign} {number(outlook.value)} <small>± {number(outlook.error)}</small>"


def _chart(scene: Scene, view: View) -> str:
    own, gamma = [0.0], scene.session.settings.gamma
    for k, step in enumerate(view.steps):
        own.append(own[-1] + gamma**k * step.reward)
    return (
        '<section><h2>Reward so far <small>against soft-optimal walks</small></h2><ul class="legend">'
        '<li style="--c:var(--accent)">this reply</li><li style="--c:var(--soft)">their mean, 10–90 %</li></ul>'
        f"{chart.rewards(own, scene.start)}</section>"
    )


def _tree(scene: Scene) -> str:
    assert scene.session.walk is not None
    drawn = chart.tree(scene.session.walk, scene.pieces)
    return f'<section><h2>Visited branches</h2><div class="wide">{drawn}</div></section>'


def _replies(scene: Scene) -> str:
    replies = scene.session.replies
    if not replies:
        return ""
    boxes = "".join(_reply(reply, place) for place, reply in enumerate(replies))
    return (
        "<section><h2>Replies to this prompt <small>drawn with one seed; a click on a token enters there</small></h2>"
        f'<div class="sides">{boxes}</div></section>'
    )


def _reply(reply: Reply, place: int) -> str:
    said = "".join(
        _token(step, f'data-do="enter" data-reply="{place}" data-upto="{at + 1}" data-focus="e{place}-{at}"')
        for at, step in enumerate(reply.steps)
    )
    outside = sum(not step.inside for step in reply.steps)
    total = sum(step.reward for step in reply.steps)
    count = len(reply.steps)
    about = f"{count} token{'' if count == 1 else 's'}, {number(total)} nats, {outside} outside"
    colour = "var(--ink)" if place == 0 else f"var(--s{(place - 1) % COLOURS})"
    cut = ' <span class="end">cut</span>' if reply.ended == "truncated" else ""
    return (
        f'<div class="side" style="--c:{colour}"><h3>{escape(reply.who)} <small>{about}</small></h3>'
        f'<div class="reply">{said}{cut}</div></div>'
    )


def _students(scene: Scene) -> str:
    return (
        '<details class="more"><summary>Put another student beside</summary><form class="row student">'
        '<input id="x-student" aria-label="Directory or size of a student" placeholder="directory, or a '
        'size such as tiny" spellcheck="false"><button type="submit">Add</button></form></details>'
    )


def _short(text: str, most: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"
