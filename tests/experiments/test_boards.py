"""What TensorBoard is told of a comparison, read back with its own reader and its plugins' messages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from experiments.boards import layout, write_boards
from experiments.config import CompareConfig
from experiments.workspace import Workspace
from tests.experiments.test_page import rows


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written twice: the second report takes the place of the first."""
    out = tmp_path_factory.mktemp("run")
    space = Workspace(CompareConfig(agents=("bc", "soft_q"), agent_config=("bc.lr=3e-4",), top_p=(0.5, 0.9), out=out))
    write_boards(space, rows((0.5, 0.9)))
    write_boards(space, rows((0.9,)))
    return out / "tensorboard" / "summary"


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def hparams(folder: Path, tag: str) -> HParamsPluginData:
    return HParamsPluginData.FromString(read(folder).summary_metadata[tag].plugin_data.content)


def value_of(value: Any) -> Any:
    return getattr(value, value.WhichOneof("kind"))


def test_a_cell_has_an_entry_with_its_settings_and_final_measures(summary: Path) -> None:
    cells = {path.name for path in (summary / "cells").iterdir()}
    assert cells == {f"{arm}-p0.9-seed{seed}" for arm in ("bc", "soft_q", "soft_q@gamma=0") for seed in (0, 1)}
    found = hparams(summary / "cells" / "soft_q@gamma=0-p0.9-seed1", "_hparams_/session_start_info")
    settings = {name: value_of(value) for name, value in found.session_start_info.hparams.items()}
    assert (settings["agent"], settings["seed"], settings["top_p"]) == ("soft_q@gamma=0", 1, 0.9)
    assert (settings["gamma"], settings["reward"], settings["updates"]) == (0, "logprob", 20)
    bc = hparams(summary / "cells" / "bc-p0.9-seed0", "_hparams_/session_start_info").session_start_info.hparams
    assert value_of(bc["lr"]) == pytest.approx(3e-4) and value_of(bc["gamma"]) == 1
    ended = hparams(summary / "cells" / "bc-p0.9-seed0", "_hparams_/session_end_info").session_end_info
    assert ended.status == 1  # success
    scalars = read(summary / "cells" / "soft_q@gamma=0-p0.9-seed1")
    (test,) = scalars.Scalars("test/forward_kl")
    (validation,) = scalars.Scalars("validation/forward_kl")
    assert (test.step, test.value, validation.value) == (20, pytest.approx(0.41), pytest.approx(0.6))


def test_the_columns_are_every_setting_and_measure(summary: Path) -> None:
    found = hparams(summary / "all", "_hparams_/experiment").experiment
    assert {"agent", "seed", "top_p", "gamma", "lr"} <= {info.name for info in found.hparam_infos}
    tags = {info.name.tag for info in found.metric_infos}
    assert tags == {"validation/forward_kl", "test/forward_kl", "test/task_score", "test/speed_up"}


def test_the_layout_groups_the_curves_of_all_arms(summary: Path) -> None:
    tensor = read(summary / "all").Tensors("custom_scalars__config__")[0].tensor_proto
    found = Layout.FromString(tensor.string_val[0])
    charts = {(category.title, chart.title): chart for category in found.category for chart in category.chart}
    (band,) = charts["validation, over seeds", "forward_kl"].margin.series
    assert list(charts["validation, every cell", "forward_kl"].multiline.tag) == ["^validation/forward_kl$"]
    assert ("training, every cell", "loss") in charts and not any(title == "seconds" for _, title in charts)
    arm = read(summary / "arms" / "bc-p0.9")
    assert {band.value, band.lower, band.upper} == set(arm.Tags()["scalars"])
    assert [(point.step, point.value) for point in arm.Scalars(band.value)] == [
        (0, pytest.approx(1.0)),
        (10, pytest.approx(0.8)),
        (20, pytest.approx(0.6)),
    ]


def test_a_band_is_the_mean_and_the_range_over_seeds(tmp_path: Path) -> None:
    """KL 1.0 and 0.5 of two seeds: 0.75, from 0.5 to 1.0; a point that one seed alone has is not drawn."""
    one, two = (row for row in rows((0.9,)) if row.agent == "bc")
    two = replace(two, curve=[{"updates": 0, "forward_kl": 0.5}])
    write_boards(Workspace(CompareConfig(agents=("bc",), out=tmp_path)), [one, two])
    arm = read(tmp_path / "tensorboard/summary/arms/bc-p0.9")
    points = {tag: [point.value for point in arm.Scalars(tag)] for tag in arm.Tags()["scalars"]}
    name = "over seeds/forward_kl"
    assert points == {name: [0.75], f"{name} smallest": [0.5], f"{name} largest": [1.0]}
    assert layout([])["validation, over seeds"] == {}
