"""What every p and K would lose: by hand on tables, equal to the candidate sets, whole as a command."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.candidates import top_p
from envs.exact import stay_probability
from envs.table_teacher import TABLES, toy
from envs.teachers import load_teacher
from experiments import evaluate
from experiments.__main__ import main
from experiments.coverage import command
from experiments.coverage.advice import Limits, Shares, advise, draws, lost, mass_cut, mass_kept, ratio
from experiments.coverage.reach import inside, reach
from experiments.coverage.survey import Found, Grid, by_group, frequency_class, spellings, survey, words_of
from experiments.coverage.tables import most_lost, words_gone
from experiments.coverage.words import phrase_in, read_lexicon, spelling, words_in
from tests.envs.models import save_tiny

pytestmark = pytest.mark.usefixtures("painted")

SIX = Grid((0.5, 0.8, 0.97, 1.0), (1, 2, 6))


def rows_of(*rows: list[int]) -> torch.Tensor:
    return (torch.tensor(rows) / 100).log()


def test_a_token_stands_behind_the_mass_before_it() -> None:
    """Sorted: 30, 26, 22, 10, 8, 4 hundredths of the tokens 1, 3, 2, 0, 4, 5."""
    logp = rows_of([10, 30, 22, 26, 8, 4]).expand(6, -1)
    found = reach(logp, torch.arange(6), SIX.masses, SIX.widths)
    assert found.rank.tolist() == [4, 1, 3, 2, 5, 6]
    assert found.before.tolist() == pytest.approx([0.78, 0.0, 0.56, 0.30, 0.88, 0.96])
    assert found.sizes[0].tolist() == [2, 4, 6, 6]
    assert found.kept[0].flatten().tolist() == pytest.approx(
        [0.30, 0.56, 0.56, 0.30, 0.56, 0.88, 0.30, 0.56, 1.0, 1.0, 1.0, 1.0]
    )


def test_ties_go_by_id_and_tokens_without_mass_are_in_the_whole_vocabulary_alone() -> None:
    logp = rows_of([25, 25, 0, 25, 25]).expand(5, -1)
    found = reach(logp, torch.arange(5), (0.6, 0.99), (5,))
    assert found.rank.tolist() == [1, 2, 5, 3, 4]
    assert found.before.tolist() == pytest.approx([0.0, 0.25, 1.0, 0.5, 0.75])
    assert inside(found.before, found.rank, 0.6, 5).tolist() == [True, True, False, True, False]
    assert inside(found.before, found.rank, 0.9999999, 5).tolist() == [True, True, False, True, True]
    assert inside(found.before, found.rank, 1.0, 1).all()


@pytest.mark.parametrize(("vocabulary", "scale"), [(7, 0.5), (97, 2.0), (9000, 1.0)])
def test_inside_is_membership_of_the_candidate_sets(vocabulary: int, scale: float) -> None:
    """Many tokens of every row, at every p and K; rounded logits tie, some are −∞."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = (scale * torch.randn(10, vocabulary, generator=generator) * 8).round() / 8
    logits[:, -2] = -torch.inf
    logp = torch.log_softmax(logits, -1)
    masses, widths = (0.1, 0.5, 0.8, 0.9, 0.99, 1.0), (1, 3, 64, vocabulary)
    for shift in range(min(vocabulary, 100_000 // vocabulary**2 + 2)):
        tokens = (torch.arange(10) * 5 + shift) % vocabulary
        found = reach(logp, tokens, masses, widths)
        for column, p in enumerate(masses):
            for place, width in enumerate(widths):
                sets = top_p(logp, p, width)
                member = ((sets.ids == tokens[:, None]) & sets.mask).any(-1)
                assert torch.equal(inside(found.before, found.rank, p, width), member), (p, width)
                mass = torch.ones(10) if p == 1.0 else sets.log_mass.exp()
                assert torch.allclose(found.kept[:, column, place].float(), mass, atol=1e-6)
            assert torch.equal(found.sizes[:, column], top_p(logp, p).sizes)


def test_only_the_whole_vocabulary_may_be_asked_for() -> None:
    found = reach(rows_of([10, 30, 22, 26, 8, 4]), torch.tensor([5]), (1.0,), (2, 6))
    assert found.sizes.tolist() == [[6]] and found.kept.tolist() == [[[1.0, 1.0]]] and found.rank.tolist() == [6]


def by_bytes(pieces: list[bytes]) -> Callable[[Any], str]:
    return lambda ids: b"".join(pieces[token] for token in ids).decode(errors="replace")


def test_tokens_that_share_a_character_all_spell_it() -> None:
    euro = "€".encode()
    decode = by_bytes([b"", b"Re", b"call", b" ", euro[:1], euro[1:2], euro[2:] + b"5", b"!"])
    found = spelling([1, 2, 3, 4, 5, 6, 7, 0], decode, {0})
    assert found.text == "Recall €5!"
    assert list(words_in(found.text)) == [("recall", 0, 6), ("5", 8, 9)]
    assert found.tokens(0, 6) == [0, 1] and found.tokens(7, 8) == [3, 4, 5] and found.tokens(9, 10) == [6]
    assert list(phrase_in("A recall; Recalled. RECALL", "recall")) == [(2, 8), (20, 26)]


def test_a_word_falls_out_with_any_of_its_tokens() -> None:
    words = Found(["a", "b", "a"], np.array([0, 0, 1]), np.array([0.3, 0.85, 0.95]), np.array([1, 3, 2]))
    gone = words.lost(Grid((0.5, 0.9, 1.0), (2, 6)))
    assert gone[:, :, 1].tolist() == [[False, False, False], [True, False, False], [True, True, False]]
    assert gone[:, :, 0].tolist() == [[False, False, False], [True, True, False], [True, True, False]]
    grid = Grid((0.5, 0.9, 1.0), (2, 6))
    assert words_gone(words, grid) == [1, 0, 0]
    assert most_lost(words, grid, 0) == [["b", "1", "1", "100 %", "0.8500"], ["a", "2", "1", "50 %", "0.9500"]]
    shares = lost(words, grid, np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]]))
    assert shares.value[:, 1].tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert shares.value[:, 0].tolist() == pytest.approx([2 / 3, 2 / 3, 0])
    assert shares.low[0, 1] == pytest.approx(0.5, abs=0.02) and shares.high[0, 1] == pytest.approx(1.0, abs=0.02)


def test_a_reply_of_a_table_by_hand() -> None:
    """1, then 2 3 and the end. Of state 1 token 2 is the fifth (behind .98), of 2 token 3 the fourth (behind .99), of 3
    the end the third (behind .72)."""
    grid = Grid((0.5, 0.8, 0.985, 1.0), (3, 6))
    side = survey(toy(), [[1]], [(0, [2, 3, 0])], grid, "replies")
    assert side.before.tolist() == pytest.approx([0.98, 0.99, 0.72]) and side.rank.tolist() == [5, 4, 3]
    assert side.sizes.tolist() == [[2, 3, 5, 6], [1, 2, 3, 6], [2, 3, 6, 6]]
    assert side.kept[0, :, 1].tolist() == pytest.approx([0.74 + 0.64 + 0.72, 0.96 + 0.98 + 0.82, 0.99 + 0.99 + 1.0, 3])
    assert side.kept[0, 2].tolist() == pytest.approx([0.96 + 0.99 + 0.82, 0.99 + 0.99 + 1.0])
    assert side.log_kept[0, 1, 1] == pytest.approx(np.log([0.96, 0.98, 0.82]).sum(), abs=1e-6)
    assert [side.whole(p, 6).item() for p in grid.masses] == [False, False, False, True]
    words = words_of(side, spellings(side, toy()))
    assert words.words == ["2", "3"] and words.before.tolist() == pytest.approx([0.98, 0.99])
    assert words.lost(grid)[:, :, 1].tolist() == [[True, True, False, False], [True, True, True, False]]
    weights = draws(1, 0)
    assert mass_kept(side, weights).value[1, 1] == pytest.approx(2.76 / 3)
    assert mass_cut(side, weights).value[2].tolist() == pytest.approx([0.21 / 3, 0])


def test_how_many_texts_are_read_together_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, answers = load_teacher("embedded"), [(0, [30, 40, 50]), (1, [60, 2]), (0, [70])]
    grid = Grid((0.5, 0.9), (4, teacher.vocab_size))
    prompts = [[5, 6, 7], [8, 9]]
    together = survey(teacher, prompts, answers, grid, "replies")
    monkeypatch.setattr(evaluate, "LOGITS_AT_ONCE", 1)
    alone = survey(teacher, prompts, answers, grid, "replies")
    assert np.allclose(together.before, alone.before, atol=1e-4) and np.array_equal(together.rank, alone.rank)
    assert together.positions.tolist() == [0, 1, 2, 0, 1, 0] and together.prompts.tolist() == [0, 1, 0]


def test_intervals_are_of_prompts() -> None:
    weights = draws(50, 0)
    assert weights.shape == (1000, 50) and (weights.sum(1) == 50).all()
    part = np.repeat([[0.0], [1.0]], 25, 0)[..., None]  # half of the prompts lose their one word
    found = ratio(part, np.ones(50), weights).at(0, 0)
    assert (
        found.value == 0.5
        and found.low == pytest.approx(0.36, abs=0.03)
        and found.high == pytest.approx(0.64, abs=0.03)
    )
    same = ratio(np.full((50, 1, 1), 2.0), np.full(50, 8.0), weights).at(0, 0)
    assert (same.value, same.low, same.high) == (0.25, 0.25, 0.25)


def of(high: list[list[float]]) -> Shares:
    return Shares(np.array(high) / 2, np.zeros_like(np.array(high)), np.array(high))


def test_the_smallest_p_and_k_within_the_limits_are_recommended() -> None:
    grid, limits = Grid((0.5, 0.9, 0.95, 1.0), (4, 16, 100)), Limits(0.01, 0.001)
    zero = [0.0, 0.0, 0.0]
    words = of([[0.5, 0.3, 0.3], [0.2, 0.009, 0.009], [0.2, 0.008, 0.004], zero])
    cut = of([zero, [0.02, 0.0009, 0.0], [0.03, 0.002, 0.0], zero])
    found = advise({"all words": words}, cut, grid, limits)
    assert (found.top_p, found.max_candidates, found.met) == (0.9, 16, True)
    assert (
        "At p = 0.9 0.45 % (0.00–0.90) of all words fall out, within the limit of 1 %; at p = 0.5 15.00 %"
        in found.reason
    )
    mine = of([[0.9] * 3, [0.9] * 3, [0.2, 0.2, 0.01], zero])
    found = advise({"all words": words, "lexicon": mine}, cut, grid, limits)
    assert (found.top_p, found.max_candidates) == (0.95, 100)  # at K = 16 the lexicon would lose a fifth
    assert "at p = 0.9 45.00 % (0.00–90.00) of 'lexicon'." in found.reason
    found = advise({"all words": words}, cut, grid, Limits(0.001, 0.001))
    assert found.top_p == 1.0 and found.met and "whole vocabulary" in found.reason
    short = Grid((0.5, 0.9), (4, 16, 100))
    found = advise({"all words": of([[0.5] * 3, [0.2] * 3])}, of([zero, [0.02, 0.0, 0.0]]), short, limits)
    assert (found.top_p, found.max_candidates, found.met) == (0.9, 16, False) and "beyond the limit" in found.reason


def test_words_are_grouped_by_frequency_tag_check_and_lexicon() -> None:
    from envs.prompts import embedded_prompts
    from experiments.references import tokens_of

    teacher = load_teacher("embedded")
    prompts = [prompt for prompt in embedded_prompts("train", 60) if "critical" in prompt.tags][:2]
    ids = [teacher.encode(prompt.text) for prompt in prompts]
    answers = [(number, tokens_of(prompt.references[0], teacher)) for number, prompt in enumerate(prompts)]
    side = survey(teacher, ids, answers, Grid((0.9,), (teacher.vocab_size,)), "references")
    texts = spellings(side, teacher)
    assert [text.text for text in texts] == [prompt.references[0] for prompt in prompts]
    groups = by_group(side, texts, prompts, {"the": 4321}, ["the", "No Such Word"])
    count = len(groups["all words"])
    assert count == sum(len(list(words_in(prompt.references[0]))) for prompt in prompts)
    classes = {name: len(found) for name, found in groups.items() if name.startswith("said ")}
    assert sum(classes.values()) == count and list(classes) == ["said 1–9 times", "said 1,000–9,999 times"]
    assert classes["said 1,000–9,999 times"] == len(groups["lexicon"]) == groups["all words"].words.count("the")
    assert len(groups["critical"]) == count
    required = [phrase.lower() for prompt in prompts for phrase in prompt.checks.required]
    assert groups["checks: required"].words == required
    assert [frequency_class(n) for n in (1, 9, 10, 1000)] == ["1–9", "1–9", "10–99", "1,000–9,999"]


def looked(tmp_path: Path, *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["coverage", "--out", str(tmp_path / "out"), *words])
    file = tmp_path / "out" / "coverage.json"
    return code, json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def value(found: dict[str, Any], name: str, **where: Any) -> dict[str, Any]:
    rows: list[dict[str, Any]] = found["figures"]
    return next(row for row in rows if row["name"] == name and where.items() <= row.items())


def test_a_table_teacher_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The words of the reply that is known by hand, and the exact probability of staying inside."""
    (tmp_path / "p.jsonl").write_text('{"prompt": "1", "reference": "2 3", "tags": ["odd"]}\n' * 2)
    words = ["--teacher", "table:toy", "--prompts", str(tmp_path / "p.jsonl"), "--top-p", "0.985", "0.8", "1"]
    words += [
        "--max-candidates",
        "3",
        "6",
        "--max-new-tokens",
        "3",
        "--walks",
        "100",
        "--json",
        str(tmp_path / "f.json"),
    ]
    code, found = looked(tmp_path, *words)
    printed = capsys.readouterr().out
    assert code == 0 and json.loads((tmp_path / "f.json").read_text()) == found
    assert [value(found, "words_lost", top_p=p, max_candidates=6, group="odd")["value"] for p in (0.8, 0.985, 1)] == [
        1,
        0.5,
        0,
    ]
    assert value(found, "words_lost", top_p=0.985, max_candidates=3, group="all words")["value"] == 1
    assert value(found, "words_gone", top_p=0.985)["value"] == 1 and value(found, "words", group="odd")["value"] == 4
    exact = -np.log(stay_probability(TABLES["toy"](), 0.8, 3)[3][1])
    assert value(found, "minus_log_p_stays_inside", top_p=0.8)["value"] == pytest.approx(exact, abs=0.05)
    assert value(found, "recommended_top_p")["value"] == 1 and "--top-p 1\n" in printed
    assert "| 3 " in printed and "a table has no weights to plan with" in printed


def test_a_model_without_references_is_looked_at_by_its_own_replies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = save_tiny("gpt2", tmp_path / "teacher")
    (tmp_path / "p.txt").write_text("w5 w6\nw7 w8 w9\nw10\n")
    (tmp_path / "l.txt").write_text("w11 w12\n\nW11 W12\nw13\n".lower())
    words = ["--teacher", str(teacher), "--prompts", str(tmp_path / "p.txt"), "--max-new-tokens", "12", "--walks", "1"]
    code, found = looked(
        tmp_path, *words, "--lexicon", str(tmp_path / "l.txt"), "--top-p", "0.5", "0.9", "--price", "2"
    )
    printed = capsys.readouterr().out
    assert (
        code == 0 and "words of the teacher's own replies" in printed and "a million of the teacher's tokens" in printed
    )
    assert "Of the lexicon, the teacher's own replies never have: " in printed
    outside = 1 - value(found, "mass_kept", top_p=0.5, max_candidates=97)["value"]
    assert 0 < outside < 0.5 and re.search(r"\| student +\| +tiny", printed)
    page = (tmp_path / "out" / "coverage.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page and not re.search(r"(src|href)=\"http", page)
    assert (tmp_path / "out" / "coverage.png").read_bytes()[:4] == b"\x89PNG"


def test_what_was_printed_stands_when_it_is_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "stay_inside", stop)
    assert looked(tmp_path, "--teacher", "table:toy", "--prompts", str(prompts_of(tmp_path, "1\n2\n")))[0] == 1
    printed = capsys.readouterr()
    assert "## Words lost at each p and K" in printed.out and "what was printed stands" in printed.err


def prompts_of(tmp_path: Path, text: str) -> Path:
    (tmp_path / "prompts.txt").write_text(text)
    return tmp_path / "prompts.txt"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--top-p", "0.9", "1.1"], "top_p = 1.1 is outside (0, 1]"),
        (["--top-p", "0"], "top_p = 0.0 is outside (0, 1]"),
        (["--max-candidates", "0"], "max_candidates = 0 is below 1"),
        (["--count", "0"], "count = 0 is below 1"),
        (["--seed", "-1"], "seed = -1 is below 0"),
        (["--walks", "-1"], "walks = -1 is below 0"),
        (["--max-lost-words", "2"], "max_lost_words = 2 is outside [0, 1]"),
        (["--agents", "nobody"], "nobody"),
        (["--student", "NOWHERE"], "does not exist"),
        (["--price", "0"], "price = 0 must be above 0"),
        (["--prompts", "EMPTY"], "holds 0 prompts"),
        (["--prompts", "LONG"], "has 200 tokens, the limit is 127"),
        (["--prompts", "LONG", "--skip-bad"], "no prompt has at most 127 tokens"),
        (["--lexicon", "EMPTY"], "holds 0 words"),
        (["--lexicon", "NONE"], "does not exist"),
        (["--lexicon", "UNKNOWN"], "line 2: the tokens of"),
        (["--lexicon", "LATIN"], "byte 3 is not UTF-8"),
        (["--out", "FILE"], "is a file; give another --out"),
    ],
)
def test_bad_input_is_one_clear_error(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"EMPTY": "\n", "LONG": "w5 " * 200, "UNKNOWN": "w5\nw6 Kestrel\n", "FILE": "x", "SOME": "w5\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "LATIN").write_bytes("w5\n\xe4".encode("latin-1"))
    teacher = save_tiny("gpt2", tmp_path / "teacher")
    given = [str(tmp_path / word) if word.isupper() else word for word in words]
    usual = ["--teacher", str(teacher), "--out", str(tmp_path / "out")]
    usual += [] if "--prompts" in words else ["--prompts", str(tmp_path / "SOME")]
    assert main(["coverage", *usual, *given]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_word_that_a_table_has_no_token_for_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("1 2\n9\n")
    with pytest.raises(command.InputError, match=r"l\.txt, line 2: '9' is no text of 'toy'"):
        read_lexicon(tmp_path / "l.txt", load_teacher("table:toy"))
