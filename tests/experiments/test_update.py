"""A teacher that has changed: what is compared, kept and drawn anew, and what an update refuses."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from envs.candidates import top_p
from envs.errors import InputError
from envs.prompts import prompt_hash
from envs.table_teacher import TableTeacher
from envs.vector_env import TopPTokenVectorEnv
from experiments.__main__ import main
from experiments.collect import collect
from experiments.folder import alone
from experiments.store import draw as drawing
from experiments.store.draw import CollectConfig, draw
from experiments.store.shards import Store
from experiments.studies.changed_teacher import ChangedTeacherConfig, said, saved, study
from experiments.update import command, renew
from experiments.update.command import UpdateConfig, run_of
from experiments.update.drift import FEATURES, Suspicion, coarse_kl, packed, read, unpacked
from experiments.update.renew import ANY, SUSPECTED, Renewal, Round, Search, begin, next_kind
from tests.experiments.test_store import same

PROMPTS = ["1", "2", "3", "4", "1 2", "2 3", "3 4", "4 1", "1 3", "2 4", "5", "5 6", "1 1", "2 2", "3 3", "4 4"]
MOVED = {5, 6}


def topics() -> TableTeacher:
    """Tokens 1 to 4 are followed by one another, 5 and 6 by one another, or by the end."""
    table = np.zeros((7, 7))
    for group in ([1, 2, 3, 4], [5, 6]):
        for token in group:
            table[token, 0] = 0.2
            table[token, group] = 0.8 * np.array([(token + other) % 5 + 1 for other in group])
            table[token, group] /= table[token, group].sum() / 0.8
    table[0] = 1 / 7
    return TableTeacher(table, "topics")


def changed(teacher: TableTeacher, rows: set[int] = MOVED) -> TableTeacher:
    """The same teacher but for these states, which end three times in five."""
    table = teacher.probabilities.copy()
    for row in rows:
        table[row, 1:] *= 0.4 / table[row, 1:].sum()
        table[row, 0] = 0.6
    return TableTeacher(table, "changed")


def settings(folder: Path, **changes: Any) -> CollectConfig:
    (folder / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    own = CollectConfig(
        folder / "old",
        teacher="topics",
        prompts=folder / "prompts.txt",
        prompt_split="all",
        responses=4,
        top_p=0.8,
        max_new_tokens=6,
        logp="float32",
    )
    return replace(own, **changes)


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return stored(settings(tmp_path), topics(), monkeypatch)


def stored(own: CollectConfig, teacher: TableTeacher, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(drawing, "load_teacher", lambda name, loading: teacher)
    draw(own)
    return Store(own.out)


def renewed(old: Store, teacher: Any, out: Path, **changes: Any) -> Renewal:
    search = Search(**{"drift": 0.02, "round_size": 8, "seed": 0} | changes)
    return Renewal(old, teacher, out, begin(old, teacher, out, search), search)


def test_merged_outcomes_by_hand() -> None:
    """π = (.5, .3, .2), A = {0, 1}, π' = (.25, .25, .5): .25 ln(.25/.5) + .25 ln(.25/.3) + .5 ln(.5/.2)."""
    ids, mask = torch.tensor([[0, 1]]), torch.tensor([[True, True]])
    found = coarse_kl(torch.tensor([[0.25, 0.25, 0.5]]).log(), ids, torch.tensor([[0.5, 0.3]]).log(), mask)
    by_hand = 0.25 * math.log(0.5) + 0.25 * math.log(0.25 / 0.3) + 0.5 * math.log(2.5)
    assert found.item() == pytest.approx(by_hand, abs=1e-6)


def test_merging_never_raises_the_divergence_and_equals_it_on_the_whole_vocabulary() -> None:
    generator = torch.Generator().manual_seed(0)
    old, new = (torch.randn(200, 12, generator=generator).mul(2).log_softmax(-1) for _ in range(2))
    whole = (new.exp() * (new - old)).sum(1)
    for mass in (0.5, 0.9, 1.0):
        sets = top_p(old, mass, 12)
        found = coarse_kl(new, sets.ids, sets.logp, sets.mask)
        assert (found <= whole + 1e-5).all() and (found >= -1e-6).all()
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)
    assert coarse_kl(old, sets.ids, sets.logp, sets.mask).abs().max() < 1e-6


@pytest.mark.parametrize("reward", ["logprob", "topp_logprob"])
def test_reading_is_what_the_environment_says_of_the_same_texts(reward: str) -> None:
    sets: dict[str, Any] = {"top_p": 0.8, "max_new_tokens": 7, "reward": reward}
    prompts = [[1], [2, 3], [5, 6], [3, 1], [5]]
    walks = collect(TopPTokenVectorEnv(5, teacher=topics(), prompts=prompts, **sets), 5, seed=3)
    ends = (walks.prompt_length + walks.length).tolist()
    said = {
        tuple(row[:start]): [row[start:end]]
        for row, start, end in zip(walks.tokens.tolist(), walks.prompt_length.tolist(), ends, strict=True)
    }
    new = changed(topics(), {1, 5})
    again = collect(TopPTokenVectorEnv(5, teacher=new, prompts=prompts, **sets), 5, seed=3, recited=said)
    found = read(walks, new, 0.8, 64, reward)
    same(found.episodes.select(range(5)), again, 1e-5)
    for row, episode in enumerate(walks.tokens.tolist()):
        visited = [
            episode[at - 1] for at in range(int(walks.prompt_length[row]), ends[row] + (not walks.terminated[row]))
        ]
        assert (found.drift[row] > 1e-3) == bool({1, 5} & set(visited))


def test_suspicion_falls_on_what_drifted_episodes_have_in_common() -> None:
    known = np.zeros((4, FEATURES), dtype=bool)
    known[:2, 7], known[2:, 9], known[:, 1] = True, True, True
    suspicion = Suspicion()
    suspicion.learn(known, np.array([1.0, 0.8, 0.0, 0.1]))
    unknown = np.zeros((3, FEATURES), dtype=bool)
    unknown[0, 9], unknown[1, 20], unknown[2, 7] = True, True, True
    assert suspicion.order(packed(unknown)).tolist() == [2, 1, 0]
    assert (unpacked(packed(unknown)) == unknown).all()


def test_what_is_compared_next() -> None:
    def after(*rounds: tuple[str, float]) -> str:
        return next_kind(
            [
                Round(kind, list(range(16)), [1.0] * int(16 * share) + [0.0] * (16 - int(16 * share)), [0.0] * 16)
                for kind, share in rounds
            ],
            0.5,
        )

    assert after() == ANY
    assert after((ANY, 0.0)) == SUSPECTED == after((ANY, 0.3)) == after((ANY, 0.3), (SUSPECTED, 0.5))
    assert after((ANY, 0.3), (SUSPECTED, 0.0)) == ANY
    assert after((ANY, 0.3), (SUSPECTED, 0.0), (ANY, 0.0)) == "" == after((ANY, 0.5))
    assert after((ANY, 0.3), (SUSPECTED, 0.0), (ANY, 0.2)) == SUSPECTED


def test_only_what_has_drifted_is_drawn_anew(old: Store, tmp_path: Path) -> None:
    new = changed(topics())
    found = renewed(old, new, tmp_path / "new")
    figures = found.run()
    store = Store(tmp_path / "new", new)
    assert len(store) == len(old) == figures["redrawn"] + figures["relabelled"] + figures["kept"]
    assert figures["redrawn"] == 8 and figures["kept"] > 0 and figures["drift_left"] == 0
    assert 0 < figures["saved"] < figures["saved_walked"] < 1
    prompts = [old.columns["prompt"][row].tolist() for row in range(len(old))]
    assert found.drifted == [row for row, prompt in enumerate(prompts) if MOVED & set(prompt)]
    assert sorted(store.columns["prompt"][row].tolist() for row in range(len(store))) == sorted(prompts)
    assert store.prompts == old.prompts == {prompt_hash(text) for text in PROMPTS}
    kept = len(found.kept)  # kept-… sorts before redrawn-… and relabelled-…
    same(store.select(range(kept)), old.select(found.kept))
    others = store.select(range(kept, len(store)))
    last = others.tokens.gather(1, (others.prompt_length - 1)[:, None])[:, 0]
    whole = torch.from_numpy(new.table)[last].float().gather(1, others.ids[:, 0])
    torch.testing.assert_close(others.logp[:, 0][others.mask[:, 0]], whole[others.mask[:, 0]])
    texts = store.select(range(len(store)))  # what a whole new store would have, as long as this one
    tokens = float((texts.prompt_length + texts.length).sum())
    assert figures["saved"] == pytest.approx(1 - (figures["read"] + figures["walked"]) / tokens)


def test_where_most_has_drifted_the_rest_is_drawn_unseen(old: Store, tmp_path: Path) -> None:
    figures = renewed(old, changed(topics(), {1, 2, 3, 4}), tmp_path / "new").run()
    assert figures["compared"] == 8 and figures["redrawn"] > len(old) - 8 and figures["kept"] == 0
    assert "drift_left" not in figures


@pytest.mark.parametrize("writes", range(4))
def test_a_stopped_update_goes_on(writes: int, old: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, real, calls = changed(topics()), renew.write_shard, list[int]()
    figures = renewed(old, new, tmp_path / "whole").run()

    def stopping(*arguments: Any) -> Any:
        if len(calls) == writes:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(renew, "write_shard", stopping)
    with pytest.raises(KeyboardInterrupt):
        renewed(old, new, tmp_path / "cut").run()
    monkeypatch.setattr(renew, "write_shard", real)
    assert renewed(old, new, tmp_path / "cut").run() == figures
    for path in (tmp_path / "whole").glob("*.arrow"):
        assert (tmp_path / "cut" / path.name).read_bytes() == path.read_bytes()
    monkeypatch.setattr(renew, "write_shard", never)
    assert renewed(old, new, tmp_path / "cut").run() == figures


def test_what_a_round_has_found_is_known_before_its_shard_is_written(
    old: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second reading that differs in its last digits must not put an episode on the other side of the threshold."""
    new = changed(topics())
    found = renewed(old, new, tmp_path / "cut", drift=1e-9)
    monkeypatch.setattr(renew, "write_shard", lambda *arguments: stop())
    with pytest.raises(KeyboardInterrupt):
        found.run()
    monkeypatch.undo()
    again = renewed(old, new, tmp_path / "cut", drift=1e-9)
    assert len(again.rounds) == 1 and again.rounds[0].drift == found.rounds[0].drift


def stop() -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.parametrize("left", [0.0, 0.009, 0.011])
def test_texts_that_the_new_teacher_hardly_says_are_drawn_anew(left: float, old: Store, tmp_path: Path) -> None:
    """Token 6 after 5 loses all but a share of its mass, and no state moves by the threshold; 1/100 is the limit."""
    table = topics().probabilities.copy()
    lost = table[5, 6] * (1 - left)
    table[5, 6] -= lost
    table[5, 5] += lost
    found = renewed(old, TableTeacher(table, "patched"), tmp_path / "new", drift=10.0, round_size=64)
    found.run()
    texts = old.select(range(len(old)))
    says = [
        any(row[at - 1] == 5 and row[at] == 6 for at in range(start, start + length))
        for row, start, length in zip(
            texts.tokens.tolist(), texts.prompt_length.tolist(), texts.length.tolist(), strict=True
        )
    ]
    assert any(says) and max(found.rounds[0].drift) < 10.0
    assert found.drifted == ([row for row, said in enumerate(says) if said] if left < 0.01 else [])


def test_what_has_fallen_is_looked_for_as_what_has_drifted() -> None:
    one = Round(ANY, [0, 1, 2], [0.3, 0.0, 0.0], [0.0, 9.0, 1.0])
    assert one.strength(0.05).tolist() == [0.3, 0.1, 0.0] and one.moved(0.05).tolist() == [True, True, False]
    assert one.share(0.05) == pytest.approx(2 / 3)


def never(*arguments: Any) -> NoReturn:
    raise AssertionError("nothing was missing")


def test_a_damaged_shard_is_made_anew_alone(old: Store, tmp_path: Path) -> None:
    new, out = changed(topics()), tmp_path / "new"
    renewed(old, new, out).run()
    before = {path: path.read_bytes() for path in out.glob("*.arrow")}
    damaged = sorted(before)[-1]
    damaged.write_bytes(before[damaged][:-1])
    with pytest.raises(InputError, match="is cut short"):
        Store(out)
    renewed(old, new, out).run()
    assert {path: path.read_bytes() for path in out.glob("*.arrow")} == before


def test_what_cannot_be_updated_is_said(old: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, out = changed(topics()), tmp_path / "new"
    with pytest.raises(InputError, match="there is nothing to update"):
        renewed(old, topics(), out)
    with pytest.raises(InputError, match="has vocab_size 7, the new one 8"):
        renewed(old, TableTeacher(np.full((8, 8), 1 / 8), "wide"), out)
    assert not out.exists()
    renewed(old, new, out)
    with pytest.raises(InputError, match="one updated otherwise"):
        renewed(old, new, out, drift=0.5)
    with pytest.raises(InputError, match="is not empty and holds no store"):
        renewed(old, new, tmp_path)
    with pytest.raises(InputError, match="holds a store with updated_from"):
        stored(settings(tmp_path, out=out, teacher="changed"), new, monkeypatch)
    induced = stored(settings(tmp_path, out=tmp_path / "induced", reward="induced_soft"), topics(), monkeypatch)
    with pytest.raises(InputError, match="only logprob and topp_logprob follow"):
        renewed(induced, new, tmp_path / "other")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="file is a file"):
        renewed(old, new, tmp_path / "file")
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "store.json.partial").write_text("{", encoding="utf-8")
    brief, shard = renewed(old, new, begun), next(old.folder.glob("*.arrow"))
    monkeypatch.setattr(brief.teacher, "context_limit", 4, raising=False)
    with pytest.raises(InputError, match=r"the longest text of .* tokens, changed reads 4"):
        brief.run()
    monkeypatch.undo()
    brief.run()
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="the same `tdistill collect` draws it anew"):
        Store(old.folder)
    shard = next(begun.glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match="the same `tdistill update` draws it anew"):
        Store(begun)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give it with --store"),
        (["--store", "old", "--teacher", "none", "--student", "tiny"], "give it with --teacher"),
        (["--store", "old", "--teacher", "table:toy"], "or that of what it began as, with --student"),
        (["--store", "old", "--student", "tiny", "--drift", "0"], "drift = 0.0 nats must be above 0"),
        (["--store", "old", "--student", "tiny", "--round-size", "1"], "round_size = 1 is below 2"),
        (["--store", "old", "--student", "tiny"], "no store in old"),
    ],
)
def test_settings_that_are_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["update", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_student_goes_on_from_the_new_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = stored(settings(tmp_path, prompt_split="train"), topics(), monkeypatch)
    for place in ("experiments.update.command", "experiments.workspace"):
        monkeypatch.setattr(f"{place}.load_teacher", lambda name, loading: changed(topics()))
    out = tmp_path / "own"
    prompts = tmp_path / "prompts.txt"
    own = UpdateConfig(store=old.folder, student="tiny", teacher="changed", prompts=prompts, eval_prompts=2, out=out)
    run = run_of(replace(own, gamma=0.5))
    assert (run.top_p, run.max_new_tokens, run.gamma) == (0.8, 6, 0.5)
    assert (run.store, run.out) == (out / "store", out / "run")
    words = f"--store {old.folder} --student tiny --teacher changed --prompts {tmp_path / 'prompts.txt'} --out {out}"
    with pytest.raises(InputError, match=r"prompts.txt is a file; give another --out"):
        command.renew(replace(own, out=prompts))
    for changes, says in (
        ({"protect": prompts}, "an update does not know"),
        ({"reward": "induced_soft"}, "only logprob"),
    ):
        other = stored(settings(tmp_path, out=tmp_path / str(len(says)), **changes), topics(), monkeypatch)
        with pytest.raises(InputError, match=says):  # and not that the run has other settings
            command.renew(replace(own, store=other.folder))
    (tmp_path / "busy").mkdir()
    with alone(tmp_path / "busy", "testing"), pytest.raises(InputError, match="another command is updating"):
        command.renew(replace(own, out=tmp_path / "busy"))
    words += " --round-size 4 --updates 2 --batch-size 4 --eval-prompts 2 --agent bc"
    for wrong, says in {
        "--agent nosuch": "unknown agent 'nosuch'",
        "--student nowhere": "no student 'nowhere'",
        "--updates 0": "updates = 0 is below 1",
        "--targets references": "learn from references without --store",
        "--prompts nowhere.txt": "'nowhere.txt' does not exist",
        "--seed -1": "seed = -1 is below 0",
        "--top-p 0.7": r"top_p = 0.7: the store .* has 0.8, and an update keeps it",
        "--copy-prompt": "have no extra tokens, the run's",
    }.items():  # before the teacher is asked anything
        assert main(["update", *words.split(), *wrong.split()]) == 2
        assert re.search(says, capsys.readouterr().err) and not (out / "store").exists()
    held = stored(settings(tmp_path, out=tmp_path / "held"), topics(), monkeypatch).folder  # of all prompts
    assert main(["update", *words.replace(str(old.folder), str(held)).split()]) == 2
    assert "which the run measures on" in capsys.readouterr().err
    (out / "run").mkdir(parents=True)
    (out / "run" / "config.yaml").write_text("agent: soft_q\n", encoding="utf-8")
    assert main(["update", *words.split()]) == 2
    assert "holds a run with teacher = 'embedded', this one has 'changed'" in capsys.readouterr().err
    (out / "run" / "config.yaml").unlink()
    assert not (out / "store").exists()
    assert main(["update", *words.split()]) == 0
    figures = json.loads((out / "update.json").read_text(encoding="utf-8"))["figures"]
    assert {"saved", "saved_walked"} <= {one["name"] for one in figures}
    assert (out / "run" / "students" / "bc-seed0" / "config.json").is_file()


def test_the_study_says_by_hand_what_was_saved() -> None:
    """Two seeds: differences .01 and .03, mean .02 ± 12.706 · .01414/√2 = .127; 300 of 400 and 500 of 600 tokens."""
    common = {"forward_kl appointment": 0.5, "task_score": 0.4}
    found = [
        {
            "before": {"forward_kl": 0.9, **common},
            "update": {"forward_kl": 0.21, "read": 200.0, "walked": 100.0, **common},
            "again": {"forward_kl": 0.2, "read": 200.0, "walked": 200.0, **common},
        },
        {
            "before": {"forward_kl": 0.7, **common},
            "update": {"forward_kl": 0.23, "read": 400.0, "walked": 100.0, **common},
            "again": {"forward_kl": 0.2, "read": 200.0, "walked": 400.0, **common},
        },
    ]
    for own in found:
        own["anew"] = own["again"] | {"forward_kl": 0.5}
        own["begun"] = own["update"] | {"forward_kl": 0.51}
    config = ChangedTeacherConfig(Path("unused"))
    text = said(config, found)
    paired = next(line for line in text.splitlines() if "goes on − store drawn anew, old" in line)
    assert paired.replace(" ", "").split("|")[2:5] == ["+0.020±0.127", "+0.000±0.000", "+0.000±0.000"]
    goes_on, anew = "“store updated, old student goes on” is", "“store drawn anew, old student goes on”"
    assert f"{goes_on} not shown to be as good beside {anew}" in text
    assert "nats: “store updated, student begun anew” is as good beside “store drawn anew, student begun anew”" in text
    assert f"; {anew} is better beside “store drawn anew, student begun anew”" in text
    assert saved(found[0], ("read", "walked")) == 0.25 and saved(found[1], ("walked",)) == 0.75
    found[1]["update"]["forward_kl"] = 0.21
    assert f"; {goes_on} as good beside {anew}" in said(replace(config, margin=0.011), found)
    assert "not shown" in said(replace(config, margin=0.009), found)
    with pytest.raises(InputError, match="seeds = 1 gives no interval"):
        study(replace(config, seeds=1))
