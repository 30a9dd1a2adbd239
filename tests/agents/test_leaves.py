"""A leaf is read as its text alone would be, by every architecture: packed where that is exact, apart elsewhere."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from agents import leaves as module
from agents.episodes import Episodes
from agents.student import Student
from agents.table_student import TableStudent
from envs.table_teacher import TABLES
from experiments.table_data import build, complete_paths
from tests.envs.models import tiny_model

PACKED = ("llama", "gpt2", "qwen2", "qwen3", "opt", "gpt_neox")
APART = ("bloom", "mistral", "mamba")


def episodes() -> Episodes:
    """Texts of two to five tokens that end and that are cut, of many prompt lengths."""
    teacher = TABLES["second_order"]()
    paths = [path for path in complete_paths(teacher, 3) if path.state % 5 == 1][::7]
    batch = build(teacher, paths, 0.8, 0.9)
    longer = torch.nn.functional.pad(batch.tokens, (1, 0), value=3)
    more = dataclasses.replace(batch, tokens=longer, prompt_length=batch.prompt_length + 1)
    return Episodes.concatenate([batch, more])


def wanted(batch: Episodes) -> tuple[Tensor, Tensor]:
    """All candidates of every other state."""
    mask = batch.mask & (torch.arange(batch.mask.shape[1]) % 2 == 0)[:, None]
    return batch.ids, mask


def alone(student: Student, batch: Episodes, ids: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Last hidden state and log-probabilities of every leaf's text by itself, in the order of the mask."""
    found = []
    for b, t, k in mask.nonzero().tolist():
        prefix = batch.tokens[b, : int(batch.prompt_length[b]) + t]
        text = torch.cat([prefix, ids[b, t, k][None]])[None]
        output = student.model(input_ids=text, output_hidden_states=True, use_cache=False)
        found.append((output.hidden_states[-1][0, -1], output.logits[0, -1].log_softmax(-1)))
    return found


def student_of(kind: str, attention: str | None = None) -> Student:
    found = tiny_model(kind)
    if attention:
        found.set_attn_implementation(attention)
    student = Student(found)
    torch.nn.init.normal_(student.value_head.weight)
    return student


@torch.no_grad()
def check(student: Student, batch: Episodes) -> None:
    ids, mask = wanted(batch)
    found = student.leaves(batch, ids, mask, full=True)
    assert found.leaf_logp is not None
    hidden, logp = (torch.stack(part) for part in zip(*alone(student, batch, ids, mask), strict=True))
    near = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(found.leaf_logp[mask], logp, **near)
    torch.testing.assert_close(found.leaf_hidden[mask], hidden, **near)
    torch.testing.assert_close(found.leaf_value[mask], student.value_head(hidden)[:, 0], **near)
    torch.testing.assert_close(
        student.value_head(found.hidden)[batch.states][:, 0], student.values(batch)[batch.states]
    )
    assert not found.leaf_hidden[~mask].any() and not found.leaf_value[~mask].any()
    torch.testing.assert_close(student.leaves(batch, ids, mask).leaf_value, found.leaf_value)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", PACKED)
def test_packed_leaves_are_their_texts_alone(kind: str, attention: str, recwarn: pytest.WarningsRecorder) -> None:
    student = student_of(kind, attention)
    check(student, episodes())
    assert student._packs_leaves and not [one for one in recwarn if "leaves" in str(one.message)]


@pytest.mark.parametrize("kind", APART)
def test_models_that_cannot_pack_are_found_and_say_so_once(kind: str) -> None:
    student = student_of(kind)
    with pytest.warns(UserWarning, match="leaves are read one by one"):
        check(student, episodes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        student.leaves(episodes(), *wanted(episodes()))


def test_one_forward_reads_all_leaves_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    student, batch, calls = student_of("llama"), episodes(), []
    student.leaves(batch, *wanted(batch))  # the probe is behind us
    read = student._read

    def counted(tokens: Tensor, *rest: Any, **more: Any) -> tuple[Tensor, Tensor]:
        calls.append(len(tokens))
        return read(tokens, *rest, **more)

    monkeypatch.setattr(student, "_read", counted)
    whole = student.leaves(batch, *wanted(batch))
    assert calls == [len(batch)]
    calls.clear()
    monkeypatch.setattr(module, "ROOM", 3 * 20**2)
    parts = student.leaves(batch, *wanted(batch))
    assert len(calls) > 2 and sum(calls) == len(batch)
    torch.testing.assert_close(parts.leaf_hidden, whole.leaf_hidden, atol=1e-5, rtol=1e-5)


def test_a_leaf_that_sees_its_sisters_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe is numerical: a wrong mask, or wrong positions, is found by what comes out."""
    attach = module.attach

    def careless(mistake: str) -> Any:
        def wrong(tokens: Tensor, places: Any) -> Any:
            wide, column, attention = attach(tokens, places)
            if mistake == "mask":
                attention["attention_mask"][:, :, :, tokens.shape[1] :] = 0
            else:
                attention["position_ids"] = torch.arange(wide.shape[1]).repeat(len(wide), 1)
            return wide, column, attention

        return wrong

    for mistake in ("mask", "positions"):
        monkeypatch.setattr(module, "attach", careless(mistake))
        with pytest.warns(UserWarning, match="packed leaves are off by"):
            check(student_of("llama"), episodes())


def test_leaves_carry_a_gradient() -> None:
    student, batch = student_of("gpt2"), episodes()
    student.leaves(batch, *wanted(batch)).leaf_value.sum().backward()
    assert all(value.grad is not None for value in student.model.transformer.parameters())


@pytest.mark.parametrize("name", ["toy", "second_order"])
def test_a_tables_leaves_are_the_entries_of_the_states_that_follow(name: str) -> None:
    teacher = TABLES[name]()
    student = TableStudent(teacher.vocab_size, teacher.order)
    with torch.no_grad():
        student.z.normal_()
        student.v.copy_(torch.arange(len(student.v)))
    paths = complete_paths(teacher, 2)
    batch = build(teacher, paths, 0.8, 0.9)
    found = student.leaves(batch, *wanted(batch), full=True)
    assert found.leaf_logp is not None
    for b, t, k in wanted(batch)[1].nonzero().tolist():
        text = [*batch.tokens[b, : teacher.order + t].tolist(), int(batch.ids[b, t, k])]
        state = teacher.state_of(text)
        assert found.leaf_value[b, t, k] == state and found.leaf_hidden[b, t, k].argmax() == state
        torch.testing.assert_close(found.leaf_logp[b, t, k], student.z[state].log_softmax(-1))
    assert (found.hidden[batch.states].argmax(-1) == student.values(batch)[batch.states]).all()


def test_the_ends_of_a_text_are_the_models_own() -> None:
    assert student_of("llama").eos_ids == {2} and TableStudent(3, 1).eos_ids == {0}
