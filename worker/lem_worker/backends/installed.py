"""Engines as the daemon sees them: whether one is installed and how its ranks start; imports no engine."""

from __future__ import annotations

from enum import StrEnum
from importlib.util import find_spec
from typing import NamedTuple

from lem_domain.config.experiment import BackendName
from lem_domain.engines import has_engine
from lem_domain.wire.workers import WorkerState, WorkerView


class LaunchMode(StrEnum):
    """How the ranks of an attempt are started."""

    ACCELERATE = "accelerate"
    """Several by `accelerate launch`; a single one by the daemon, because accelerate would add nothing."""
    DIRECT = "direct"
    """By the daemon."""


class Engine(NamedTuple):
    """The distribution that a backend needs, and how its ranks are started."""

    name: str
    modules: tuple[str, ...]
    how_to_get_it: str
    launch_mode: LaunchMode = LaunchMode.DIRECT


ENGINES = {
    BackendName.PYTORCH: Engine(
        name="PyTorch with transformers",
        modules=("torch", "transformers"),
        how_to_get_it="install llm-energy-measurement[pytorch] in this worker's environment",
        launch_mode=LaunchMode.ACCELERATE,
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


def launch_mode(backend: BackendName) -> LaunchMode:
    """How the ranks of a backend are started."""
    engine = ENGINES.get(backend)
    return LaunchMode.DIRECT if engine is None else engine.launch_mode


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
