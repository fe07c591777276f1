"""Which backends can be started on this machine, and by which worker: each engine may have an environment of its own.

The pins of PyTorch, vLLM and TensorRT-LLM exclude one another. A worker is therefore looked for in three places, the
first that has it wins: what `--worker BACKEND=PROGRAM` names, the environment `.venv-BACKEND` beside the one that
`lemctl` runs from (as `make venv-vllm` makes it), and the environment of `lemctl` itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from lem_client.cli.exits import UsageProblem
from lem_client.cli.processes import script
from lem_domain.config.experiment import BackendName
from lem_domain.errors import LemError

_NEEDS = {
    BackendName.PYTORCH: ("torch", "transformers"),
    BackendName.VLLM: ("vllm",),
    BackendName.TENSORRT: ("tensorrt_llm",),
    BackendName.SIMULATED: (),
}


def named_workers(given: Sequence[str]) -> dict[BackendName, Path]:
    """From `BACKEND=PROGRAM` to the program of each backend.

    Raises:
        UsageProblem: one is not of that form, or its program can't be run.
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


def worker_of(backend: BackendName, named: Mapping[BackendName, Path], *, beside: Path | None = None) -> str:
    """The `lem-worker` that serves a backend; `beside` is the environment of `lemctl`.

    Raises:
        LemError: this installation has none.
    """
    own = _own_environment(backend, beside)
    return str(named.get(backend) or own or script("lem-worker"))


def installed(named: Mapping[BackendName, Path], *, beside: Path | None = None) -> tuple[BackendName, ...]:
    """The engines that are there, without importing them; what has a worker of its own counts as there.

    Raises:
        LemError: there is none.
    """
    found = tuple(
        backend
        for backend, needs in _NEEDS.items()
        if backend in named or _own_environment(backend, beside) or (needs and all(find_spec(name) for name in needs))
    )
    if not found:
        raise LemError(
            "no engine is installed here; install one (`pip install 'llm-energy-measurement[pytorch]'`) "
            "or start with --backend simulated."
        )
    return found


def _own_environment(backend: BackendName, beside: Path | None) -> Path | None:
    program = (beside or Path(sys.prefix)).parent / f".venv-{backend.value}" / "bin" / "lem-worker"
    return program if os.access(program, os.X_OK) else None
