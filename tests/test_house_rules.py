"""The rules of the house, enforced: who imports whom, how long a file may be, what an objective must state."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("envs", "agents", "experiments")
FORBIDDEN = {
    "envs": {"agents", "experiments", "tests"},
    "agents": {"envs", "experiments", "tests"},
    "experiments": {"tests"},
}
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported_rooms(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_import_rule(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    crossed = FORBIDDEN[room] & set(imported_rooms(ast.parse(path.read_text())))
    assert not crossed, f"{name_of(path)} imports {sorted(crossed)}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400, "find the seam"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{node.name} is longer than 60 lines"


def test_every_public_objective_names_its_source_and_has_a_test() -> None:
    from agents import objectives

    tests = "".join(path.read_text() for path in sorted((ROOT / "tests/agents").glob("test_objectives*.py")))
    public = [
        (name, function)
        for name, function in inspect.getmembers(objectives, inspect.isfunction)
        if not name.startswith("_") and function.__module__.startswith("agents.objectives")
    ]
    assert public
    for name, function in public:
        assert "Source:" in (function.__doc__ or ""), f"{name} names no source"
        assert name in tests, f"{name} has no by-hand test"


@pytest.mark.parametrize(
    ("room", "heavy"),
    [("envs", {"torch", "transformers"}), ("agents", {"transformers"}), ("experiments", {"transformers"})],
)
def test_importing_a_room_is_light(room: str, heavy: set[str]) -> None:
    code = f"import sys, {room}; print(*({heavy!r} & set(sys.modules)))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout.split()
    assert not loaded, f"import {room} loads {loaded}"


def test_the_tree_speaks_of_itself_alone() -> None:
    """Neither machine paths nor unfinished marks stand in the sources."""
    for path in SOURCES:
        for mark in (r"/(work|home|root|tmp)/", "TODO", "FIXME", "NotImplementedError"):
            assert not re.search(mark, path.read_text()), f"{name_of(path)} contains {mark!r}"
