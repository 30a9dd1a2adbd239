"""Students remember the prompts they were trained and selected on, hand that on, and are not measured there."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from envs.errors import InputError
from envs.prompts import Prompt, prompt_hash, split_prompts
from experiments import evaluate
from experiments.compare import compare
from experiments.config import EvaluateConfig
from experiments.seen import SELECTED_ON, TRAINED_ON, refuse_selection_prompts, refuse_training_prompts, remember
from experiments.store.draw import CollectConfig, draw
from experiments.store.shards import PROMPTS
from experiments.workspace import Workspace
from tests.experiments.runs import small


def hashes(prompts: list[Prompt]) -> list[str]:
    return sorted(prompt_hash(prompt.text) for prompt in prompts)


def kept(place: Path) -> list[str]:
    found: list[str] = json.loads(place.read_text())
    return found


def test_what_a_start_has_seen_is_handed_on_and_refused(tmp_path: Path) -> None:
    for name in ("start", "next", "plain"):
        (tmp_path / name).mkdir()
    a, b, c, d, e = (Prompt(text) for text in "abcde")
    remember(tmp_path / "start", tmp_path / "nowhere", [a], [b])
    remember(tmp_path / "next", tmp_path / "start", [c], [d])
    remember(tmp_path / "plain", tmp_path / "nowhere", [a])
    assert kept(tmp_path / "next" / TRAINED_ON) == hashes([a, c])
    assert kept(tmp_path / "next" / SELECTED_ON) == hashes([b, d])
    assert not (tmp_path / "plain" / SELECTED_ON).exists()
    refuse_training_prompts(tmp_path / "next", [b, d, e])
    refuse_selection_prompts(tmp_path / "next", [a, c, e])
    refuse_selection_prompts(tmp_path / "plain", [a, b, c, d, e])
    with pytest.raises(InputError, match=r"next was selected on 2 of these 3 prompts, for one 'b': .* test split"):
        refuse_selection_prompts(tmp_path / "next", [e, b, d])
    with pytest.raises(InputError, match="next was trained on 1 of these 2 prompts, for one 'a'"):
        refuse_training_prompts(tmp_path / "next", [e, a])


@pytest.mark.parametrize("text", ['["cut', "{}", "[1]"])
def test_a_record_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / TRAINED_ON).write_text(text)
    with pytest.raises(InputError, match=r"training_prompts\.json is no JSON list of prompt hashes"):
        refuse_training_prompts(tmp_path, [Prompt("a")])


def test_a_searched_student_is_not_measured_where_it_was_chosen(tmp_path: Path) -> None:
    config = small(tmp_path, agents=("bc",), trials=2, updates=2)
    compare(config)
    splits, student = Workspace(config).splits, config.out / "students/bc-seed0"
    assert kept(student / SELECTED_ON) == hashes(splits.validation)
    measured = EvaluateConfig(
        student=str(student), teacher="table:toy", prompts=config.prompts, prompt_split="validation"
    )
    with pytest.raises(InputError, match="was selected on 1 of these 1 prompts"):
        evaluate.run(measured)
    refuse_selection_prompts(student, splits.test)

    # The same file again: its test prompts are fresh, and what was chosen on its validation prompts is handed on.
    further = replace(config, student=str(student), trials=0, out=tmp_path / "further")
    compare(further)
    assert kept(further.out / "students/bc-seed0" / SELECTED_ON) == hashes(splits.validation)

    # Another file, whose test split is what the student was chosen on.
    known = splits.validation[0]
    fresh = [Prompt(f"{a} {b}") for a, b in itertools.permutations("135", 2)]
    others = next(two for two in itertools.combinations(fresh, 2) if split_prompts([known, *two]).test == [known])
    file = tmp_path / "others.txt"
    file.write_text("\n".join(prompt.text for prompt in (known, *others)))
    with pytest.raises(InputError, match="was selected on 1 of these 1 prompts"):
        compare(replace(further, prompts=file, out=tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_a_warm_up_chooses_too(tmp_path: Path) -> None:
    config = small(tmp_path, agents=("bc",), warm_start="kd", warm_start_rounds=1, updates=2)
    compare(config)
    space = Workspace(config)
    for place in (space.warm_start_record(0).parent / "round-0", config.out / "students/bc-seed0"):
        assert kept(place / SELECTED_ON) == hashes(space.splits.validation)
        assert kept(place / TRAINED_ON) == hashes(space.splits.train)
    plain = replace(config, warm_start="", out=tmp_path / "plain")
    compare(plain)
    assert not (plain.out / "students/bc-seed0" / SELECTED_ON).exists()


def test_what_a_store_replies_to_has_been_seen(tmp_path: Path) -> None:
    others = [Prompt(text) for text in ("1 3", "2 4", "3 5", "5 3 1")]
    file = tmp_path / "others.txt"
    file.write_text("\n".join(prompt.text for prompt in others), encoding="utf-8")
    own = CollectConfig(
        tmp_path / "store", teacher="table:toy", prompts=file, prompt_split="all", max_new_tokens=6, shard=3, rows=4
    )
    draw(own)
    record = own.out / PROMPTS
    config = small(tmp_path, agents=("bc",), store=own.out, updates=2)
    assert kept(record) == hashes(others)
    record.unlink()
    draw(own)  # a store that is older than the record has it once its collection goes on
    assert kept(record) == hashes(others)
    compare(config)
    student = config.out / "students/bc-seed0"
    assert kept(student / TRAINED_ON) == hashes([*Workspace(config).splits.train, *others])
    measured = EvaluateConfig(student=str(student), teacher="table:toy", prompts=file, max_new_tokens=6)
    with pytest.raises(InputError, match="was trained on 4 of these 4 prompts"):
        evaluate.run(measured)

    record.write_text('["cut', encoding="utf-8")
    broken = replace(config, out=tmp_path / "broken")
    with pytest.raises(InputError, match=r"prompts\.json is no JSON list of prompt hashes"):
        compare(broken)
    assert not broken.out.exists()
    record.unlink()
    older = replace(config, out=tmp_path / "older")
    compare(older)
    assert kept(older.out / "students/bc-seed0" / TRAINED_ON) == hashes(Workspace(config).splits.train)
