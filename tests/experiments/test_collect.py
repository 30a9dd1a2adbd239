"""A walk becomes episodes: whose tokens, what they paid, where they were cut, and in which order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from agents.episodes import Episodes
from envs.candidates import normalise
from envs.decode import last_logits
from envs.errors import InputError
from envs.hf_teacher import HFTeacher
from envs.table_teacher import toy
from envs.vector_env import TopPTokenVectorEnv
from experiments.collect import attach, collect
from tests.envs.models import VOCABULARY, tiny_model, tiny_tokenizer

TOY = toy()


def env(rows: int = 4, **options: Any) -> TopPTokenVectorEnv:
    settings = {"teacher": TOY, "prompts": [[1], [2], [3], [5]], "top_p": 0.8, "max_new_tokens": 6, "gamma": 0.9}
    return TopPTokenVectorEnv(rows, **{**settings, **options})


def equal(one: Episodes, other: Episodes) -> bool:
    ours, theirs = one.fields(), other.fields()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_seed_gives_its_episodes_again() -> None:
    first, same, other = (collect(env(), 40, seed=seed) for seed in (1, 1, 2))
    assert equal(first, same) and not equal(first, other)


def test_every_step_is_what_the_table_says() -> None:
    episodes = collect(env(), 200, seed=0)
    table = torch.from_numpy(TOY.table).float()
    inside = outside = 0
    for b in range(len(episodes)):
        start, length = int(episodes.prompt_length[b]), int(episodes.length[b])
        text = episodes.tokens[b].tolist()
        for t in range(length):
            state, token = text[start + t - 1], text[start + t]
            expected = table[state, token]
            for name in ("rewards", "teacher_logp_taken", "behaviour_logp"):
                torch.testing.assert_close(getattr(episodes, name)[b, t], expected)
            candidates = episodes.ids[b, t][episodes.mask[b, t]].tolist()
            assert bool(episodes.in_set[b, t]) == (token in candidates)
            if token in candidates:
                inside += 1
                assert candidates[int(episodes.slots[b, t])] == token
            else:
                outside += 1
        ended = text[start + length - 1] == 0
        assert bool(episodes.terminated[b]) == ended and (ended or length == 6)
        assert float(episodes.discounts[b, length - 1]) == pytest.approx(0.0 if ended else 0.9)
    assert inside > 300 and outside > 30 and bool(episodes.from_teacher.all())


def test_tokens_follow_the_whole_softmax() -> None:
    episodes = collect(env(64, prompts=[[5]]), 2000, seed=3)
    first = torch.bincount(episodes.taken[:, 0], minlength=6) / len(episodes)
    assert np.abs(first.numpy() - TOY.probabilities[5]).max() < 0.03


def test_short_episodes_are_not_preferred() -> None:
    """The first begun are returned: with one row or many, the share that ends at once is the teacher's own."""
    at_once = [float((collect(env(rows, prompts=[[1]]), 1000, seed=5).length == 1).float().mean()) for rows in (3, 500)]
    assert at_once == pytest.approx([0.3, 0.3], abs=0.04)


def test_sqil_pays_the_teacher_alone() -> None:
    walker = tiny_model("llama", vocabulary=6)
    mixed = collect(env(reward="sqil"), 60, seed=0, student=walker, student_share=0.5)
    for own in (True, False):
        rows = mixed.from_teacher == own
        assert rows.any() and mixed.rewards[rows][mixed.steps[rows]].unique().tolist() == [float(own)]


def test_a_students_walk_is_drawn_from_and_logged_with_its_own_softmax() -> None:
    teacher = HFTeacher(tiny_model("llama"), tiny_tokenizer())
    walker = tiny_model("gpt2", seed=4)
    prompts = [[3, 4, 5], [6], [7, 8]]
    episodes = collect(
        env(teacher=teacher, prompts=prompts, max_new_tokens=5), 12, seed=0, student=walker, student_share=1.0
    )
    assert not episodes.from_teacher.any() and not episodes.in_set[episodes.steps].all()
    for b in range(len(episodes)):
        for t in range(int(episodes.length[b])):
            end = int(episodes.prompt_length[b]) + t
            text, token = episodes.tokens[b, :end].tolist(), int(episodes.tokens[b, end])
            for model, name in ((walker, "behaviour_logp"), (teacher.model, "teacher_logp_taken")):
                alone = normalise(last_logits(model, [text]))[0, token]
                torch.testing.assert_close(getattr(episodes, name)[b, t], alone, atol=1e-4, rtol=0)


def test_what_is_attached_is_the_teachers_whole_distribution_at_each_step() -> None:
    teacher = HFTeacher(tiny_model("opt"), tiny_tokenizer())
    batch = collect(env(teacher=teacher, prompts=[[3, 4, 5], [6]], max_new_tokens=5), 6, seed=0)
    assert attach(batch, teacher, ()) is batch
    found = attach(batch, teacher, {"teacher_logits"}).teacher_logp
    assert found is not None and found.shape[-1] == VOCABULARY
    torch.testing.assert_close(
        found.gather(2, batch.taken[..., None])[..., 0] * batch.steps, batch.teacher_logp_taken, atol=1e-4, rtol=0
    )
    torch.testing.assert_close(found.exp().sum(-1)[batch.steps], torch.ones(int(batch.length.sum())))
    with pytest.raises(InputError, match="nothing attaches values"):
        attach(batch, teacher, {"values"})


def test_what_cannot_be_collected_is_said() -> None:
    with pytest.raises(InputError, match=r"student_share = 0\.5 must lie in \[0, 1\], and needs a student"):
        collect(env(), 4, seed=0, student_share=0.5)
    with pytest.raises(InputError, match="GiB for 100000000 episodes"):
        collect(env(top_p=1.0), 100_000_000, seed=0)
