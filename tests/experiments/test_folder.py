"""Whose a run folder is: of a command that was killed as it began, and of the other kind of command."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from envs.errors import InputError
from experiments import folder, provenance, workspace
from experiments.compare import compare, distill
from experiments.config import DistillConfig
from experiments.workspace import Workspace
from tests.experiments.runs import small


@pytest.mark.parametrize("stop", range(4))
@pytest.mark.parametrize("half", [False, True])
def test_a_command_that_was_killed_as_it_began_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int, half: bool
) -> None:
    """Killed before any of the files that say whose the folder is, or in the middle of one."""
    config, calls = small(tmp_path, agents=("bc",)), list[Path]()

    def killed(path: Path, text: str) -> None:
        calls.append(path)
        if len(calls) > stop:
            path.parent.mkdir(exist_ok=True)
            if half:
                path.with_name(path.name + ".partial").write_text(text[:9])
            raise KeyboardInterrupt
        folder.write(path, text)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(workspace, "write", killed)
        patch.setattr(provenance, "write", killed)
        compare(config)
    with Workspace(config).opened():
        assert all((config.out / name).is_file() for name in (folder.CONFIG, folder.INPUTS, provenance.RUN))


def test_another_folder_is_not_taken_for_one_that_was_begun(tmp_path: Path) -> None:
    config = small(tmp_path, agents=("bc",))
    for name in ("notes.txt", "shared"):
        (config.out / name).mkdir(parents=True)
        (config.out / folder.LOCK).touch()
        with pytest.raises(InputError, match=r"holds no config\.yaml, so it is no run folder"):
            compare(config)
        shutil.rmtree(config.out)


def test_the_other_kind_of_command_goes_on_with_the_same_settings_alone(tmp_path: Path) -> None:
    """`distill` has no trials: where some were made it is another run."""
    config = small(tmp_path, agents=("bc",), trials=2, updates=2)
    compare(config)
    kept = (config.out / folder.CONFIG).read_text()
    known = {name: getattr(config, name) for name in DistillConfig.__dataclass_fields__ if hasattr(config, name)}
    alone = DistillConfig(**known | {"agent": "bc", "top_p": 0.9})
    with pytest.raises(InputError, match="holds a run with trials = 2, this one has 0"):
        distill(alone)
    assert (config.out / folder.CONFIG).read_text() == kept
    distill(replace(alone, out=tmp_path / "alone"))
    with pytest.raises(InputError, match="holds a run with trials = 0, this one has 2"):
        compare(replace(config, out=tmp_path / "alone"))
    compare(replace(config, trials=0, out=tmp_path / "alone"))


def test_a_folder_is_made_held_and_refused(tmp_path: Path) -> None:
    with folder.alone(tmp_path / "new" / "folder", "testing"):
        again = folder.alone(tmp_path / "new" / "folder", "testing")
        with pytest.raises(InputError, match=r"another command is testing .*folder"), again:
            raise AssertionError("it was given twice")
    (tmp_path / "file").write_text("", encoding="utf-8")
    for place, says in {"file": "file is a file", "file/below": "below cannot be written: Not a directory"}.items():
        with pytest.raises(InputError, match=says), folder.alone(tmp_path / place, "testing"):
            raise AssertionError("it was given")
