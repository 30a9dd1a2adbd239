"""A comparison as one HTML page that asks nothing of a network: tables, figures, replies and how to repeat it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from html import escape
from pathlib import Path
from typing import Any

from experiments.config import CompareConfig, DistillConfig, RunConfig, dump, plain
from experiments.page import figures
from experiments.page.figures import Figure, Profiles
from experiments.page.replies import Replies, sections
from experiments.report import Row, colours_of, tables

HERE = Path(__file__).parent
NO_REQUEST = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "gymnasium", "plotly")


def page(
    rows: Sequence[Row],
    config: RunConfig,
    *,
    notes: Sequence[str] = (),
    replies: Replies | None = None,
    profiles: Profiles | None = None,
    origin: Mapping[str, Any] | None = None,
) -> str:
    """The page. What a run does not have has no section.

    Args:
        notes: more tables, as Markdown, below the first ones.
        replies: arm -> its replies, as `cells/<cell>/replies.json` holds them.
        profiles: thresholds, and of every arm its profile with the ends of its interval.
        origin: what the run noted about itself, an entry of its run.json: versions, commit and hardware.
    """
    colours, parts = colours_of(rows), [("Results", "".join(map(markdown, [tables(rows, markdown=True), *notes])))]
    for part in figures.all_sections(rows, colours, config.gamma, profiles):
        parts.append((part.heading, _figures(part.figures, rows, colours, part.about)))
    parts += sections(replies) if replies and all(replies.values()) else []
    parts += [("Settings", f"<pre>{escape(dump(config))}</pre>"), ("To repeat it", _repeat(config, origin or {}))]
    return _document(parts, config)


def _document(parts: Sequence[tuple[str, str]], config: RunConfig) -> str:
    from plotly.offline import get_plotlyjs

    what = getattr(config, "agents", None) or (getattr(config, "agent", ""),)
    title = f"{', '.join(what)}: distilled from {config.teacher}"
    links = "".join(f'<a href="#part{number}">{escape(head)}</a>' for number, (head, _) in enumerate(parts))
    body = "".join(
        f'<section id="part{number}"><h2>{escape(head)}</h2>{html}</section>'
        for number, (head, html) in enumerate(parts)
    )
    about = (
        f"{config.updates:,} updates on {config.episodes:,} episodes; student {config.student}; run {config.out.name}"
    )
    return "\n".join(
        [
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{NO_REQUEST}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title><style>{_asset('page.css')}</style></head><body>",
            f'<header><div><h1>{escape(title)}</h1><p class="about">{escape(about)}</p></div>',
            '<button id="theme" type="button">Light / dark</button></header>',
            f"<nav>{links}</nav><main>{body}</main>",
            f"<script>{get_plotlyjs()}</script><script>{_asset('page.js')}</script></body></html>\n",
        ]
    )


def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def in_script(value: Any) -> str:
    """JSON that no content can end a script element from within; NaN and infinities, which JSON lacks, are null."""
    return json.dumps(_finite(value), allow_nan=False).replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def _figures(found: Sequence[Figure], rows: Sequence[Row], colours: Mapping[str, str], about: str) -> str:
    """A section's figures below the names of its colours and dashes."""
    named = [trace for figure in found for trace in figure["data"] if trace.get("name", figures.IDEAL) != figures.IDEAL]
    shown = {trace["name"].split(", p = ")[0]: trace["line"]["color"] for trace in named}
    order = [*(agent for agent in colours if agent in shown), *(agent for agent in shown if agent not in colours)]
    chips = [f'<li><i style="--c:{_chip(shown[agent])}"></i>{escape(agent)}</li>' for agent in order]
    used = {trace.get("line", {}).get("dash") for figure in found for trace in figure["data"]}
    masses = figures.masses_of(rows)
    if len(masses) > 1 and used & {figures.dash_of(rows, top_p) for top_p in masses[1:]}:
        dashes = {"solid": "solid", "dash": "dashed", "dashdot": "dashed", "dot": "dotted"}
        for top_p in masses:
            style = f"--c:var(--ink);border-top-style:{dashes[figures.dash_of(rows, top_p)]}"
            chips.append(f'<li><i style="{style}"></i>top_p = {top_p:g}</li>')
    boxes = "".join(
        f'<div><div class="figure"></div><script type="application/json">{in_script(figure)}</script></div>'
        for figure in found
    )
    names = f'<p class="about">{escape(about)}</p><ul class="colours">{"".join(chips)}</ul>'
    return f'{names}<div class="figures">{boxes}</div>'


def _chip(colour: str) -> str:
    return "var(--ink)" if colour == "#000000" else colour


def markdown(text: str) -> str:
    """Paragraphs and tables of Markdown as HTML; everything else stands as it is, escaped."""
    blocks = []
    for block in filter(None, re.split(r"\n\s*\n", text.strip())):
        lines = [line.strip() for line in block.splitlines()]
        if all(line.startswith("|") for line in lines) and len(lines) > 1:
            cells = [[escape(cell.strip()) for cell in line.strip("|").split("|")] for line in lines]
            head = "".join(f"<th>{cell}</th>" for cell in cells[0])
            body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in cells[2:])
            blocks.append(f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')
        else:
            blocks.append(f"<p>{escape(block)}</p>")
    return "".join(blocks)


def _repeat(config: RunConfig, origin: Mapping[str, Any]) -> str:
    """The command, and what it ran with; of a run that noted nothing, what the page was written with."""
    lines = [", ".join(f"{name} {version}" for name, version in (origin.get("versions") or _versions()).items())]
    if code := origin.get("commit"):
        lines.append(f"commit {code['id']}{', with changes' if code.get('changed') else ''}")
    if hardware := origin.get("hardware"):
        lines.append(", ".join(f"{name} {value}" for name, value in hardware.items()))
    who = "Run" if origin else "This page was written"
    about = f"{who} with {'; '.join(lines)}."
    return f'<pre>{escape(command(config))}</pre><p class="about">{escape(about)}</p>'


def command(config: RunConfig) -> str:
    """The command line that gives this very configuration: its settings other than the usual ones."""
    words = ["tdistill", "compare" if isinstance(config, CompareConfig) else "distill"]
    usual = CompareConfig() if isinstance(config, CompareConfig) else DistillConfig()
    for field in fields(config):
        value = getattr(config, field.name)
        if value == getattr(usual, field.name) or field.name == "json":
            continue
        flag = "--" + field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            own = plain(value)
            words += [flag, *map(str, own if isinstance(own, list) else [own])]
    return shlex.join(words)


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"Python": platform.python_version()}
    for name in ("tdistill", *PACKAGES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
