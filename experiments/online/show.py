"""How a stream went, as a figure: the signals, the alarms, the holds, and the students that passed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.online.journal import lines
from experiments.report import finish

PANELS = {
    "surprise": "surprise of prompts, nats a token",
    "reply_length": "length of replies, tokens",
    "entropy": "entropy of replies, nats a token",
    "forward_kl": "KL(T‖S) along replies, nats",
    "leak": "leak along replies",
}
WINDOW = 64
"""Values of a moving mean."""
EVENTS = {"alarm": ("#c0392b", "alarm"), "failed": ("#8e44ad", "gate failed"), "passed": ("#27ae60", "gate passed")}
Points = list[tuple[int, float]]


def draw(out: Path) -> Path | None:
    """OUT/online.png; None where nothing was answered."""
    from matplotlib.figure import Figure

    points, events = _points(out), [record for _, record in lines(out / "events.jsonl")]
    known = {name: points[name] for name in PANELS if points.get(name)}
    if not known:
        return None
    figure = Figure(figsize=(9, 1.9 * len(known)), layout="constrained")
    axes = figure.subplots(len(known), 1, squeeze=False, sharex=True)[:, 0]
    last = max(place for own in known.values() for place, _ in own)
    for panel, (name, own) in zip(axes, known.items(), strict=True):
        places, values = (np.array(side, dtype=np.float64) for side in zip(*own, strict=True))
        size = max(1, min(WINDOW, len(values) // 4))
        panel.plot(places, values, linewidth=0.4, alpha=0.35, color="#7f8c8d")
        panel.plot(places[size - 1 :], np.convolve(values, np.ones(size) / size, "valid"), color="#2c3e50")
        panel.set_title(PANELS[name], fontsize=9, loc="left")
        _mark(panel, events, last)
    axes[-1].set_xlabel("prompts")
    finish(figure, axes, out / "online.png")
    return out / "online.png"


def held(events: list[dict[str, Any]], last: int) -> list[tuple[int, int]]:
    """From which to which prompt the updates rested."""
    found, begun = list[tuple[int, int]](), -1
    for event in events:
        if event["event"] == "held" and begun < 0:
            begun = event["prompts"]
        elif event["event"] == "resumed" and begun >= 0:
            found.append((begun, event["prompts"]))
            begun = -1
    return [*found, (begun, last)] if begun >= 0 else found


def _mark(panel: Any, events: list[dict[str, Any]], last: int) -> None:
    for begin, end in held(events, last):
        panel.axvspan(begin, end, color="#f39c12", alpha=0.15, linewidth=0, label="updates held")
    told = set[str]()
    for event in events:
        if event["event"] in EVENTS and event.get("state") != "held":
            colour, label = EVENTS[event["event"]]
            panel.axvline(event["prompts"], color=colour, linewidth=0.9, label="" if label in told else label)
            told.add(label)


def _points(out: Path) -> dict[str, Points]:
    """Signal -> its values and the prompts they are of; the teacher's are of prompts drawn by chance alone."""
    found: dict[str, Points] = {name: [] for name in PANELS}
    for _, record in lines(out / "replies.jsonl"):
        for name in PANELS.keys() & record.keys():
            found[name].append((record["n"], record[name]))
    blocks = {record["block"]: record["end"] for _, record in lines(out / "prompts.jsonl") if "block" in record}
    for path in sorted(out.glob("labels/*.json")):
        reading = json.loads(path.read_text(encoding="utf-8"))
        for own in reading["signals"][: reading["by_chance"]]:
            for name in PANELS.keys() & own.keys():
                found[name].append((blocks.get(int(path.stem), 0), own[name]))
    return found
