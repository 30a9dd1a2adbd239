"""The teacher store: what is written is what is read, nothing is lost or drawn twice, and damage is named."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.episodes import Episodes
from envs.engine import cache_is_exact
from envs.errors import InputError
from envs.hf_teacher import load_causal_lm
from envs.prefill import Prefills
from envs.teachers import EMBEDDED, load_teacher
from envs.vector_env import TopPTokenVectorEnv
from experiments.__main__ import main
from experiments.collect import collect
from experiments.store import draw as drawing
from experiments.store.columns import Format, decode, encode
from experiments.store.draw import CollectConfig, draw
from experiments.store.fingerprint import fingerprint
from experiments.store.shards import Manifest, Store
from tests.agents.test_episodes import fields
from tests.experiments.runs import prompts_file


def walks(count: int = 12, teacher: str = "table:toy", **settings: Any) -> Episodes:
    own: dict[str, Any] = {"top_p": 0.8, "max_new_tokens": 7, **settings}
    walk = {"teacher_walk": own.pop("teacher_walk", "full")}
    env = TopPTokenVectorEnv(4, teacher=teacher, prompts=[[1], [2, 3], [5, 1, 4]], **own)
    return collect(env, count, seed=1, **walk)


def config(folder: Path, **changes: Any) -> CollectConfig:
    own = CollectConfig(
        folder / "store",
        teacher="table:toy",
        prompts=prompts_file(folder),
        prompt_split="all",
        responses=2,
        top_p=0.8,
        max_new_tokens=6,
        shard=5,
        rows=4,
    )
    return replace(own, **changes)


def same(ours: Episodes, theirs: Episodes, near: float = 0.0) -> None:
    for name, value in theirs.fields().items():
        torch.testing.assert_close(ours.fields()[name], value, atol=near, rtol=0, msg=name)


@pytest.mark.parametrize("reward", ["logprob", "topp_logprob", "induced_soft"])
@pytest.mark.parametrize("teacher_walk", ["full", "set"])
def test_episodes_come_back_as_they_were(reward: str, teacher_walk: str) -> None:
    own = walks(reward=reward, teacher_walk=teacher_walk, gamma=0.5)
    form = Format(6, "float32", reward, teacher_walk)
    assert bool((~own.in_set & own.steps).any()) == (teacher_walk == "full") and own.terminated.any()
    assert (~own.terminated).any()
    same(decode(encode(own, form), range(len(own)), form, 0.5), own, near=1e-6)
    some = [7, 2, 7]
    same(decode(encode(own, form), some, form, 0.5), own.select(some), near=1e-6)


def test_columns_by_hand() -> None:
    """[5] 3 2 (ended) and [4 5] 7 (outside, then cut): two candidates of which slot 0 is 16·2 + 1; the end is 0."""
    own = replace(Episodes(**fields()), from_teacher=torch.tensor([True, True]))
    found = {name: lists.values.tolist() for name, lists in encode(own, Format(8)).items()}
    assert found["steps"] == [33, 17, 0, 32, 32] and found["prompt"] == [5, 4, 5]
    assert found["ids"] == [3, 6, 2, 3, 6, 6, 3] and found["outside"] == [7] and found["wide"] == []
    assert found["outside_logp"] == [-3.0] and encode(own, Format(8))["ids"].values.dtype == np.uint8


def test_sets_too_wide_for_a_byte_are_kept_too() -> None:
    own = walks(teacher="embedded", top_p=0.999, max_candidates=40, max_new_tokens=9)
    assert int(own.mask.sum(-1).max()) > 15
    form = Format(2048, "float32")
    columns = encode(own, form)
    assert len(columns["wide"].values) and columns["ids"].values.dtype == np.uint16
    same(decode(columns, range(len(own)), form, 1.0), own, near=1e-6)


def test_half_precision_is_off_by_what_it_says() -> None:
    """2⁻¹¹ of a value at most: .004 nats at 4 to 8 nats."""
    own = walks(teacher="embedded", top_p=0.99, max_new_tokens=9)
    found = decode(encode(own, Format(2048)), range(len(own)), Format(2048), 1.0)
    off = (found.logp - own.logp).abs()[own.mask]
    assert 0 < float((off / own.logp[own.mask].abs().clamp(min=1e-4)).max()) <= 2**-11 + 1e-6
    middle = (own.logp[own.mask] < -4) & (own.logp[own.mask] > -8)
    assert middle.any() and float(off[middle].max()) <= 0.004


def test_a_store_holds_every_prompt_as_often_as_asked(tmp_path: Path) -> None:
    own = config(tmp_path)
    found = draw(own)
    store = Store(own.out, load_teacher("table:toy"))
    assert found["episodes"] == len(store) == 28 and len(store.names) == 3 and len(store.dataset) == 28
    begun = [tuple(row["prompt"]) for row in store.dataset]
    assert begun == [
        tuple(map(int, line.split())) for line in (tmp_path / "prompts.txt").read_text().split("\n") for _ in (0, 1)
    ]
    everything = store.select(range(28), gamma=0.5)
    assert int(everything.length.sum()) == found["tokens"] and float(everything.discounts.max()) == 0.5
    mixed = [27, 0, 13, 13, 9]
    same(store.select(mixed, 0.5), everything.select(mixed))


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("where", ["write_shard", "manifest"])
def test_a_stopped_collection_goes_on_without_loss_or_double(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, where: str
) -> None:
    """Stopped as a shard is drawn, or between the shard and its line in the manifest."""
    whole = config(tmp_path, out=tmp_path / "whole")
    draw(whole)
    own, calls, write = config(tmp_path), [0], drawing.write_shard

    def stops(path: Path, *given: Any) -> Any:
        calls[0] += 1
        if where == "write_shard" and calls[0] == after + 1:
            path.with_name(path.name + ".partial").write_bytes(b"half")
            raise Stop
        line = write(path, *given)
        if calls[0] == after + 1:
            raise Stop
        return line

    with monkeypatch.context() as patch:
        patch.setattr(drawing, "write_shard", stops)
        with pytest.raises(Stop):
            draw(own)
    assert len(Manifest.read(own.out).shards) == after
    draw(own)
    for shard in whole.out.glob("shard-*.arrow"):
        assert (own.out / shard.name).read_bytes() == shard.read_bytes()
    assert Manifest.read(own.out).shards == Manifest.read(whole.out).shards


def test_kill_9_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    """Killed as often as shards appear, a collection ends with the bytes of one that never was."""
    whole = config(tmp_path, out=tmp_path / "whole", shard=2)
    draw(whole)
    out, kills = tmp_path / "killed", 0
    words = f"--out {out} --teacher table:toy --prompts {tmp_path / 'prompts.txt'} --shard 2 --responses 2"
    words += f" --prompt-split all --top-p {whole.top_p} --max-new-tokens {whole.max_new_tokens} --rows {whole.rows}"
    while True:
        held = len(list(out.glob("*.arrow")))
        with subprocess.Popen([sys.executable, "-m", "experiments", "collect", *words.split()]) as process:
            while process.poll() is None and (kills == 3 or len(list(out.glob("*.arrow"))) <= held):
                time.sleep(0.001)
            if process.poll() is not None:
                break
            process.kill()
            kills += 1
    assert process.returncode == 0 and kills >= 1
    assert {path.name: path.read_bytes() for path in out.glob("*.arrow")} == {
        path.name: path.read_bytes() for path in whole.out.glob("*.arrow")
    }
    assert Manifest.read(out).shards == Manifest.read(whole.out).shards


def test_several_replies_to_a_prompt_read_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, reads = Prefills._read, list[tuple[int, ...]]()
    assert cache_is_exact(load_teacher("embedded").model)  # its probe, asked once, reads too

    def counted(self: Prefills, prompts: list[tuple[int, ...]]) -> Any:
        reads.extend(prompts)
        return read(self, prompts)

    monkeypatch.setattr(Prefills, "_read", counted)
    found = draw(CollectConfig(out=tmp_path / "store", count=10, responses=5, rows=4, max_new_tokens=4, shard=10))
    assert found["episodes"] == 50
    assert len(reads) == len(set(reads)) == 10


def test_a_damaged_shard_is_named_and_drawn_anew_alone(tmp_path: Path) -> None:
    own = config(tmp_path)
    draw(own)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(own.out.glob("shard-*.arrow"))}
    damaged = own.out / "shard-00001.arrow"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    for broken, said in ((bytes(content), "is damaged"), (bytes(content[:-9]), "cut short"), (b"", "cut short")):
        damaged.write_bytes(broken)
        with pytest.raises(InputError, match=rf"shard-00001\.arrow .*{said}.*draws it anew, alone"):
            Store(own.out)
        draw(own)
        assert {path: path.read_bytes() for path in before} == {path: old for path, (old, _) in before.items()}
    damaged.unlink()
    with pytest.raises(InputError, match=r"shard-00001\.arrow is missing"):
        Store(own.out)
    draw(own)
    others = [path for path in before if path != damaged]
    assert all(path.stat().st_mtime_ns == before[path][1] for path in others)
    assert damaged.read_bytes() == before[damaged][0]


def test_a_disk_that_fills_up_in_the_middle_of_a_shard_loses_nothing(tmp_path: Path) -> None:
    """The shard's bytes go to /dev/full, which takes none of them."""
    own = config(tmp_path)
    draw(own)
    whole = {path: path.read_bytes() for path in own.out.glob("shard-*.arrow")}
    partial = own.out / "shard-00001.arrow.partial"
    (own.out / "shard-00001.arrow").unlink()
    partial.symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"no space is left on the disk of .*store .* give the same command again"):
        draw(own)
    assert not (own.out / "shard-00001.arrow").exists()
    assert (own.out / "shard-00000.arrow").read_bytes() == whole[own.out / "shard-00000.arrow"]
    partial.unlink()
    draw(own)
    assert {path: path.read_bytes() for path in own.out.glob("shard-*.arrow")} == whole


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    own = config(tmp_path)
    with pytest.raises(InputError, match="no store in"):
        Store(own.out)
    draw(own)
    with pytest.raises(InputError, match="drawn from another teacher: its weights is"):
        Store(own.out, load_teacher("table:detour"))
    with pytest.raises(InputError, match=r"holds a store with top_p = 0\.8, this one has 0\.7"):
        draw(replace(own, top_p=0.7))
    (tmp_path / "prompts.txt").write_text("1\n2\n3", encoding="utf-8")
    with pytest.raises(InputError, match="holds a store with prompts = "):
        draw(own)
    for changes, said in (
        ({"logp": "int8"}, "logp = 'int8'"),
        ({"shard": 0}, "shard = 0 is below 1"),
        ({"seed": -1}, "seed = -1 is below 0"),
        ({"prompt_split": "dev"}, "prompt_split = 'dev'"),
        ({"teacher_walk": "greedy"}, "teacher_walk = 'greedy'"),
        ({"out": tmp_path}, "holds no store.json, so it is no store"),
        ({"out": tmp_path / "prompts.txt"}, "is a file"),
    ):
        with pytest.raises(InputError, match=said):
            draw(replace(own, **changes))
    (own.out / "store.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="is no manifest of a store"):
        Store(own.out)


def test_a_store_that_was_killed_before_it_had_a_manifest_is_begun_again(tmp_path: Path) -> None:
    own = config(tmp_path)
    own.out.mkdir()
    (own.out / "store.json.partial").write_text("{", encoding="utf-8")
    assert draw(own)["episodes"] == len(Store(own.out))


def test_fingerprints_tell_teachers_apart_and_know_one_again() -> None:
    embedded = load_teacher("embedded")
    again = load_teacher(load_causal_lm(EMBEDDED))  # another object of the same files
    assert again is not embedded and fingerprint(again) == fingerprint(embedded)
    assert fingerprint(load_teacher("table:toy"))["weights"] != fingerprint(load_teacher("table:detour"))["weights"]
    before = fingerprint(embedded)["weights"]
    weight = next(embedded.model.parameters())
    with torch.no_grad():
        weight[0, 0] += 1e-3
        changed = fingerprint(embedded)["weights"]
        weight[0, 0] -= 1e-3
    assert changed != before


def test_the_command_says_what_a_token_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "store"
    words = ["collect", "--out", str(out), "--count", "96", "--json", str(tmp_path / "figures.json")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    figures = {
        entry["name"]: entry["value"] for entry in json.loads((tmp_path / "figures.json").read_text())["figures"]
    }
    assert "bytes_per_token" in printed and figures["prompts"] == 96
    assert figures["bytes_over_candidates"] <= 1.3
    assert main([*words, "--top-p", "0.8"]) == 2


def test_a_missing_extra_is_said_before_the_teacher_walks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'tdistill\[store\]'"):
        draw(config(tmp_path))
    assert not (tmp_path / "store").exists()
