"""Runs that learn from a store: as from the episodes themselves, and without the teacher where they can."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.episodes import Episodes
from agents.student import Student
from envs.errors import InputError
from experiments.compare import compare
from experiments.config import CompareConfig
from experiments.store.draw import CollectConfig, draw
from experiments.store.shards import Store, Stored
from experiments.workspace import Workspace
from tests.envs.models import save_tiny, tiny_model, tiny_tokenizer
from tests.experiments.runs import small


def stored(folder: Path, **changes: Any) -> CollectConfig:
    """Replies to the training prompts of `small`."""
    own = CollectConfig(
        folder / "store",
        teacher="table:toy",
        prompts=small(folder).prompts,
        responses=4,
        max_new_tokens=6,
        shard=3,
        rows=4,
        logp="float32",
    )
    own = replace(own, **changes)
    draw(own)
    return own


def test_learning_from_a_store_is_learning_from_its_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stored(tmp_path).out
    config = small(tmp_path, agents=("bc", "kd", "soft_q"), store=store)
    compare(config)
    whole = Store(store).select(range(len(Store(store))))
    monkeypatch.setattr(Workspace, "episodes", lambda space, seed, top_p: whole)
    beside = replace(config, store=None, episodes=len(whole), out=tmp_path / "beside")
    compare(beside)
    for agent in config.agents:
        ours, theirs = (Student.load(own.out / "students" / f"{agent}-seed0").state_dict() for own in (config, beside))
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    rows = list(csv.DictReader((config.out / "results.csv").open()))
    assert {row["teacher_tokens"] for row in rows if row["agent"] in ("bc", "soft_q")} == {
        str(float(whole.length.sum()))
    }


def test_an_offline_agent_needs_no_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPT-2 walks and is gone: its directory is not there any more when its student learns."""
    teacher = save_tiny("gpt2", tmp_path / "teacher")
    prompts = tmp_path / "texts.txt"
    words = ["w3", "w4", "w5", "w6", "w7"]
    prompts.write_text("\n".join(f"{a} {b}" for a in words for b in words), encoding="utf-8")
    own = CollectConfig(tmp_path / "store", teacher=str(teacher), prompts=prompts, max_new_tokens=6, shard=8, rows=4)
    draw(own)
    for path in sorted(teacher.rglob("*"), reverse=True):
        path.unlink()
    config = small(tmp_path, teacher="none", store=own.out, prompts=prompts, agents=("bc", "soft_q"))
    rows = compare(config)
    assert [row.agent for row in rows] == ["start", "bc", "soft_q"]
    measures = rows[1].measures
    assert {"length", "greedy_length", "tokens_per_second"} <= measures.keys()
    assert not {"forward_kl", "reverse_kl", "leak", "speed_up"} & measures.keys()
    assert rows[1].curve[-1]["updates"] == config.updates
    student = Student.load(config.out / "students" / "bc-seed0")
    assert student.tokenizer is not None
    with pytest.raises(InputError, match="kd asks the teacher its whole distributions while it learns"):
        compare(replace(config, agents=("kd",), out=tmp_path / "kd"))
    with pytest.raises(InputError, match="ppo asks the teacher about the student's own walks"):
        compare(replace(config, agents=("ppo",), out=tmp_path / "ppo"))
    with pytest.raises(InputError, match="--teacher none learns from a store"):
        compare(replace(config, store=None, out=tmp_path / "no"))
    with pytest.raises(InputError, match="--warm-start bc goes on while the KL to the teacher falls"):
        compare(replace(config, warm_start="bc", out=tmp_path / "warm"))
    with pytest.raises(InputError, match="device 'cuda:99' was asked for"):
        compare(replace(config, device="cuda:99", out=tmp_path / "warm"))
    assert not (tmp_path / "warm").exists()


def test_a_store_that_does_not_fit_the_run_is_refused(tmp_path: Path) -> None:
    own = stored(tmp_path)
    config: CompareConfig = small(tmp_path, store=own.out)
    for changes, said in (
        ({"top_p": (0.8,)}, r"drawn with top_p = 0\.9, the run has 0\.8"),
        ({"top_p": (0.9, 0.8)}, r"has one top_p, 0\.9"),
        ({"max_new_tokens": 5}, "drawn with max_new_tokens = 6, the run has 5"),
        ({"reward": "topp_logprob"}, "drawn with reward = 'logprob'"),
        ({"store": tmp_path / "nowhere"}, "no store in"),
    ):
        with pytest.raises(InputError, match=said):
            compare(replace(config, **changes))
    everything = stored(tmp_path, out=tmp_path / "everything", prompt_split="all")
    with pytest.raises(InputError, match="which the run measures on"):
        compare(replace(config, store=everything.out))


@pytest.mark.parametrize("agent", ["bc", "kd", "soft_q"])
def test_vocabularies_that_are_padded_differently(tmp_path: Path, agent: str) -> None:
    """A padded row with mass and no row in the student is named; a student that is padded further learns."""
    for name, rows, seed in (("teacher", 104, 0), ("narrow", 100, 1), ("wide", 112, 2)):
        tiny_model("llama", rows, seed).save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    lines = [f"w{number} w{number + 1}" for number in range(3, 40)]
    (tmp_path / "words.txt").write_text("\n".join(lines), encoding="utf-8")
    common = {"teacher": str(tmp_path / "teacher"), "prompts": tmp_path / "words.txt", "max_new_tokens": 6}
    own = CollectConfig(out=tmp_path / "store", **common)
    draw(own)
    config = replace(small(tmp_path, agents=(agent,), store=own.out, updates=4), **common)
    with pytest.raises(InputError, match=r"gives mass to token 1\d\d, the student's vocabulary has 100 rows"):
        compare(replace(config, student=str(tmp_path / "narrow")))
    rows = compare(replace(config, student=str(tmp_path / "wide"), out=tmp_path / "wider"))
    assert all(math.isfinite(row.measures["forward_kl"]) for row in rows)
    begun, learnt = (Student.load(place) for place in (tmp_path / "wide", tmp_path / f"wider/students/{agent}-seed0"))
    assert learnt.vocab_size == 112 and not torch.equal(*(own.model.lm_head.weight for own in (begun, learnt)))


def test_a_run_goes_on_with_its_store_alone(tmp_path: Path) -> None:
    own = stored(tmp_path)
    config = small(tmp_path, store=own.out)
    compare(config)
    other = stored(tmp_path, out=tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="holds a run with store"):
        compare(replace(config, store=other.out))


def test_stored_episodes_know_what_their_shards_know(tmp_path: Path) -> None:
    found = Stored(Store(stored(tmp_path).out))
    whole: Episodes = found.select(range(len(found)))
    assert found.tokens == int(whole.length.sum())
    assert found.min_mass == pytest.approx(float(whole.log_mass[whole.states].min().exp()), abs=1e-6)
    assert float(found.discounted(0.5).select([0]).discounts.max()) <= 0.5
