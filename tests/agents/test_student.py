"""A student scores states as its plain model would, is saved as a plain directory, and shares its teacher's tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from agents.episodes import PAD_LOGP, Episodes
from agents.errors import InputError
from agents.loading import check_tokenizers
from agents.student import SIZES, Student, build_student
from tests.agents.test_episodes import fields

WIDTHS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "opt": {"hidden_size": 16, "ffn_dim": 16, "word_embed_proj_dim": 8},
    "gemma2": {"head_dim": 8, "num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"head_dim": 8, "num_key_value_heads": 2},
}
PLAIN = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def model(kind: str = "llama", vocabulary: int = 8) -> Any:
    torch.manual_seed(0)
    sizes = WIDTHS["gpt2"] if kind == "gpt2" else {**PLAIN, **WIDTHS.get(kind, {})}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    found = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, vocab_size=vocabulary, **tokens))
    with torch.no_grad():
        for weight in found.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return found


def tokenizer(words: str = "a b c d e f g h") -> Any:
    vocabulary = {word: number for number, word in enumerate(words.split())}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="a")), eos_token="c"
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "qwen3", "opt", "gpt_neox", "gemma2"])
def test_scores_are_those_of_the_model_on_each_text_alone(kind: str) -> None:
    student, episodes = Student(model(kind)), Episodes(**fields())
    torch.nn.init.normal_(student.value_head.weight)
    with torch.no_grad():
        scores, values = student.scores(episodes, full=True), student.values(episodes)
        torch.testing.assert_close(values, scores.value)
        for b, t in episodes.states.nonzero().tolist():
            text = episodes.tokens[b, : int(episodes.prompt_length[b]) + t]
            whole = student.model(input_ids=text[None], output_hidden_states=True)
            logp = whole.logits[0, -1].log_softmax(-1)
            mask, ids = episodes.mask[b, t], episodes.ids[b, t]
            inside = logp[ids[mask]].logsumexp(0)
            assert scores.logp is not None
            near = {"atol": 1e-5, "rtol": 1e-5}
            torch.testing.assert_close(scores.logp[b, t], logp, **near)
            torch.testing.assert_close(scores.log_inside[b, t], inside, **near)
            torch.testing.assert_close(scores.log_policy[b, t][mask], logp[ids[mask]] - inside, **near)
            assert (scores.log_policy[b, t][~mask] == PAD_LOGP).all()
            if t < int(episodes.length[b]):
                torch.testing.assert_close(scores.logp_taken[b, t], logp[episodes.taken[b, t]], **near)
        policy = student.log_policy(episodes.tokens, episodes.prompt_length, episodes.ids[:, 0], episodes.mask[:, 0])
        torch.testing.assert_close(policy, scores.log_policy[:, 0], atol=1e-5, rtol=1e-5)
    assert scores.value[~episodes.states].eq(0).all() and scores.logp_taken[~episodes.steps].eq(0).all()
    assert not student.model.get_output_embeddings()._forward_pre_hooks


def test_the_value_head_starts_at_zero_and_dropout_never_starts() -> None:
    student = Student(model("gpt2")).train()
    assert not student.model.training
    assert student.values(Episodes(**fields())).eq(0).all()


def test_a_copy_is_frozen_and_its_own() -> None:
    student = Student(model(), tokenizer())
    twin = student.copy()
    assert twin.tokenizer is student.tokenizer
    with torch.no_grad():
        student.value_head.bias.add_(1)
    assert twin.value_head.bias.item() == 0 and not any(value.requires_grad for value in twin.parameters())


def test_a_saved_student_is_a_plain_directory(tmp_path: Path) -> None:
    student, episodes = Student(model(), tokenizer()), Episodes(**fields())
    torch.nn.init.normal_(student.value_head.weight)
    student.save(tmp_path, card={"agent": "soft_q", "kl": 0.123456, "seeds": [1, 2]})
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(plain(episodes.tokens).logits, student.model(episodes.tokens).logits)
    again = build_student(tmp_path, tokenizer=tokenizer(), vocab_size=8)
    torch.testing.assert_close(again.values(episodes), student.values(episodes))
    card = (tmp_path / "README.md").read_text()
    for line in ("| agent | soft_q |", "| kl | 0.1235 |", "| seeds | [1, 2] |", "| parameters |"):
        assert line in card
    assert again.tokenizer.get_vocab() == tokenizer().get_vocab()


def test_a_half_precision_directory_becomes_float32(tmp_path: Path) -> None:
    model().to(torch.bfloat16).save_pretrained(tmp_path)
    student = build_student(str(tmp_path), tokenizer=tokenizer(), vocab_size=8)
    assert {value.dtype for value in student.parameters()} == {torch.float32}
    assert student.tokenizer is not None


def test_a_size_name_gives_the_same_student_for_a_seed() -> None:
    episodes = Episodes(**fields())
    one, same, other = (build_student("tiny", tokenizer=tokenizer(), vocab_size=10, seed=s) for s in (1, 1, 2))
    assert one.vocab_size == 10 and one.model.config.eos_token_id == 2
    torch.testing.assert_close(one.scores(episodes).log_inside, same.scores(episodes).log_inside)
    assert not torch.equal(one.scores(episodes).log_inside, other.scores(episodes).log_inside)
    assert next(iter(SIZES)) == "tiny"


def test_more_output_rows_than_tokens_are_not_a_mismatch(tmp_path: Path) -> None:
    Student(model(vocabulary=12), tokenizer()).save(tmp_path)
    assert build_student(tmp_path, tokenizer=tokenizer(), vocab_size=16).vocab_size == 12


def test_a_foreign_tokenizer_is_named_by_its_first_difference(tmp_path: Path) -> None:
    Student(model(), tokenizer("a b c d x f g h")).save(tmp_path)
    with pytest.raises(InputError, match="token 4 is 'e' to the teacher and 'x' to the student"):
        build_student(tmp_path, tokenizer=tokenizer(), vocab_size=8)
    with pytest.raises(InputError, match="token 7 is 'h' to the teacher and None"):
        check_tokenizers(tokenizer(), tokenizer("a b c d e f g"))


def test_what_is_no_student_is_refused(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path / "small")
    config = T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    cases = [
        ("tini", "did you mean tiny"),
        (str(tmp_path), "no config.json"),
        (str(tmp_path / "small"), "8 output rows for 9 tokens"),
        ("no-one/nothing-here", "neither a directory nor"),
    ]
    for spec, says in cases:
        with pytest.raises(InputError, match=says):
            build_student(spec, tokenizer=tokenizer("a b c d e f g h i"), vocab_size=9)
    gap = tokenizer("a b c d e f g")
    vocabulary = gap.get_vocab() | {"h": 9}
    gap.backend_tokenizer.model = models.WordLevel(vocabulary, unk_token="a")
    with pytest.raises(InputError, match="8 output rows for 10 tokens"):
        build_student(tmp_path / "small", tokenizer=gap, vocab_size=10)
    with pytest.raises(InputError, match="encoder-decoder"):
        Student(T5ForConditionalGeneration(config))
