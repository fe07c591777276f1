"""Finds the backends that can be started on this machine, and the worker program of each.

The pins of PyTorch, vLLM and TensorRT-LLM exclude one another, so an engine may need a separate environment. The
`lem-worker` of a backend is the first of:

- the program that `--worker BACKEND=PROGRAM` names,
- the one in `.venv-BACKEND` next to the environment of `lemctl` (`make venv-vllm` creates it),
- the one in the environment of `lemctl`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from lem_client.cli.exits import UsageError
from lem_client.cli.processes import script
from lem_domain.backends.registry import BACKENDS, BackendName
from lem_domain.errors import LemError


def named_programs(given: Sequence[str]) -> dict[BackendName, Path]:
    """Parse `BACKEND=PROGRAM` arguments.

    Raises:
        UsageError: one is malformed, or its program is not executable.
    """
    found = {}
    for one in given:
        name, equals, program = one.partition("=")
        if not equals or name not in set(BackendName):
            known = ", ".join(backend.value for backend in BackendName)
            raise UsageError(f"--worker {one} is not BACKEND=PROGRAM with a backend of {known}; correct it.")
        path = Path(program).expanduser().absolute()
        if not os.access(path, os.X_OK) or path.is_dir():
            raise UsageError(f"--worker {one}: {path} is not executable; name the lem-worker of that environment.")
        found[BackendName(name)] = path
    return found


def program_of(backend: BackendName, named: Mapping[BackendName, Path], *, environment: Path | None = None) -> str:
    """Return the `lem-worker` that serves a backend; `environment` is that of `lemctl`.

    Raises:
        LemError: none is installed.
    """
    return str(named.get(backend) or _separate_program(backend.value, environment) or script("lem-worker"))


def installed_backends(
    named: Mapping[BackendName, Path], *, environment: Path | None = None
) -> tuple[BackendName, ...]:
    """Return the backends with an installed engine or a separate worker program. Imports no engine.

    Raises:
        LemError: there is none.
    """
    found = tuple(
        BackendName(spec.name)
        for spec in BACKENDS
        if BackendName(spec.name) in named
        or _separate_program(spec.name, environment)
        or (spec.modules and all(find_spec(name) for name in spec.modules))
    )
    if not found:
        raise LemError(
            "no engine is installed here; install one (`pip install 'llm-energy-measurement[pytorch]'`) "
            "or start with --backend simulated."
        )
    return found


def _separate_program(backend: str, environment: Path | None) -> Path | None:
    folder = (environment or Path(sys.prefix)).parent / f".venv-{backend}"
    program = folder / "bin" / "lem-worker"
    return program if os.access(program, os.X_OK) else None
