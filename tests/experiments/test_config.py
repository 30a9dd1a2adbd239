"""Settings survive YAML, and a wrong one is named."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents import REGISTRY, learner_class
from envs.errors import InputError
from experiments import config as config_module
from experiments.arms import agent_of, agent_settings, split_arm
from experiments.config import (
    PRESETS,
    CompareConfig,
    DistillConfig,
    EvaluateConfig,
    GenerateConfig,
    dump,
    from_mapping,
    read_yaml,
)


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


def test_what_yaml_reads_as_no_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no setting True"):
        from_mapping(CompareConfig, {True: 3}, "here")
    with pytest.raises(InputError, match="no YAML scalar"):
        agent_settings(replace(DistillConfig(), agent_config=("a.b=[1",)), "a")
    (tmp_path / "c.yaml").write_bytes(b"teacher: \xff")
    with pytest.raises(InputError, match="is not YAML"):
        read_yaml(tmp_path / "c.yaml")


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


@pytest.mark.parametrize(
    "config",
    [
        DistillConfig(agent="my.module:A", top_p=1.0, checkpoint_seconds=1e-5, agent_config=("kd.on=set",)),
        CompareConfig(teacher="null", student="1e3", agents=("yes", "12"), top_p=(), json=Path("a b/c: d")),
        EvaluateConfig(student="~", prompt_split="test", skip_bad=True),
        GenerateConfig(student="s", prompt=("- a", "two\nlines", "# c"), temperature=math.inf),
    ],
    ids=lambda config: type(config).__name__,
)
def test_every_config_comes_back_from_yaml_even_where_yaml_would_read_something_else(
    config: Any, tmp_path: Path
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(dump(config), encoding="utf-8")
    assert from_mapping(type(config), read_yaml(path), "here") == config


def test_a_whole_number_becomes_a_float_where_one_is_wanted() -> None:
    config = from_mapping(CompareConfig, {"gamma": 1, "top_p": [1, 0.5]}, "here")
    assert [type(value) for value in (config.gamma, *config.top_p)] == [float] * 3


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"seeds": 2.5}, "seeds is 2.5; it must be int"),
        ({"gamma": True}, "gamma is True; it must be float"),
        ({"gamma": None}, "gamma is None; it must be float"),
        ({"teacher": 3}, "teacher is 3; it must be str"),
        ({"agents": None}, "agents is None; it must be str"),
        ({"prompts": 3}, "prompts is 3; it must be Path or NoneType"),
        ({"threads": "2"}, "threads is '2'; it must be int or NoneType"),
    ],
)
def test_a_value_of_another_type_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=f"^here: {says}$"):
        from_mapping(CompareConfig, values, "here")


def test_a_setting_like_no_other_gets_no_hint() -> None:
    with pytest.raises(InputError, match=r"^here: CompareConfig has no setting 'zzz'$"):
        from_mapping(CompareConfig, {"zzz": 3}, "here")


def test_a_missing_file_tells_the_presets_and_an_empty_one_is_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml' does not exist \(presets: .*demo"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(InputError, match="mapping of settings, not NoneType"):
        read_yaml(tmp_path / "empty.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("-2", -2),
        ("2.0", 2.0),
        ("-inf", -math.inf),
        (".inf", math.inf),
        ("true", True),
        ("False", False),
        ("null", None),
        ("x=y", "x=y"),
        ("[1, 2]", [1, 2]),
    ],
)
def test_a_setting_is_read_as_what_it_looks_like(text: str, value: Any) -> None:
    found = agent_settings(DistillConfig(agent_config=(f"a.b={text}",)), "a")["b"]
    assert found == value and type(found) is type(value)


def test_the_last_word_on_a_setting_counts_and_a_broken_one_of_another_agent_is_refused() -> None:
    assert agent_settings(DistillConfig(agent_config=("a.lr=1", "b.lr=3", "a.lr=2")), "a") == {"lr": 2}
    for item in ("b", "b.lr", ".lr=3", "b.=3", "=3", ""):
        with pytest.raises(InputError, match="is not of the form"):
            agent_settings(DistillConfig(agent_config=(item,)), "a")


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_names_agents_and_settings_that_exist(preset: Path) -> None:
    config = from_mapping(CompareConfig, read_yaml(preset), preset.name)
    assert config.agents
    for name in config.agents:
        learner_class(agent_of(name)).make_config(**agent_settings(config, name))


def test_an_arm_is_an_agent_and_what_sets_it_apart() -> None:
    arm = "soft_q@gamma=0,gradient=residual,clamp=false"
    assert agent_of(arm) == "soft_q" and agent_of("my.module:A@lr=1") == "my.module:A"
    assert split_arm(arm) == ("soft_q", {"gamma": 0, "gradient": "residual", "clamp": False})
    config = DistillConfig(agent_config=("soft_q.lr=1", "soft_q.n=2", "kd.lr=3"))
    assert agent_settings(config, "soft_q@n=3") == {"lr": 1, "n": 3}
    assert agent_settings(config, "soft_q") == {"lr": 1, "n": 2}


@pytest.mark.parametrize(
    "arm", ["soft_q@", "@n=1", "soft_q@n", "soft_q@n=", "soft_q@=1", "soft_q@n=1,,c=2", "a@n=1,n=2"]
)
def test_a_broken_arm_is_refused(arm: str) -> None:
    with pytest.raises(InputError, match=f"arm {arm!r}"):
        split_arm(arm)


def test_the_help_of_distill_names_every_agent() -> None:
    text = Path(config_module.__file__).read_text(encoding="utf-8")
    about = text[text.index("class DistillConfig") : text.index("class CompareConfig")]
    assert all(f"{name}," in about for name in REGISTRY)
