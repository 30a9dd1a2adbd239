"""The pages: links lead somewhere, the README's figures are those of the results, the site builds without a warning."""

from __future__ import annotations

import csv
import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from agents import REGISTRY
from experiments.metrics import mean_and_interval

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "experiments/docs"
PAGES = sorted((DOCS / "pages").rglob("*.md"))
LINK = re.compile(r"\]\((?!https?://)(?P<place>[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)")


def module(name: str) -> Any:
    """A script of the documentation, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def anchors(page: Path) -> set[str]:
    """As GitHub and mkdocs name the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for found in LINK.finditer(page.read_text(encoding="utf-8")):
        target = (page.parent / found["place"]).resolve() if found["place"] else page
        assert target.exists(), f"{page.name}: {found[0]}"
        if found["anchor"]:
            assert found["anchor"] in anchors(target), f"{page.name}: {found[0]}"


def test_every_page_is_in_the_navigation_and_in_the_readme() -> None:
    def leaves(node: Any) -> list[str]:
        if isinstance(node, str):
            return [node]
        return [leaf for child in (node.values() if isinstance(node, dict) else node) for leaf in leaves(child)]

    # What mkdocs reads: no `!!python` tags, so that a safe loader does.
    named = set(leaves(yaml.safe_load((DOCS / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    assert named == {"index.md"} | {page.relative_to(DOCS / "pages").as_posix() for page in PAGES}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [page.name for page in DOCS.glob("pages/*.md") if f"(experiments/docs/pages/{page.name})" not in readme]


def table(page: Path, columns: str) -> dict[str, list[str]]:
    """Agent -> cells of the first table of a page whose head starts with these columns."""
    parts = page.read_text(encoding="utf-8").split("\n\n")
    found = next(part for part in parts if re.match(columns, part))
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in found.splitlines()[2:]]
    return {name: cells for name, *cells in rows}


def test_the_readmes_agents_are_all_of_them_with_the_figures_of_the_reference() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    figure = module("figure")
    tasks, divergences = figure.scores("task_score"), figure.scores("forward_kl")
    shown = table(ROOT / "README.md", r"\| agent \| learns from")
    assert set(shown) == set(figure.ARMS) - {"start"}
    for name, (*_, half, nine, kl) in shown.items():
        found = tasks[name, 0.5][0], tasks[name, 0.9][0], divergences[name, 0.9][0]
        assert [float(half), float(nine), float(kl)] == [round(value, 3) for value in found], name
    assert not [name for name in REGISTRY if f"`{name}`" not in text], "every agent is named"


def test_the_table_of_the_reference_is_that_of_its_csv() -> None:
    figure = module("figure")
    shown = table(DOCS / "pages/results.md", r"\| agent \| task, p = .5")
    assert list(shown) == figure.ARMS
    for place, measure in enumerate(("task_score", "forward_kl", "leak")):
        scores = figure.scores(measure)
        for name, cells in shown.items():
            for cell, top_p in zip(cells[2 * place : 2 * place + 2], (0.5, 0.9), strict=True):
                mean, half = scores[name, top_p]
                value, _, interval = cell.partition("±")
                assert float(value) == round(mean, 3), (name, measure)
                assert math.isnan(half) or float(interval or 0) == round(half, 3), (name, measure)


def test_the_table_of_the_agents_that_are_given_time_is_that_of_its_csv() -> None:
    found: dict[str, list[dict[str, str]]] = {}
    with (ROOT / "experiments/results/reference-sb3.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["agent"], []).append(row)
    shown = table(DOCS / "pages/results.md", r"\| agent \| task \| KL.* seconds")
    assert set(shown) == set(found) - {"teacher"}
    columns = ("task_score", "forward_kl", "leak", "length", "seconds", "teacher_tokens")
    for name, cells in shown.items():
        for cell, column in zip(cells, columns, strict=True):
            values = [float(row[column]) for row in found[name] if row[column]]
            mean, half = mean_and_interval(values) if values else (math.nan, math.nan)
            value, _, interval = cell.replace(",", "").partition("±")
            digits = len(value.partition(".")[2])
            assert value == (f"{mean:.{digits}f}" if values else ""), (name, column)
            assert math.isnan(half) or interval == f"{half:.{digits}f}", (name, column)


def test_the_figures_are_small_and_name_known_arms() -> None:
    figure = module("figure")
    assert set(figure.ARMS) <= {agent for agent, _ in figure.scores("task_score")}
    for picture in (DOCS / "tdistill.png", *(ROOT / "experiments/results").glob("*.png")):
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size < 100_000


def test_a_docstring_is_reflowed() -> None:
    pytest.importorskip("griffe", reason="the extra `docs` is not installed")
    text = (
        "Claim.\n\n    x = y\n\nSource: a,\n    b.\nArgs:\n    q, r: nats,\n        of all.\n    s:    one.\n"
        "Returns: (B,).\nRaises:  ValueError: c.\n>>> f(1)\n2"
    )
    assert module("reflow").reflowed(text) == (
        "Claim.\n\n    x = y\n\n**Source:** a, b.\n\nArgs:\n    q: nats,\n        of all.\n    r: nats,\n"
        "        of all.\n    s:    one.\n\n**Returns:** (B,).\n\n**Raises:** ValueError: c.\n\n"
        "```pycon\n>>> f(1)\n2\n```"
    )


@pytest.mark.long
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name, reason="the extra `docs` is not installed; make docs installs it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(DOCS / "mkdocs.yml"), "-d", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {
        page.relative_to(tmp_path).as_posix(): page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html")
    }
    assert "figures/tdistill.png" in pages["index.html"] and (tmp_path / "figures/tdistill.png").exists()
    for place, name in {"envs": "TopPTokenVectorEnv", "objectives": "soft_value", "agents": "SoftQ"}.items():
        assert name in pages[f"reference/{place}.html"]
    assert "V_p(s) = α · log Σ_{a ∈ A_p(s)} exp(Q(s, a) / α)" in re.sub(
        r"<[^>]+>", "", pages["reference/objectives.html"]
    )
    for place, text in pages.items():
        assert "!-- runs" not in text, place
        assert not re.search(
            r'<(?:script|img)[^>]*src="(?:https?:)?//|<link[^>]*stylesheet[^>]*href="(?:https?:)?//', text
        ), place
