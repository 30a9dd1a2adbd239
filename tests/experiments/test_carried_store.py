"""Stores in the tokens of a student with another tokenizer: drawn, learnt from, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.student import Student
from envs.carry import Bounds
from envs.errors import InputError
from envs.token_bytes import tokens_of
from experiments.__main__ import main
from experiments.compare import compare
from experiments.store.absent import AbsentTeacher
from experiments.store.draw import CollectConfig, draw
from experiments.store.shards import MANIFEST, Store
from experiments.studies.tokenizers import Measured, Side, TokenizersConfig, other_tokenizer, study, table
from tests.envs.models import tiny_model
from tests.envs.tokenizers import byte_level, sentence_piece
from tests.experiments.runs import small


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny teacher with byte-level tokens, a student's SentencePiece, and prompts."""
    model = tiny_model("gpt2", len(byte_level(300)))
    model.config.eos_token_id = model.generation_config.eos_token_id = 0
    model.save_pretrained(tmp_path / "teacher")
    byte_level(300).save_pretrained(tmp_path / "teacher")
    sentence_piece().save_pretrained(tmp_path / "words")
    prompts = [f"Order {number} – où est-il? 注文" for number in range(14)]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    return tmp_path


def stored(folder: Path, **changes: Any) -> CollectConfig:
    config = CollectConfig(
        folder / "store",
        teacher=str(folder / "teacher"),
        student_tokenizer=str(folder / "words"),
        prompts=folder / "prompts.txt",
        max_new_tokens=6,
        shard=8,
        rows=4,
    )
    return replace(config, **changes)


def test_with_the_teachers_own_tokenizer_the_store_is_the_same_byte_for_byte(folder: Path) -> None:
    plain = stored(folder, student_tokenizer=None, count=4)
    same = replace(plain, student_tokenizer=str(folder / "teacher"), out=folder / "same")
    assert draw(plain) == draw(same)
    for name in (MANIFEST, "shard-00000.arrow"):
        assert (plain.out / name).read_bytes() == (same.out / name).read_bytes()


def test_a_store_in_a_students_tokens_is_learnt_from_without_the_teacher(folder: Path) -> None:
    """What was lost is counted, and a run trains a student with the store's tokenizer."""
    config = stored(folder, carry=Bounds(0.05, 0.01))
    figures = draw(config)
    assert figures["mean_pruned_mass"] > 0 and figures["mean_unwritten_mass"] == 0 and figures["most_not_carried"] < 0.5
    assert draw(config) == figures  # nothing is drawn again, and what was lost is still said
    store, absent = Store(config.out), AbsentTeacher(config.out)
    assert absent.tokenizer.get_vocab() == sentence_piece().get_vocab() and absent.eos_ids == {0}
    episodes = store.select(range(len(store)))
    assert bool((episodes.log_mass <= 0).all()) and len(episodes) == len(store)
    run = small(folder, teacher="none", store=config.out, prompts=folder / "prompts.txt", agents=("soft_q",))
    rows = compare(run)
    assert rows[-1].agent == "soft_q"
    student = Student.load(run.out / "students" / "soft_q-seed0")
    assert student.tokenizer.get_vocab() == sentence_piece().get_vocab()
    with pytest.raises(InputError, match=r"in the tokens of a student \(--student-tokenizer\).*--teacher none"):
        compare(replace(run, teacher=str(folder / "teacher"), out=folder / "no"))
    with pytest.raises(InputError, match="carry = "):
        draw(replace(config, carry=Bounds(0.05, 0.02)))


def test_what_has_to_fit_are_the_teachers_own_tokens(folder: Path) -> None:
    """128 positions: a prompt of more is refused or left out, replies behind one of nearly as many are cut there."""
    tokenizer = byte_level(300)
    long, longer = "注文" * 19, "注文" * 25
    own = [len(tokenizer(text)["input_ids"]) for text in (long, longer)]
    assert 100 < own[0] < 127 < own[1]
    prompts = [long, longer, f"{long}!", "Order 1"]
    (folder / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    config = stored(folder, prompt_split="all", max_new_tokens=500)
    with pytest.raises(InputError, match=f"has {own[1]} of the teacher's own tokens, the limit is 127 .*--skip-bad"):
        draw(config)
    figures = draw(replace(config, skip_bad=True, responses=2))
    assert figures["prompts"] == 3 and figures["episodes"] == 6
    episodes = Store(config.out).select(range(6))
    truncated = episodes.mask[range(6), episodes.length.tolist()].any(1)
    assert truncated.any() and int(episodes.length.max()) < 500


def test_errors_end_with_2_and_say_what_to_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--out", str(folder / "s"), "--teacher", str(folder / "teacher"), "--prompts", str(folder / "prompts.txt")]

    def said(*words: str) -> str:
        assert main(["collect", *place, *words]) == 2
        return capsys.readouterr().err

    assert "must lie in [0, 1)" in said("--student-tokenizer", str(folder / "words"), "--carry.look", "1.5")
    assert "neither a directory nor" in said("--student-tokenizer", str(folder / "none"))
    assert "a server returns its most probable" in said("--teacher", "served:http://x", "--student-tokenizer", "y")
    assert "has no tokenizer" in said("--teacher", "table:toy", "--student-tokenizer", str(folder / "words"))
    tiny_model("gpt2", len(sentence_piece())).save_pretrained(folder / "other")
    sentence_piece().save_pretrained(folder / "other")
    words = ["distill", "--student", str(folder / "other"), "--agent", "bc", *place]
    assert main(words) == 2
    assert "tdistill collect --student-tokenizer DIR" in capsys.readouterr().err


def test_the_studys_table_by_hand() -> None:
    """Task .5, .7 and .4, .6: −.1 each, without spread; KL: +.01 each; two sign flips of four are as large."""

    def side(task: tuple[float, float], kl: tuple[float, float], lost: float) -> Side:
        figures = [{"task_score": a, "kl_a_byte": b, "parameters": 1000.0} for a, b in zip(task, kl, strict=True)]
        return Side([Measured("bc", seed, own) for seed, own in enumerate(figures)], 3.5, lost)

    lines = table({"same": side((0.5, 0.7), (0.02, 0.04), 0.0), "other": side((0.4, 0.6), (0.03, 0.05), 2e-6)})
    assert "| bc" in lines and "0.600±1.271" in lines and "2.0e-06" in lines
    assert "-0.100±0.000 (p 0.50)" in lines and "+0.0100±0.0000 (p 0.50)" in lines


def test_the_studys_tokenizer_writes_the_corpus_and_ends_prompts_as_the_teachers() -> None:
    tokenizer = other_tokenizer(400, 64)
    text = "Order 10482: 37.50 €, où?"
    ids = tokenizer(text)["input_ids"]
    assert ids[-1] == tokenizer.sep_token_id and tokens_of(tokenizer).text_of(ids) == text.encode()
    with pytest.raises(InputError, match="the corpus gives one of"):
        other_tokenizer(40_000, 16)
    with pytest.raises(InputError, match="seeds = 0 is below 1"):
        study(TokenizersConfig(seeds=0))


@pytest.mark.long
def test_the_study_runs_and_goes_on(tmp_path: Path) -> None:
    small = {"count": 6, "updates": 2, "batch_size": 8, "eval_prompts": 2, "max_new_tokens": 12}
    config = TokenizersConfig(400, ("bc",), seeds=2, out=tmp_path, **small)
    sides = study(config)
    assert [len(side.students) for side in sides.values()] == [2, 2]
    assert sides["other"].bytes_a_token < sides["same"].bytes_a_token
    assert sides["same"].not_carried == 0 < sides["other"].not_carried < 1e-3
    assert study(config) == sides
    assert json.loads((tmp_path / "exam-other-2.json").read_text())["samples"]
