"""The README and the pages of the documentation are executed: every block says when it runs, and runs.

A fenced `python` or `console` block is preceded by `<!-- runs: always -->`, `<!-- runs: long -->` (with
`make test-all`) or `<!-- runs: never, REASON -->`. One marked `<!-- runs: always, as FILE -->` lies under that name
in the folder of every other of its page. In a `console` block a line that starts with `$ ` is a command; what follows
it up to the next command is what it prints, each line of which must appear in the output ("…" stands for any text).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "experiments/docs/pages").rglob("*.md"))]
FENCE = re.compile(r"(?:^<!-- runs: (?P<when>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    page: Path
    line: int
    when: str
    language: str
    body: str

    @property
    def place(self) -> str:
        return f"{self.page.name} line {self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found["when"] or "", found["language"], found["body"])
        for found in FENCE.finditer(text)
        if found["language"] in {"python", "console", "bash", "sh", "yaml"}
    ]


def marked(when: str) -> list[object]:
    return [
        pytest.param(block, id=f"{page.stem}-line{block.line}")
        for page in PAGES
        for block in blocks(page)
        if block.when == when
    ]


def files(page: Path) -> dict[str, str]:
    """What a page has its reader write: name -> text."""
    found = ((re.fullmatch(r"always, as (\S+)", block.when), block.body) for block in blocks(page))
    return {name[1]: body for name, body in found if name}


def execute(block: Block, folder: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "",
    }

    for name, body in files(block.page).items():
        (folder / name).write_text(body, encoding="utf-8")

    def run(command: list[str]) -> str:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=1100)
        assert done.returncode == 0, f"{block.place}: {command[-1]}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    if block.language == "python":
        run([sys.executable, "-c", block.body])
        return
    output = ""
    for line in block.body.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            output = run(["bash", "-euo", "pipefail", "-c", line[2:]])
        elif line.strip():
            pattern = ".*".join(re.escape(part.strip()) for part in line.split("…"))
            assert re.search(pattern, output), f"{block.place}: {line!r} is not printed:\n{output}"


def test_every_block_says_when_it_runs() -> None:
    every = [block for page in PAGES for block in blocks(page)]
    assert len(every) >= 40
    for block in every:
        good = block.when in {"always", "long"} or re.fullmatch(r"never, .{10,}|always, as \S+", block.when)
        assert good, block.place


def test_every_file_is_used_by_a_block_that_runs() -> None:
    for page in PAGES:
        used = "".join(block.body for block in blocks(page) if block.when in {"always", "long"})
        imported = "".join(files(page).values())
        for name in files(page):
            assert name in used or f"{Path(name).stem}:" in used + imported, f"{page.name}: {name}"


@pytest.mark.parametrize("block", marked("always"))
def test_a_quick_block_runs(block: Block, tmp_path: Path) -> None:
    execute(block, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("block", marked("long"))
def test_a_long_block_runs(block: Block, tmp_path: Path) -> None:
    execute(block, tmp_path)
