"""Replies side by side: prompt, reference, teacher and every student, whose tokens show what the teacher thinks.

A token is tinted by −log π_T(token), the more the less the teacher expected it, up to `STRONG` nats; one outside the
teacher's set is underlined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean
from typing import Any
from urllib.parse import urlencode

STRONG = 6.0  # nats; e^-6 is a quarter of a percent
SAMPLES = 8
CASES = 3
WALK = "Opens in `tdistill explore`, which must run on this machine with this run’s teacher"

Replies = Mapping[str, Sequence[Mapping[str, Any]]]
"""Arm -> its replies to the test prompts, in one order for all."""


def tinted(tokens: Sequence[Sequence[Any]]) -> str:
    """Tokens as HTML: (text, teacher's log-probability in nats, whether the teacher's set holds it)."""
    spans = []
    for text, logp, inside in tokens:
        tint = min(1.0, max(0.0, -float(logp) / STRONG))
        kind = "" if inside else " out"
        about = f"{float(logp):.2f} nats" + ("" if inside else ", outside the nucleus")
        shown = escape(str(text))
        spans.append(f'<span class="tok{kind}" style="--t:{100 * tint:.0f}%" title="{about}">{shown}</span>')
    return "".join(spans)


def legend() -> str:
    """What the tints mean."""
    steps = [("0", 0.0), ("−2", -2.0), ("−4", -4.0), ("≤ −6 nats", -6.0)]
    marks = tinted([(f" {name} ", logp, True) for name, logp in steps]) + " " + tinted([("outside", 0.0, False)])
    return f'<p class="key">Teacher’s log-probability of a student’s token: {marks} the nucleus</p>'


def card(replies: Replies, place: int, opened: bool) -> str:
    """One prompt with all that was said to it."""
    first = next(iter(replies.values()))[place]
    boxes = [_box("reference", _plain(first["reference"]))] if first.get("reference") else []
    boxes.append(_box("teacher", _plain(first["teacher"])))
    for arm, own in replies.items():
        entry = own[place]
        said = tinted(entry["tokens"]) if entry.get("tokens") else _plain(entry["student"])
        score = entry.get("score")
        about = "" if score is None else f"score {score:.2f}"
        boxes.append(_box(arm, said, about, place_of(first["prompt"], entry["student"])))
    tags = "".join(f'<span class="tag">{escape(str(tag))}</span>' for tag in first.get("tags", ()))
    head = f"<summary><span>{escape(first['prompt'].strip())}</span> {tags}</summary>"
    return f'<details{" open" if opened else ""}>{head}<div class="sides">{"".join(boxes)}</div></details>'


def place_of(prompt: str, reply: str) -> str:
    """Where `tdistill explore` shows a reply: what stands in its address from "?" on."""
    return "?" + urlencode({"prompt": prompt, "reply": reply})


def _box(who: str, said: str, about: str = "", place: str = "") -> str:
    note = f" <small>{about}</small>" if about else ""
    walk = f'<button type="button" class="walk" title="{WALK}" data-place="{escape(place)}">Walk it</button>'
    head = f"<h4>{escape(who)}{note}{walk if place else ''}</h4>"
    return f'<div class="side">{head}<div class="said">{said}</div></div>'


def _plain(text: Any) -> str:
    return escape(str(text).strip())


def ranked(replies: Replies) -> list[int]:
    """Prompts from the worst to the best: by the mean score of all arms or, without scores, the teacher's mean
    log-probability of what they said."""
    count = min(map(len, replies.values()))
    scored = [place for place in range(count) if all(own[place].get("score") is not None for own in replies.values())]
    if scored:
        worth = {place: fmean(own[place]["score"] for own in replies.values()) for place in scored}
    else:
        texts = {place: [own[place].get("tokens") or [] for own in replies.values()] for place in range(count)}
        worth = {
            place: fmean(fmean(token[1] for token in text) for text in own) for place, own in texts.items() if all(own)
        }
    return sorted(worth, key=lambda place: worth[place])


def sections(replies: Replies) -> list[tuple[str, str]]:
    """Heading and HTML of the worst cases, the best ones, and samples."""
    order, found = ranked(replies), []
    if len(order) >= 2:
        few = min(CASES, len(order) // 2)
        for heading, places in (("Worst cases", order[:few]), ("Best cases", order[: -few - 1 : -1])):
            found.append((heading, "".join(card(replies, place, number == 0) for number, place in enumerate(places))))
    count = min(map(len, replies.values()))
    spread = range(0, count, max(1, count // SAMPLES))[:SAMPLES]
    found.append(("Sample replies", "".join(card(replies, place, number == 0) for number, place in enumerate(spread))))
    return [(heading, legend() + html) for heading, html in found]
