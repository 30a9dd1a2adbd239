"""A judgement as text, as plain data and as JUnit XML."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import asdict
from typing import Any

from experiments.gate.judge import Case, Judgement, Verdict, failure_bound
from experiments.report import aligned

ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 has no way to write (its section 2.2)."""
CONDITIONS, CRITICAL = "tdistill.gate", "tdistill.critical"


def text_of(found: Judgement, confidence: float | None) -> str:
    """Every condition and every critical case with pass or FAIL."""
    heads = ["condition", "value", *(["bound"] if confidence else []), "limit", ""]
    lines = [heads]
    for own in found.verdicts:
        bound = [] if not confidence else ["none" if own.bound is None else f"{own.bound:.4g}"]
        lines.append([own.name, f"{own.value:.4g}", *bound, f"{own.limit:.4g}", _word(own.passed)])
    said = [aligned(lines, False)]
    if confidence:
        said.append(
            f"bound: end of a one-sided {confidence:.0%} interval, bootstrap over prompts; held against the limit"
        )
    said += ["", f"critical cases: {sum(case.passed for case in found.cases)} of {len(found.cases)} pass"]
    if confidence and found.cases and all(case.passed for case in found.cases):
        most = failure_bound(len(found.cases), confidence)
        said.append(f"(all of so few: at {confidence:.0%} up to {most:.1%} of such cases may still fail)")
    for number, case in enumerate(found.cases, 1):
        lacks = "" if case.passed else f"   lacks {', '.join(map(repr, case.missing))}"
        said.append(f"{_word(case.passed)}  {number:3}  {' '.join(case.prompt.split())[:90]}{lacks}")
    return "\n".join(said)


def data_of(found: Judgement) -> dict[str, Any]:
    """The same as `--json` writes it."""
    cases = [{**asdict(case), "passed": case.passed} for case in found.cases]
    return {"passed": found.passed, "conditions": [asdict(own) for own in found.verdicts], "critical": cases}


def junit(found: Judgement) -> bytes:
    """JUnit XML: a suite of the conditions, a suite of the critical cases.

    A critical case that fails is a failure where a condition on `critical_pass` is not met; where the gate lets it
    through, what it lacks stands in its `system-out`.
    Source: the schema that Jenkins and GitLab read (testsuites / testsuite / testcase / failure).
    """
    root = ET.Element("testsuites", name="tdistill evaluate")
    suites = {
        CONDITIONS: [_of_verdict(own) for own in found.verdicts],
        CRITICAL: [_of_case(case, number, found.cases_decide) for number, case in enumerate(found.cases, 1)],
    }
    totals = {"tests": 0, "failures": 0}
    for name, tests in suites.items():
        failures = sum(test.find("failure") is not None for test in tests)
        counts = {"tests": len(tests), "failures": failures}
        suite = ET.SubElement(root, "testsuite", {"name": name, "errors": "0", "skipped": "0", **_texts(counts)})
        suite.extend(tests)
        totals = {key: totals[key] + count for key, count in counts.items()}
    root.attrib |= {**_texts(totals), "errors": "0"}
    ET.indent(root)
    body: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return body + b"\n"


def _of_verdict(own: Verdict) -> ET.Element:
    bound = "" if own.bound is None else f", bound {own.bound:.6g}"
    said = f"value {own.value:.6g}{bound}, limit {own.limit:.6g}"
    test = _test(CONDITIONS, own.name)
    if own.passed:
        ET.SubElement(test, "system-out").text = said
    else:
        ET.SubElement(test, "failure", message=_legal(f"{own.name}: {said}"), type="condition").text = said
    return test


def _of_case(case: Case, number: int, decides: bool) -> ET.Element:
    test = _test(CRITICAL, f"{number} {' '.join(case.prompt.split())[:120]}")
    if not case.passed:
        lacks = f"the reply lacks {', '.join(map(repr, case.missing))}"
        text = _legal(f"{lacks}\nprompt: {case.prompt}\nreply: {case.reply}")
        if decides:
            ET.SubElement(test, "failure", message=_legal(lacks), type="critical").text = text
        else:
            ET.SubElement(test, "system-out").text = text
    return test


def _test(suite: str, name: str) -> ET.Element:
    return ET.Element("testcase", classname=suite, name=_legal(name))


def _legal(text: str) -> str:
    return ILLEGAL.sub("\ufffd", text)


def _texts(counts: dict[str, int]) -> dict[str, str]:
    return {name: str(count) for name, count in counts.items()}


def _word(passed: bool) -> str:
    return "pass" if passed else "FAIL"
