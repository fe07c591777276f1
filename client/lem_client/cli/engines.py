"""The backends that can be started on this machine, and the worker program of each.

Each engine may have its own environment, because the pins of PyTorch, vLLM and TensorRT-LLM exclude one another. The
first of these has precedence: the program that `--worker BACKEND=PROGRAM` names, the environment `.venv-BACKEND` next
to the one that `lemctl` runs from (`make venv-vllm` creates it), the environment of `lemctl` itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from lem_client.cli.exits import UsageProblem
from lem_client.cli.processes import script
from lem_domain.backends.registry import BACKENDS, BackendName
from lem_domain.errors import LemError


def named_workers(given: Sequence[str]) -> dict[BackendName, Path]:
    """Parse `BACKEND=PROGRAM` options into the program of each backend.

    Raises:
        UsageProblem: an option has another form, or its program is not executable.
    """
    found = {}
    for one in given:
        name, equals, program = one.partition("=")
        if not equals or name not in set(BackendName):
            known = ", ".join(backend.value for backend in BackendName)
            raise UsageProblem(f"--worker {one} is not BACKEND=PROGRAM with a backend of {known}; correct it.")
        path = Path(program).expanduser().absolute()
        if not os.access(path, os.X_OK) or path.is_dir():
            raise UsageProblem(f"--worker {one}: {path} can't be run; name the lem-worker of that environment.")
        found[BackendName(name)] = path
    return found


def worker_of(backend: BackendName, named: Mapping[BackendName, Path], *, environment: Path | None = None) -> str:
    """The `lem-worker` program for a backend; `environment` is that of `lemctl`.

    Raises:
        LemError: this installation has no `lem-worker`.
    """
    own = _own_environment(backend, environment)
    return str(named.get(backend) or own or script("lem-worker"))


def installed(named: Mapping[BackendName, Path], *, environment: Path | None = None) -> tuple[BackendName, ...]:
    """The backends that can be started here: a worker program is known, or the engine is installed. Imports no engine.

    Raises:
        LemError: no backend can be started.
    """
    found = tuple(
        BackendName(spec.name)
        for spec in BACKENDS
        if BackendName(spec.name) in named
        or _own_environment(spec.name, environment)
        or (spec.modules and all(find_spec(name) for name in spec.modules))
    )
    if not found:
        raise LemError(
            "no engine is installed here; install one (`pip install 'llm-energy-measurement[pytorch]'`) "
            "or start with --backend simulated."
        )
    return found


def _own_environment(backend: str, environment: Path | None) -> Path | None:
    program = (environment or Path(sys.prefix)).parent / f".venv-{backend}" / "bin" / "lem-worker"
    return program if os.access(program, os.X_OK) else None
