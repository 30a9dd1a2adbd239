"""A comparison runs whole, goes on where it stopped, recomputes and loses nothing, and says what is wrong."""

from __future__ import annotations

import csv
import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents.errors import DivergedError
from agents.errors import InputError as AgentInputError
from agents.soft_q import SoftQ
from agents.student import Student
from envs.errors import InputError
from envs.prompts import prompt_hash
from experiments import train
from experiments.boards import settings_of
from experiments.compare import compare, distill
from experiments.config import CompareConfig, DistillConfig, from_mapping, read_yaml
from experiments.cost import TIMED
from experiments.jobs import FailedCells
from experiments.page.rebuild import rows_of
from experiments.seen import TRAINED_ON, refuse_training_prompts
from experiments.train import Trainer
from experiments.workspace import Workspace
from tests.envs.models import save_tiny
from tests.experiments.runs import PROMPTS, small


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def table_rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_comparison_leaves_everything_it_promises(tmp_path: Path, painted: None) -> None:
    config = small(tmp_path, seeds=2, top_p=(0.8, 0.9), price=2.0)
    order = [("teacher", 0), ("start", 0), ("start", 1), ("bc", 0), ("soft_q", 0), ("bc", 1), ("soft_q", 1)]
    rows = compare(config)
    assert [(row.agent, row.seed, row.top_p) for row in rows] == [
        (agent, seed, p) for p in (0.8, 0.9) for agent, seed in order
    ]
    found = table_rows(config.out)
    assert len(found) == 14 and {"forward_kl", "reverse_kl", "leak", "speed_up", "teacher_tokens"} <= found[0].keys()
    teacher = next(row for row in found if row["agent"] == "teacher")
    assert float(teacher["forward_kl"]) == 0 and float(teacher["agreement"]) == 1
    for row in found:  # 2 an hour, at so many tokens a second
        assert float(row["price_of_million"]) == pytest.approx(2e6 / 3600 / float(row["tokens_per_second"]))
        assert float(row["token_ms_16"]) >= 0
        assert row["agent"] == "teacher" or float(row["flops_per_token"]) > 0  # a table multiplies nothing
    for name in ("learning_curves", "quality_by_top_p", "frontier"):
        assert (config.out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(config.out.glob("tensorboard/*/events*"))) == 6  # bc learns once a seed
    assert len(list(config.out.glob("students/*-p0.8-seed1/config.json"))) == 2
    assert from_mapping(CompareConfig, read_yaml(config.out / "config.yaml"), "") == config
    assert "| bc " in (config.out / "results.md").read_text()
    curve = rows[3].curve
    assert [point["updates"] for point in curve] == [0, 3, 6] and {"forward_kl", "leak"} <= curve[0].keys()


def test_a_model_this_project_did_not_make_is_distilled(tmp_path: Path) -> None:
    """Another architecture, a tokenizer of its own, a half-precision checkpoint; plain students."""
    teacher = save_tiny("gpt2", tmp_path / "teacher", torch.bfloat16)
    prompts = tmp_path / "words.jsonl"
    lines = [f'{{"prompt": "w{i} w{i + 1}", "reference": "w3 w{i}", "tags": ["t"]}}' for i in range(3, 24)]
    prompts.write_text("\n".join(lines))
    config = small(tmp_path, teacher=str(teacher), prompts=prompts, agents=("kd", "bellman_distill"))
    rows = compare(config)
    assert {"rouge_l", "rouge_l_teacher", "length"} <= rows[-1].measures.keys()
    student = config.out / "students" / "kd-seed0"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(student), AutoTokenizer.from_pretrained(student)
    ids = tokenizer("w5 w6", return_tensors="pt")["input_ids"]
    assert model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=2).shape[1] > 2
    assert "test forward_kl" in (student / "README.md").read_text()


def test_a_finished_cell_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(tmp_path)
    first = compare(config)

    def never(*args: Any) -> None:
        raise AssertionError("a finished cell was trained again")

    monkeypatch.setattr(Trainer, "run", never)
    again = compare(config)
    for one, other in zip(first, again, strict=True):
        assert one.curve == other.curve and one.costs == other.costs
        assert all(one.measures[name] == other.measures[name] for name in one.measures.keys() - TIMED)


def test_seeds_and_agents_can_be_added_to_a_run(tmp_path: Path) -> None:
    config = small(tmp_path, agents=("bc",))
    compare(config)
    before = (config.out / "cells/bc-p0.9-seed0/result.json").stat().st_mtime_ns
    rows = compare(replace(config, agents=("bc", "kd"), seeds=2))
    assert len(rows) == 7 and (config.out / "cells/bc-p0.9-seed0/result.json").stat().st_mtime_ns == before


def test_a_narrower_command_keeps_the_rows_of_the_folder(tmp_path: Path) -> None:
    config = small(tmp_path, agents=("bc", "kd"), seeds=2, agent_config=("kd.lr=1e-3",))
    compare(config)
    rows = compare(replace(config, agents=("bc",), seeds=1, agent_config=()))
    assert [(row.agent, row.seed) for row in rows] == [("teacher", 0), ("start", 0), ("bc", 0)]  # what was asked for
    kept = {(row["agent"], row["seed"]) for row in table_rows(config.out)}
    assert kept == {("teacher", "0"), *((agent, seed) for agent in ("start", "bc", "kd") for seed in "01")}
    assert len(table_rows(config.out)) == 7 and "| kd " in (config.out / "results.md").read_text()
    [arm] = [row for row in rows_of(config.out) if (row.agent, row.seed) == ("kd", 1)]
    narrow = Workspace(replace(config, agent_config=()))
    assert settings_of(narrow, arm)["lr"] == 1e-3  # as it ran, not as the last command would run it


def test_a_stopped_cell_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole, cut = small(tmp_path / "whole", agents=("soft_q",)), small(tmp_path / "cut", agents=("soft_q",))
    compare(whole)
    update = Trainer._update

    def stopped(self: Trainer) -> Any:
        if self.agent.updates == 4:
            raise KeyboardInterrupt
        return update(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_update", stopped)
        compare(cut)
    assert [path.name for path in cut.out.glob("cells/soft_q-p0.9-seed0/checkpoints/*")] == ["00000004"]
    rows = compare(cut)
    assert same(whole.out / "students/soft_q-seed0", cut.out / "students/soft_q-seed0")
    assert [point["updates"] for point in rows[-1].curve] == [0, 3, 6]


def test_worker_processes_give_what_one_process_gives(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = small(tmp_path / "one"), small(tmp_path / "two", jobs=2)
    compare(one)
    compare(two)
    for agent in one.agents:
        assert same(one.out / f"students/{agent}-seed0", two.out / f"students/{agent}-seed0")


def test_one_agent_is_distilled_alone_and_in_the_same_folder(tmp_path: Path) -> None:
    config = small(tmp_path)
    compare(config)
    shared = {key: value for key, value in read_yaml(config.out / "config.yaml").items() if key != "top_p"}
    known = {field: shared[field] for field in shared if field in DistillConfig.__dataclass_fields__}
    rows = distill(from_mapping(DistillConfig, {**known, "agent": "kd", "seed": 3}, ""))
    assert [(row.agent, row.seed) for row in rows] == [("teacher", 0), ("start", 3), ("kd", 3)]


def test_a_cell_that_diverges_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*args: Any) -> None:
        raise DivergedError("loss nan at update 1; lower lr")

    monkeypatch.setattr(SoftQ, "update", diverge)
    config = small(tmp_path, agents=("soft_q", "bc"))
    with pytest.raises(FailedCells, match=r"soft_q-p0\.9-seed0: loss nan"):
        compare(config)
    assert [row["agent"] for row in table_rows(config.out)] == ["teacher", "start", "bc"]


def test_every_arm_of_a_seed_sees_the_same_batches_and_begins_alike(tmp_path: Path) -> None:
    space = Workspace(small(tmp_path))
    first, second = space.student(5), space.student(5)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert torch.equal(space.episodes(0, 0.9).tokens, Workspace(small(tmp_path)).episodes(0, 0.9).tokens)
    assert not torch.equal(space.episodes(1, 0.9).tokens[:4, :2], space.episodes(0, 0.9).tokens[:4, :2])


def test_no_prompt_is_trained_on_and_measured(tmp_path: Path) -> None:
    config = small(tmp_path, agents=("bc",))
    compare(config)
    splits = Workspace(config).splits
    hashes = [{prompt_hash(prompt.text) for prompt in part} for part in splits]
    assert not (hashes[0] & hashes[1] or hashes[0] & hashes[2] or hashes[1] & hashes[2])
    student = config.out / "students/bc-seed0"
    assert (student / TRAINED_ON).is_file()
    refuse_training_prompts(student, splits.test)
    with pytest.raises(InputError, match="was trained on 1 of these"):
        refuse_training_prompts(student, [*splits.test, splits.train[0]])


BAD: list[tuple[dict[str, Any], str]] = [
    ({"agents": ("soft_w",)}, "did you mean soft_q"),
    ({"agents": ("bc", "bc")}, "name one twice"),
    ({"teacher": "table:tay"}, "did you mean 'toy'"),
    ({"reward": "logprop"}, "did you mean 'logprob'"),
    ({"reward": "sqil"}, "walks alone here"),
    ({"student": "tinny"}, "did you mean tiny"),
    ({"student": "warm-start"}, "clone of the embedded teacher"),
    ({"top_p": (0.0,)}, r"outside \(0, 1\]"),
    ({"top_p": (0.9, 0.9)}, "different ones"),
    ({"max_candidates": 0}, "max_candidates = 0"),
    ({"updates": 0}, "updates = 0 is below 1"),
    ({"threads": 0}, "threads = 0 is below 1"),
    ({"max_prompt_tokens": 1}, "has 2 tokens, the limit is 1"),
    ({"agent_config": ("soft_q.lrr=1",)}, "did you mean lr"),
    ({"agent_config": ("soft_q.gamma=0.5",)}, "an arm of its own: soft_q@gamma=0.5"),
    ({"agents": ("soft_q@batch_size=2",)}, "set --batch-size"),
    ({"agents": ("soft_q@gamma=0",), "reward": "induced_soft"}, "depends on γ"),
    ({"agents": ("soft_q@gama=0",)}, "did you mean gamma"),
    ({"agents": ("soft_q@gamma=2",)}, r"must lie in \[0, 1\]"),
    ({"agents": ("soft_q@n",)}, "not of the form"),
    ({"agent_config": ("soft_q.lr=abc",)}, "lr is 'abc'; it must be float"),
    ({"agent_config": ("soft_q.n=2.5",)}, "n is 2.5; it must be int"),
    ({"agent_config": ("kd.lr=0.5",)}, "does not run"),
    ({"prompts": Path("nowhere.txt")}, "does not exist"),
    ({"gamma": 1.5}, "gamma"),
    ({"device": "cuda:99"}, "device 'cuda:99' was asked for"),
    ({"teacher_dtype": "float64"}, "dtype 'float64' must be one of"),
]


@pytest.mark.parametrize(("changes", "says"), BAD, ids=[str(next(iter(change.items()))) for change, _ in BAD])
def test_bad_input_is_named_before_anything_is_written(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    config = small(tmp_path, **changes)
    with pytest.raises((InputError, AgentInputError), match=says):
        compare(config)
    assert not config.out.exists()


def test_long_prompts_are_left_out_on_request(tmp_path: Path) -> None:
    config = small(tmp_path, max_prompt_tokens=2, skip_bad=True)
    before = Workspace(config).splits
    config.prompts.write_text("\n".join([*PROMPTS, "1 2 3"]))
    after = Workspace(config).splits
    assert sorted(p.text for part in after for p in part) == sorted(p.text for part in before for p in part)


def test_changed_inputs_are_refused(tmp_path: Path) -> None:
    config = small(tmp_path, agents=("bc",))
    compare(config)
    assert config.prompts is not None
    config.prompts.write_text(config.prompts.read_text() + "\n5 5\n")
    with pytest.raises(InputError, match="have changed since"):
        compare(config)


def test_a_stopped_cell_refuses_other_settings_of_its_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(tmp_path, agents=("bc",))
    examine, measured = train.examine, []

    def stop_after_training(*args: Any) -> Any:
        """The start is measured, and the end of the process comes where the trained student would be."""
        measured.append(args)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return examine(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "examine", stop_after_training)
        compare(config)
    with pytest.raises(InputError, match=r"agent settings \{\}, now they are \{'lr': 0\.5\}"):
        compare(replace(config, agent_config=("bc.lr=0.5",)))


def test_one_command_at_a_time_runs_in_a_folder(tmp_path: Path) -> None:
    config = small(tmp_path)
    second = Workspace(config)
    with Workspace(config).opened(), pytest.raises(InputError, match="another command is running"), second.opened():
        raise AssertionError
    with second.opened():
        pass


def test_a_student_that_cannot_see_the_whole_text_is_refused(tmp_path: Path) -> None:
    teacher = save_tiny("llama", tmp_path / "teacher")
    prompts = tmp_path / "w.txt"
    prompts.write_text("\n".join(f"w{i} " * 30 for i in range(3, 20)))
    config = small(tmp_path, teacher=str(teacher), student=str(save_tiny("gpt2", tmp_path / "s")), prompts=prompts)
    compare_config = replace(config, max_new_tokens=200, agents=("bc",))
    assert Workspace(compare_config).check_student(Workspace(compare_config).student(0)) is None
    short = Workspace(compare_config).student(0)
    short.model.config.n_positions = short.model.config.max_position_embeddings = 64
    with pytest.raises(InputError, match="sees 64 tokens, the run needs 128"):
        Workspace(compare_config).check_student(short)


def test_a_student_is_not_measured_on_what_its_start_was_trained_on(tmp_path: Path) -> None:
    config = small(tmp_path, agents=("bc",))
    compare(config)
    start = config.out / "students/bc-seed0"
    again = replace(config, student=str(start), out=tmp_path / "again")
    compare(again)
    before, after = (
        set(json.loads((out / TRAINED_ON).read_text())) for out in (start, again.out / "students/bc-seed0")
    )
    assert before <= after
    (start / TRAINED_ON).write_text(json.dumps([prompt_hash(Workspace(config).splits.test[0].text)]))
    with pytest.raises(InputError, match="was trained on 1 of these"):
        compare(replace(again, out=tmp_path / "third"))


def test_the_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    config = small(tmp_path, agents=("bc",))
    compare(config)
    with pytest.raises(InputError, match="holds a run with updates = 6, this one has 7"):
        compare(replace(config, updates=7))
    with pytest.raises(InputError, match=r"agent settings \{\}, now they are \{'lr': 0\.5\}"):
        compare(replace(config, agent_config=("bc.lr=0.5",)))
    kept = (config.out / "config.yaml").read_text()
    (config.out / "config.yaml").write_text(kept.replace("dtype: float32\n", ""))  # of a version without it
    with pytest.raises(InputError, match="holds a run with dtype = 'float32', this one has 'bfloat16'"):
        compare(replace(config, dtype="bfloat16"))
    (config.out / "config.yaml").unlink()
    with pytest.raises(InputError, match="no run folder"):
        compare(config)
    with pytest.raises(InputError, match="is a file"):
        compare(replace(config, out=config.prompts))


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(tmp_path)
    write = train.write

    def full(path: Path, text: str) -> None:
        if "soft_q" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, text)

    with monkeypatch.context() as patch, pytest.raises(InputError, match="no space is left on the disk"):
        patch.setattr(train, "write", full)
        compare(config)
    assert (config.out / "cells/bc-p0.9-seed0/result.json").is_file()
    assert len(compare(config)) == 4


def test_one_agent_in_several_arms(tmp_path: Path) -> None:
    arms = ("soft_q", "soft_q@gamma=0", "soft_q@gamma=0.0,n=2", "kd@on=set")
    config = small(tmp_path, agents=arms, agent_config=("soft_q.lr=0.01",))
    rows = [row for row in compare(config) if row.agent in arms]
    assert [row.agent for row in rows] == list(arms)
    # Over one step the value behind it is discounted to nothing: n changes nothing at γ = 0, γ does at n = 1.
    whole, blind, blind_too, _ = (row.measures["forward_kl"] for row in rows)
    assert whole != blind and blind == blind_too
    assert (config.out / "students" / "soft_q@gamma=0-seed0" / "config.json").is_file()


def test_adapters_leave_plain_students(tmp_path: Path) -> None:
    config = small(tmp_path, agents=("kd@on=set", "soft_q"), lora=2, warm_start="kd", warm_start_rounds=1)
    compare(config)
    first, other = (
        load_file(config.out / "students" / f"{name}-seed0" / "model.safetensors") for name in config.agents
    )
    assert not [name for name in first if "lora" in name] and first.keys() == other.keys()
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])  # that does not learn
    with pytest.raises(InputError, match="lora = -1 is below 0; 0 learns all weights"):
        compare(replace(config, lora=-1))


def test_few_texts_at_a_time_and_resting_rows_learn_what_the_run_learns(tmp_path: Path) -> None:
    """Texts at a time change nothing; where all rows are in every batch, neither does it that others may rest."""
    config = small(tmp_path, agents=("kd@on=set",))
    found = []
    for name, changes in {"plain": {}, "few": {"micro_batch": 1}, "rest": {"resting_rows": True}}.items():
        own = replace(config, **changes, out=tmp_path / name)
        compare(own)
        found.append(Student.load(own.out / "students" / "kd@on=set-seed0").state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[2][name], value, atol=1e-4, rtol=1e-4)


def test_a_head_on_the_candidates_learns_as_the_whole_one_does(tmp_path: Path) -> None:
    """All others are drawn here, so that the weights are equal but for rounding; the log says how many rows it took."""
    config = small(tmp_path, agents=("kd@on=set",))
    found = []
    for head, negatives in (("all", 0), ("candidates", 6), ("candidates", 0)):
        own = replace(config, head=head, negatives=negatives, out=tmp_path / f"{head}-{negatives}")
        compare(own)
        found.append(Student.load(own.out / "students" / "kd@on=set-seed0").state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-4, rtol=1e-4)
    assert any(not torch.allclose(found[2][name], value, atol=1e-3) for name, value in found[0].items())
    with pytest.raises(AgentInputError, match="head rows are 'some'"):
        compare(replace(config, head="some"))
