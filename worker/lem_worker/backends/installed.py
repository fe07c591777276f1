"""Which engines are installed in this environment, seen without importing any."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

from lem_domain.config.experiment import BackendName
from lem_domain.engines import has_engine
from lem_domain.wire.workers import WorkerState, WorkerView


class Engine(NamedTuple):
    """What a backend needs."""

    name: str
    modules: tuple[str, ...]
    how_to_get_it: str


ENGINES = {
    BackendName.PYTORCH: Engine(
        name="PyTorch with transformers",
        modules=("torch", "transformers"),
        how_to_get_it="install llm-energy-measurement[pytorch] in this worker's environment",
    ),
    BackendName.VLLM: Engine(
        name="vLLM",
        modules=("vllm",),
        how_to_get_it="install llm-energy-measurement[vllm], or on the CPU `make venv-vllm`, in an environment of its "
        "own and start the worker from there, or run it in the image of Dockerfile.vllm",
    ),
    BackendName.TENSORRT: Engine(
        name="TensorRT-LLM",
        modules=("tensorrt_llm",),
        # It can't share an environment with the other engines, and its package index is NVIDIA's own.
        how_to_get_it="run the worker in NVIDIA's image (Dockerfile.trt), or `pip install "
        "'llm-energy-measurement[tensorrt]' --extra-index-url https://pypi.nvidia.com` into an environment of its own "
        "on a machine with an NVIDIA GPU of compute capability 8.0 or newer, and start it from there",
    ),
}


def absence(backend: BackendName) -> str | None:
    """One sentence when the backend's engine is not installed here, with what to install where; else None."""
    engine = ENGINES.get(backend)
    if engine is None or all(find_spec(module) is not None for module in engine.modules):
        return None
    return f"{engine.name} is not installed here; {engine.how_to_get_it}."


def is_served_elsewhere(backend: BackendName, workers: tuple[WorkerView, ...], *, own_id: str) -> bool:
    """Whether another worker is online that has this backend's engine."""
    if backend not in ENGINES:
        return False
    return any(
        worker.id != own_id
        and worker.backend == backend.value
        and worker.state is WorkerState.ONLINE
        and has_engine(backend, worker.versions)
        for worker in workers
    )
