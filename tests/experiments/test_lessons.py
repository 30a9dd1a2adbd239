"""Lessons run, assert their own claims and draw their figures; exercises are wrong where they should be.

That the lessons' assertions can fail is shown by `lesson_mutations`, one mistake in production code for each.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.contract import AgentContract
from experiments.lessons import command
from experiments.lessons.bugs import check
from tests.experiments.lesson_mutations import MUTATIONS, ROOT, Mutation, failed, planted

pytestmark = pytest.mark.usefixtures("painted")

LESSONS = command.lessons()
EXERCISES = check.exercises()


@pytest.mark.parametrize("number", LESSONS)
def test_a_lesson_holds_and_draws_its_figure(number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = list(sys.argv)
    assert main(["lesson", number, "--out", str(tmp_path)]) == 0
    png = tmp_path / f"lesson_{number}.png"
    assert png.read_bytes().startswith(b"\x89PNG") and png.stat().st_size > 20_000
    assert f"drawn: {png}" in capsys.readouterr().out and sys.argv == words


@pytest.mark.parametrize("number", LESSONS)
def test_a_lesson_opens_as_a_notebook(number: str) -> None:
    """Percent format: cells, those of text commented throughout; a heading and what is new in the first."""
    text = (command.FOLDER / f"{LESSONS[number]}.py").read_text(encoding="utf-8")
    head, *cells = re.split(r"^# %%", text, flags=re.M)
    assert not head and len(cells) > 6
    for cell in cells:
        kind, _, body = cell.partition("\n")
        assert kind in ("", " [markdown]")
        assert all(line.startswith("#") for line in body.strip().splitlines()) == (kind == " [markdown]"), body[:80]
        compile(body, LESSONS[number], "exec")
    assert f"# # Lesson {number} · " in cells[0] and re.search(r"\*\*New( against lesson \d\d)?:\*\*", cells[0])
    assert "assert " in text and f'show(canvas, "lesson_{number}")' in cells[-1]


def test_the_course_is_listed_and_the_figure_shown_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lesson"]) == 0
    listed = capsys.readouterr().out
    assert list(LESSONS) == [f"{number:02}" for number in range(9)]
    assert all(command.title(module) in listed for module in LESSONS.values())
    assert (command.FOLDER / "lesson_05.png").stat().st_size > 20_000
    assert main(["lesson", "9"]) == 2
    assert "there is no lesson '9'; give one of 00, 01" in capsys.readouterr().err


def test_a_figure_that_goes_nowhere_is_said_before_the_lesson_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["lesson", "00", "--out", str(tmp_path / "file")]) == 2
    said = capsys.readouterr()
    assert "file can be no folder (File exists); give another --out" in said.err and "slot" not in said.out


@pytest.mark.long
class TestPathConsistency(AgentContract):
    agent = "experiments.lessons.path_agent:PathConsistency"


SOLUTIONS = {
    "greedy_target": "a product with the mask makes padding a Q of 0, above every log-probability; use double_value",
    "episode_discounts": "a truncated text goes on: only `terminated` takes the discount away",
    "taken_scores": "a slot is no token id: find the slot where ids equals the token",
    "actor_critic_loss": "the advantage must be detached, or the actor's term moves V as well",
    "cloning_loss": "the end token is the padding token: mask by length, or no reply ever ends",
}


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.name)
def test_an_exercise_has_one_bug_that_one_case_shows_and_another_hides(exercise: check.Exercise) -> None:
    assert exercise.distance(exercise.shows) > 0.05
    assert exercise.distance(exercise.hides) < 1e-6, "why it went unnoticed"
    assert not exercise.solved and exercise.name in SOLUTIONS
    assert dataclasses.replace(exercise, yours=exercise.right).solved


def test_the_exercises_say_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main() == 5 == len(SOLUTIONS)
    assert capsys.readouterr().out.count("off by") == 5


def test_an_exercise_is_solved_by_its_solution() -> None:
    """By hand, the numbers of the hints."""
    found = {exercise.name: exercise.right(*exercise.shows) for exercise in EXERCISES}
    assert found["greedy_target"].item() == pytest.approx(-0.9)
    assert found["episode_discounts"].tolist() == [[pytest.approx(0.9)] * 2]
    assert found["taken_scores"].item() == pytest.approx(-1.609, abs=1e-3)
    assert found["cloning_loss"].item() == pytest.approx(1.400, abs=1e-3)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.lesson)
def test_what_a_mutation_replaces_is_there(mutation: Mutation) -> None:
    assert (ROOT / mutation.file).read_text(encoding="utf-8").count(mutation.right) == 1


def test_every_lesson_has_a_mutation() -> None:
    assert [mutation.lesson for mutation in MUTATIONS] == list(LESSONS)


@pytest.mark.long
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.lesson)
def test_a_lesson_fails_under_its_mutation(mutation: Mutation, tmp_path: Path) -> None:
    done = planted(mutation, tmp_path)
    assert done.returncode != 0 and failed(done), done.stderr[-2000:]
