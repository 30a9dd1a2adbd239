"""What agents declare to a search: ranges that hold their own defaults, and whose ends their Config accepts."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from agents import REGISTRY, learner_class
from agents.errors import InputError
from agents.search import Range


def test_a_range_holds_its_ends_and_whole_numbers_where_they_are_whole() -> None:
    assert 0.5 in Range(0.5, 2.0) and 2 in Range(0.5, 2.0) and 2.1 not in Range(0.5, 2.0)
    assert 3 in Range(1, 4) and 2.5 not in Range(1, 4) and Range(1, 4).whole and not Range(1, 4.0).whole
    others: list[Any] = [None, True, "2", float("nan")]
    assert not any(other in Range(0.5, 2.0) for other in others)


@pytest.mark.parametrize(
    ("low", "high", "more", "says"),
    [
        (2.0, 2.0, {}, "a range from 2.0 to 2.0 is empty"),
        (float("nan"), 2.0, {}, "is empty"),
        (0.0, 1.0, {"log": True}, "a range from 0.0 to 1.0 has no logarithm"),
        (0.0, 1.0, {"grid": (0.5, 1.5)}, "1.5 of a grid lies outside its range from 0.0 to 1.0"),
    ],
)
def test_a_range_that_is_none_is_refused(low: float, high: float, more: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Range(low, high, **more)


@pytest.mark.parametrize("name", REGISTRY)
def test_an_agent_begins_inside_its_ranges_and_accepts_their_ends(name: str) -> None:
    if name.startswith("sb3:"):
        pytest.importorskip("stable_baselines3")
    kind = learner_class(name)
    usual = {field.name: field.default for field in fields(kind.Config)}
    assert "lr" in kind.Config.SEARCH
    for setting, values in kind.Config.SEARCH.items():
        assert isinstance(values, Range) and usual[setting] in values
        for end in (values.low, values.high):
            assert getattr(kind.make_config(**{setting: end}), setting) == end
