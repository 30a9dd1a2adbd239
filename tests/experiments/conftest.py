"""Figures of runs are built and not painted: matplotlib's raster took two thirds of a small comparison's time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def painted() -> None:
    """Asked for by tests that look at pictures: those are painted as users get them."""


@pytest.fixture(autouse=True)
def unpainted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a figure shows is put together; its file says only that it was written."""
    if "painted" in request.fixturenames:
        return

    def save(figure: Any, place: Any, **how: Any) -> None:
        assert figure.axes and how["dpi"] > 0
        Path(place).write_bytes(b"unpainted")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", save)
