"""The embedded models: how they are trained, and what the committed ones are."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from envs.errors import InputError
from envs.service_desk import messages
from envs.teachers import EMBEDDED, WARM_START
from experiments import pretrain
from experiments.embedded import EmbeddedConfig, measure, run
from experiments.pretrain import TeacherConfig, encode, pack, train_teacher, train_tokenizer
from experiments.warm_start import WarmStartConfig

TINY = TeacherConfig(
    steps=8,
    batch_size=4,
    warmup=2,
    vocabulary=400,
    tokenizer_messages=300,
    width=16,
    layers=1,
    heads=2,
    intermediate=16,
    checkpoint_seconds=0.0,
)


def test_only_the_reply_is_predicted() -> None:
    tokens, labels = pack([([5, 6, 2], [7, 1]), ([5, 2], [8, 9, 1])], pad=0)
    assert tokens.tolist() == [[5, 6, 2, 7, 1], [5, 2, 8, 9, 1]]
    assert labels.tolist() == [[-100, -100, 7, 1, -100], [-100, 8, 9, 1, -100]]


def test_digits_are_single_tokens_and_text_comes_back() -> None:
    tokenizer = train_tokenizer(TINY)
    for message in messages("test", 30):
        prompt, reply = encode(tokenizer, message)
        assert prompt[-1] == tokenizer.sep_token_id and reply[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(reply, skip_special_tokens=True) == message.reply
        assert not any(re.search(r"\d.*\d", tokenizer.decode([token])) for token in prompt + reply)
    with pytest.raises(InputError, match="smaller vocabulary"):
        train_tokenizer(replace(TINY, vocabulary=60_000))


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = train_teacher(TINY, tmp_path / "whole")

    update = pretrain.CosineTrainer.update

    def killed(self: pretrain.CosineTrainer, *batch: torch.Tensor) -> float:
        if self.step == 5:
            raise KeyboardInterrupt
        return update(self, *batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain.CosineTrainer, "update", killed)
        train_teacher(TINY, tmp_path / "cut")
    resumed, _ = train_teacher(TINY, tmp_path / "cut")
    for ours, theirs in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(InputError, match="another configuration"):
        train_teacher(replace(TINY, seed=5), tmp_path / "cut")


def test_the_command_trains_measures_and_saves_both(tmp_path: Path) -> None:
    clone = WarmStartConfig(samples=24, validation_samples=12, max_epochs=2, width=8, layers=1, heads=1, intermediate=8)
    figures = run(EmbeddedConfig(tmp_path, TINY, clone, measured=6))
    assert {"teacher task score, greedy", "student task score, greedy", "student validation loss, nats"} <= set(figures)
    for name in ("teacher", "student"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert model.dtype == torch.float16
        assert "mean nucleus at p = 0.9" in (tmp_path / name / "README.md").read_text()
        assert AutoTokenizer.from_pretrained(tmp_path / name)("Hello")["input_ids"][-1] == 2


def folder_megabytes(directory: Path) -> float:
    return sum(file.stat().st_size for file in directory.iterdir()) / 1e6


def test_the_committed_models_are_what_their_cards_say() -> None:
    assert folder_megabytes(EMBEDDED) <= 12 and folder_megabytes(WARM_START) <= 2
    teacher = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32).eval()
    student = AutoModelForCausalLM.from_pretrained(WARM_START, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    assert len(tokenizer) == 2048 == teacher.config.vocab_size
    found, small = measure(teacher, tokenizer, 48), measure(student, tokenizer, 48)
    assert 3e6 <= found["parameters"] <= 5.5e6 and found["parameters"] >= 6 * small["parameters"]
    assert found["copied score, greedy"] >= 0.9 and found["required score, greedy"] >= 0.9
    assert found["positions with 2 or more candidates at p = 0.9"] >= 0.35
    assert found["mean nucleus at p = 0.9"] >= 2.5
    assert found["-log P(stay inside) per reply at p = 0.9, nats"] >= 0.5
    assert 0.3 <= small["task score, greedy"] <= 0.75
