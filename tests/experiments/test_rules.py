"""Rules hold for every text that the masks let through, and what cannot hold is refused when it is read."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from envs.decode import decode
from envs.errors import InputError
from envs.teachers import WARM_START
from experiments.__main__ import main
from experiments.rules.duty import Duty, begun, cost
from experiments.rules.processor import RulesProcessor, adjuster
from experiments.rules.rules import Rule, Rules, read_rules, rules_for
from experiments.rules.spelling import INFINITE, Spelling, pieces_of
from tests.envs.models import tiny_model

# Letters, runs of them that cross every place where a phrase could be cut, and an EOS.
PIECES = [
    b"",
    b"a",
    b"b",
    b"c",
    b" ",
    b".",
    b"ab",
    b"bc",
    b" a",
    b" b",
    b"b a",
    b"cab",
    b"ca",
    b" ab c",
    b"A",
    b"c.",
    b"bca b",
]
EOS = 0


def rules_of(*rules: Rule, budget: int = 12, pieces: list[bytes] | None = None) -> Rules:
    return Rules(rules, pieces or PIECES, [EOS], budget)


def says(text: str, phrase: str) -> bool:
    """As replies are scored; of ASCII."""
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE) is not None


def walked(rules: Rules, duty: Duty, rng: random.Random, endings: bool, pieces: list[bytes] = PIECES) -> str:
    """A text drawn at random among what is allowed."""
    reply: list[int] = []
    while len(reply) < rules.budget:
        mask = rules.allowed(duty, reply, endings and rng.random() < 0.3)
        assert mask.any()
        reply.append(rng.choice(mask.nonzero()[0].tolist()))
        if reply[-1] == EOS:
            break
    return b"".join(pieces[token] for token in reply).decode()


@pytest.mark.parametrize("endings", [False, True])
@pytest.mark.parametrize(
    ("must", "must_not"),
    [
        (("ab ca",), ()),
        (("ab ca", "c.b"), ("bc",)),
        (("cab", "b a"), ("c", "a ab")),
        ((), ("a", "b ab", "c. c")),
        (("abc ab ca b",), ("ab c",)),  # its beginning, cut in the middle of a word, looks forbidden and is not
    ],
)
def test_every_text_that_the_masks_let_through_keeps_the_rules(
    must: tuple[str, ...], must_not: tuple[str, ...], endings: bool
) -> None:
    rules, rng = rules_of(Rule("r", must=must, must_not=must_not)), random.Random(0)
    duty = rules.duty_of("")
    texts = [walked(rules, duty, rng, endings) for _ in range(150)]
    assert all(says(text, phrase) for text in texts for phrase in must)
    assert not any(says(text, phrase) for text in texts for phrase in must_not)
    assert len(set(texts)) > 20  # what is not forbidden is left free


@pytest.mark.parametrize(
    ("must", "pieces", "budget"),
    [
        # to go on with the second phrase makes another word of the first, which was just said
        (("ab b", "bbbb a"), [b"", b" ", b"a", b"a ba", b"aa", b"abb", b"b"], 16),
        # the first phrase holds the second as a word, and goes on with it as with another
        (("a bbb", "b"), [b"", b" ", b" ab", b"a", b"b", b"bbb "], 8),
        # a text may end with the beginnings of both, and have room for the shorter one alone
        (("aa", "aba"), [b"", b" ", b"  a", b" ab", b"a", b"a ", b"abba", b"b"], 12),
        # the second phrase ends a longer word, of which nothing is said yet
        (("baab", "a"), [b"", b" ", b"a", b"aa  ", b"b", b"b "], 8),
    ],
)
def test_phrases_that_share_letters_are_all_said(must: tuple[str, ...], pieces: list[bytes], budget: int) -> None:
    rules, rng = rules_of(Rule("r", must=must), budget=budget, pieces=pieces), random.Random(0)
    texts = [walked(rules, rules.duty_of(""), rng, False, pieces) for _ in range(400)]
    assert all(says(text, phrase) for text in texts for phrase in must)


def test_without_masks_the_same_walks_break_them() -> None:
    rng = random.Random(0)
    texts = [b"".join(rng.choices(PIECES, k=12)).decode() for _ in range(150)]
    assert any(says(text, "a") for text in texts) and not all(says(text, "cab") for text in texts)


def test_fewest_tokens_by_hand() -> None:
    spelling = Spelling(PIECES)
    assert [spelling.fewest(text) for text in (b"", b"ab", b"abc", b" ab c.", b"x")] == [0, 1, 2, 2, INFINITE]
    assert spelling.fewest(b"ab ca") == 3  # ab| c… no: "ab", " ", "ca"
    assert cost(b"ab c", spelling) == 3  # "ab", " ", "c" alone, but one token behind a space
    assert begun(b"x ab c", b"ab ca") == 4 and begun(b"xab c", b"ab ca") == 0 and begun(b"ab ca", b"ab ca") == 0


def test_masks_by_hand() -> None:
    rules = rules_of(Rule("r", must=("ab ca",), must_not=("bc",)), budget=20)
    duty = rules.duty_of("")

    def free(*reply: bytes) -> set[bytes]:
        return {PIECES[i] for i in rules.allowed(duty, [PIECES.index(p) for p in reply]).nonzero()[0]}

    assert b"" not in free() and {b"bc", b"bca b"} & free() == {b"bca b"}  # "bca" is another word
    assert b"c" not in free(b"b") and b"c." not in free(b"a", b" ", b"b") and b"c" in free(b"a", b"ab")
    assert free(b"ab", b" ") == {b"c", b"ca"}  # begun, and kept going
    assert free(b"ab") == {b" "}
    assert b"" in free(b"ab", b" ", b"ca") and not {b"a", b"ab"} & free(b"ab", b" ", b"ca")  # it stays that word
    short = rules_of(Rule("r", must=("ab ca",)), budget=4)
    assert {PIECES[i] for i in short.allowed(short.duty_of(""), [2]).nonzero()[0]} == {
        b" ab c"
    }  # 3 left, 3 may be needed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules: []", "at least one rule"),
        ("rule: []", "no setting 'rule'"),
        ("rules: [{must: []}]", "rule 1 is empty"),
        ("rules: [word]", "must be a mapping"),
        ("rules: [{must: ['']}]", "is empty or has white space"),
        ("rules: [{must: [' ab']}]", "is empty or has white space"),
        ("rules: [{must: [3]}]", "must be str"),
        ("rules: [{musst: [ab]}]", "did you mean 'must'"),
        ("rules: [{when: '(', must: [ab]}]", "no regular expression"),
        ("rules: [{when: a, contains: b, must: [ab]}]", "one of the two"),
        ("rules: [{contains: '', must: [ab]}]", "an empty text"),
        ("rules: [{name: x, must: [ab]}, {name: x, must: [bc]}]", "two rules have the name 'x'"),
        ("rules: [{must: [ab], must: [bc]}]", "the key 'must' again"),
        ("rules: [{must: [ab ca], must_not: [CA]}]", "'ab ca' must be said and says 'ca'"),
        ("rules: [{when: x, must: [ab]}, {when: x, must_not: [ab]}]", "rule 1 and rule 2: 'ab' must be said"),
        ("rules: [{must: [ab]}, {when: x, must_not: [ab]}]", "'ab' must be said"),
        ("rules: [{must: [ab ca], must_not: [c ab]}]", "'c ab', which must not be said, ends as 'ab ca' begins"),
        ("rules: [{must: [ab, ab ca ab ca ab ca ab ca ab ca]}]", "take 13 tokens, and a reply has 12"),
        ("rules: [{must: [axe]}]", "no sequence of this vocabulary's tokens spells 'axe'"),
    ],
)
def test_rules_that_cannot_be_kept_are_refused_as_they_are_read(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "rules.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        rules_of(*read_rules(tmp_path / "rules.yaml"))


def test_rules_that_leave_no_token_are_refused() -> None:
    with pytest.raises(InputError, match="leave it no token"):
        rules_of(Rule("r", must_not=("a", ".")), pieces=[b"", b"a", b".", b".a"])
    spaced = rules_of(Rule("r", must=("a",)), pieces=[b"", b" a", b"."], budget=1)  # words that bring their space
    assert spaced.allowed(spaced.duty_of(""), []).tolist() == [False, True, False]


def test_rules_that_contradict_on_one_prompt_are_named() -> None:
    rules = rules_of(Rule("one", when="x", must=("ab",)), Rule("two", contains="y", must_not=("ab",)))
    assert rules.duty_of("x").must and rules.duty_of("z") == Duty()
    with pytest.raises(InputError, match="one and two"):
        rules.duty_of("x y")


TOKENIZER = AutoTokenizer.from_pretrained(WARM_START)
RULES = """rules:
- {name: recall, when: 'Halden|Varro', must: [recall notice, stop using it at once]}
- {name: never, must_not: [thank, order, a, the]}
"""
PROMPTS = ["The Halden chain broke.", "Where is order 482?", "Varro"]


def test_pieces_of_a_tokenizer_are_what_it_writes() -> None:
    pieces = pieces_of(TOKENIZER)
    for text in ("We cannot refund 482 — é, never!", "recall notice"):
        ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
        assert b"".join(pieces[token] for token in ids).decode() == TOKENIZER.decode(ids)
    assert len(pieces) == len(TOKENIZER) and all(pieces[token] == b"" for token in TOKENIZER.all_special_ids)


def test_pieces_of_a_tokenizer_with_gaps_between_its_ids() -> None:
    said = json.loads(TOKENIZER.backend_tokenizer.to_str())
    vocabulary = said["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    vocabulary[last] += 3
    gaps = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(said)), **TOKENIZER.special_tokens_map
    )
    before, after = pieces_of(TOKENIZER), pieces_of(gaps)
    assert after == [*before[:-1], b"", b"", b"", before[-1]] and before[-1]


@pytest.fixture
def student(tmp_path: Path) -> Path:
    (tmp_path / "rules.yaml").write_text(RULES, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("how", [{"do_sample": False}, {"do_sample": True}, {"num_beams": 2}])
def test_plain_generate_keeps_the_rules(student: Path, how: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = tiny_model("llama", vocabulary=len(TOKENIZER) + 3)
    given = TOKENIZER(PROMPTS, padding=True, padding_side="left", return_tensors="pt", return_token_type_ids=False)
    processor = RulesProcessor.from_pretrained(student, TOKENIZER, max_new_tokens=24)
    ends = TOKENIZER.eos_token_id
    found = model.generate(
        **given, max_new_tokens=24, logits_processor=[processor], eos_token_id=ends, pad_token_id=0, **how
    )
    replies = TOKENIZER.batch_decode(found[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [says(reply, "recall notice") and says(reply, "stop using it at once") for reply in replies] == [
        True,
        False,
        True,
    ]
    assert not any(says(reply, word) for reply in replies for word in ("thank", "order", "a", "the"))
    with pytest.raises(InputError, match="one call of generate"):
        processor(found[:, :5], torch.zeros(3, len(TOKENIZER)))


def test_decoding_by_rules_is_what_plain_generate_does(student: Path) -> None:
    model = tiny_model("llama", vocabulary=len(TOKENIZER))
    rules = rules_for(student / "rules.yaml", TOKENIZER, [TOKENIZER.eos_token_id], 24)
    ids = [TOKENIZER(prompt)["input_ids"] for prompt in PROMPTS]
    settings = {"eos_ids": [TOKENIZER.eos_token_id], "max_new_tokens": 24, "temperature": 0.0}
    found = decode(model, ids, **settings, adjust=adjuster(rules, PROMPTS))
    for text, reply in zip(ids, found, strict=True):
        alone = model.generate(
            torch.tensor([text]),
            attention_mask=torch.ones(1, len(text)),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=TOKENIZER.eos_token_id,
            pad_token_id=0,
            logits_processor=[RulesProcessor(rules, TOKENIZER)],
        )
        assert alone[0, len(text) :].tolist() == reply
    free = decode(model, ids, **settings)
    assert decode(model, ids, **settings, adjust=lambda number, reply, logits: logits) == free != found


def test_a_reply_that_would_end_says_what_it_owes_first() -> None:
    rules = rules_of(Rule("r", must=("ab ca",)), budget=40)
    adjust, reply = adjuster(rules, [""]), [PIECES.index(b".")]
    logits = torch.zeros(len(PIECES))
    logits[EOS], logits[PIECES.index(b"c.")] = 2.0, 1.0  # it would end; and later anything but the phrase
    while reply[-1] != EOS:
        reply.append(int(adjust(0, reply, logits).argmax()))
    assert b"".join(PIECES[token] for token in reply) == b". ab ca"


def test_the_command_takes_the_rules_that_lie_beside_the_student(
    student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--student", str(WARM_START), "--prompt", PROMPTS[0], "--max-new-tokens", "24"]
    rules = student / "rules.yaml"
    assert main([*words, "--rules", str(rules)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "(2)" in said[0] and "stop using it at once" in said[3] and "recall notice" not in said[4].lower()
    assert main([*words, "--rules", str(student / "none.yaml")]) == 2
    rules.write_text("rules: [{must: [recall notice], must_not: [notice]}]", encoding="utf-8")
    assert main([*words, "--rules", str(rules)]) == 2
    assert "which must not" in capsys.readouterr().err
