"""The documents that say what is proved name tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from lem_domain.results.findings import FindingCode
from tools.reference.marks import Reach, UnreadableMark, reaches

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`((?:tests/)?[\w/]*test_\w+\.py)(?:::(\w+))?`")
FOLDERS = re.compile(r"`(tests/[\w/]+/)`")
DEFECTS = range(1, 43)


@cache
def names_in(path: Path) -> frozenset[str]:
    """The tests of a module, also those inside classes."""
    tree = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds) and node.name.startswith("test_"))


@pytest.mark.parametrize("page", ["defects.md", "guarantees.md", "measurement.md"])
def test_every_test_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    named = NAMED.findall(text)
    assert named or page == "measurement.md"
    for path, name in named:
        files = [ROOT / path] if path.startswith("tests/") else list((ROOT / "tests").rglob(path))
        assert files and all(file.is_file() for file in files), path
        assert not name or any(name in names_in(file) for file in files), f"{path}::{name}"
    for folder in FOLDERS.findall(text):
        assert list((ROOT / folder).glob("test_*.py")), folder


def test_every_known_way_to_measure_wrongly_has_its_row() -> None:
    lines = (ROOT / "docs" / "defects.md").read_text().splitlines()
    rows = {int(found[1]): line for line in lines if (found := re.match(r"\| (\d+) \|", line))}
    assert list(rows) == list(DEFECTS)


def test_the_method_reports_every_finding_s_criterion() -> None:
    text = (ROOT / "docs" / "reference" / "findings.md").read_text()
    told = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert sorted(told) == sorted(code.value for code in FindingCode)


def test_every_finding_is_reached_by_a_test_of_the_aggregation() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests/unit/server/aggregation").glob("test_*.py"))
    unreached = [
        code for code in FindingCode if f'"{code.value}"' not in tests and f"FindingCode.{code.name}" not in tests
    ]
    assert unreached == []


def test_every_finding_is_reached_end_to_end() -> None:
    """Through real processes, by a test that is marked with it and names it among what it asserts."""
    found = reaches(ROOT / "tests" / "e2e")
    assert [reach for reach in found if not reach.asserted] == []
    assert {reach.code for reach in found} == {code.value for code in FindingCode}


@pytest.mark.parametrize(
    "source",
    [
        "CODE = 'a'\n@pytest.mark.finds(CODE)\ndef test_one(): assert CODE",
        "@pytest.mark.finds()\ndef test_one(): ...",
        "pytestmark = pytest.mark.finds('a')",
    ],
)
def test_a_mark_that_no_one_could_check_is_refused(source: str, tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text(source)
    with pytest.raises(UnreadableMark):
        reaches(tmp_path)


def test_a_mark_counts_for_the_test_that_asserts_it(tmp_path: Path) -> None:
    source = "@pytest.mark.finds('a', 'b')\ndef test_one():\n    assert 'a' in codes"
    (tmp_path / "test_a.py").write_text(source)
    assert reaches(tmp_path) == (Reach("a", "test_a.py::test_one", True), Reach("b", "test_a.py::test_one", False))
