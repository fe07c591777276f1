"""Which engines are installed here, and what to do about one that is not."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec

import pytest

from lem_domain.backends.registry import BACKENDS
from lem_domain.backends.spec import BackendSpec
from lem_worker.backends import installed as engines
from lem_worker.backends.installed import absence

WITH_ENGINE = [pytest.param(spec, id=spec.name) for spec in BACKENDS if spec.modules]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The modules that can be found."""
    names: set[str] = set()
    monkeypatch.setattr(engines, "find_spec", lambda name: ModuleSpec(name, None) if name in names else None)
    return names


@pytest.mark.parametrize("spec", WITH_ENGINE)
def test_an_engine_is_there_when_all_its_modules_are(installed: set[str], spec: BackendSpec) -> None:
    said = absence(spec.name)
    assert said == f"{spec.title} is not installed here; {spec.install_hint}."
    installed |= set(spec.modules)
    assert absence(spec.name) is None


def test_a_simulated_engine_is_always_there(installed: set[str]) -> None:
    assert absence("simulated") is None


def test_looking_imports_nothing() -> None:
    loaded = set(sys.modules)
    assert find_spec("torch") is not None
    assert absence("pytorch") is None
    assert {name for name in set(sys.modules) - loaded if name.partition(".")[0] in ("torch", "transformers")} == set()
