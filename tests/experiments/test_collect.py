"""A walk becomes episodes: whose tokens, what they paid, where they were cut, and in which order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from agents.episodes import Episodes
from envs.candidates import normalise, top_p
from envs.errors import InputError
from envs.hf_teacher import HFTeacher
from envs.sequences import last_logits
from envs.table_teacher import TableTeacher, toy
from envs.vector_env import TopPTokenVectorEnv
from experiments.collect import _draw, attach, collect
from tests.envs.models import VOCABULARY, tiny_model, tiny_tokenizer, twentieths

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


def test_a_whole_number_is_a_discount_too() -> None:
    assert collect(env(gamma=1, max_new_tokens=1), 2, seed=0).discounts.dtype == torch.float32


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
    for options, count in (({"autoreset_mode": "same_step"}, 4), ({}, 0)):
        with pytest.raises(InputError, match="count must be at least 1, and rows"):
            collect(env(**options), count, seed=0)
    with pytest.raises(InputError, match="GiB for 100000000 episodes"):
        collect(env(top_p=1.0), 100_000_000, seed=0)


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """Pearson's statistic over the possible tokens; the impossible ones must not have come."""
    expected = probabilities * counts.sum(-1, keepdim=True)
    possible = expected > 0
    assert not counts[~possible].any()
    return float((((counts - expected) ** 2)[possible] / expected[possible]).sum())


def test_the_first_begun_come_back_in_their_order_however_many_rows_run() -> None:
    """Token n leads to n − 1 alone: replies of one to four tokens, of which the short ones finish first."""
    countdown = TableTeacher(np.eye(5)[[0, 0, 1, 2, 3]], "countdown")
    found = [
        collect(env(rows, teacher=countdown, prompts=[[1], [2], [3], [4]]), 10, seed=seed)
        for seed in range(3)
        for rows in (1, 3, 7)
    ]
    for alone, *together in (found[:3], found[3:6], found[6:]):
        assert all(equal(alone, other) for other in together)
        assert sorted(alone.length[:8].tolist()) == [1, 1, 2, 2, 3, 3, 4, 4]


def test_the_same_env_walks_the_same_again() -> None:
    walked = env()
    first = collect(walked, 9, seed=4)
    collect(walked, 5, seed=0)
    assert equal(collect(walked, 9, seed=4), first)


def test_the_tokens_of_every_state_follow_the_whole_softmax() -> None:
    """Five states, 4 · 5 + 3 degrees of freedom: one walk in a thousand would lie above 49.7."""
    table = twentieths()
    episodes = collect(env(100, teacher=table, prompts=[[1], [2], [3], [4], [5]], top_p=0.5), 1000, seed=0)
    before = episodes.tokens.gather(1, episodes.prompt_length[:, None] - 1 + torch.arange(6))
    counts = torch.zeros(6, 6, dtype=torch.float64)
    pairs = (before[episodes.steps], episodes.taken[episodes.steps])
    counts.index_put_(pairs, torch.ones(len(pairs[0]), dtype=torch.float64), accumulate=True)
    assert not counts[0].any() and (~episodes.in_set[episodes.steps]).any()
    assert chi_square(counts[1:], torch.from_numpy(table.probabilities)[1:]) < 49.7


def test_a_students_tokens_follow_its_own_whole_softmax() -> None:
    """Six tokens, 5 degrees of freedom: one walk in a thousand would lie above 20.5."""
    walker = tiny_model("llama", vocabulary=6)
    student = normalise(last_logits(walker, [[1]])).exp().double()
    assert (student[0] - torch.from_numpy(TOY.probabilities[1])).abs().max() > 0.1
    episodes = collect(env(50, prompts=[[1]], max_new_tokens=1), 500, seed=0, student=walker, student_share=1.0)
    counts = torch.bincount(episodes.taken[:, 0], minlength=6)[None].double()
    assert chi_square(counts, student) < 20.5


def test_a_quarter_of_the_episodes_is_the_students_and_every_row_logs_its_walker() -> None:
    """200 episodes, a quarter: 50 ± 3 · 6.1. A teacher over the walker gives the walker's own distribution."""
    walker = tiny_model("llama", vocabulary=6)
    episodes = collect(env(20), 200, seed=0, student=walker, student_share=0.25)
    own = ~episodes.from_teacher
    assert 32 <= int(own.sum()) <= 68 and own[:20].any() and not own[:20].all()
    student = attach(episodes, HFTeacher(walker, tiny_tokenizer(6)), {"teacher_logits"}).teacher_logp
    assert student is not None
    logged = student.gather(2, episodes.taken[..., None])[..., 0] * episodes.steps
    torch.testing.assert_close(episodes.behaviour_logp[own], logged[own], atol=1e-4, rtol=0)
    assert (episodes.behaviour_logp[own] - episodes.teacher_logp_taken[own]).abs().max() > 0.1
    assert torch.equal(episodes.behaviour_logp[~own], episodes.teacher_logp_taken[~own])


def test_rewards_inside_and_outside_the_set_by_hand() -> None:
    """State 1 at p = .8: {2, 3, 4} of 9, 6, 2 twentieths; 0, 1 and 5, of one each, lie outside; Z = 17/20."""
    options = {"teacher": twentieths(), "prompts": [[1]], "max_new_tokens": 1, "reward": "topp_logprob"}
    episodes = collect(env(8, **options), 120, seed=0)
    twentieth, slot = [1, 1, 9, 6, 2, 1], [-1, -1, 0, 1, 2, -1]
    taken = episodes.taken[:, 0].tolist()
    assert set(taken) == {0, 1, 2, 3, 4, 5}
    assert episodes.slots[:, 0].tolist() == [slot[token] for token in taken]
    assert episodes.rewards[:, 0].tolist() == pytest.approx([np.log(twentieth[token] / 17) for token in taken])
    assert episodes.teacher_logp_taken[:, 0].tolist() == pytest.approx(
        [np.log(twentieth[token] / 20) for token in taken]
    )
    assert episodes.discounts[:, 0].tolist() == pytest.approx([0.9 * (token != 0) for token in taken])


def test_every_row_of_candidates_is_the_set_of_its_state() -> None:
    """Rows up to `length`, the cut state among them, and none after a text that ended."""
    episodes = collect(env(), 60, seed=2)
    assert episodes.terminated.any() and not episodes.terminated.all()
    for b in range(len(episodes)):
        start, steps = int(episodes.prompt_length[b]), int(episodes.length[b])
        for t in range(steps + (not episodes.terminated[b])):
            wanted = top_p(torch.from_numpy(TOY.table[episodes.tokens[b, start + t - 1]]).float(), 0.8)
            held = episodes.mask[b, t]
            assert episodes.ids[b, t][held].tolist() == wanted.ids.tolist()
            torch.testing.assert_close(episodes.logp[b, t][held], wanted.logp)


def test_the_context_limit_cuts_and_leaves_candidates() -> None:
    teacher = HFTeacher(tiny_model("llama"), tiny_tokenizer())
    episodes = collect(env(2, teacher=teacher, prompts=[[3] * 126, [3] * 119], max_new_tokens=9), 8, seed=0)
    cut = ~episodes.terminated & (episodes.prompt_length == 126)
    assert cut.any() and set(episodes.length[cut].tolist()) == {2}
    assert episodes.discounts[cut, :2].flatten().tolist() == pytest.approx([0.9] * 2 * int(cut.sum()))


def test_attached_is_the_teachers_score_of_each_text_alone_and_nothing_beyond_its_end() -> None:
    teacher = HFTeacher(tiny_model("gpt2"), tiny_tokenizer())
    batch = collect(env(teacher=teacher, prompts=[[3, 4, 5], [6]], max_new_tokens=40), 6, seed=0)
    assert len(set(batch.length.tolist())) > 1
    found = attach(batch, teacher, ["teacher_logits"]).teacher_logp
    assert found is not None
    for b, (start, steps) in enumerate(zip(batch.prompt_length.tolist(), batch.length.tolist(), strict=True)):
        alone = teacher.score([batch.tokens[b, : start + steps].tolist()])[0]
        torch.testing.assert_close(found[b, :steps], alone[start - 1 : start + steps - 1], atol=1e-4, rtol=0)
        assert not found[b, steps:].any()
    with pytest.raises(InputError, match="nothing attaches rewards, values; known is teacher_logits"):
        attach(batch, teacher, {"values", "teacher_logits", "rewards"})


def test_only_the_whole_vocabulary_is_refused_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 episodes · 7 states · 6 slots · 13 bytes."""
    monkeypatch.setattr("experiments.tape.MEMORY_LIMIT", 5460)
    assert len(collect(env(top_p=1.0), 10, seed=0)) == 10
    monkeypatch.setattr("experiments.tape.MEMORY_LIMIT", 5459)
    assert len(collect(env(), 10, seed=0)) == 10
    with pytest.raises(InputError, match=r"top_p = 1 keeps 6 candidates .* lower episodes, or top_p"):
        collect(env(top_p=1.0), 10, seed=0)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_outside_0_and_1_is_refused(share: float) -> None:
    with pytest.raises(InputError, match=rf"student_share = {share} must lie in \[0, 1\]"):
        collect(env(), 4, seed=0, student=tiny_model("llama", vocabulary=6), student_share=share)


def test_the_teacher_can_walk_on_its_sets_alone() -> None:
    episodes = collect(env(64, prompts=[[5]]), 2000, seed=3, teacher_walk="set")
    assert bool(episodes.in_set[episodes.steps].all())
    inside = top_p(torch.from_numpy(TOY.table[5]).float()[None], 0.8)
    share = torch.zeros(6).index_add_(
        0, inside.ids[0][inside.mask[0]], (inside.logp - inside.log_mass[:, None])[0].exp()
    )
    first = torch.bincount(episodes.taken[:, 0], minlength=6) / len(episodes)
    assert (first - share).abs().max() < 0.03
    torch.testing.assert_close(episodes.behaviour_logp[:, 0].exp(), share[episodes.taken[:, 0]])
    torch.testing.assert_close(
        episodes.teacher_logp_taken[:, 0], torch.from_numpy(TOY.table[5]).float()[episodes.taken[:, 0]]
    )


def test_a_walk_can_mix_the_teacher_in_token_by_token() -> None:
    walker, prompts = tiny_model("llama", vocabulary=6), [[3, 4]]
    for mix in (0.0, 0.3, 1.0):
        episodes = collect(env(64, prompts=prompts), 3000, seed=1, student=walker, student_share=1.0, teacher_mix=mix)
        own = normalise(last_logits(walker, prompts))[0].exp()
        expected = mix * torch.from_numpy(TOY.probabilities[4]).float() + (1 - mix) * own
        first = torch.bincount(episodes.taken[:, 0], minlength=6) / len(episodes)
        assert (first - expected).abs().max() < 0.03
        torch.testing.assert_close(
            episodes.behaviour_logp[:, 0].exp(), expected[episodes.taken[:, 0]], atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("vocabulary", [4, 9])
def test_a_student_of_another_width_walks_among_the_tokens_that_both_have(vocabulary: int) -> None:
    walker = tiny_model("llama", vocabulary=vocabulary)
    short = env(8, prompts=[[1], [2], [3]])
    episodes = collect(short, 60, seed=2, student=walker, student_share=0.5, teacher_mix=0.0)
    own = ~episodes.from_teacher
    assert own.any() and int(episodes.taken[own].max()) < min(6, vocabulary)
    row = int(own.nonzero()[0])
    text, token = episodes.tokens[row, : episodes.prompt_length[row]].tolist(), int(episodes.taken[row, 0])
    alone = torch.log_softmax(last_logits(walker, [text])[0, :6].float(), -1)[token]
    torch.testing.assert_close(episodes.behaviour_logp[row, 0], alone, atol=1e-4, rtol=0)


def test_episodes_say_which_student_drew_them() -> None:
    walker = tiny_model("llama", vocabulary=6)
    episodes = collect(env(), 40, seed=0, student=walker, student_share=0.5, version=17)
    assert episodes.version is not None
    assert torch.equal(episodes.version, torch.where(episodes.from_teacher, 0, 17))


def test_a_number_beyond_all_mass_draws_a_token_that_has_some() -> None:
    mass = torch.tensor([[0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([_draw(mass, generator) for _ in range(200)])
    assert set(drawn[:, 0].tolist()) == {1, 2} and drawn[:, 1].eq(3).all() and drawn[:, 2].eq(0).all()
