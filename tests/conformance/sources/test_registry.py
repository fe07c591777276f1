"""The registry of energy sources and what is derived from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lem_worker.sampler.sources import all_sources
from tools.source_names import FILE, module_text


@pytest.mark.parametrize("name", all_sources())
def test_every_source_runs_the_conformance_suite(name: str) -> None:
    text = Path(__file__).with_name(f"test_{name}.py").read_text()
    assert "(SourceConformance)" in text
    assert f'name = "{name}"' in text


def test_the_names_in_the_configuration_are_current() -> None:
    """`make reference` writes them."""
    assert FILE.read_text(encoding="utf-8") == module_text()
