"""Records of public data sets become prompts, from files and from what `datasets` reads; what is broken is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from envs.errors import InputError
from envs.prompts import Prompt, load_prompts
from envs.records import FORMATS

DOLLY = {"instruction": "Which is a fish?", "context": "", "response": "The tope.", "category": "classification"}
WITH_INPUT = {"instruction": "Sum up.", "input": "A long day.", "output": ["Day.", "It was long."]}
SELFINST = {"id": "u0", "instruction": "Sum up.", "instances": [{"input": "A long day.", "output": "Day."}]}


def written(folder: Path, *records: Any) -> Path:
    path = folder / "records.jsonl"
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return path


def test_dolly_by_hand(tmp_path: Path) -> None:
    plain, context = load_prompts(written(tmp_path, DOLLY, WITH_INPUT), prompt_format="dolly")
    assert plain == Prompt(
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nWhich is a fish?\n\n### Response:\n",
        ("The tope.",),
        ("classification",),
    )
    assert context == Prompt(
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nSum up.\n\n### Input:\nA long day.\n\n"
        "### Response:\n",
        ("Day.", "It was long."),
    )


def test_self_instruct_and_vicuna_by_hand(tmp_path: Path) -> None:
    (task,) = load_prompts(written(tmp_path, SELFINST), prompt_format="selfinst")
    assert task == FORMATS["dolly"]({**WITH_INPUT, "output": "Day."})
    old, new = load_prompts(
        written(tmp_path, {"text": "How?", "category": "generic"}, {"turns": ["How?", "And then?"]}),
        prompt_format="vicuna",
    )
    assert old.text == new.text and "### Instruction:\nHow?\n" in old.text
    assert (old.tags, new.tags, old.references) == (("generic",), (), ())


@pytest.mark.parametrize(
    ("form", "record", "says"),
    [
        ("dolly", {"context": "x"}, '"instruction" must be a text.*it is null'),
        ("dolly", {"instruction": "x", "context": 3}, '"instruction" must be a text, and what comes with it too'),
        ("dolly", {"instruction": "x", "response": 3}, '"response" must be a list of strings, not 3'),
        ("selfinst", {"instruction": "x", "instances": []}, '"instances" must be a list of objects'),
        ("vicuna", {"question": "x"}, '"text" must be a text'),
        ("vicuna", {"turns": "How?"}, '"text" must be a text'),
        ("prompt", {"text": "x"}, 'an object with a string under "prompt"'),
        ("prompt", ["x"], "each line must be a JSON object"),
    ],
)
def test_a_broken_record_is_named_with_its_line_or_left_out(tmp_path: Path, form: str, record: Any, says: str) -> None:
    good = {"prompt": "y", "instruction": "y", "instances": [{"output": "z"}], "text": "y"}
    path = written(tmp_path, good, record)
    with pytest.raises(InputError, match=f"line 2: .*{says}"):
        load_prompts(path, prompt_format=form)
    assert len(load_prompts(path, prompt_format=form, skip_bad=True)) == 1


def test_a_data_set_is_read_as_saved_and_as_a_folder_of_files(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list([DOLLY, {**DOLLY, "instruction": "Which is a bird?"}])
    saved.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": saved, "test": saved.select([1])}).save_to_disk(str(tmp_path / "both"))
    (tmp_path / "files").mkdir()
    written(tmp_path / "files", DOLLY).rename(tmp_path / "files" / "train.jsonl")
    one, both, files = (load_prompts(tmp_path / name, prompt_format="dolly") for name in ("one", "both", "files"))
    assert len(one) == 2 and both == one and files == one[:1] and one[0].references == ("The tope.",)
    test = load_prompts(f"{tmp_path / 'both'}:test", prompt_format="dolly")
    assert test == one[1:]
    with pytest.raises(InputError, match=r"one, row 1: .*string under \"prompt\""):
        load_prompts(tmp_path / "one")


def test_what_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError, match=r"no data set can be read from 'no-one/nothing', split 'train' \(.*\.jsonl file"
    ):
        load_prompts("no-one/nothing")
    with pytest.raises(InputError, match=r"prompts file 'folder/missing.jsonl' does not exist"):
        load_prompts("folder/missing.jsonl")
    with pytest.raises(InputError, match="prompt_format = 'alpaca' must be one of prompt, dolly, selfinst, vicuna"):
        load_prompts(written(tmp_path, DOLLY), prompt_format="alpaca")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'tdistill\[store\]'"):
        load_prompts(tmp_path)
