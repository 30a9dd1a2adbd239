"""Tokens as bytes: every kind of tokenizer, random texts, special tokens, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from envs.errors import InputError
from envs.teachers import EMBEDDED
from envs.token_bytes import Tokens, tokens_of
from tests.envs.tokenizers import KINDS, NAMED, WORDS, byte_level, llama, sentence_piece, texts, whole


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_cut_into_tokens_that_write_them_byte_by_byte(kind: str) -> None:
    tokens = tokens_of(KINDS[kind]())
    parts = [text.encode() for text in texts(300)]
    for part, cut in zip(parts, tokens.split(parts), strict=True):
        assert cut is not None and tokens.text_of(cut) == part


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_that_are_no_text_are_cut_too(kind: str) -> None:
    tokens = tokens_of(KINDS[kind]())
    parts = [bytes([0xC3]), bytes([0xA9]), b"a\xe3\x81", bytes(range(256)), b"\xf0\x9f\x99"]
    assert [tokens.text_of(cut or ()) for cut in tokens.split(parts)] == parts


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_tokenizer_says_of_a_text_is_what_its_tokens_write(kind: str) -> None:
    tokenizer = KINDS[kind]()
    tokens = tokens_of(tokenizer)
    for text in texts(200, seed=1):
        written = tokens.text_of(tokenizer(text, add_special_tokens=False)["input_ids"])
        spaced = kind in ("sentencepiece", "llama")  # it writes a space before a text that has none
        assert written == text.encode() or (spaced and written == b" " + text.encode())


def test_special_tokens_write_nothing_and_are_known_by_name() -> None:
    for tokenizer in (byte_level(300), sentence_piece()):
        tokens = tokens_of(tokenizer)
        assert tokens.special[NAMED] == 1 and tokens.written[1] is None and tokens.written[0] is None
    embedded = tokens_of(AutoTokenizer.from_pretrained(EMBEDDED))
    assert embedded.special == {"<pad>": 0, "<eos>": 1, "<sep>": 2} and None not in embedded.written[3:]


def test_a_token_added_as_text_is_that_text() -> None:
    """`ñ` is a letter of the byte alphabet, where it stands for the byte 0xF1."""
    tokenizer: Any = whole(Tokenizer.from_str(byte_level(300).backend_tokenizer.to_str()))
    tokenizer.add_tokens(["ñú", "soon"])
    tokens = tokens_of(tokenizer)
    assert tokens.written[-2:] == ("ñú".encode(), b"soon")


def test_a_way_is_the_whole_piece_then_the_tokenizers_own_then_the_fewest_tokens() -> None:
    written = (None, b"a", b"b", b"ab", b"ba", b"aba", b"c")
    tokens = Tokens(written, own=lambda parts: [[1, 2, 1, 6] if part == "abac" else [6] for part in parts])
    assert tokens.split([b"aba", b"abac", b"abab", b"d", b""]) == [(5,), (1, 2, 1, 6), (5, 2), None, None]


@pytest.mark.parametrize("make", [sentence_piece, llama])
def test_ascii_is_cut_as_inside_a_text_and_bytes_are_left_to_what_has_no_token(make: Any) -> None:
    """Parts of texts without their leading space, against the same tokenizer that puts no space before a text."""
    tokenizer = make()
    tokens = tokens_of(tokenizer)
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    if plain.normalizer is None:
        plain.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    else:
        plain.normalizer = normalizers.Replace(" ", "▁")
    words = WORDS[0].split()
    parts = [word[begin:] + more for word in words for begin in range(len(word)) for more in ("", " the ", ".", " 48")]
    cuts = tokens.split([part.encode() for part in parts])
    assert tokens.fallback == frozenset(range(3, 259))
    for part, cut in zip(parts, cuts, strict=True):
        assert cut is not None and not tokens.fallback.intersection(cut)
        assert len(cut) == 1 or list(cut) == plain.encode(part, add_special_tokens=False).ids
    assert tokens.split([b"\xc3", b"%"]) == [(3 + 0xC3,), (3 + ord("%"),)]  # no character, and none of the corpus


def test_ids_may_leave_gaps() -> None:
    settings = json.loads(byte_level(300).backend_tokenizer.to_str())
    settings["model"]["vocab"] = {name: 2 * number for name, number in settings["model"]["vocab"].items()}
    for added in settings["added_tokens"]:
        added["id"] *= 2
    tokenizer = whole(Tokenizer.from_str(json.dumps(settings)))
    tokens, before = tokens_of(tokenizer), tokens_of(byte_level(300))
    assert tokens.written[::2] == before.written and set(tokens.written[1::2]) == {None}
    assert tokens.special == {name: 2 * number for name, number in before.special.items()}


def test_characters_without_a_token_are_not_written() -> None:
    tokens = tokens_of(sentence_piece(fallback=False))
    assert tokens.split([b"the refund", "Ж".encode()])[1] is None


def test_a_tokenizer_that_changes_texts_is_refused() -> None:
    lower = Tokenizer.from_str(byte_level(300).backend_tokenizer.to_str())
    lower.normalizer = normalizers.Lowercase()
    with pytest.raises(InputError, match=r"'order 482 is ready.*byte-level BPE"):
        tokens_of(whole(lower))
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(["Order 482 is ready"], trainers.WordLevelTrainer(special_tokens=["<unk>", "<eos>"]))
    with pytest.raises(InputError, match="no bytes of a text"):
        tokens_of(whole(words, unk_token="<unk>"))
