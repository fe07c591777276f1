"""`make gpu-check` writes its report where the page said that there was none."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]

_spec = importlib.util.spec_from_file_location("validation_page", ROOT / "benchmarks" / "validation_page.py")
assert _spec is not None
assert _spec.loader is not None
validation_page = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(validation_page)

ENTRY = '### NVIDIA H200, 2026-11-29\n\n```json\n{"gpu": 1}\n```\n'


def written(page: str, title: str = "NVIDIA H200, 2026-11-29") -> str:
    text: str = validation_page.with_report(page, title, '{"gpu": 1}')
    return text


def test_the_page_no_longer_says_that_no_gpu_has_been_at_hand() -> None:
    page = (ROOT / "docs" / "validation.md").read_text()
    assert f"{validation_page.SECTION}\n" in page
    found = written(page)
    assert "Not yet" not in found
    assert found.endswith(f"\n\n{ENTRY}")
    assert "`make gpu-check` on a machine with one measures" in found
    assert found.count(validation_page.SECTION) == 1


def test_a_second_report_comes_behind_the_first_and_inside_the_section() -> None:
    page = "# V\n\n## On a real GPU\n\nNot yet: no GPU has been available. How.\n\n## Later\n\nmore\n"
    twice = written(written(page), "NVIDIA L4, 2026-12-01")
    second = ENTRY.replace("H200, 2026-11-29", "L4, 2026-12-01")
    assert twice == f"# V\n\n## On a real GPU\n\nHow.\n\n{ENTRY}\n{second}\n## Later\n\nmore\n"


def test_a_page_without_the_section_gets_it() -> None:
    assert written("# V\n") == f"# V\n\n## On a real GPU\n\n{ENTRY}"
    assert written("") == f"## On a real GPU\n\n{ENTRY}"
