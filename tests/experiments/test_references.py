"""The replies of a prompts file as episodes: said word for word, in turn, scored by the teacher, and learnt."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.errors import InputError
from envs.prompts import Prompt
from envs.teachers import load_teacher
from envs.vector_env import TopPTokenVectorEnv
from experiments.collect import collect
from experiments.compare import distill
from experiments.config import DistillConfig
from experiments.references import replies_of
from experiments.workspace import Workspace
from tests.envs.models import save_tiny

PAIRS = [
    Prompt("w3 w4 w5", ("w20 w21 w22 w23",)),
    Prompt("w3 w4 w6", ("w30 w31 w32", "w20 w40 w41")),
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_teacher(str(save_tiny("gpt2", tmp_path_factory.mktemp("teacher"))))


def walked(teacher: Any, count: int, budget: int) -> Any:
    env = TopPTokenVectorEnv(2, teacher=teacher, prompts=PAIRS, top_p=0.5, max_new_tokens=budget)
    return collect(env, count, seed=0, recited=replies_of(PAIRS, teacher))


def test_replies_are_said_word_for_word_and_in_turn(teacher: Any) -> None:
    episodes = walked(teacher, 8, 40)
    said: dict[str, list[str]] = {}
    for row in range(8):
        start, end = int(episodes.prompt_length[row]), int(episodes.prompt_length[row] + episodes.length[row])
        tokens = episodes.tokens[row].tolist()
        assert tokens[end - 1] in teacher.eos_ids
        said.setdefault(teacher.decode(tokens[:start]), []).append(teacher.decode(tokens[start : end - 1]))
    assert {name: len(own) for name, own in said.items()} == {PAIRS[0].text: 4, PAIRS[1].text: 4}
    assert set(said[PAIRS[0].text]) == {"w20 w21 w22 w23"}
    assert said[PAIRS[1].text] == ["w30 w31 w32", "w20 w40 w41"] * 2
    assert episodes.terminated.all() and episodes.from_teacher.all()


def test_the_teacher_scores_them_as_it_would_any_text(teacher: Any) -> None:
    episodes = walked(teacher, 2, 40)
    for row in range(2):
        start, end = int(episodes.prompt_length[row]), int(episodes.prompt_length[row] + episodes.length[row])
        text = episodes.tokens[row, :end]
        logp = teacher.score([text.tolist()])[0]
        exact = logp[torch.arange(start - 1, end - 1), text[start:]]
        steps = end - start
        torch.testing.assert_close(episodes.teacher_logp_taken[row, :steps], exact, atol=1e-4, rtol=0)
        torch.testing.assert_close(episodes.rewards[row, :steps], exact, atol=1e-4, rtol=0)
        named = (episodes.ids[row, :steps] == text[start:, None]) & episodes.mask[row, :steps]
        assert torch.equal(named.any(1), episodes.in_set[row, :steps])
    assert not episodes.in_set.all()  # this teacher would not have said all of it


def test_what_is_longer_than_the_budget_is_cut_and_does_not_end(teacher: Any) -> None:
    episodes = walked(teacher, 2, 3)
    assert episodes.length.tolist() == [3, 3] and not episodes.terminated.any()


def settings(folder: Path, teacher: Any, **changes: Any) -> DistillConfig:
    lines = [{"prompt": f"w3 w{number}", "reference": "w20 w21 w22 w23"} for number in range(40, 70)]
    prompts = folder / "prompts.jsonl"
    prompts.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    given: dict[str, Any] = {"agent": "bc", "teacher": teacher.model.name_or_path, "student": "tiny"}
    given |= {"prompts": prompts, "targets": "references", "updates": 60, "agent_config": ("bc.lr=0.01",)}
    given |= {"episodes": 16, "batch_size": 8, "eval_prompts": 2, "max_new_tokens": 24, "out": folder / "run"}
    return DistillConfig(**given | changes)


def test_a_student_learns_to_say_the_references(tmp_path: Path, teacher: Any) -> None:
    config = settings(tmp_path, teacher)
    distill(config)
    space = Workspace(config)
    episodes = space.episodes(0, config.top_p)
    student = space.load(config.out / "students" / "bc-seed0")
    with torch.no_grad():
        pair = [own.scores(episodes).logp_taken.sum() / episodes.length.sum() for own in (space.seedling(0), student)]
    assert float(pair[0]) < -3 and float(pair[1]) > math.log(0.9)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"targets": "refs"}, "targets = 'refs' must be one of teacher, references"),
        ({"store": Path("store")}, "a store holds the teacher's replies; learn from references without --store"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, teacher: Any, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        distill(settings(tmp_path, teacher, **changes))


def test_a_prompt_without_a_reference_and_a_teacher_without_words_are_named(teacher: Any) -> None:
    with pytest.raises(InputError, match="the prompt 'hello' has no reference to learn from; give it a `reference`"):
        replies_of([Prompt("hello")], teacher)
    with pytest.raises(InputError, match="has no tokenizer to read references with"):
        replies_of(PAIRS, load_teacher("table:toy"))
