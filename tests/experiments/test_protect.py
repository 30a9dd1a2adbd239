"""A run that protects words: settings, sets of walks and measures, stores, what cannot be protected."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from agents.episodes import PAD_LOGP, Episodes
from envs.errors import InputError
from envs.lexicon import compiled
from envs.prompts import Prompt
from envs.teachers import WARM_START, Teacher, load_teacher
from experiments import evaluate as module
from experiments import protect
from experiments.__main__ import main
from experiments.compare import compare
from experiments.config import CompareConfig, EvaluateConfig, dump, from_mapping, read_yaml
from experiments.evaluate import Rule, along
from experiments.evaluate import run as evaluate
from experiments.store.draw import CollectConfig, draw
from experiments.store.shards import MANIFEST, Store
from experiments.studies.rare_words import RareWordsConfig, codes_of, of_sets, study, table
from experiments.workspace import Workspace
from tests.experiments.runs import prompts_file, small


def lexicon(folder: Path, *words: str) -> Path:
    path = folder / "lexicon.txt"
    path.write_text("\n".join(words) + "\n", encoding="utf-8")
    return path


def test_nothing_is_protected_unless_asked_for(tmp_path: Path) -> None:
    config = small(tmp_path)
    assert protect.extras_of(config, load_teacher("table:toy")) is None and protect.digest_of(config, None) == ""
    assert Workspace(config).rule(0.5) == Rule(0.5, 64, 6)


def test_what_is_low_in_frequency() -> None:
    """Twenty tokens: 1 ten times, 2 eight, 3 and 4 once: a tenth are 3 and 4; 5 is never there, 0 ends texts."""
    prompts = [Prompt("1 1 1 1 1 2 2 2 2 3", references=("1 1 1 1 1 2 2 2 2 4",))]
    found = protect.low_frequency(load_teacher("table:toy"), prompts)
    assert found.tolist() == [False, False, False, True, True, True]
    teacher = load_teacher("embedded")
    plain = protect.plain_tokens(teacher)
    assert not plain[sorted(teacher.eos_ids)].any() and plain.sum() == 2048 - 3
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 4}, unk_token="a"))  # 2, 3 and 5 are no tokens
    padded = SimpleNamespace(vocab_size=6, eos_ids={1}, tokenizer=PreTrainedTokenizerFast(tokenizer_object=words))
    assert protect.plain_tokens(cast("Teacher", padded)).tolist() == [True, False, False, False, True, False]


def test_arms_learn_from_the_enlarged_sets_and_are_measured_on_them(tmp_path: Path) -> None:
    bare = small(tmp_path, agents=("soft_q",), top_p=(0.5,), updates=3)
    own = replace(bare, protect=lexicon(tmp_path, "1", "4 2"), rare_within=6, copy_prompt=True, out=tmp_path / "own")
    rows = {config.out: compare(config) for config in (bare, own)}
    sets = [Episodes.load(out / "shared/episodes-p0.5-seed0.safetensors") for out in rows]
    assert torch.equal(sets[0].tokens, sets[1].tokens)
    assert sets[1].in_set[sets[1].taken == 1].all() and sets[1].mask.sum() > sets[0].mask.sum()
    leaks = [next(row.measures["leak"] for row in found if row.agent == "start") for found in rows.values()]
    assert leaks[1] < leaks[0]
    assert from_mapping(CompareConfig, read_yaml(own.out / "config.yaml"), "config.yaml") == own
    assert "protect" in dump(own)
    replies = json.loads((own.out / "cells/soft_q-p0.5-seed0/replies.json").read_text(encoding="utf-8"))
    assert all(inside for reply in replies for text, _, inside in reply["tokens"] if text.strip() == "1")
    lexicon(tmp_path, "1", "4 3")
    with pytest.raises(InputError, match="have changed since"):
        compare(own)


def test_the_leak_by_hand() -> None:
    """The teacher itself after 4 1, at p = .5: outside {3, 0} lie .26, outside {3, 0} and the prompt's 4 and 1 .02."""
    teacher = load_teacher("table:toy")
    extras = protect.extras_of(CollectConfig(Path("unused"), copy_prompt=True), teacher)
    for own, leak in ((None, 0.26), (extras, 0.02)):
        found = along(None, [[4, 1]], [[0]], teacher, Rule(0.5, 6, 4, own))
        assert found.leak.tolist() == pytest.approx([leak], abs=1e-6)


def test_evaluation_has_the_enlarged_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = lexicon(tmp_path, "pawl spring", "B12")
    usual = EvaluateConfig(student=str(WARM_START), top_p=0.5, max_new_tokens=8, eval_prompts=3)
    rules = []

    def stop(teacher: Teacher, prompts: list[Prompt], rule: Rule) -> NoReturn:
        rules.append(rule)
        raise InputError("seen enough")

    monkeypatch.setattr(module, "set_exam", stop)
    for config in (usual, replace(usual, protect=words, rare_within=8)):
        with pytest.raises(InputError, match="seen enough"):
            evaluate(config)
    assert rules[0].extras is None and rules[1].extras is not None and rules[1].extras.within == 8
    with pytest.raises(InputError, match=r"max_candidates = 4 does not hold .*lexicon: \d+"):
        evaluate(replace(usual, protect=words, max_candidates=4))


def test_a_store_of_other_sets_is_refused(tmp_path: Path) -> None:
    config = small(tmp_path, agents=("bc",), updates=2)
    common: dict[str, Any] = {"teacher": "table:toy", "prompts": config.prompts, "max_new_tokens": 6, "logp": "float32"}
    words = lexicon(tmp_path, "1", "4 2")
    own = CollectConfig(tmp_path / "own", protect=words, rare_within=4, **common)
    bare = CollectConfig(tmp_path / "bare", **common)
    for store in (own, bare):
        draw(store)
    known = json.loads((own.out / MANIFEST).read_text(encoding="utf-8"))["settings"]
    assert len(known["protected"]) == 16 and "protect" not in known
    whole = Store(own.out).select(range(len(Store(own.out))))
    assert whole.in_set[whole.taken == 1].all()
    same = Workspace(replace(config, store=own.out, protect=words, rare_within=4)).episodes(0, 0.9)
    assert len(same) == len(whole)
    with pytest.raises(InputError, match=r"digest [0-9a-f]{16}, the run's no extra tokens"):
        _ = Workspace(replace(config, store=own.out)).stored
    with pytest.raises(InputError, match="have no extra tokens, the run's extra tokens of the digest"):
        _ = Workspace(replace(config, store=bare.out, protect=words)).stored
    with pytest.raises(InputError, match="holds a store with protected"):
        draw(replace(own, rare_within=5))
    manifest = json.loads((bare.out / MANIFEST).read_text(encoding="utf-8"))
    del manifest["settings"]["protected"]  # a store that is older than this
    (bare.out / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    assert Workspace(replace(config, store=bare.out)).stored is not None
    draw(bare)
    lexicon(tmp_path, "1", "4 3")
    with pytest.raises(InputError, match="extra tokens of the digest"):
        _ = Workspace(replace(config, store=own.out, protect=words, rare_within=4)).stored


@pytest.mark.parametrize("command", ["distill", "collect"])
def test_bad_protections_are_one_line_and_begin_nothing(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, usual = tmp_path / "out", ["--teacher", "table:toy", "--prompts", str(prompts_file(tmp_path))]
    usual += ["--student", "tiny"] if command == "distill" else []
    empty = tmp_path / "empty.txt"
    empty.write_text("\n", encoding="utf-8")
    for words, says in (
        (["--rare-within", "0"], "rare_within = 0 is below 1"),
        (["--protect", str(tmp_path / "none.txt")], "does not exist"),
        (["--protect", str(empty)], "holds 0 words"),
        (["--protect", str(lexicon(tmp_path, "9"))], "no sequence of the teacher's tokens spells '9'"),
        (["--copy-prompt", "--max-candidates", "2"], "give at least 3"),
    ):
        assert main([command, *usual, *words, "--out", str(out)]) == 2
        printed = capsys.readouterr().err
        assert says in printed and printed.count("\n") == 1, printed
        assert not list(out.glob("*.arrow")) and not (out / "cells").exists()


def test_the_study_counts_candidates_and_what_is_lost() -> None:
    """Two states of 2 and 3 candidates; the lexicon's 1 is taken twice and once outside."""
    words = compiled(load_teacher("table:toy"), ["1"])
    episodes = Episodes(
        tokens=torch.tensor([[2, 1, 1]]),
        prompt_length=torch.tensor([1]),
        length=torch.tensor([2]),
        ids=torch.tensor([[[3, 0, 0], [1, 3, 0], [3, 0, 0]]]),
        logp=torch.tensor([[[-1.0, -2.0, PAD_LOGP], [-1.0, -2.0, -3.0], [-1.0, -2.0, PAD_LOGP]]]),
        mask=torch.tensor([[[True, True, False], [True] * 3, [True, True, False]]]),
        slots=torch.tensor([[-1, 0]]),
        rewards=torch.tensor([[-3.0, -1.0]]),
        discounts=torch.ones(1, 2),
        in_set=torch.tensor([[False, True]]),
        behaviour_logp=torch.tensor([[-3.0, -1.0]]),
        teacher_logp_taken=torch.tensor([[-3.0, -1.0]]),
        from_teacher=torch.tensor([True]),
    )
    assert of_sets(episodes, words) == {"set_size": 2.5, "lost": 0.5}
    assert of_sets(episodes, compiled(load_teacher("table:toy"), ["4"])) == {"set_size": 2.5}  # none is said
    assert codes_of(("B12", "482", "3 May")) == ("B12",)


def test_the_studys_table_pairs_by_seed() -> None:
    """Gains .1 and .3: .2 ± 12.706 · .1414 / √2 = 1.271; of sets there is no test."""
    cells = [
        {"seed": seed, "top_p": 0.5, "agent": "bc", "arm": arm, "task_score": score, "set_size": 2.0 + 3 * wide}
        for seed, pair in enumerate([(0.4, 0.5), (0.2, 0.5)])
        for wide, (arm, score) in enumerate(zip(("bare", "protected"), pair, strict=True))
    ]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(cells).splitlines()[2:]]
    assert lines[0][:3] == ["bc", "0.5", "bare"] and lines[0][5] == "0.300" and lines[0][8] == "2.0"
    assert lines[1][5] == "+0.200±1.271" and lines[1][8] == "+3.0±0.0"


@pytest.mark.long
def test_the_study_goes_on_where_it_stopped(tmp_path: Path) -> None:
    config = RareWordsConfig(
        agents=("bc",), seeds=2, top_p=(0.5,), updates=1, episodes=24, eval_prompts=4, max_new_tokens=40, out=tmp_path
    )
    first = study(config)
    assert len(first) == 4 and first[1]["set_size"] > first[0]["set_size"] and first[1]["lost"] == 0
    assert study(config) == first
    with pytest.raises(InputError, match="holds updates = 1"):
        study(replace(config, updates=2))
    with pytest.raises(InputError, match="seeds = 1 gives no interval"):
        study(replace(config, seeds=1))
