"""`tdistill lesson`: lists the course, or runs one of its lessons."""

from __future__ import annotations

import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

from envs.errors import InputError

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class LessonConfig:
    """Run one lesson of the course and draw its figure; without a number, list the lessons."""

    number: str = ""
    """Of the lesson, as in 05."""
    out: Path = Path()
    """Folder for its figure, lesson_05.png."""


def lessons() -> dict[str, str]:
    """Number -> module, in order."""
    return {path.stem.split("_")[1]: path.stem for path in sorted(FOLDER.glob("lesson_[0-9]*.py"))}


def title(module: str) -> str:
    """What a lesson's first heading says."""
    lines = (FOLDER / f"{module}.py").read_text(encoding="utf-8").splitlines()
    return next(line.removeprefix("# # ") for line in lines if line.startswith("# # "))


def run(config: LessonConfig) -> None:
    """Print the list, or run the lesson in this process; it asserts what it claims.

    Raises: InputError: no lesson has this number, or nothing can be written to `out`.
    """
    known = lessons()
    if not config.number:
        print("\n".join(title(module) for module in known.values()))
        print("\ntdistill lesson NUMBER [--out FOLDER] runs one; they open as notebooks (jupytext's percent format):")
        print(FOLDER)
        return
    number = config.number.rjust(2, "0")
    if number not in known:
        raise InputError(f"there is no lesson {config.number!r}; give one of {', '.join(known)}")
    try:
        config.out.mkdir(parents=True, exist_ok=True)  # before the lesson runs, whose figure comes last
    except OSError as error:
        raise InputError(f"{config.out} can be no folder ({error.strerror}); give another --out") from error
    words = sys.argv
    sys.argv = [known[number], "--out", str(config.out)]
    try:
        runpy.run_module(f"experiments.lessons.{known[number]}", run_name="__main__")
    finally:
        sys.argv = words
