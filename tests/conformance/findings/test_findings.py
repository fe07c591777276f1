"""What every finding must keep: a severity, words with numbers, what to do, a row of the reference, a test of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lem_domain.results.findings import FindingCode, Severity
from lem_server.aggregation.findings import RULES
from lem_server.aggregation.findings.rule import Occurrence, Rule
from tools.reference.results import findings_page

EVERY = pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.code.value)
TESTS = Path(__file__).parents[2] / "unit" / "server" / "aggregation"


def test_the_codes_and_the_rules_are_the_same() -> None:
    assert set(RULES) == set(FindingCode)


@EVERY
def test_its_row_says_when_how_severe_and_what_to_do(rule: Rule) -> None:
    row = next(line for line in findings_page().splitlines() if line.startswith(f"| `{rule.code.value}` |"))
    assert rule.when in row and rule.severity.value in row and rule.remedy in row and rule.otherwise in row


@EVERY
def test_its_words_are_sentences_without_end(rule: Rule) -> None:
    """They are joined with others, and end with one full stop."""
    for words in (rule.when, rule.remedy, rule.otherwise):
        assert words == words.strip() and not words.endswith((".", ";"))
    assert rule.find.__doc__


@EVERY
def test_an_occurrence_has_the_rule_s_severity_and_remedy_unless_it_has_its_own(rule: Rule) -> None:
    plain = rule.finding(Occurrence("3 things were found", {"things": 3}))
    assert (plain.code, plain.severity, plain.numbers) == (rule.code, rule.severity, {"things": 3})
    assert plain.message == f"3 things were found; {rule.remedy.replace('`', '')}."
    own = rule.finding(Occurrence("one", severity=Severity.NOTE, remedy="do `that`"))
    assert (own.severity, own.message) == (Severity.NOTE, "one; do that.")


@EVERY
def test_a_test_reaches_it(rule: Rule) -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in TESTS.glob("test_*.py"))
    assert re.search(rf'FindingCode\.{rule.code.name}\b|"{rule.code.value}"', text)
