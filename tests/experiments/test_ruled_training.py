"""The study of training under rules: its table against numbers by hand, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.errors import InputError
from experiments.studies import ruled_training
from experiments.studies.ruled_training import RuledTrainingConfig, study


def folders(tmp_path: Path, *seeds: range) -> tuple[Path, ...]:
    places = tuple(tmp_path / name for name in ("plain", "ruled", "paid"))[: len(seeds)]
    for place, own in zip(places, seeds, strict=True):
        for seed in own:
            (place / "students" / f"soft_q-seed{seed}").mkdir(parents=True)
    return places


def test_later_runs_are_compared_with_the_first_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept: .5 and 1 without rules, .75 and 1.5 with them: +.25 and +.5, .375 on average, half a width
    12.706 · .1768/√2 = 1.588."""

    def known(student: tuple[str, int], *rest: Any) -> tuple[Any, list[str]]:
        run, seed = student
        values = np.full((5, 2), (1 + seed) * {"plain": 0.5, "ruled": 0.75}[run])
        return values + np.array([-0.1, 0.1]), []  # two messages, whose mean is what counts

    def loaded(place: Path) -> tuple[tuple[str, int], None]:
        return (place.parts[-3], int(place.name[-1])), None

    monkeypatch.setattr(ruled_training, "figures", known)
    monkeypatch.setattr(ruled_training, "load_causal_lm", loaded)
    monkeypatch.setattr(ruled_training, "load_teacher", lambda name: None)
    monkeypatch.setattr(ruled_training, "check_same_tokens", lambda teacher, tokenizer: None)
    monkeypatch.setattr(ruled_training, "chosen", lambda count: [])
    said = study(RuledTrainingConfig(folders(tmp_path, range(2), range(2)), count=2)).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")][:2] for line in said if line.startswith("|")]
    assert [name for name, _ in cells[2:]] == ["plain", "ruled", "ruled − plain"]
    assert [kept for _, kept in cells[2:]] == ["0.750 ± 3.176", "1.125 ± 4.765", "0.375 ± 1.588"]
    assert said[-1] == "2 students a run, 2 critical messages and as many others"


@pytest.mark.parametrize(
    ("seeds", "says"),
    [
        ((range(2),), "1 runs; at least 2"),
        ((range(2), range(3)), r"seeds \[0, 1, 2\], .*plain with \[0, 1\]"),
        ((range(1), range(1)), "same seeds, two or more"),
    ],
)
def test_runs_that_do_not_pair_are_refused(tmp_path: Path, seeds: tuple[range, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        study(RuledTrainingConfig(folders(tmp_path, *seeds)))
