"""The context of a carried teacher, which counts in its own tokens: read to its end and no further."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch

from envs.carried_teacher import CarriedTeacher, CarriedWalk
from envs.carry import Bounds
from envs.decode import decode
from envs.errors import InputError
from envs.prompts import Prompt, fitting
from envs.vector_env import TopPTokenVectorEnv
from tests.envs.carrying import EXACT, STUDENTS, TEACHER, carried, cuts, probability, short_texts, table

LIMIT = 6


def narrow(name: str, limit: int = LIMIT, bounds: Bounds = EXACT) -> CarriedTeacher:
    """A carried table that sees so many of its own tokens; a prompt of one token each."""
    own = table(len(TEACHER), eos=0.05)
    own.context_limit = limit
    return carried(STUDENTS[name], bounds, own)


@pytest.mark.parametrize("look", [0.0, 0.1])
@pytest.mark.parametrize("name", STUDENTS)
def test_the_law_of_texts_that_the_context_holds_is_the_teachers(name: str, look: float) -> None:
    """Texts of four bytes behind a prompt of one token: no reading of them has more than five."""
    teacher, own = narrow(name, 5, Bounds(look, 0.0)), table(len(TEACHER), eos=0.05)
    for text in short_texts(4):
        law = 0.0
        for tokens in cuts(text, TEACHER):
            law += float(np.prod([own.probabilities[pair] for pair in itertools.pairwise([0, *tokens, 0])]))
        found = sum(probability(teacher, [*tokens, teacher.map.eos]) for tokens in cuts(text, STUDENTS[name]))
        assert found == pytest.approx(law, abs=1e-13)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_walk_is_full_where_the_teachers_own_tokens_are_as_many_as_it_sees(name: str) -> None:
    teacher, rng = narrow(name), random.Random(1)
    for _ in range(20):
        walk, text = teacher.walk(1), list[int]()
        walk.start([0], [[0]])
        while not walk.full[0]:
            assert float(walk.log_probs[0].exp().sum()) == pytest.approx(1.0, abs=1e-5)
            choices = (walk.log_probs[0] > -10).nonzero()[:, 0].tolist()
            text.append(rng.choice([token for token in choices if token != teacher.map.eos]))
            walk.step(torch.tensor(text[-1:]), torch.tensor([True]))
        assert float(walk.log_probs[0].exp().sum()) == pytest.approx(1.0, abs=1e-5)
        size = len(teacher.tokens.text_of(text))
        assert size >= LIMIT - 1  # one token of the prompt; no token writes less than a byte
        torch.testing.assert_close(teacher.score([[0, *text]])[0, -1], walk.log_probs[0])


def test_a_row_never_begun_is_not_full() -> None:
    walk = narrow("bytes").walk(2)
    assert isinstance(walk, CarriedWalk)
    walk.start([1], [[0]])
    assert walk.full.tolist() == [False, False]


@pytest.mark.parametrize("name", STUDENTS)
def test_replies_are_truncated_there_as_by_a_budget(name: str) -> None:
    """The observation of a truncated reply holds the candidates of the state that was cut."""
    teacher = narrow(name)
    budget = teacher.context_limit - 1
    env = TopPTokenVectorEnv(3, teacher=teacher, prompts=[[0]], top_p=1.0, max_candidates=None, max_new_tokens=budget)
    env.reset(seed=0)
    rng, cut = np.random.default_rng(0), 0
    for _ in range(60):
        masks = (env.candidates.mask & (env.candidates.logp > -20)).numpy()  # others have no mass
        actions = np.array([rng.choice(np.flatnonzero(mask)) if mask.any() else 0 for mask in masks])
        observations, _, terminated, truncated, _ = env.step(actions)
        for row in np.flatnonzero(truncated):
            size = len(teacher.tokens.text_of(env.reply_tokens(row)))
            assert size >= LIMIT - 1 and not terminated[row] and observations["mask"][row].any()
            cut += 1
    assert cut > 3


def test_decoding_ends_there() -> None:
    teacher = narrow("bytes")
    replies = decode(teacher, [[0]] * 12, eos_ids=teacher.eos_ids, max_new_tokens=17, rows=5)
    ended = [reply for reply in replies if reply[-1] == teacher.map.eos]
    full = [reply for reply in replies if reply[-1] != teacher.map.eos]
    assert ended and full and all(LIMIT - 1 <= len(reply) <= 17 for reply in full)
    assert min(map(len, full)) < 17


def test_prompts_have_to_leave_room_in_the_teachers_own_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = narrow("bytes")
    fits, over = [1, 1], [1, 2]
    teacher.remember(fits, [1] * (LIMIT - 1))
    teacher.remember(over, [1] * LIMIT)
    monkeypatch.setattr(teacher, "encode", lambda text: list(map(int, text.split())))
    prompts = [Prompt("1 2"), Prompt("1 1")]
    assert fitting(prompts, teacher, skip_bad=True) == [(prompts[1], fits)]
    with pytest.raises(
        InputError, match=r"the prompt '1 2' has 6 of the teacher's own tokens, the limit is 5 \(one less"
    ):
        fitting(prompts, teacher)
    with pytest.raises(InputError, match=r"no prompt has at most 17 tokens .*, 5 of the teacher's own; shorten them"):
        fitting(prompts[:1], teacher, skip_bad=True)
    with pytest.raises(InputError, match="prompt 1 has 6 of the teacher's own tokens, the limit is 5"):
        TopPTokenVectorEnv(1, teacher=teacher, prompts=[fits, over], max_new_tokens=4)
    env = TopPTokenVectorEnv(1, teacher=teacher, prompts=[fits], top_p=1.0, max_new_tokens=4)
    env.reset()
    assert env.candidates.mask.any()
