"""Labels are asked for once, are those of each text, and cost what they say."""

import pytest
import torch

from agents.episodes import Episodes
from envs.hf_teacher import HFTeacher
from envs.vector_env import TopPTokenVectorEnv
from experiments.collect import attach, collect
from experiments.labels import Labels
from tests.envs.models import VOCABULARY, tiny_model, tiny_tokenizer

NEEDS = {"teacher_logits"}


class Counting(HFTeacher):
    """Counts the texts it is asked about."""

    asked = 0

    def score(self, sequences):
        self.asked += len(sequences)
        return super().score(sequences)


@pytest.fixture
def teacher() -> Counting:
    return Counting(tiny_model("llama"), tiny_tokenizer())


def walked(teacher: HFTeacher, count: int, seed: int) -> Episodes:
    env = TopPTokenVectorEnv(4, teacher=teacher, prompts=[[3, 4, 5], [6]], max_new_tokens=12, top_p=0.9)
    return collect(env, count, seed=seed)


def silent(text: str, updates: int) -> None:
    pass


def test_what_is_remembered_is_asked_for_once_and_is_what_would_be_attached(teacher: Counting) -> None:
    episodes, labels = walked(teacher, 20, 0), Labels(teacher, NEEDS)
    whole = int((episodes.prompt_length + episodes.length).sum())
    assert labels.remember(episodes, 21, silent) == whole and teacher.asked == 20
    batch = episodes.select([7, 3, 19])
    found, cost = labels.attach(batch)
    assert cost == 0 and teacher.asked == 20 and found.teacher_logp is not None
    torch.testing.assert_close(found.teacher_logp, attach(batch, teacher, NEEDS).teacher_logp)


def test_what_is_not_remembered_is_asked_for_beside_it(teacher: Counting) -> None:
    episodes, labels = walked(teacher, 6, 0), Labels(teacher, NEEDS)
    labels.remember(episodes, 7, silent)
    other = walked(teacher, 8, 1)
    other = other.select([row for row in range(8) if row < 4])
    batch = Episodes.concatenate([episodes.select([5, 1]), other])
    before = teacher.asked
    found, cost = labels.attach(batch)
    new = teacher.asked - before
    assert 0 < new <= 4 and 0 < cost <= int((other.prompt_length + other.length).sum())
    torch.testing.assert_close(found.teacher_logp, attach(batch, teacher, NEEDS).teacher_logp)


def test_nothing_is_remembered_where_it_would_not_pay_or_not_fit(
    teacher: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes, labels = walked(teacher, 6, 0), Labels(teacher, NEEDS)
    assert labels.remember(episodes, 6, silent) == 0  # each is learnt from once
    monkeypatch.setattr("experiments.labels.MEMORY", 4 * VOCABULARY * int(episodes.length.sum()) - 1)
    assert labels.remember(episodes, 60, silent) == 0 and teacher.asked == 0
    found, cost = labels.attach(episodes)
    assert cost == int((episodes.prompt_length + episodes.length).sum()) and teacher.asked == 6
    assert found.teacher_logp is not None


def test_an_agent_that_needs_nothing_is_asked_nothing_for(teacher: Counting) -> None:
    episodes, labels = walked(teacher, 4, 0), Labels(teacher, ())
    assert labels.remember(episodes, 60, silent) == 0
    assert labels.attach(episodes) == (episodes, 0) and teacher.asked == 0
