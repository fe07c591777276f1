"""Which engines and packages are installed in this environment; imports no engine."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from lem_domain.backends.registry import backend_spec, has_engine
from lem_domain.wire.workers import WorkerState, WorkerView


def absence(backend: str) -> str | None:
    """One sentence that says how to install the backend's engine; None where it is installed."""
    spec = backend_spec(backend)
    # Only searched for: the daemon must not import an engine, which may initialise CUDA in its process.
    if all(find_spec(module) is not None for module in spec.modules):
        return None
    return f"{spec.title} is not installed here; {spec.install_hint}."


def is_served_by_another(backend: str, workers: tuple[WorkerView, ...], *, own_id: str) -> bool:
    """Whether another online worker has this backend's engine; False for a backend that needs no engine."""
    if not backend_spec(backend).modules:
        return False
    return any(
        worker.id != own_id
        and worker.backend == backend
        and worker.state is WorkerState.ONLINE
        and has_engine(backend, worker.versions)
        for worker in workers
    )


def version_of(distribution: str) -> str | None:
    """The version of an installed package; None without it."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
