"""A gate says what it asks, refuses what makes no sense, and fails a student that does not pass."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from envs.errors import InputError
from envs.prompts import Prompt
from envs.service_desk import Checks
from envs.table_teacher import toy
from envs.teachers import WARM_START
from experiments.__main__ import main
from experiments.evaluate import Evaluation, Exam, Findings
from experiments.gate import show
from experiments.gate.conditions import KNOWN, Condition, Gate, check_on, read_gate
from experiments.gate.judge import Case, Judgement, bound_of, critical_cases, failure_bound, judge
from experiments.per_prompt import mean, parts


def written(folder: Path, text: str) -> Path:
    path = folder / "gate.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def gate_of(folder: Path, *conditions: str, more: str = "") -> Gate:
    return read_gate(written(folder, f"{more}\nconditions:\n" + "".join(f"  - {{{own}}}\n" for own in conditions)))


def test_a_gate_is_read(tmp_path: Path) -> None:
    found = gate_of(
        tmp_path,
        "measure: critical_pass, at_least: 1",
        "measure: length, between: [2, 8]",
        "measure: task_score, slice: quote, at_least: 0.9, of: teacher",
        more="confidence: 0.9",
    )
    assert found.confidence == 0.9 and found.needs_teacher
    assert [own.limits for own in found.conditions] == [
        {"at_least": 1.0},
        {"at_least": 2.0, "at_most": 8.0},
        {"at_least": 0.9},
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("conditions: []", "at least one condition"),
        ("confidence: 0.9", "at least one condition"),
        ("limits: 3\nconditions: []", "no setting 'limits'"),
        ("conditions: [{measure: task_scor, at_least: 1}]", "did you mean task_score.*known: agreement"),
        ("conditions: [{measure: ece, slice: quote, at_least: 1}]", "of slice 'quote' does not exist.*known:.*leak"),
        ("conditions: [{measure: leak}]", "leak has no limit"),
        ("conditions: [leak]", "must be a mapping"),
        ("conditions: [{measure: leak, at_most: 1.5}]", r"at_most = 1.5 is outside \[0, 1\]"),
        ("conditions: [{measure: length, at_most: .nan}]", "is no limit"),
        ("conditions: [{measure: length, at_most: -1}]", r"outside \[0, inf\]"),
        ("conditions: [{measure: length, at_most: many}]", "must be float"),
        ("conditions: [{measure: length, between: [1]}]", "two limits"),
        ("conditions: [{measure: length, between: [9, 2]}]", "nothing is both"),
        ("conditions: [{measure: leak, at_least: .3}, {measure: leak, at_most: .2}]", "at least 0.3 and at most 0.2"),
        ("conditions: [{measure: leak, at_most: .3, of: start}]", "`of` is 'start'"),
        ("conditions: [{measure: speed_up, at_least: 2, of: teacher}]", "no value of the teacher's"),
        ("conditions: [{measure: leak, at_most: .3, at_most: .4}]", "the key 'at_most' again"),
        ("confidence: 95\nconditions: [{measure: leak, at_most: .3}]", "confidence = 95"),
        ("conditions: [", "is not YAML"),
        ("- 3", "must hold a mapping"),
    ],
)
def test_a_gate_that_makes_no_sense_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_gate(written(tmp_path, text))


def test_what_the_prompts_cannot_answer_is_refused_before_anything_is_measured() -> None:
    prompts = [Prompt("a", tags=("quote",))] * 4
    scored = [Prompt("a", tags=("quote",), checks=Checks(copied=("b",)))] * 4
    check_on(Gate((Condition("task_score", slice="quote", at_least=0.5), Condition("leak", at_most=0.5))), scored, None)
    for own, said in (
        (Condition("task_score", slice="cancel", at_least=0.5), "slices here: quote, rare words"),
        (Condition("critical_pass", at_least=1.0), "none of these 4 prompts"),
        (Condition("price_of_million", at_most=1.0), "--price"),
        (Condition("task_score", at_least=0.5), "asks for task_score, and none of these 4 prompts has `copied`"),
        (Condition("rare_recall", slice="quote", at_least=0.5), "none of these 4 prompts of slice 'quote' has `rare`"),
        (Condition("rouge_l", at_least=0.5), "none of these 4 prompts has a reference"),
    ):
        with pytest.raises(InputError, match=said):
            check_on(Gate((own,)), prompts, None)


PROMPTS = [
    Prompt("1", tags=("critical",), checks=Checks(required=("2", "3"))),
    Prompt("1 1", tags=("quote",), checks=Checks(copied=("4",))),
    Prompt("2\x00", tags=("critical",), checks=Checks(required=("5",))),
]


def evaluation() -> Evaluation:
    """A student that forgets a phrase of the first critical message, and a teacher that does not."""
    exam = Exam(PROMPTS, [[1], [1, 1], [2]], [], [])
    own = parts({"critical_pass": [0.0, None, 1.0]}, [[2], [4], [5]], [[2], [4], [5, 5, 0]])
    theirs = parts({"critical_pass": [1.0, None, 1.0]}, [[2, 3]] * 3, [[2, 3]] * 3)
    found = [Findings({n: mean(p) for n, p in each.items()}, {}, [[2], [4], [5]], each) for each in (own, theirs)]
    return Evaluation(found[0].measures | {"token_ms_1": 3.0, "teacher_token_ms_1": 2.0}, exam, *found)


def judged(*conditions: Condition, confidence: float | None = None) -> Judgement:
    return judge(Gate(conditions, confidence), evaluation(), toy())


def test_conditions_are_held_against_values_by_hand() -> None:
    found = judged(
        Condition("critical_pass", at_least=0.5),
        Condition("critical_pass", at_least=0.6, of="teacher"),
        Condition("length", between=(1.0, 5 / 3)),
        Condition("token_ms_1", at_most=1.4, of="teacher"),
    )
    values = [(own.name, own.value, own.limit, own.passed) for own in found.verdicts]
    assert values == [
        ("critical_pass ≥ 0.5", 0.5, 0.5, True),
        ("critical_pass ≥ 0.6 × teacher", 0.5, 0.6, False),
        ("length ≥ 1", 5 / 3, 1.0, True),
        ("length ≤ 1.66667", 5 / 3, 5 / 3, True),
        ("token_ms_1 ≤ 1.4 × teacher", 3.0, 2.8, False),
    ]
    assert not found.passed and found.cases_decide
    assert [case.missing for case in found.cases] == [("3",), ()]
    with pytest.raises(InputError, match="without a value"):
        judged(Condition("rouge_l", at_least=0.5))


def test_a_value_that_is_no_number_passes_nothing() -> None:
    found = evaluation()
    broken = replace(found, figures=found.figures | {"forward_kl": float("nan")})
    for own in (Condition("forward_kl", at_least=0.0), Condition("forward_kl", at_most=1.0)):
        assert not judge(Gate((own,)), broken, toy()).passed


def test_bounds_are_those_of_the_bootstrap() -> None:
    # Ten prompts, three of which pass: the share drawn is Binomial(10, .3)/10, whose 5 % quantile is .1, 95 % is .5.
    own = np.array([[1.0, 1.0]] * 3 + [[0.0, 1.0]] * 7)
    assert bound_of((own, None), "at_least", 0.2, None, 0.95) == pytest.approx(0.1)
    assert bound_of((own, None), "at_most", 0.2, None, 0.95) == pytest.approx(0.5)
    # Half of the teacher on every prompt: no draw tells a difference, paired as they are.
    teacher = own * [2.0, 1.0]
    assert bound_of((own, teacher), "at_least", 0.3, 0.5, 0.95) == pytest.approx(0.3)
    assert bound_of((own, np.roll(teacher, 4, 0)), "at_least", 0.3, 0.5, 0.95) < 0.1
    sure, unsure = (judged(Condition("length", at_most=2.0), confidence=c) for c in (None, 0.95))
    assert sure.passed and sure.verdicts[0].bound is None
    assert not unsure.passed and unsure.verdicts[0].bound == pytest.approx(7 / 3)  # (3, 3, 1) and above: 7 of 27 draws
    assert judged(Condition("token_ms_1", at_most=3.0), confidence=0.95).verdicts[0].bound is None
    assert (1 - failure_bound(19, 0.95)) ** 19 == pytest.approx(0.05)


def check_junit(root: ET.Element) -> None:
    """The structure that readers of JUnit XML ask for, and counts that are true."""
    assert root.tag == "testsuites" and {child.tag for child in root} == {"testsuite"}
    for node in (root, *root):
        tests, failed = node.findall(".//testcase"), node.findall(".//failure")
        counts = {name: int(node.attrib[name]) for name in ("tests", "failures", "errors")}
        assert counts == {"tests": len(tests), "failures": len(failed), "errors": 0} and node.attrib["name"]
    for test in root.iter("testcase"):
        assert test.attrib["classname"] and test.attrib["name"] and len(test) <= 1
        assert {child.tag for child in test} <= {"failure", "system-out"}
        assert all(failure.attrib["message"] and failure.attrib["type"] for failure in test.iter("failure"))


def test_junit_xml_is_well_formed_whatever_a_reply_holds() -> None:
    case = Case("a <b> & \x00", 'said "]]>" \ud800\x1b', ("ß",))
    found = replace(judged(Condition("critical_pass", at_least=1.0), Condition("length", at_most=9.0)), cases=(case,))
    root = ET.fromstring(show.junit(found))
    check_junit(root)
    assert [int(suite.attrib["failures"]) for suite in root] == [1, 1]
    assert "a <b> & \ufffd" in root.findtext(".//failure[@type='critical']", "")
    let_through = replace(found, cases_decide=False)
    check_junit(quiet := ET.fromstring(show.junit(let_through)))
    assert [int(suite.attrib["failures"]) for suite in quiet] == [1, 0]
    assert "lacks 'ß'" in show.text_of(found, None) and show.data_of(found)["critical"][0]["passed"] is False


def test_cases_without_a_required_phrase_are_no_cases() -> None:
    prompts = [Prompt("1", tags=("critical",)), Prompt("1", checks=Checks(required=("2",)))]
    assert critical_cases(prompts, ["", ""]) == ()


def test_the_command_ends_as_the_gate_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = ["evaluate", "--student", str(WARM_START), "--eval-prompts", "44", "--max-new-tokens", "4"]
    student += ["--price", "1", "--json", str(tmp_path / "found.json"), "--junit", str(tmp_path / "junit.xml")]
    assert main(student) == 2 and "--gate" in capsys.readouterr().err
    assert main([*student, "--gate", str(tmp_path / "none.yaml")]) == 2
    assert "does not exist" in capsys.readouterr().err
    asked = "conditions: [{measure: critical_pass, at_least: 1}, {measure: task_score, at_least: 0.5, of: teacher}]"
    assert main([*student, "--gate", str(written(tmp_path, asked))]) == 1
    printed = capsys.readouterr()
    assert "critical cases: 0 of 1 pass" in printed.out and "critical_pass ≥ 1" in printed.err
    found = json.loads((tmp_path / "found.json").read_text())
    assert {own["name"] for own in found["figures"]} == KNOWN  # so that a gate may name each, and no other
    assert found["gate"]["passed"] is False and len(found["gate"]["critical"]) == 1
    check_junit(ET.parse(tmp_path / "junit.xml").getroot())
    monkeypatch.setattr("experiments.evaluate.run", lambda *_: evaluation())
    assert main([*student, "--gate", str(written(tmp_path, "conditions: [{measure: length, at_most: 9}]"))]) == 0
