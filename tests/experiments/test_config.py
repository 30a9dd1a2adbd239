"""Settings survive YAML, and a wrong one is named."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envs.errors import InputError
from experiments.config import PRESETS, CompareConfig, DistillConfig, agent_settings, dump, from_mapping, read_yaml


def test_a_config_comes_back_from_yaml(tmp_path: Path) -> None:
    config = CompareConfig(prompts=tmp_path / "p.jsonl", top_p=(0.8, 1.0), agents=("bc",), threads=2, gamma=0.5)
    path = tmp_path / "c.yaml"
    path.write_text(dump(config), encoding="utf-8")
    assert from_mapping(CompareConfig, read_yaml(path), "here") == config


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_is_a_comparison(preset: Path) -> None:
    assert isinstance(from_mapping(CompareConfig, read_yaml(preset), preset.name), CompareConfig)


def test_plain_yaml_values_become_what_the_fields_want() -> None:
    config = from_mapping(CompareConfig, {"top_p": 1, "agents": "bc", "out": "x", "prompts": None}, "here")
    assert config.top_p == (1.0,) and config.agents == ("bc",) and config.out == Path("x") and config.prompts is None


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"updatez": 3}, "has no setting 'updatez'; did you mean 'updates'"),
        ({"updates": "many"}, "here: updates is 'many'; it must be int"),
        ({"updates": True}, "updates is True"),
        ({"skip_bad": 1}, "skip_bad is 1; it must be bool"),
        ({"top_p": ["x"]}, "top_p is 'x'; it must be float"),
    ],
)
def test_a_wrong_setting_is_named(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        from_mapping(CompareConfig, values, "here")


def test_a_file_that_holds_no_settings_is_named(tmp_path: Path) -> None:
    for text, says in (("[1", "is not YAML"), ("- a", "mapping of settings, not list")):
        path = tmp_path / "c.yaml"
        path.write_text(text)
        with pytest.raises(InputError, match=says):
            read_yaml(path)


def test_settings_of_single_agents() -> None:
    items = ("soft_q.lr=3e-4", "bellman_distill.c=inf", "soft_q.n=2", "kd.on=set", "my.module:A.double=false")
    config = replace(DistillConfig(), agent_config=items)
    assert agent_settings(config, "soft_q") == {"lr": 3e-4, "n": 2}
    assert agent_settings(config, "bellman_distill") == {"c": math.inf}
    assert agent_settings(config, "kd") == {"on": "set"}
    assert agent_settings(config, "my.module:A") == {"double": False}
    for item in ("soft_q.lr", "lr=3", "soft_q.=3"):
        with pytest.raises(InputError, match=r"agent\.setting=value"):
            agent_settings(replace(config, agent_config=(item,)), "soft_q")
