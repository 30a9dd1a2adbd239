"""The page's figures as PNG and CSV: one pair for every section that a run has, of the numbers that the page draws."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from PIL import Image

from experiments.page import figures, paint
from experiments.report import colours_of
from tests.experiments.test_page import profiles, rows

pytestmark = pytest.mark.usefixtures("painted")

EVERY = {
    "learning_curves",
    "quality_by_top_p",
    "quality_by_gamma",
    "profiles",
    "quality_and_cost",
    "slices",
    "positions",
    "calibration",
}


def sections(top_p: tuple[float, ...] = (0.5, 0.9)) -> list[figures.Section]:
    return figures.all_sections(rows(top_p), colours_of(rows()), 1.0, profiles())


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_every_section_has_its_files(tmp_path: Path) -> None:
    paint.draw_sections(sections(), tmp_path, drawn=["quality_by_top_p"])
    assert {path.stem for path in tmp_path.glob("*.csv")} == EVERY
    assert {path.stem for path in tmp_path.glob("*.png")} == EVERY - {"quality_by_top_p"}
    assert len(list(tmp_path.iterdir())) == 2 * len(EVERY) - 1  # and nothing partial
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as picture:
            colours = picture.convert("RGB").getcolors(1 << 20)
        assert colours is not None and len(colours) > 20  # drawn, not blank


def test_what_a_run_lacks_has_no_files() -> None:
    assert "quality_by_top_p" not in {section.name for section in sections((0.9,))}
    assert {section.name for section in figures.all_sections(rows(), colours_of(rows()), 1.0)} == EVERY - {"profiles"}


def test_the_numbers_are_those_of_the_page() -> None:
    """Two seeds of bc at KL 0.20 and 0.21: 0.205 ± 12.706 · 0.005; curves of both seeds go 1.0, 0.8, 0.6."""
    found = {section.name: table(paint.numbers(section.figures)) for section in sections()}
    point = next(line for line in found["quality_by_top_p"] if line["arm"] == "bc" and line["x"] == "0.9")
    assert (point["figure"], point["against"]) == ("forward KL to the teacher, nats/token", "top_p")
    assert float(point["y"]) == pytest.approx(0.205) and float(point["half_width"]) == pytest.approx(0.06353, abs=1e-4)
    curve = [line for line in found["learning_curves"] if (line["arm"], line["against"]) == ("bc, p = 0.9", "updates")]
    assert [(float(line["x"]), float(line["low"]), float(line["high"])) for line in curve] == [
        (0.0, pytest.approx(1.0), pytest.approx(1.0)),
        (10.0, pytest.approx(0.8), pytest.approx(0.8)),
        (20.0, pytest.approx(0.6), pytest.approx(0.6)),
    ]
    assert [(line["y"], line["low"], line["high"]) for line in found["profiles"]] == [
        ("1.0", "0.9", "1.0"),
        ("0.5", "0.4", "0.6"),
        ("0.0", "0.0", "0.1"),
    ]
    slices = [line for line in found["slices"] if line["arm"] == "bc" and line["y"] == "critical"]
    assert [float(line["x"]) for line in slices] == [pytest.approx(0.4)]


def test_a_panel_draws_what_its_figure_says() -> None:
    """Categories one below the other with the arms beside each other in them; a gap where nothing was counted."""
    from matplotlib.figure import Figure

    place = Figure().subplots()
    found = {section.name: section.figures for section in sections((0.9,))}
    paint._panel(place, found["slices"][0])
    heights = [bar.lines[0].get_ydata()[-1] for bar in place.containers]
    assert heights == sorted(heights, reverse=True) and max(heights) - min(heights) < 1  # three arms of one category
    assert place.get_yticklabels()[0].get_text() == "critical"
    place = Figure().subplots()
    figure = found["positions"][0]
    figure["data"][0]["y"][1] = None
    paint._panel(place, figure)
    assert [str(value) for value in place.lines[0].get_ydata()] == ["0.1", "nan"]
