"""Learning on line, part by part: what is noticed, what is written down, who is asked."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.student import build_student
from envs.errors import InputError
from experiments.online.config import OnlineConfig, check
from experiments.online.desk import Chooser
from experiments.online.gate import limit
from experiments.online.journal import Journal, Log, lines
from experiments.online.show import held
from experiments.online.signals import LATELY, Bigrams, Lately, Usual, of_replies
from experiments.online.sources import Folder, Lines
from experiments.update.drift import FEATURES


def fine(text: str) -> str:
    return ""


def short(text: str) -> str:
    return "too long" if len(text) > 5 else ""


def opened(folder: Path, content: str | bytes) -> int:
    """An open file with this content, as standard input is."""
    path = folder / "stdin.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return os.open(path, os.O_RDONLY)


def test_surprise_by_hand() -> None:
    """Counted: 1 2, 1 3; V = 4. P(1) = 3/8, P(2) = P(3) = 2/8, P(0) = 1/8; P(2|1) = (1 + 2/8)/3, P(0|2) = P(0)."""
    found = Bigrams([[1, 2], [1, 3]], 4)
    assert found.surprise([1, 2]) == pytest.approx(-(math.log(3 / 8) + math.log(1.25 / 3)) / 2)
    assert found.surprise([2, 0]) == pytest.approx(-(math.log(2 / 8) + math.log(1 / 8)) / 2)
    after = [math.exp(-2 * found.surprise([1, token])) * 8 / 3 for token in range(4)]
    assert sum(after) == pytest.approx(1)


def test_ranks_and_conformal_p_by_hand() -> None:
    usual = Usual.of([3.0, 1.0, 2.0, 2.0])
    assert [usual.rank(value) for value in (0.0, 1.0, 2.0, 9.0)] == [0, 1 / 8, 1 / 2, 1]
    assert [usual.p(value) for value in (0.0, 2.0, 3.0, 9.0)] == [1, 4 / 5, 2 / 5, 1 / 5]


def test_usual_values_are_seldom_unlike() -> None:
    """P(p ≤ α) ≤ α for exchangeable values, whatever their distribution."""
    rng = np.random.default_rng(0)
    rare = [Usual.of(rng.exponential(size=99)).p(rng.exponential()) <= 0.05 for _ in range(4000)]
    assert 0.035 < np.mean(rare) < 0.06


def test_a_prompt_was_seen_lately_or_not() -> None:
    lately = Lately()
    assert [lately.see(text) for text in ("a", "b", "a", " a ")] == [0, 0, 1, 1]
    for number in range(LATELY):
        lately.see(str(number))
    assert lately.see("b") == 0


def test_signals_of_replies_against_the_model_itself() -> None:
    student = build_student("tiny", tokenizer=None, vocab_size=11, seed=3)
    prompts, replies = [[1, 2], [3]], [[4, 5, 4, 5, 4, 5], [6]]
    found = of_replies(student.model, prompts, replies)
    for own, prompt, reply in zip(found, prompts, replies, strict=True):
        with torch.no_grad():
            logp = student.model(torch.tensor([prompt + reply])).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
        assert own["entropy"] == pytest.approx(float(-(logp.exp() * logp).sum(-1).mean()), abs=1e-5)
        assert own["reply_length"] == len(reply)
    assert found[0]["repetition"] == pytest.approx(1 / 3) and found[1]["repetition"] == 0


def test_the_journal_hands_out_blocks_again_that_were_closed(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    journal = Journal(path)
    for place, text in enumerate(["a", "b", "c", "ü", "e"]):
        assert journal.accept(text, "file", place) == place
    journal.refuse("too long", "file", 5)
    assert journal.next(2) == (0, 0, ["a", "b"]) and journal.next(2) == (1, 2, ["c", "ü"])
    journal.close()
    with path.open("ab") as file:
        file.write(b'{"prompt": "cut o')
    again = Journal(path, after=1)
    assert again.next(9) == (1, 2, ["c", "ü"]) and again.next(9) == (2, 4, ["e"]) and again.next(9) is None
    assert again.taken == {"file": 6} and again.refused == 1 and again.count == 5
    assert again.accept("f", "file", 6) == 5
    again.close()
    assert [line for _, line in lines(path)][-1] == {"prompt": "f", "from": "file", "at": 6}


def test_a_log_drops_what_is_cut_and_what_comes_behind_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = Log(path)
    for number in range(4):
        log.add({"n": number})
    log.close()
    with path.open("ab") as file:
        file.write(b'{"n": 4')
    log = Log(path)
    assert log.count == 4
    log.close()
    log = Log(path, keep=2)
    log.add({"n": 9})
    log.close()
    assert [line["n"] for _, line in lines(path)] == [0, 1, 9]


def test_a_line_is_whole_or_not_there_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "prompts.jsonl"
    journal = Journal(path)
    journal.accept("a", "http")
    whole = journal._log._file

    class Full:
        """Takes half a line."""

        def __getattr__(self, name: str) -> object:
            return getattr(whole, name)

        def write(self, line: bytes) -> int:
            return whole.write(line[:9])

    monkeypatch.setattr(journal._log, "_file", Full())
    with pytest.raises(OSError, match="No space left"):
        journal.accept("b", "http")
    monkeypatch.setattr(journal._log, "_file", whole)
    assert journal.accept("c", "http") == 1
    journal.close()
    assert [line["prompt"] for _, line in lines(path)] == ["a", "c"]


def test_a_file_that_is_mended_is_read_whole(tmp_path: Path) -> None:
    folder = tmp_path / "stream"
    folder.mkdir()
    (folder / "a.txt").write_bytes("één\ntwee\n".encode("latin-1"))
    journal = Journal(tmp_path / "prompts.jsonl")
    source = Folder(folder, journal, fine, follow=True)
    for _ in range(3):
        source.pump(9, 0.0)
    assert journal.waiting == 0 and journal.refused == 1
    (folder / "a.txt").write_text("één\ntwee\n", encoding="utf-8")
    source.pump(9, 0.0)
    block = journal.next(9)
    assert block is not None and block.texts == ["één", "twee"]


def test_lines_that_no_parser_takes_are_passed_over(tmp_path: Path) -> None:
    deep, long = '{"a":' + "[" * 100_000, '{"prompt": "x", "a": ' + "9" * 5000 + "}"
    journal = Journal(tmp_path / "prompts.jsonl")
    source = Lines(journal, fine, opened(tmp_path, f"one\n{deep}\n{long}\ntwo\n"))
    while not source.over:
        source.pump(9, 1.0)
    assert journal.waiting == 2 and journal.refused == 2
    folder = tmp_path / "stream"
    folder.mkdir()
    (folder / "a.jsonl").write_text(f'{deep}\n{{"prompt": "three"}}\n{long}\n', encoding="utf-8")
    Folder(folder, journal, fine).pump(9, 0.0)
    assert journal.waiting == 3


def test_what_reading_raises_ends_the_run(tmp_path: Path) -> None:
    source = Lines(Journal(tmp_path / "prompts.jsonl"), fine, os.open(tmp_path, os.O_RDONLY))
    with pytest.raises(IsADirectoryError):
        for _ in range(100):
            source.pump(1, 0.1)


def test_a_redirected_file_is_gone_on_with_and_another_is_begun(tmp_path: Path) -> None:
    for text, count in (("one\ntwo\n", 2), ("one\ntwo\nthree\n", 3), ("eins\nzwei\n", 5)):
        journal = Journal(tmp_path / "prompts.jsonl")
        source = Lines(journal, fine, opened(tmp_path, text))
        while not source.over:
            source.pump(9, 1.0)
        assert journal.waiting == count
        journal.close()


def test_a_folder_is_read_in_order_and_not_twice(tmp_path: Path) -> None:
    folder = tmp_path / "stream"
    folder.mkdir()
    (folder / "b.txt").write_text("four\nfive\n", encoding="utf-8")
    (folder / "a.jsonl").write_text(
        '{"prompt": "one"}\nnonsense\n{"prompt": "far too long"}\n{"prompt": "two"}\n{"prompt": "three"}\n', "utf-8"
    )
    (folder / "c.txt.partial").write_text("six\n", encoding="utf-8")
    (folder / "empty.txt").write_text("\n", encoding="utf-8")
    journal = Journal(tmp_path / "prompts.jsonl")
    source = Folder(folder, journal, short)
    source.pump(2, 0.0)
    block = journal.next(2)
    assert block is not None and block.texts == ["one", "two"] and not source.over
    journal.close()
    journal = Journal(tmp_path / "prompts.jsonl", after=1)
    source = Folder(folder, journal, short)
    source.pump(9, 0.0)
    block = journal.next(9)
    assert block is not None and block.texts == ["three", "four", "five"] and source.over
    assert journal.refused == 2, "a prompt that is too long, and a file that holds none"
    following = Folder(folder, journal, short, follow=True)
    following.pump(9, 0.0)
    (folder / "d.txt").write_text("seven\n", encoding="utf-8")
    following.pump(9, 0.0)
    block = journal.next(9)
    assert block is not None and block.texts == ["seven"] and not following.over and journal.refused == 2


def test_lines_are_prompts_or_objects(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "prompts.jsonl")
    given = b'one\n\n{"prompt": "two"}\n{"text": "x"}\n\xff\xfe\nfar too long\nthree'
    source = Lines(journal, short, opened(tmp_path, given))
    while not source.over:
        source.pump(9, 1.0)
    block = journal.next(9)
    assert block is not None and block.texts == ["one", "two", "three"] and journal.refused == 3


def test_a_pipe_that_stays_open_ends_with_its_reader(tmp_path: Path) -> None:
    """Nothing comes any more, and nobody says so: a thread that waits for it must not outlive the run."""
    read, write = os.pipe()
    os.write(write, "één\ntw".encode())
    journal = Journal(tmp_path / "prompts.jsonl")
    source = Lines(journal, fine, read)
    source.pump(1, 5.0)
    os.write(write, b"ee\n")
    source.pump(2, 5.0)
    source.close()
    assert not source._thread.is_alive() and journal.waiting == 2
    block = journal.next(9)
    assert block is not None and block.texts == ["één", "twee"]
    os.close(write)
    os.close(read)


def test_lines_do_not_run_ahead_of_the_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.online.sources.AHEAD", 4)
    journal = Journal(tmp_path / "prompts.jsonl")
    source = Lines(journal, fine, opened(tmp_path, "x\n" * 50))
    source.pump(4, 5.0)
    time.sleep(0.1)
    assert journal.waiting == 4 and not source.over
    source.close()


def chooser(**settings: Any) -> Chooser:
    return Chooser(replace(OnlineConfig(), **settings))


def entropies(values: Sequence[float]) -> list[dict[str, float]]:
    return [{"entropy": value, "surprise": -value} for value in values]


def test_the_teacher_is_asked_about_the_most_uncertain_and_some_by_chance() -> None:
    values, none = [0.1, 0.9, 0.5, 0.8], np.zeros((4, FEATURES), dtype=bool)
    asked = chooser(label=0.5, watched=0.5).chosen(0, range(4), entropies(values), none)
    assert asked[1] == 1 and len(asked[0]) == 2
    assert asked[0][1] == max(set(range(4)) - {asked[0][0]}, key=lambda row: values[row])
    drift = chooser(label=0.5, watched=0.5, label_by="drift").chosen(0, range(4), entropies(values), none)
    assert drift[0][1] == min(set(range(4)) - {drift[0][0]}, key=lambda row: values[row])
    assert chooser(label=0.5).chosen(0, [2], entropies(values), none)[0] == [2], "of those that may be asked about"


def test_shares_come_out_over_many_blocks() -> None:
    own, none = chooser(label=0.3, watched=0.25), np.zeros((5, FEATURES), dtype=bool)
    found = [own.chosen(number, range(5), entropies([0.0] * 5), none) for number in range(80)]
    assert sum(len(rows) for rows, _ in found) == 120 and sum(count for _, count in found) == 30


def test_leak_is_foreseen_from_earlier_labels() -> None:
    own, known = chooser(label=0.5, watched=1e-9, label_by="leak"), np.zeros((4, FEATURES), dtype=bool)
    known[:2, 7], known[2:, 9] = True, True
    own.learn(known, [0.1, 0.0, 0.6, 0.8])
    new = known[[2, 0, 3, 1]]
    assert own.chosen(1, range(4), entropies([9, 9, 0, 0]), new)[0] == [0, 2]
    again = chooser(label=0.5, watched=1e-9, label_by="leak")
    again.restore(own.state())
    assert again.chosen(2, range(4), entropies([9, 9, 0, 0]), new) == own.chosen(2, range(4), entropies([0] * 4), new)


def test_limits_of_the_usual_gate_by_hand() -> None:
    assert limit(0.25, "forward_kl", "at_most") == 0.275 and limit(2.0, "forward_kl", "at_most") == 2.2
    assert limit(0.5, "task_score", "at_least") == 0.45
    assert limit(0.99, "leak", "at_most") == 1, "a share"
    assert limit(3e-8, "leak", "at_most") == 1e-4, "what rounding leaves where every token is a candidate"


def test_when_the_updates_rested() -> None:
    def event(prompts: int, name: str, **more: str) -> dict[str, object]:
        return {"prompts": prompts, "event": name, **more}

    events = [
        event(10, "passed"),
        event(20, "alarm", state="learning"),
        event(20, "held"),
        event(30, "alarm", state="held"),
        event(40, "failed"),
        event(40, "held"),
        event(60, "resumed"),
        event(65, "alarm", state="learning"),
        event(70, "held"),
    ]
    assert held(events, 90) == [(20, 60), (70, 90)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": float("inf")}, "temperature = inf"),
        ({"updates": 9}, "--updates is not for learning on line"),
        ({"label": 1.5}, "label = 1.5 is outside [0, 1]"),
        ({"watched": 0.0}, "watched = 0.0 is outside (0, 1]"),
        ({"anchor": 1.0}, "anchor = 1.0 is outside [0, 1)"),
        ({"delta": float("nan")}, "delta = nan"),
        ({"block": 0}, "block = 0 is below 1"),
        ({"most_prompts": 0}, "most_prompts = 0"),
        ({"label_by": "mood"}, "label_by = 'mood' is none of uncertainty, leak, drift"),
        ({"temperature": -1.0}, "temperature = -1.0"),
        ({"teacher": "none"}, "--teacher"),
        ({"shard": True}, "--shard is not for learning on line"),
        ({"agent": "sb3:ppo"}, "walks an environment by itself"),
        ({"stream": "nowhere"}, "neither 'stdin', 'http' nor a folder"),
        ({"follow": True}, "--follow is of a folder"),
        ({"host": "0.0.0.0"}, "--host 0.0.0.0 is of --stream http"),
        ({"stream": "http", "port": 70000}, "port = 70000 is outside [0, 65535]"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        check(replace(OnlineConfig(), **settings))
    assert said in str(caught.value)


def test_a_journal_is_json_that_others_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "prompts.jsonl")
    journal.accept('two\nlines "quoted"', "http")
    journal.close()
    (line,) = (tmp_path / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["prompt"] == 'two\nlines "quoted"'
