"""Teachers are found by name, load from ordinary directories, and score as they walk."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import dynamic_module_utils

from agents.errors import InputError as StudentError
from agents.student import Student
from envs.candidates import normalise
from envs.errors import InputError
from envs.hf_teacher import HFTeacher, eos_ids_of, load_causal_lm
from envs.sequences import last_logits
from envs.table_teacher import TABLES, TableTeacher
from envs.teachers import Loading, Teacher, load_teacher
from envs.vector_env import TopPTokenVectorEnv
from tests.envs.models import EXACT, save_tiny, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("arch", EXACT)
def test_whole_sequences_score_as_texts_alone(arch: str) -> None:
    teacher = HFTeacher(tiny_model(arch), tiny_tokenizer())
    texts = [[3, 4, 5, 6, 7], [8], [9, 10]]
    scores = teacher.score(texts)
    assert scores.shape == (3, 5, teacher.vocab_size)
    for row, text in enumerate(texts):
        for end in range(1, len(text) + 1):
            alone = normalise(last_logits(teacher.model, [text[:end]]))[0]
            assert (scores[row, end - 1] - alone).abs().max() <= 1e-4


def test_a_half_precision_directory_loads_in_float32_and_only_once(tmp_path: Path) -> None:
    directory = save_tiny("qwen2", tmp_path / "model", torch.bfloat16)
    teacher = load_teacher(directory)
    assert isinstance(teacher, HFTeacher)
    assert {p.dtype for p in teacher.model.parameters()} == {torch.float32}
    assert load_teacher(str(directory)) is teacher
    assert copy.deepcopy(teacher) is teacher
    assert teacher.decode(teacher.encode("w5 w9")) == "w5 w9"
    assert isinstance(teacher, Teacher)


def test_every_eos_id_counts() -> None:
    model = tiny_model("llama")
    model.generation_config.eos_token_id = [2, 7]
    model.config.eos_token_id = 9
    assert eos_ids_of(model, tiny_tokenizer()) == {2, 7, 9}
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    with pytest.raises(InputError, match="EOS"):
        HFTeacher(model, tokenizer)


def test_what_is_no_teacher_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="encoder-decoder"):
        HFTeacher(tiny_model("t5"), tiny_tokenizer())
    with pytest.raises(InputError, match="encoder-decoder"):
        load_causal_lm(save_tiny("t5", tmp_path / "t5"))
    with pytest.raises(InputError, match="did you mean 'embedded'"):
        load_teacher("embeded")
    with pytest.raises(InputError, match="did you mean 'detour'"):
        load_teacher("table:detuor")
    with pytest.raises(InputError, match="no model can be loaded"):
        load_teacher(str(tmp_path))
    with pytest.raises(InputError, match="is no teacher"):
        load_teacher(3)
    with pytest.raises(InputError, match="has no chat template"):
        HFTeacher(tiny_model("llama"), tiny_tokenizer(), chat_template=True)
    with pytest.raises(InputError, match="has no token"):
        HFTeacher(tiny_model("llama"), tiny_tokenizer()).encode(" ")


def test_a_chat_template_wraps_the_prompt() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "w3 {{ messages[0]['content'] }} w4"
    teacher = load_teacher((tiny_model("llama"), tokenizer))
    wrapped = HFTeacher(tiny_model("llama"), tokenizer, chat_template=True)
    assert teacher.encode("w8") == [8]
    assert wrapped.encode("w8") == [3, 8, 4]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_walks_and_scores_its_own_rows(name: str) -> None:
    teacher = load_teacher(f"table:{name}")
    assert isinstance(teacher, TableTeacher) and isinstance(teacher, Teacher)
    assert load_teacher(f"table:{name}") is teacher
    texts = [[1, 2, 3], [2]]
    walk = teacher.walk(2)
    walk.start([0, 1], texts)
    walk.step(torch.tensor([1, 3]), torch.tensor([False, True]))
    texts[1].append(3)
    scores = teacher.score(texts)
    for row, text in enumerate(texts):
        expected = torch.from_numpy(teacher.table[teacher.state_of(text)]).float()
        torch.testing.assert_close(walk.log_probs[row], expected)
        torch.testing.assert_close(scores[row, len(text) - 1], expected)
    assert teacher.encode(teacher.decode([1, 2, 0])) == [1, 2]


def test_states_of_a_second_order_table_by_hand() -> None:
    teacher = TABLES["second_order"]()
    assert teacher.state_of([1, 2, 3]) == 2 * 4 + 3
    assert teacher.state_of([3]) == 3
    assert teacher.successors()[2 * 4 + 3, 1] == 3 * 4 + 1


def test_tables_that_are_no_teachers_are_refused() -> None:
    with pytest.raises(InputError, match="n-gram"):
        TableTeacher(np.full((5, 4), 0.25))
    with pytest.raises(InputError, match="sum to 1"):
        TableTeacher(np.full((2, 2), 0.4))
    with pytest.raises(InputError, match="state 1 of the table never reaches EOS"):
        TableTeacher(np.array([[0.5, 0.5], [0.0, 1.0]]))
    with pytest.raises(InputError, match="no text of 'toy'"):
        TABLES["toy"]().encode("1 9")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_teacher_in_half_precision_walks_and_scores_nearly_as_in_whole(tmp_path: Path, dtype: str) -> None:
    directory = save_tiny("llama", tmp_path / "llama")
    whole, half = load_teacher(directory), load_teacher(directory, Loading(dtype))
    assert half is load_teacher(directory, Loading(dtype)) is not whole
    assert isinstance(half, HFTeacher)
    assert {weight.dtype for weight in half.model.parameters()} == {getattr(torch, dtype)}
    one, other = (teacher.score([[3, 4, 5], [6, 7]]) for teacher in (whole, half))
    assert other.dtype == torch.float32 and 0 < float((one - other)[0].abs().max()) < 0.3
    env = TopPTokenVectorEnv(2, teacher=half, prompts=[[3, 4], [5]], top_p=0.9, max_new_tokens=4)
    observations, _ = env.reset(seed=0)
    assert observations["logp"].dtype == np.float32 and observations["mask"].any(1).all()
    assert pickle.loads(pickle.dumps(half)) is half


def test_attention_is_the_one_asked_for(tmp_path: Path) -> None:
    directory = save_tiny("llama", tmp_path / "llama")
    eager, usual = load_causal_lm(directory, Loading(attn_implementation="eager"))[0], load_causal_lm(directory)[0]
    assert (eager.config._attn_implementation, usual.config._attn_implementation) == ("eager", "sdpa")
    with pytest.raises(InputError, match="no causal model"):
        load_causal_lm(directory, Loading(attn_implementation="flash_attention_2"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "int8"}, "dtype 'int8' must be one of float32, bfloat16, float16"),
        ({"device": "cuda:99"}, r"device 'cuda:99' was asked for, torch .* sees \d CUDA devices; give --device cpu"),
        ({"device": "gpu"}, "device 'gpu' is none"),
        ({"device": "meta"}, "device 'meta' must be"),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_loaded(options: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Loading(**options)


TRUST = {"trust_remote_code": True}
OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_that_comes_with_a_model_runs_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = save_tiny("llama", tmp_path / "own")
    settings = json.loads((directory / "config.json").read_text())
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (directory / "config.json").write_text(json.dumps({**settings, "model_type": "own", "auto_map": own}))
    (directory / "own.py").write_text(OWN_CODE)
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(InputError, match=r"code of its own, which is not run unless asked for; .* --trust-remote-code"):
        load_causal_lm(directory)
    with pytest.raises(StudentError, match=r"student .* code of its own, .* give --trust-remote-code"):
        Student.load(directory)
    model, student = load_causal_lm(directory, Loading(trust_remote_code=True))[0], Student.load(directory, **TRUST)
    assert type(model).__name__ == type(student.model).__name__ == "OwnModel"


def test_weights_in_several_files_are_one_model(tmp_path: Path) -> None:
    model, directory = tiny_model("llama"), tmp_path / "llama"
    model.save_pretrained(directory, max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(directory)
    assert len(list(directory.glob("model-*.safetensors"))) > 1
    teacher, student = load_causal_lm(directory)[0], Student.load(directory).model
    for name, value in model.state_dict().items():
        assert torch.equal(value, teacher.state_dict()[name]) and torch.equal(value, student.state_dict()[name])
