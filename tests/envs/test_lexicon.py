"""A lexicon in tokens: which sequences spell a word, where they are offered, and what cannot be protected."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from envs.errors import InputError
from envs.lexicon import compiled, read_words, variants
from envs.teachers import Teacher, load_teacher
from tests.envs.models import save_tiny


@pytest.fixture(scope="module")
def desk() -> Teacher:
    return load_teacher("embedded")


def ids_of(teacher: Teacher, text: str) -> list[int]:
    tokenizer = getattr(teacher, "tokenizer")  # noqa: B009 - not of every Teacher
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def said(teacher: Teacher, ids: object) -> set[str]:
    return {teacher.decode([int(token)]) for token in np.asarray(ids)}


def test_variants_of_a_word() -> None:
    assert variants("B12") == ["B12", "b12"]
    assert variants("Kestrel") == ["Kestrel", "kestrel", "KESTREL"]


def test_a_phrase_is_offered_where_it_begins_and_where_it_goes_on(desk: Teacher) -> None:
    """ " brake", " pads" and " B", "1", "2" in the teacher's tokens."""
    lexicon = compiled(desk, ["brake pads", "B12"])
    assert {" brake", " B", " Brake"} & said(desk, lexicon(ids_of(desk, "We have the"))) >= {" brake", " B"}
    assert " pads" in said(desk, lexicon(ids_of(desk, "We have the brake")))
    assert " pads" not in said(desk, lexicon(ids_of(desk, "We have the")))
    assert "1" in said(desk, lexicon(ids_of(desk, "The code is B"))) and "1" in said(desk, lexicon(ids_of(desk, "b")))
    assert "2" in said(desk, lexicon(ids_of(desk, "The code is B1")))
    assert "2" not in said(desk, lexicon(ids_of(desk, "order 1")))  # 1 alone continues nothing


def test_what_has_no_space_of_its_own_begins_at_a_word_boundary_alone(desk: Teacher) -> None:
    lexicon = compiled(desk, ["B12"])
    assert set(lexicon.anywhere.tolist()) == {ids_of(desk, " B12")[0], ids_of(desk, " b12")[0]}
    assert "B" in said(desk, lexicon([])) and "B" in said(desk, lexicon(ids_of(desk, "code:")))
    assert "B" not in said(desk, lexicon(ids_of(desk, "Dear")))


def test_every_token_of_a_word_is_offered_in_its_turn(desk: Teacher) -> None:
    words = ["Ondine", "pawl spring", "N45", "Zennor"]
    lexicon = compiled(desk, words)
    for word in words:
        for form in (f"the {word}", f"the {word.upper()}", f"({word.lower()})", f"\n{word}"):
            ids = ids_of(desk, form)
            place = lexicon.said(ids)
            assert place.any(), form
            for index in place.nonzero()[0]:
                offered = lexicon(ids[:index])
                assert ids[index] in offered and len(offered) <= lexicon.most, form


def test_tokens_that_belong_to_a_word_that_stands_there_whole(desk: Teacher) -> None:
    lexicon = compiled(desk, ["B12"])
    ids = ids_of(desk, "no B12 but B1 and 12")
    assert desk.decode([token for token, own in zip(ids, lexicon.said(ids), strict=True) if own]) == " B12"


def test_the_most_that_is_offered_is_counted_and_reached() -> None:
    """After 4 2: what begins (4 and 2), and what goes on from 4 2 (5) and from 2 (3)."""
    lexicon = compiled(load_teacher("table:toy"), ["4 2 5", "2 3"])
    assert lexicon([4, 2]).tolist() == [2, 3, 4, 5] and lexicon.most == 4
    assert lexicon([4]).tolist() == [2, 4] and lexicon([2]).tolist() == [2, 3, 4]
    assert lexicon([1, 1, 5]).tolist() == [2, 4] and lexicon.reach == 2
    again = pickle.loads(pickle.dumps(lexicon))
    assert again([4, 2]).tolist() == [2, 3, 4, 5]


def test_words_that_no_tokens_spell_and_lexicons_that_hold_none(tmp_path: Path, desk: Teacher) -> None:
    words = load_teacher(str(save_tiny("gpt2", tmp_path / "gpt2")))  # whole words "w3", "w4", …, the rest unknown
    assert compiled(words, ["w3 w4"]).most >= 1
    with pytest.raises(InputError, match="no sequence of the teacher's tokens spells 'carburettor'"):
        compiled(words, ["w3", "carburettor"])
    with pytest.raises(InputError, match="spells '9'"):
        compiled(load_teacher("table:toy"), ["9"])
    with pytest.raises(InputError, match="holds 0 words"):
        compiled(desk, [])
    path = tmp_path / "lexicon.txt"
    with pytest.raises(InputError, match="does not exist"):
        read_words(path)
    path.write_text("\n \n", encoding="utf-8")
    with pytest.raises(InputError, match="holds 0 words"):
        read_words(path)
    path.write_bytes(b"B12\n\xff")
    with pytest.raises(InputError, match="byte 4 is not UTF-8"):
        read_words(path)
    path.write_text("B12\n\n brake pads \nB12\n", encoding="utf-8")
    assert read_words(path) == ["B12", "brake pads"]
