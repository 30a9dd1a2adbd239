"""The files of a look before training: figures, one page that asks nothing of a network, and the numbers."""

from __future__ import annotations

import base64
import json
from html import escape
from typing import TYPE_CHECKING

from experiments.coverage import draw, tables
from experiments.coverage.tables import Findings
from experiments.folder import full_disk_is_said, write
from experiments.page.page import HERE, NO_REQUEST, markdown

if TYPE_CHECKING:
    from experiments.coverage.command import CoverageConfig

STYLE = "img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }"


def write_all(found: Findings, config: CoverageConfig) -> str:
    """Write `coverage.png`, `coverage.html` and `coverage.json`; returns where they lie."""
    out = config.out
    with full_disk_is_said(out):
        out.mkdir(parents=True, exist_ok=True)
        draw.draw(found, out / "coverage.png")
        write(out / "coverage.html", page(found, (out / "coverage.png").read_bytes()))
        text = json.dumps({"figures": tables.figures(found)}, indent=1) + "\n"
        for path in (out / "coverage.json", *([config.json] if config.json is not None else [])):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, text)
    return f"the page, its figure and its numbers: {', '.join(str(out / f'coverage.{end}') for end in ENDS)}"


ENDS = ("html", "png", "json")


def page(found: Findings, picture: bytes) -> str:
    """Everything that was printed, the recommendation first, as one HTML page."""
    parts = [
        tables.recommendation(found),
        _image(picture),
        tables.sets(found),
        tables.words_by_width(found),
        tables.words_by_group(found),
        tables.lost_words(found),
        tables.lengths(found.lengths),
        tables.costs(found),
    ]
    title = f"Before {found.teacher} is distilled: coverage"
    about = f"{found.prompts:,} prompts, {len(found.own.before):,} tokens of the teacher's; words of {found.source}"
    body = "".join(part if part.startswith("<") else _section(part) for part in parts)
    return "\n".join(
        [
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{NO_REQUEST}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title><style>{_style()}{STYLE}</style></head><body>",
            f'<header><div><h1>{escape(title)}</h1><p class="about">{escape(about)}</p></div></header>',
            f"<main>{body}</main></body></html>\n",
        ]
    )


def _style() -> str:
    return (HERE / "page.css").read_text(encoding="utf-8")


def _image(picture: bytes) -> str:
    data = base64.b64encode(picture).decode()
    return f'<img alt="Words that fall out, sizes of the sets and mass cut" src="data:image/png;base64,{data}">'


def _section(part: str) -> str:
    heading, _, text = part.partition("\n\n")
    return f"<section><h2>{escape(heading.removeprefix('## '))}</h2>{markdown(text)}</section>"
