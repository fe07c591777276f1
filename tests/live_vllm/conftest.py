"""Tests of the vLLM backend on the live engine: run by `make test-vllm` in `.venv-vllm`, collected nowhere else.

`tests/conftest.py` needs the server's packages, which that environment can't have; `--confcutdir` leaves it out.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("vllm") is None:
    collect_ignore_glob = ["*.py"]


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built-in models, made once for both xdist workers; `LEM_CACHE_DIR` keeps them between sessions."""
    configured = os.environ.get("LEM_CACHE_DIR")
    base = tmp_path_factory.getbasetemp()
    return Path(configured) if configured else (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"


@pytest.fixture(scope="session")
def tiny(model_cache: Path) -> Path:
    """The folder of builtin:tiny-llama."""
    from lem_worker.models import resolve_model

    return Path(resolve_model("builtin:tiny-llama", cache_dir=model_cache).path_or_id)


@pytest.fixture(scope="session", autouse=True)
def _many_engines_in_one_process() -> None:
    """When an engine comes up, vLLM looks through the attributes of all modules for kernels, and llvmlite's library
    object, which n-gram speculation brings in, answers to any name. In a rank the engine comes first."""
    from llvmlite.binding.ffi import _lib_wrapper

    answer = _lib_wrapper.__getattr__

    def only_functions(library: Any, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return answer(library, name)

    _lib_wrapper.__getattr__ = only_functions


@pytest.fixture(autouse=True)
def _environment_as_before() -> Iterator[None]:
    """The backend sets variables for the engine; a test leaves none behind."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        with contextlib.suppress(KeyError):
            del os.environ[name]
    os.environ.update(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes half of the time comes first, so that one process runs it while the other runs the rest."""
    items.sort(key=lambda item: item.path.name != "test_service.py")
