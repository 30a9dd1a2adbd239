"""Student walks in a run: when they are drawn, how they mix with the teacher's, what they cost, how they go on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agents import make_agent
from agents.episodes import Episodes
from agents.errors import InputError
from agents.student import Student
from experiments import walks
from experiments.compare import compare
from experiments.flops import counted
from experiments.jobs import FailedCells
from experiments.workspace import Workspace
from tests.experiments.runs import small
from tests.experiments.walking_agents import OnPolicy, Recorder

PLACE = "tests.experiments.walking_agents"
ON_POLICY, MIXED, RECORDER = (f"{PLACE}:{name}" for name in ("OnPolicy", "Mixed", "Recorder"))


def weights(config: Any, agent: str) -> dict[str, torch.Tensor]:
    directory = config.out / "students" / f"{agent.replace(':', '.')}-seed0"
    return Student.load(directory).state_dict()


def result(config: Any, agent: str) -> dict[str, Any]:
    path = config.out / "cells" / f"{agent.replace(':', '.')}-p0.9-seed0" / "result.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_portions_come_when_they_are_due_and_share_the_batches(tmp_path: Path) -> None:
    Recorder.received.clear()
    Recorder.learnt.clear()
    config = small(tmp_path, agents=(f"{RECORDER}@student_share=0.5,walk_keep=2",))
    compare(config)
    portions, batches = Recorder.received, Recorder.learnt
    assert [int(portion.version[0]) for portion in portions] == [0, 2, 4]
    assert all(len(portion) == 6 and not portion.from_teacher.any() for portion in portions)
    assert len(batches) == 6 and all(batch.from_teacher.tolist() == [False, False, True, True] for batch in batches)
    newest = [int(batch.version.max()) for batch in batches]
    assert max(newest) == 4 and all(version <= update for update, version in enumerate(newest))
    assert all(int(batch.version[~batch.from_teacher].min()) > update - 4 for update, batch in enumerate(batches))
    found = result(config, config.agents[0])
    assert found["student_tokens"] == sum(int(portion.length.sum()) for portion in portions)
    shared = Workspace(config).episodes(0, 0.9)
    assert found["teacher_tokens"] == int(shared.length.sum()) + found["student_tokens"]
    assert found["walk_seconds"] > 0


def test_a_student_walks_with_the_weights_that_it_has_then(tmp_path: Path) -> None:
    Recorder.received.clear()
    compare(small(tmp_path, agents=(f"{RECORDER}@lr=0.05",)))
    twice = [portion.tokens.tolist() for portion in Recorder.received]
    Recorder.received.clear()
    compare(small(tmp_path, agents=(f"{RECORDER}@lr=1e-9",), out=tmp_path / "other"))
    still = [portion.tokens.tolist() for portion in Recorder.received]
    assert twice[0] == still[0] and twice[1] != still[1]


@pytest.mark.parametrize("agent", [ON_POLICY, f"{MIXED}@student_share=0.5,walk_keep=2"])
def test_a_stopped_run_ends_with_the_weights_it_would_have_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: str
) -> None:
    whole = small(tmp_path, agents=(agent,))
    compare(whole)
    stopped = replace(whole, out=tmp_path / "again")
    seen = [0]
    sample = walks.Walker.sample

    def stops(self: walks.Walker, record: dict[str, Any]) -> Episodes:
        seen[0] += 1
        if seen[0] == 4:  # between two portions
            raise KeyboardInterrupt
        return sample(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(walks.Walker, "sample", stops)
        with pytest.raises(KeyboardInterrupt):
            compare(stopped)
    compare(stopped)
    one, other = weights(whole, agent), weights(stopped, agent)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert result(whole, agent)["student_tokens"] == result(stopped, agent)["student_tokens"]


def test_a_replay_beyond_its_memory_spills_and_gives_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = f"{MIXED}@student_share=0.5,walk_keep=3"
    held = small(tmp_path, agents=(agent,))
    compare(held)
    monkeypatch.setattr(walks, "REPLAY_MEMORY", 1)
    spilled, files = replace(held, out=tmp_path / "spilled"), list[Path]()
    portions = walks.Replay.portions

    def watched(self: Any) -> list[Episodes | Path]:
        found = portions(self)
        files.extend(one for one in found if isinstance(one, Path))
        return found

    monkeypatch.setattr(walks.Replay, "portions", watched)
    compare(spilled)
    assert len(set(files)) == 3
    one, other = weights(held, agent), weights(spilled, agent)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_loss_that_is_no_number_leaves_its_batch_and_a_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = OnPolicy.loss

    def broken(self: OnPolicy, batch: Episodes) -> Any:
        value, logs = loss(self, batch)
        return (value * float("nan") if self.updates == 3 else value), logs

    monkeypatch.setattr(OnPolicy, "loss", broken)
    config = small(tmp_path, agents=(ON_POLICY, "bc"), checkpoint_seconds=1e9)
    with pytest.raises(
        FailedCells, match=r"loss nan, .* at update 4; .* its batch is in .*diverged\.safetensors"
    ) as caught:
        compare(config)
    assert [row.agent for row in caught.value.rows] == ["teacher", "start", "bc"]
    folder = config.out / "cells" / f"{ON_POLICY.replace(':', '.')}-p0.9-seed0"
    assert len(Episodes.load(folder / "diverged.safetensors")) == 4
    again = make_agent(ON_POLICY, Student(*_start(config)), total_updates=6)
    again.load(folder / "checkpoints" / "00000003")
    assert again.updates == 3 and all(bool(torch.isfinite(value).all()) for value in again.student.parameters())


def _start(config: Any) -> tuple[Any, Any]:
    student = Workspace(config).student(0)
    return student.model, student.tokenizer


def test_an_on_policy_agent_refuses_episodes_that_an_older_student_drew(tmp_path: Path) -> None:
    config = small(tmp_path, agents=(ON_POLICY,))
    agent = make_agent(ON_POLICY, Workspace(config).student(0), total_updates=9)
    batch = Workspace(config).episodes(0, 0.9).select([0, 1])
    batch = replace(batch, from_teacher=torch.zeros(2, dtype=torch.bool))
    agent.update(batch)
    agent.update(batch)
    with pytest.raises(InputError, match=r"drew at update 0 are stale at update 2, 2 updates is the most"):
        agent.update(batch)
    agent.update(replace(batch, version=torch.full((2,), 2)))


def test_what_an_agent_computes_of_a_walk_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ppo` reads each of its walks again for its old policy."""
    config, found = small(tmp_path, agents=("ppo",)), list[float]()
    compare(config)

    def free(work: Any) -> Any:
        result, operations = counted(work)
        found.append(operations)
        return result, 0.0

    monkeypatch.setattr(walks, "counted", free)
    unread = replace(config, out=tmp_path / "unread")
    compare(unread)
    assert found and min(found) > 0
    assert result(config, "ppo")["flops"] == pytest.approx(result(unread, "ppo")["flops"] + sum(found), rel=1e-12)
