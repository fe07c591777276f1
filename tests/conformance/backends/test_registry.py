"""Every registered backend has a conformance test."""

from __future__ import annotations

from pathlib import Path

import pytest

from lem_domain.backends.registry import BACKENDS, BackendName

TESTS = Path(__file__).parents[2]


@pytest.mark.parametrize("name", [spec.name for spec in BACKENDS])
def test_a_backend_has_a_conformance_test(name: str) -> None:
    files = [*TESTS.glob("conformance/backends/test_*.py"), *TESTS.glob("live_*/test_conformance.py")]
    assert any(f'    name = "{name}"\n' in file.read_text() for file in files)


def test_backends_are_listed_with_the_simulated_one_last() -> None:
    assert [name.value for name in BackendName] == [*sorted(set(BackendName) - {"simulated"}), "simulated"]
