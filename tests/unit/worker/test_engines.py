"""Which engines are installed here, and what to do about one that is not."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec

import pytest

from lem_domain.config.experiment import BackendName
from lem_worker.backends import installed as engines
from lem_worker.backends.installed import ENGINES, absence


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The modules that can be found."""
    names: set[str] = set()
    monkeypatch.setattr(engines, "find_spec", lambda name: ModuleSpec(name, None) if name in names else None)
    return names


def test_every_backend_with_an_engine_says_how_to_get_it() -> None:
    assert set(ENGINES) == set(BackendName) - {BackendName.SIMULATED}
    for engine in ENGINES.values():
        assert not engine.how_to_get_it.endswith(".")


@pytest.mark.parametrize("backend", list(ENGINES))
def test_an_engine_is_there_when_all_its_modules_are(installed: set[str], backend: BackendName) -> None:
    said = absence(backend)
    assert said is not None
    assert said.startswith(f"{ENGINES[backend].name} is not installed here; ")
    installed |= set(ENGINES[backend].modules)
    assert absence(backend) is None


def test_a_simulated_engine_is_always_there(installed: set[str]) -> None:
    assert absence(BackendName.SIMULATED) is None


def test_looking_imports_nothing() -> None:
    loaded = set(sys.modules)
    assert find_spec("torch") is not None
    assert absence(BackendName.PYTORCH) is None
    assert {name for name in set(sys.modules) - loaded if name.partition(".")[0] in ("torch", "transformers")} == set()
